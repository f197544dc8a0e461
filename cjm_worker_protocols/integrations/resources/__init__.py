"Measure what each worker uses, with `ProcessResourceManager`; and make a resource manager that cannot clear end in the right state."

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .clearing import ClearingAdapter as ClearingAdapter
    from .gpu import Gpu as Gpu, Nvml as Nvml
    from .limits import Memory as Memory, container_memory as container_memory, memory_now as memory_now
    from .manager import PidError as PidError, ProcessResourceManager as ProcessResourceManager, SettingError as SettingError
    from .processes import Process as Process
    from .records import Peak as Peak, Usage as Usage, Worker as Worker
    from .render import Snapshot as Snapshot

_where = {
    "ProcessResourceManager": "manager", "PidError": "manager", "SettingError": "manager", "ClearingAdapter": "clearing",
    "Snapshot": "render", "Worker": "records", "Usage": "records", "Peak": "records", "Process": "processes",
    "Gpu": "gpu", "Nvml": "gpu", "Memory": "limits", "memory_now": "limits", "container_memory": "limits",
}

__all__ = ["ProcessResourceManager", "PidError", "SettingError", "ClearingAdapter", "Snapshot", "Worker", "Usage", "Peak", "Process",
           "Gpu", "Nvml", "Memory", "memory_now", "container_memory"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
