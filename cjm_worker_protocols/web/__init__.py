"""A manager over HTTP, with a live page: `WorkersApp`.

It needs the extra `web`."""

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False  # type checkers take it for true; nothing else is imported here, not even typing
if TYPE_CHECKING:
    from .access import Access as Access, AccessTypeError as AccessTypeError
    from .app import WorkersApp as WorkersApp
    from .problems import Problem as Problem

# Each name is imported when it is first asked for, and only then needs the extra.
_look_up, __dir__ = lazy_names(globals(), {
    "app": "WorkersApp",
    "access": "Access AccessTypeError",
    "problems": "Problem",
})

def __getattr__(name: str) -> object:
    try: return _look_up(name)
    except ModuleNotFoundError as e:
        from ..plugins.extras import ExtraNotInstalledError
        if e.name != "starlette": raise
        raise ExtraNotInstalledError("web", e.name, e) from e
