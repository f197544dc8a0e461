"""A registry, a resource manager and a broadcaster as one writes them, which the kit finds nothing to say of."""

import copy
import json
from typing import Any

from cjm_worker_protocols.extensions.protocols import UNSET


class Registry:
    """A dict of plugins."""

    plugins = {f"plugin-{n}": {"id": f"plugin-{n}", "name": f"Plugin {n}", "category": "demo"} for n in range(10)}

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        """Those of a category."""
        return [plugin for plugin in self.plugins.values() if plugin["category"] == category]

    def get_plugin(self, plugin_id: str) -> Any:
        """One of them."""
        return self.plugins.get(plugin_id)

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        """Its config."""
        return {"model": "large"} if plugin_id in self.plugins else {}


class Resources:
    """A dict of workers."""

    def __init__(self) -> None:
        self.workers: "dict[int, dict[str, Any]]" = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        """A new record."""
        self.workers[pid] = {"type": worker_type}

    def unregister_worker(self, pid: int) -> None:
        """No record."""
        self.workers.pop(pid, None)

    def update_worker_state(
        self,
        pid: int,
        status: Any = UNSET,
        job_id: Any = UNSET,
        plugin_name: Any = UNSET,
        plugin_id: Any = UNSET,
        loaded_plugin_resource: Any = UNSET,
        config: Any = UNSET,
    ) -> None:
        """What is given."""
        given = dict(status=status, job_id=job_id, plugin_name=plugin_name, plugin_id=plugin_id)
        given.update(loaded_plugin_resource=loaded_plugin_resource, config=config)
        if pid in self.workers:
            copies = {k: copy.deepcopy(v) for k, v in given.items() if v is not UNSET}
            self.workers[pid].update(copies)


class Events:
    """A bounded list of texts for each client."""

    def __init__(self) -> None:
        self.clients: "dict[int, list[str]]" = {}

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        """Write it out once, and put it into each list that has room."""
        text = json.dumps([event_type, data])
        for waiting in self.clients.values():
            if len(waiting) < 100:
                waiting.append(text)


class Client:
    """Takes what waits."""

    def __init__(self, events: Events) -> None:
        self.events, self.got = events, list[Any]()
        events.clients[id(self)] = []

    def received(self) -> "list[Any]":
        """All that came."""
        waiting = self.events.clients.get(id(self), [])
        self.got += map(json.loads, waiting)
        waiting.clear()
        return self.got

    def close(self) -> None:
        """Leave."""
        del self.events.clients[id(self)]


ALL = [
    (Registry, "registry", lambda registry: ["demo"]),
    (Resources, "resources", lambda resources, pid: resources.workers.get(pid)),
    (Events, "events", Client),
]
