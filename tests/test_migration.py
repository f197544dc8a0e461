"""Code that was written for cjm-fasthtml-workers: what works as it is, and what errors say of the rest."""

import pickle
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
from harness import manager

from cjm_worker_protocols import BaseJobManager, Job, JobManager, WorkerConfig
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.managers.hooks import Hooks


def load() -> "dict[str, Any]":
    """A loader."""
    return {"echo": lambda x: x}


def test_a_manager_of_a_job_type() -> None:
    """`BaseJobManager[MyJob]` is a base class as any other."""

    class Mine(BaseJobManager[Job]):  # type: ignore[type-arg]
        def get_plugin_loader(self) -> Any:
            return load

    assert issubclass(Mine, BaseJobManager) and BaseJobManager in Mine.__mro__ and isinstance(Mine("a", "b"), BaseJobManager)
    assert issubclass(type("Other", (JobManager,), {}), JobManager)


@pytest.mark.parametrize("base", [BaseJobManager, JobManager])
def test_an_entry_point_is_refused(base: Any) -> None:
    """It would never be called: the error says what to define."""
    cls = type("SummaryManager", (base,), {"get_worker_entry_point": lambda self: load})
    given: "dict[str, Any]" = {"plugins": {}} if base is JobManager else {}
    with pytest.raises(errors.RenamedHookError, match="SummaryManager defines get_worker_entry_point.*get_plugin_loader"):
        cls("a", "b", **given)


class Resources:
    """Notes what is loaded."""

    def __init__(self) -> None:
        self.loaded: "list[Any]" = []

    def register_worker(self, pid: int, worker_type: str) -> None: ...
    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, status: Any = None, job_id: Any = None, plugin_name: Any = None, plugin_id: Any = None,
                            loaded_plugin_resource: Any = None, config: Any = None) -> None:
        """Note it."""
        if plugin_id is not None:
            self.loaded.append(loaded_plugin_resource)


class Registry:
    """One plugin with a config."""

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        return {"id": plugin_id, "name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        return {"size": "large", "model": "base"}


@pytest.mark.parametrize(
    ("hook", "expected"),
    [(None, {"base"}), (lambda self, config: "own-" + config.pop("size"), {"own-large"}), (lambda self, config: 1 / 0, {None})],
    ids=["default", "own", "raises"],
)
async def test_a_plugins_resource_is_named_by_the_hook(hook: Any, expected: "set[Any]") -> None:
    """What it returns reaches the resource manager; what it raises is counted, and hurts no job."""
    cls = type("Mine", (JobManager,), {"_extract_plugin_resource_identifier": hook} if hook else {})
    resources = Resources()
    async with manager("echo", cls=cls, resource_manager=resources, plugin_registry=Registry()) as m:
        assert await (await m.start_job("echo", x=1)) == await (await m.start_job("echo", x=1)) == 1
    assert set(resources.loaded) == expected
    assert bool(m.integration_errors) == (expected == {None})


@pytest.mark.parametrize(
    ("old", "new"),
    [("restart_policy", "restart"), ("max_restart_attempts", "max_restarts"), ("restart_backoff_max_seconds", "backoff_max"),
     ("request_queue_size", "max_pending"), ("max_worker", "max_workers"), ("response_queue_size", "not needed"), ("x", "max_workers, ")],
)
def test_old_settings(old: str, new: str) -> None:
    """The error names the new one."""
    settings: "dict[str, Any]" = {old: 1}
    with pytest.raises(errors.UnknownSettingError, match=f"no setting '{old}': .*{new}") as caught:
        WorkerConfig(**settings)
    assert isinstance(caught.value, TypeError)


def test_a_config_is_still_plain_data() -> None:
    """It can be copied, pickled and replaced."""
    config = WorkerConfig(max_workers=3)
    assert copy(config) == pickle.loads(pickle.dumps(config)) == replace(config, max_workers=3) == config


@pytest.mark.parametrize("cls", [BaseJobManager, JobManager, Job])
def test_each_method_says_where_it_may_be_called(cls: Any) -> None:
    """On the manager's event loop, or on any thread."""
    for name, thing in vars(cls).items():
        method = not name.startswith("_") and (callable(thing) or isinstance(thing, property))
        if method and not hasattr(Hooks, name) and name != "dropped_chunks":
            doc = (thing.__doc__ or "").lower()
            assert "loop" in doc or "thread" in doc, f"{cls.__name__}.{name}: {doc}"
