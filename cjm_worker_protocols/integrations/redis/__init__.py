"Events for the browsers of many processes or hosts, through a Redis stream."

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False  # type checkers take it for true; nothing else is imported here, not even typing
if TYPE_CHECKING:
    from .broadcaster import RedisBroadcaster as RedisBroadcaster, RedisCounters as RedisCounters
    from .connection import (RedisAwayError as RedisAwayError, RedisExtraError as RedisExtraError, RedisUrlError as RedisUrlError,
        shown_url as shown_url)

# Each name is imported when it is first asked for.
__getattr__, __dir__ = lazy_names(globals(), {
    "broadcaster": "RedisBroadcaster RedisCounters",
    "connection": "RedisAwayError RedisExtraError RedisUrlError shown_url",
})
