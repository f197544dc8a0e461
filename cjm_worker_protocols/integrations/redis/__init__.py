"Events for the browsers of many processes or hosts: a Redis stream that each of them follows."

TYPE_CHECKING = False  # type checkers take it for true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from .broadcaster import RedisBroadcaster as RedisBroadcaster, RedisCounters as RedisCounters
    from .connection import (RedisAwayError as RedisAwayError, RedisExtraError as RedisExtraError, RedisUrlError as RedisUrlError,
        shown_url as shown_url)

# Each name is imported when it is first asked for.
_where = {
    "RedisBroadcaster": "broadcaster", "RedisCounters": "broadcaster",
    "RedisAwayError": "connection", "RedisExtraError": "connection", "RedisUrlError": "connection", "shown_url": "connection",
}

__all__ = ["RedisBroadcaster", "RedisCounters", "RedisAwayError", "RedisExtraError", "RedisUrlError", "shown_url"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
