"Worker processes for heavy plugins, and three optional protocols to plug a registry, a resource manager and an event hub into them."

__version__ = "0.0.1"

TYPE_CHECKING = False  # as type checkers read it, it is true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from .core.config import RestartPolicy as RestartPolicy, WorkerConfig as WorkerConfig
    from .worker.context import check_cancel as check_cancel, report_progress as report_progress
    from .core.jobs import Job as Job, JobCancelled as JobCancelled, JobError as JobError
    from .extensions.protocols import (EventBroadcasterProtocol as EventBroadcasterProtocol,
        PluginRegistryProtocol as PluginRegistryProtocol, ResourceManagerProtocol as ResourceManagerProtocol)
    from .managers.base import BaseJobManager as BaseJobManager, JobManager as JobManager
    from .managers.sync import SyncJobManager as SyncJobManager
    from .managers.watch import watch as watch

# Each name is imported when it is first asked for, so that importing the contract, or a worker, costs almost nothing.
_where = {
    "PluginRegistryProtocol": "extensions.protocols", "ResourceManagerProtocol": "extensions.protocols",
    "EventBroadcasterProtocol": "extensions.protocols",
    "BaseJobManager": "managers.base", "JobManager": "managers.base", "watch": "managers.watch",
    "SyncJobManager": "managers.sync",
    "WorkerConfig": "core.config", "RestartPolicy": "core.config",
    "Job": "core.jobs", "JobError": "core.jobs", "JobCancelled": "core.jobs",
    "report_progress": "worker.context", "check_cancel": "worker.context",
}

__all__ = ["PluginRegistryProtocol", "ResourceManagerProtocol", "EventBroadcasterProtocol", "BaseJobManager",
           "JobManager", "SyncJobManager", "watch", "WorkerConfig", "RestartPolicy", "Job", "JobError",
           "JobCancelled", "report_progress", "check_cancel"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
