"Measure what workers use, and adapt resource managers that cannot clear."

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .clearing import ClearingAdapter as ClearingAdapter
    from .gpu import Gpu as Gpu, Nvml as Nvml
    from .limits import Memory as Memory, container_memory as container_memory, memory_now as memory_now
    from .manager import PidError as PidError, ProcessResourceManager as ProcessResourceManager
    from .processes import Process as Process
    from .records import Peak as Peak, Usage as Usage, Worker as Worker
    from .render import Snapshot as Snapshot

# Each name is imported when it is first asked for.
__getattr__, __dir__ = lazy_names(globals(), {
    "manager": "ProcessResourceManager PidError",
    "clearing": "ClearingAdapter",
    "render": "Snapshot",
    "records": "Worker Usage Peak",
    "processes": "Process",
    "gpu": "Gpu Nvml",
    "limits": "Memory memory_now container_memory",
})
