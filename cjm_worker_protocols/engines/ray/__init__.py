"Workers on the nodes of a Ray cluster. Each name is imported when it is first asked for; Ray itself when a `RayEngine` is made."

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cluster import start_ray as start_ray
    from .engine import RayEngine as RayEngine, why_waiting as why_waiting
    from .errors import (EngineLoopError as EngineLoopError, RayConnectionError as RayConnectionError,
        RayElsewhereError as RayElsewhereError, RayLostError as RayLostError, RayMissingError as RayMissingError,
        RayVersionError as RayVersionError, WorkerRefusedError as WorkerRefusedError, describe_loss as describe_loss)

_where = {
    "RayEngine": "engine", "why_waiting": "engine", "start_ray": "cluster",
    "EngineLoopError": "errors", "RayConnectionError": "errors", "RayElsewhereError": "errors", "RayLostError": "errors",
    "RayMissingError": "errors", "RayVersionError": "errors", "WorkerRefusedError": "errors", "describe_loss": "errors",
}

__all__ = ["RayEngine", "why_waiting", "start_ray", "EngineLoopError", "RayConnectionError", "RayElsewhereError", "RayLostError",
           "RayMissingError", "RayVersionError", "WorkerRefusedError", "describe_loss"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
