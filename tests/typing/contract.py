"""Judged line by line by mypy --strict and by pyright: each line marked `# rejected` is an error, and no other line is.

`# rejected by pyright`: mypy does not compare the names of positional parameters, though the manager passes them by name.

`notebook_examples` is made from the cells of nbs/extensions/protocols.ipynb. This file is never run.
"""

from typing import Any, AsyncIterator, Dict, Iterator, List, Optional, Union

from notebook_examples import MyResourceManager, SimpleEventBroadcaster, SimplePluginRegistry, SimpleResourceManager

from cjm_worker_protocols import BaseJobManager, JobManager
from cjm_worker_protocols.extensions.protocols import (
    UNSET,
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
    Unset,
)

# What the notebook shows is an implementation of its own protocol, and of no other.

registry: PluginRegistryProtocol = SimplePluginRegistry()
resource_manager: ResourceManagerProtocol = SimpleResourceManager()
field_by_field: ResourceManagerProtocol = MyResourceManager()
broadcaster: EventBroadcasterProtocol = SimpleEventBroadcaster()

not_a_registry: PluginRegistryProtocol = SimpleResourceManager()  # rejected
not_a_resource_manager: ResourceManagerProtocol = SimpleEventBroadcaster()  # rejected
not_a_broadcaster: EventBroadcasterProtocol = SimplePluginRegistry()  # rejected


# What a caller may do with any implementation, and what with none.


def asks(registry: PluginRegistryProtocol) -> None:
    plugins: List[str] = [str(plugin) for plugin in registry.get_plugins_by_category("processing")]
    config: Dict[str, Any] = registry.load_plugin_config(plugin_id=plugins[0])
    registry.get_plugin(config["id"])
    registry.get_plugin(id="plugin-1")  # rejected
    registry.get_plugin()  # rejected


def tells(resource_manager: ResourceManagerProtocol) -> None:
    resource_manager.register_worker(pid=1, worker_type="text")
    resource_manager.update_worker_state(1)
    resource_manager.update_worker_state(1, "running", "job-1", "Whisper", "whisper", "large-v3", {"model": "large-v3"})
    resource_manager.update_worker_state(
        pid=1, status="idle", job_id=None, plugin_name=None, plugin_id=None, loaded_plugin_resource=None, config=None
    )
    resource_manager.unregister_worker(pid=1)
    resource_manager.update_worker_state(status="idle")  # rejected
    resource_manager.update_worker_state(1, job_id=7)  # rejected
    resource_manager.update_worker_state(1, status=UNSET)  # rejected


async def broadcasts(broadcaster: EventBroadcasterProtocol) -> None:
    await broadcaster.broadcast("job:started", {"job_id": "job-1"})
    await broadcaster.broadcast(event_type="job:started", data={})
    await broadcaster.broadcast("job:started")  # rejected
    broadcaster.broadcast("job:started", {})  # rejected


# Registries.


class LooseRegistry:
    def get_plugins_by_category(self, category: str) -> List[str]:
        return []

    def get_plugin(self, plugin_id: str, default: Optional[str] = None) -> Optional[str]:
        return default

    def load_plugin_config(self, plugin_id: object) -> Dict[str, Any]:
        return {}


class RegistryRenames(LooseRegistry):
    def get_plugin(self, id: str) -> Optional[str]:  # type: ignore # pyright: ignore
        return None


class RegistryLacksConfig:
    def get_plugins_by_category(self, category: Any) -> List[str]:
        return []

    def get_plugin(self, plugin_id: str) -> Optional[str]:
        return None


class RegistryYields(LooseRegistry):
    def get_plugins_by_category(self, category: Any) -> Iterator[str]:  # type: ignore # pyright: ignore
        yield ""


class RegistryMayHaveNoConfig(LooseRegistry):
    def load_plugin_config(self, plugin_id: object) -> Optional[Dict[str, Any]]:  # type: ignore # pyright: ignore
        return None


class RegistryIsAsync(LooseRegistry):
    async def load_plugin_config(self, plugin_id: object) -> Dict[str, Any]:  # type: ignore # pyright: ignore
        return {}


class RegistryCountsIds(LooseRegistry):
    def get_plugin(self, plugin_id: int) -> Optional[str]:  # type: ignore # pyright: ignore
        return None


loose_registry: PluginRegistryProtocol = LooseRegistry()
registry_renames: PluginRegistryProtocol = RegistryRenames()  # rejected by pyright
registry_lacks_config: PluginRegistryProtocol = RegistryLacksConfig()  # rejected
registry_yields: PluginRegistryProtocol = RegistryYields()  # rejected
registry_may_have_no_config: PluginRegistryProtocol = RegistryMayHaveNoConfig()  # rejected
registry_is_async: PluginRegistryProtocol = RegistryIsAsync()  # rejected
registry_counts_ids: PluginRegistryProtocol = RegistryCountsIds()  # rejected


# Resource managers.


class PlainDefaults:
    def register_worker(self, pid: int, worker_type: str) -> None: ...

    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(
        self,
        pid: int,
        status: Optional[str] = None,
        job_id: Optional[str] = None,
        plugin_name: Optional[str] = None,
        plugin_id: Optional[str] = None,
        loaded_plugin_resource: Optional[str] = None,
        config: Optional[Dict[str, Any]] = None,
    ) -> None: ...


