"Events for browsers, as server-sent events: an event broadcaster that is also an ASGI app."

TYPE_CHECKING = False  # type checkers take it for true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from .app import (AuthorizeError as AuthorizeError, Counters as Counters, EventStreams as EventStreams,
        SSEBroadcaster as SSEBroadcaster, UnsupportedScopeError as UnsupportedScopeError)
    from .format import (EventDataError as EventDataError, EventMarkError as EventMarkError, EventTypeError as EventTypeError,
        ServerSentEvent as ServerSentEvent, as_json as as_json, decode_event as decode_event, encode_event as encode_event)
    from .log import BroadcastLoopError as BroadcastLoopError, EventLog as EventLog, Subscription as Subscription

# Each name is imported when it is first asked for.
_where = {
    "AuthorizeError": "app", "Counters": "app", "EventStreams": "app", "SSEBroadcaster": "app", "UnsupportedScopeError": "app",
    "EventDataError": "format", "EventMarkError": "format", "EventTypeError": "format", "ServerSentEvent": "format",
    "as_json": "format", "decode_event": "format", "encode_event": "format",
    "BroadcastLoopError": "log", "EventLog": "log", "Subscription": "log",
}

__all__ = ["AuthorizeError", "Counters", "EventStreams", "SSEBroadcaster", "UnsupportedScopeError", "EventDataError", "EventMarkError",
           "EventTypeError", "ServerSentEvent", "as_json", "decode_event", "encode_event", "BroadcastLoopError", "EventLog", "Subscription"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
