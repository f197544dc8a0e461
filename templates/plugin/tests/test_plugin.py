"""The plugin alone, and as users run it: found by its entry point, with its settings, in a worker process."""

import asyncio

import pytest
from babbler.plugin import Babbler

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.integrations.registry import EntryPointRegistry, PluginConfigError
from cjm_worker_protocols.worker.plugins import drive


def test_it_writes() -> None:
    """What it yields is the text; the same seed gives the same text."""
    plugin, words = Babbler(), []
    plugin.load({})
    result = drive(plugin.run(words=12, seed=3), words.append)
    assert "".join(words).strip() == result["text"] and len(words) == 12
    assert drive(plugin.run(words=12, seed=3), words.append) == result
    plugin.unload()


def test_bad_input_is_named() -> None:
    """An error says what was expected and what was given."""
    plugin = Babbler()
    with pytest.raises(FileNotFoundError, match="/no/such/file"):
        plugin.load({"text": "/no/such/file"})
    plugin.load({})
    with pytest.raises(ValueError, match="at least 1"):
        drive(plugin.run(words=0), print)


def test_settings() -> None:
    """The schema gives defaults, and refuses what it does not know."""
    assert EntryPointRegistry().load_plugin_config("babbler")["text"] == ""
    with pytest.raises(PluginConfigError):
        EntryPointRegistry(config={"babbler": {"txet": "a.txt"}}).load_plugin_config("babbler")


def test_in_a_worker() -> None:
    """It is found, streams, and keeps its model when a job is cancelled."""

    async def session() -> None:
        registry = EntryPointRegistry()
        async with JobManager("test", "test", plugins=registry.targets(), plugin_registry=registry) as manager:
            job = await manager.start_job("babbler", words=5, seed=1)
            assert len([word async for word in job.stream()]) == 5 and job.progress == 1.0
            endless = await manager.start_job("babbler", words=10**9)
            await endless.stream().__anext__()
            await manager.cancel_job(endless.id)
            again = await manager.start_job("babbler", words=5, seed=1)
            assert await again == await job and again.worker_pid == endless.worker_pid

    asyncio.run(session())
