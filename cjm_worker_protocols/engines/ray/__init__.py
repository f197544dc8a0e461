"""Workers on the nodes of a Ray cluster.

Each name is imported when it is first asked for; Ray itself when a `RayEngine` is made."""

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cluster import start_ray as start_ray
    from .engine import RayEngine as RayEngine, why_waiting as why_waiting
    from .errors import (EngineLoopError as EngineLoopError, RayConnectionError as RayConnectionError,
        RayElsewhereError as RayElsewhereError, RayLostError as RayLostError, RayMissingError as RayMissingError,
        RayVersionError as RayVersionError, WorkerRefusedError as WorkerRefusedError, describe_loss as describe_loss)

# Each name is imported when it is first asked for.
__getattr__, __dir__ = lazy_names(globals(), {
    "engine": "RayEngine why_waiting",
    "cluster": "start_ray",
    "errors": "EngineLoopError RayConnectionError RayElsewhereError RayLostError RayMissingError RayVersionError "
              "WorkerRefusedError describe_loss",
})
