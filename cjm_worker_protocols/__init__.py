"Worker processes for heavy plugins, and three optional protocols for your app."

__version__ = "0.0.1"

TYPE_CHECKING = False  # as type checkers read it, it is true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from .core.config import RestartPolicy as RestartPolicy, WorkerConfig as WorkerConfig
    from .worker.context import check_cancel as check_cancel, report_progress as report_progress
    from .core.jobs import Job as Job, JobCancelled as JobCancelled, JobError as JobError
    from .extensions.protocols import (EventBroadcasterProtocol as EventBroadcasterProtocol,
        PluginRegistryProtocol as PluginRegistryProtocol, ResourceManagerProtocol as ResourceManagerProtocol)
    from .managers.base import BaseJobManager as BaseJobManager
    from .managers.manager import JobManager as JobManager
    from .managers.sync import SyncJobManager as SyncJobManager
    from .managers.watch import watch as watch

def lazy_names(
    package: "dict[str, object]", # The variables of a package
    names: "dict[str, str]" # Names, with spaces between them, by the module that they are imported from
) -> "tuple[Callable[[str], object], Callable[[], list[str]]]": # The package's `__getattr__` and `__dir__`
    """Import each name of a package when it is first asked for.

    `__all__` lists all of them."""
    where = {name: module for module, found in names.items() for name in found.split()}
    package["__all__"] = [*where]
    def look_up(name: str) -> object:
        if name not in where: raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        from importlib import import_module
        value = package[name] = getattr(import_module(f"{package['__name__']}.{where[name]}"), name)
        return value
    return look_up, lambda: sorted({*package, *where})

# Each name is imported when it is first asked for, so that importing the contract, or a worker, costs almost nothing.
__getattr__, __dir__ = lazy_names(globals(), {
    "extensions.protocols": "PluginRegistryProtocol ResourceManagerProtocol EventBroadcasterProtocol",
    "managers.base": "BaseJobManager",
    "managers.manager": "JobManager",
    "managers.watch": "watch",
    "managers.sync": "SyncJobManager",
    "core.config": "WorkerConfig RestartPolicy",
    "core.jobs": "Job JobError JobCancelled",
    "worker.context": "report_progress check_cancel",
})
