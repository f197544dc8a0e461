"Server-sent events: an event broadcaster that is also an ASGI app."

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False  # type checkers take it for true; nothing else is imported here, not even typing
if TYPE_CHECKING:
    from .app import (AuthorizeError as AuthorizeError, Counters as Counters, EventStreams as EventStreams,
        SSEBroadcaster as SSEBroadcaster, UnsupportedScopeError as UnsupportedScopeError)
    from .format import (EventDataError as EventDataError, EventMarkError as EventMarkError, EventTypeError as EventTypeError,
        ServerSentEvent as ServerSentEvent, as_json as as_json, decode_event as decode_event, encode_event as encode_event)
    from .log import BroadcastLoopError as BroadcastLoopError, EventLog as EventLog, Subscription as Subscription

# Each name is imported when it is first asked for.
__getattr__, __dir__ = lazy_names(globals(), {
    "app": "AuthorizeError Counters EventStreams SSEBroadcaster UnsupportedScopeError",
    "format": "EventDataError EventMarkError EventTypeError ServerSentEvent as_json decode_event encode_event",
    "log": "BroadcastLoopError EventLog Subscription",
})
