"A manager over HTTP, with a live page: `WorkersApp`. It needs the extra `web`."

TYPE_CHECKING = False  # type checkers take it for true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from .access import Access as Access, AccessTypeError as AccessTypeError
    from .app import WorkersApp as WorkersApp
    from .problems import Problem as Problem

# Each name is imported when it is first asked for.
_where = {"WorkersApp": "app", "Access": "access", "AccessTypeError": "access", "Problem": "problems"}

__all__ = ["WorkersApp", "Access", "AccessTypeError", "Problem"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