class TakesAnything(PlainDefaults):
    def update_worker_state(self, *args: Any, **kwargs: Any) -> None: ...


class UpdateLacksConfig(PlainDefaults):
    def update_worker_state(  # type: ignore # pyright: ignore
        self,
        pid: int,
        status: Optional[str] = None,
        job_id: Optional[str] = None,
        plugin_name: Optional[str] = None,
        plugin_id: Optional[str] = None,
        loaded_plugin_resource: Optional[str] = None,
    ) -> None: ...


class UpdateNeedsStatus(PlainDefaults):
    def update_worker_state(  # type: ignore # pyright: ignore
        self,
        pid: int,
        status: Optional[str],
        job_id: Optional[str] = None,
        plugin_name: Optional[str] = None,
        plugin_id: Optional[str] = None,
        loaded_plugin_resource: Optional[str] = None,
        config: Optional[Dict[str, Any]] = None,
    ) -> None: ...


class UpdateCannotClear(PlainDefaults):
    def update_worker_state(  # type: ignore # pyright: ignore
        self,
        pid: int,
        status: str = "idle",
        job_id: Optional[str] = None,
        plugin_name: Optional[str] = None,
        plugin_id: Optional[str] = None,
        loaded_plugin_resource: Optional[str] = None,
        config: Optional[Dict[str, Any]] = None,
    ) -> None: ...


class UpdateSwapsNames(PlainDefaults):
    def update_worker_state(  # type: ignore # pyright: ignore
        self,
        pid: int,
        status: Optional[str] = None,
        job_id: Optional[str] = None,
        plugin_id: Optional[str] = None,
        plugin_name: Optional[str] = None,
        loaded_plugin_resource: Optional[str] = None,
        config: Optional[Dict[str, Any]] = None,
    ) -> None: ...


class RegisterRenames(PlainDefaults):
    def register_worker(self, process_id: int, worker_type: str) -> None: ...  # pyright: ignore


class RegisterNeedsHost(PlainDefaults):
    def register_worker(self, pid: int, worker_type: str, host: str) -> None: ...  # type: ignore # pyright: ignore


class RegisterIsAsync(PlainDefaults):
    async def register_worker(self, pid: int, worker_type: str) -> None: ...  # type: ignore # pyright: ignore


class LacksUnregister:
    register_worker = PlainDefaults.register_worker
    update_worker_state = PlainDefaults.update_worker_state


plain_defaults: ResourceManagerProtocol = PlainDefaults()
takes_anything: ResourceManagerProtocol = TakesAnything()
update_lacks_config: ResourceManagerProtocol = UpdateLacksConfig()  # rejected
update_needs_status: ResourceManagerProtocol = UpdateNeedsStatus()  # rejected
update_cannot_clear: ResourceManagerProtocol = UpdateCannotClear()  # rejected
update_swaps_names: ResourceManagerProtocol = UpdateSwapsNames()  # rejected
register_renames: ResourceManagerProtocol = RegisterRenames()  # rejected by pyright
register_needs_host: ResourceManagerProtocol = RegisterNeedsHost()  # rejected
register_is_async: ResourceManagerProtocol = RegisterIsAsync()  # rejected
lacks_unregister: ResourceManagerProtocol = LacksUnregister()  # rejected


# Broadcasters.


class CountsClients:
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None: ...


class BroadcastIsSync:
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> None: ...


class BroadcastRenames:
    async def broadcast(self, event: str, data: Dict[str, Any]) -> None: ...


class BroadcastYields:
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> AsyncIterator[str]:
        yield event_type


class Publishes:
    async def publish(self, event_type: str, data: Dict[str, Any]) -> None: ...


counts_clients: EventBroadcasterProtocol = CountsClients()
broadcast_is_sync: EventBroadcasterProtocol = BroadcastIsSync()  # rejected
broadcast_renames: EventBroadcasterProtocol = BroadcastRenames()  # rejected by pyright
broadcast_yields: EventBroadcasterProtocol = BroadcastYields()  # rejected
publishes: EventBroadcasterProtocol = Publishes()  # rejected


# With a manager: any subset, by name.

BaseJobManager("text", "processing")
BaseJobManager(worker_type="text", category="processing", plugin_registry=SimplePluginRegistry())
BaseJobManager("text", "processing", resource_manager=SimpleResourceManager(), event_broadcaster=SimpleEventBroadcaster())
JobManager("text", "processing", plugin_registry=LooseRegistry(), resource_manager=PlainDefaults(), plugins={})
BaseJobManager("text", "processing", plugin_registry=RegistryLacksConfig())  # rejected
BaseJobManager("text", "processing", resource_manager=UpdateLacksConfig())  # rejected
BaseJobManager("text", "processing", event_broadcaster=BroadcastIsSync())  # rejected
BaseJobManager("text", "processing", event_broadcaster=SimplePluginRegistry())  # rejected


# UNSET: whatever is not UNSET is a value.


def clears(job_id: Union[str, None, Unset] = UNSET) -> Optional[str]:
    if job_id is UNSET:
        return "unchanged"
    return job_id


def forgets_unset(job_id: Union[str, None, Unset] = UNSET) -> Optional[str]:
    return job_id  # rejected


clears("job-1")
clears(None)
clears(UNSET)
clears(...)  # rejected
