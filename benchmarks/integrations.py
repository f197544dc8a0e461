"""All three integrations, as simple as they can be: what they cost is what calling them costs."""

from collections import deque
from types import SimpleNamespace
from typing import Any, Dict, Optional


class Registry:
    """One plugin, one configuration."""

    def __init__(self) -> None:
        self._plugin = SimpleNamespace(id="noop", name="noop")

    def get_plugins_by_category(self, category: Any) -> list:  # type: ignore[type-arg]
        return [self._plugin]

    def get_plugin(self, plugin_id: str) -> Any:
        return self._plugin if plugin_id == "noop" else None

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return {"model": "none"}


class Resources:
    """The last state of each worker."""

    def __init__(self) -> None:
        self.workers: Dict[int, Dict[str, Any]] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.workers[pid] = {"type": worker_type}

    def unregister_worker(self, pid: int) -> None:
        self.workers.pop(pid, None)

    def update_worker_state(
        self,
        pid: int,
        status: Optional[str] = None,
        job_id: Optional[str] = None,
        plugin_name: Optional[str] = None,
        plugin_id: Optional[str] = None,
        loaded_plugin_resource: Optional[str] = None,
        config: Optional[Dict[str, Any]] = None,
    ) -> None:
        state = {"status": status, "job_id": job_id, "plugin_name": plugin_name, "plugin_id": plugin_id}
        self.workers[pid].update(state, loaded_plugin_resource=loaded_plugin_resource, config=config)


class Broadcaster:
    """The newest events."""

    def __init__(self) -> None:
        self.events: "deque[tuple[str, Dict[str, Any]]]" = deque(maxlen=1000)

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.events.append((event_type, data))


def all_three() -> "dict[str, Any]":
    """As a manager takes them."""
    return {"plugin_registry": Registry(), "resource_manager": Resources(), "event_broadcaster": Broadcaster()}
