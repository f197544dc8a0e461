"""The ready integrations without our manager: each by itself, and injected into a manager that is not ours."""

import asyncio
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
from repo import python, said

from cjm_worker_protocols.integrations.registry import EntryPointRegistry
from cjm_worker_protocols.integrations.resources import ClearingAdapter, ProcessResourceManager
from cjm_worker_protocols.integrations.sse import SSEBroadcaster

pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install -e '.[registry]'")
SPAWN = multiprocessing.get_context("spawn")
SCHEMA = {"properties": {"model": {"type": "string", "default": "tiny"}, "api_key": {"type": "string", "writeOnly": True}}}


@pytest.mark.parametrize("module", ["registry", "resources", "admission", "sse", "redis"])
def test_an_integration_imports_no_manager(module: str, tmp_path: Path) -> None:
    """Whoever takes one of them gets the contract, and neither the worker system nor another integration that it does not build on."""
    code = f"""
import sys
import cjm_worker_protocols.integrations.{module}
ours = {{name.removeprefix("cjm_worker_protocols.") for name in sys.modules if name.startswith("cjm_worker_protocols.")}}
assert not [name for name in ours if name.startswith(("managers", "conformance"))], ours
assert not {{"engines.local", "worker.main", "cli"}} & set(ours), ours
uses = {{"admission": "resources", "redis": "sse"}}
others = {{"registry", "resources", "admission", "sse", "redis"}} - {{{module!r}, uses.get({module!r})}}
assert not any(f"integrations.{{name}}" in ours for name in others), ours
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, said(done)


def work(requests: Any, results: Any, configs: "dict[str, dict[str, Any]]") -> None:
    """In the process of a worker: run jobs until told to stop."""
    for job_id, name, parameters in iter(requests.get, None):
        shown = {key: value + "" for key, value in configs.get(name, {}).items()}
        results.put((job_id, {"config": shown, **parameters}))


class ForeignManager:
    """A job manager in the manner of cjm-fasthtml-workers: `multiprocessing`, a thread for results, updates of what has changed."""

    def __init__(self, plugin_registry: Any = None, resource_manager: Any = None, event_broadcaster: Any = None) -> None:
        self.plugin_registry, self.resource_manager, self.event_broadcaster = plugin_registry, resource_manager, event_broadcaster
        self.results: "dict[str, Any]" = {}
        self.requests, self.answers = SPAWN.Queue(), SPAWN.Queue()
        configs = {}
        if plugin_registry:
            for plugin in plugin_registry.get_plugins_by_category("text"):
                if plugin.is_configured:
                    configs[plugin.name] = plugin_registry.load_plugin_config(plugin.get_unique_id())
        self.process = SPAWN.Process(target=work, args=(self.requests, self.answers, configs), daemon=True)
        self.process.start()
        self.pid = self.process.pid or 0
        if resource_manager:
            resource_manager.register_worker(pid=self.pid, worker_type="text")
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        """On the thread: every result makes the worker idle."""
        for job_id, result in iter(self.answers.get, None):
            if self.resource_manager:
                self.resource_manager.update_worker_state(pid=self.pid, status="idle")
            self.results[job_id] = result

    async def start_job(self, job_id: str, plugin_id: str, **parameters: Any) -> None:
        """Send a job to the worker, and tell everybody."""
        name, config = plugin_id, {}
        if self.plugin_registry:
            found = self.plugin_registry.get_plugin(plugin_id)
            if found is None:
                raise ValueError(f"Plugin {plugin_id} not found")
            name, config = found.name, self.plugin_registry.load_plugin_config(plugin_id)
        if self.resource_manager:
            self.resource_manager.update_worker_state(
                pid=self.pid,
                job_id=job_id,
                plugin_name=name,
                plugin_id=plugin_id,
                loaded_plugin_resource=config.get("model", "unknown"),
                config=config,
                status="running",
            )
        self.requests.put((job_id, name, parameters))
        if self.event_broadcaster:
            await self.event_broadcaster.broadcast("text:started", {"job_id": job_id, "plugin_id": plugin_id})

    async def result(self, job_id: str) -> Any:
        """Wait for a job."""
        for _ in range(3000):
            if job_id in self.results:
                return self.results[job_id]
            await asyncio.sleep(0.01)
        raise TimeoutError(job_id)

    def unload(self) -> None:
        """Everything that a plugin held is gone."""
        gone = dict.fromkeys(("plugin_name", "plugin_id", "loaded_plugin_resource", "config"))
        if self.resource_manager:
            self.resource_manager.update_worker_state(pid=self.pid, status="idle", **gone)

    def shutdown(self) -> None:
        """End the thread and the worker."""
        self.answers.put(None)
        self.thread.join(10)
        if self.resource_manager:
            self.resource_manager.unregister_worker(self.pid)
        self.requests.put(None)
        self.process.join(10)


NAMES = ("plugin_registry", "resource_manager", "event_broadcaster")


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES], ids=" ".join)
def test_in_a_manager_that_is_not_ours(names: "tuple[str, ...]", tmp_path: Path) -> None:
    """Each alone, and all three together, do there what they do here."""
    registry = EntryPointRegistry(groups={"text": "nobodys.group"}, config_dir=tmp_path / "config")
    registry.register("echo", "app:Echo", name="Echo", schema=SCHEMA)
    registry.save_plugin_config("echo", {"api_key": "hush"})
    resources, broadcaster = ProcessResourceManager(), SSEBroadcaster()
    every = dict(zip(NAMES, (registry, resources, broadcaster)))
    events = broadcaster.subscribe()

    async def scenario() -> None:
        manager = ForeignManager(**{name: every[name] for name in names})
        try:
            await manager.start_job("job-1", "echo", text="hi")
            knows = "plugin_registry" in names
            config = {"model": "tiny", "api_key": "hush"} if knows else {}
            assert await manager.result("job-1") == {"config": config, "text": "hi"}
            if knows:
                with pytest.raises(ValueError, match="Plugin nope not found"):
                    await manager.start_job("job-2", "nope")
            heard = [(event.type, event.json()) for event in events.take()]
            assert heard == ([("text:started", {"job_id": "job-1", "plugin_id": "echo"})] if "event_broadcaster" in names else [])
            if "resource_manager" in names:
                (worker,) = resources.snapshot().workers
                assert (worker.pid, worker.status, worker.job_id, worker.plugin_id) == (manager.pid, "idle", None, "echo")
                assert worker.loaded_plugin_resource == ("tiny" if knows else "unknown") and worker.usage.rss
                assert "hush" not in f"{worker} {resources.snapshot()._repr_html_()} {resources.snapshot().prometheus()}"
                manager.unload()
                (worker,) = resources.snapshot().workers
                assert (worker.plugin_name, worker.plugin_id, worker.loaded_plugin_resource, worker.config) == (None, None, None, None)
        finally:
            manager.shutdown()
        assert resources.snapshot().workers == resources.snapshot().lost == ()

    asyncio.run(scenario())


def test_an_adapter_in_a_manager_that_is_not_ours() -> None:
    """One that cannot clear ends in the right state there too, although it is told only what has changed."""

    class NeverForgets:
        def __init__(self) -> None:
            self.workers: "dict[int, dict[str, Any]]" = {}

        def register_worker(self, pid: int, worker_type: str) -> None:
            self.workers[pid] = {}

        def unregister_worker(self, pid: int) -> None:
            self.workers.pop(pid, None)

        def update_worker_state(self, pid: int, **state: Any) -> None:
            self.workers[pid].update({name: value for name, value in state.items() if value is not None})

    inner = NeverForgets()

    async def scenario() -> None:
        manager = ForeignManager(resource_manager=ClearingAdapter(inner))  # type: ignore[arg-type]
        try:
            await manager.start_job("job-1", "echo", text="hi")
            await manager.result("job-1")
            assert inner.workers[manager.pid]["status"] == "idle" and "job_id" not in inner.workers[manager.pid]
            manager.unload()
            told = inner.workers[manager.pid]
            assert "job_id" not in told
            assert told["status"] == "idle" and not told.get("plugin_id") and not told.get("loaded_plugin_resource")
        finally:
            manager.shutdown()
        assert inner.workers == {}

    asyncio.run(scenario())
