"""What happens in a simulation: a config, faults and a list of operations, all drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

from cjm_worker_protocols import RestartPolicy

from .engine import Faults, Steps
from .executor import Habits
from .integrations import PLACES, Admission, Moods, Resources

PLUGINS = ("one", "one", "one", "two", "three")
Arguments = tuple[Any, ...]


class Op(NamedTuple):
    """One thing that a client of the manager does."""

    client: int  # Whose turn it is
    pause: float  # Seconds that the client waits before
    do: str  # A method of `Play`, without its underscore
    arguments: Arguments = ()


@dataclass(frozen=True)
class Scenario:
    """All that decides a simulation."""

    seed: int
    ops: tuple[Op, ...]
    config: dict[str, Any] = field(default_factory=dict)
    faults: Faults = Faults()
    habits: Habits = Habits()
    moods: Moods = Moods()
    registry: bool = False
    resources: type[Resources] | None = None
    broadcaster: bool = False
    listens: bool = True
    store: bool = False
    backlog: int | None = None  # Jobs that wait already when a client starts no other
    rest_every: int = 0  # After how many operations the clients let all jobs end, and see whether anything has grown; 0 is never

    @property
    def jobs(self) -> int:
        """How many jobs are started."""
        return sum(op.do == "start" for op in self.ops)


# Drawing a scenario


def _plan(rng: Random, faults: bool) -> Steps:
    """What a job does."""
    how = rng.choices(("plain", "stream", "polite", "noisy", "fails", "odd"), (60, 12, 6, 6, 6, 10 if faults else 0))[0]
    work = ("work", rng.choice((0.0, 0.001, 0.01, rng.random() * 0.05)))
    if how == "plain":
        return (work,)
    if how == "stream":
        return work, ("chunks", rng.choice((1, 3, 10, 40))), work
    if how == "polite":
        return (("ask",), work, ("progress", 0.5), work) * rng.randrange(1, 5) + (("ask",),)
    if how == "noisy":
        return ("print",), work, ("writes",), ("chunks", 2), ("progress", 0.1), work
    if how == "fails":
        return work, rng.choice((("fails", "exception"), ("fails", "serialization"), ("stop",)))
    deaths = (("dies", None, 9), ("dies", 3), ("dies", 0), ("hangs",), ("garbage",), ("hangs up",), ("work", 5.0), ("dies", None, 11))
    return work, rng.choice(deaths)


def _start(rng: Random, faults: bool) -> Arguments:
    """The arguments of a new job."""
    plan = _plan(rng, faults)
    if faults and rng.random() < 0.005:
        plan = (("poison",),)
    if rng.random() < 0.01:
        plugin = "unknown"
    else:
        plugin = rng.choice(PLUGINS if rng.random() < 0.95 else tuple(PLACES))
    timeout = rng.choice((None, None, None, None, 0.01, 0.1, 1.0))
    return plugin, plan, rng.choice((0, 0, 0, 0, 1, 1, -1, 5)), timeout, rng.choice((0, 0, 0, 1, 3)), _waiting(rng)


def _waiting(rng: Random) -> dict[str, Any]:
    """After which failures a job is tried again, and how long it may wait."""
    options = {
        "retry_on": rng.choice((("exception",), ("timeout", "crash"), ("crash", "exception", "timeout"), ())),
        "retry_delay": rng.choice((0.001, 0.1, 3.0)),
        "owner": rng.choice((None, None, "ann", "ann", "bob", "eve")),
        "expires": rng.choice((0.001, 0.05, 1.0, 20.0)),
    }
    return {name: value for name, value in options.items() if rng.random() < 0.2}


def draw_op(rng: Random, faults: bool) -> tuple[str, Arguments]:
    """Something that a client does beside starting jobs."""
    do = rng.choices(
        ("cancel", "read", "wait", "look", "reload", "unload", "bad", "say", "forget", "block", "kill"),
        (30, 14, 10, 10, 6, 6, 8, 3, 3, 4 if faults else 0, 8 if faults else 0),
    )[0]
    which = rng.randrange(1000)
    return do, {
        "cancel": (which, rng.random() < 0.5),
        "read": (which, rng.choice((0.0, 0.0, 0.001, 0.1, 3.0)), rng.choice((None, None, 1, 5))),
        "wait": (which, rng.choice((0.0, 0.01, 1.0))),
        "reload": (rng.choice(PLUGINS), rng.randrange(3)),
        "unload": (rng.choice(PLUGINS),),
        "bad": (rng.choice(("parameter", "priority", "timeout", "retries", "plugin", "taken")),),
        "block": (rng.choice((0.01, 0.2, 2.0)),),
        "kill": (which, rng.choice((9, 11, 15))),
    }.get(do, ())


def _config(rng: Random) -> dict[str, Any]:
    """Limits and times, often tight."""
    return {
        "max_workers": rng.choice((1, 1, 2, 3, 4)),
        "standby": rng.random() < 0.5,
        "start_timeout": rng.choice((1.0, 5.0)),
        "load_timeout": rng.choice((None, 0.5, 5.0)) or 5.0,
        "job_timeout": rng.choice((None, None, 1.0, 10.0)),
        "grace_timeout": rng.choice((0.0, 0.1, 2.0)),
        "integration_timeout": rng.choice((0.2, 5.0)),
        "restart": rng.choices(tuple(RestartPolicy), (1, 2, 8, 12))[0],
        "max_restarts": rng.choice((1, 5, 1000, 1000, 1000)),
        "backoff_base": rng.choice((0.0, 0.01, 0.1)),
        "backoff_max": rng.choice((0.01, 2.0)),
        "keep_finished": rng.choice((0, 3, 1000, 1000)),
        "max_pending": rng.choice((1, 10, *[1000] * 14)),
        "stream_buffer": rng.choice((1, 4, 100)),
        "stall_timeout": rng.choice((0.05, 1.0)),
        "loaded_plugins": rng.choice((1, 1, 1, 2, 3)),
        "swap_patience": rng.choice((0.0, 0.02, 2.0, 2.0)),
        "max_running_per_owner": rng.choice((None, None, None, 1, 2)),
        "max_pending_per_owner": rng.choice((None, None, None, None, None, 3)),
    }


def draw_some(rng: Random, cls: Any, most: float, share: float = 0.3) -> Any:
    """A few faults, each as likely as may be."""
    return cls(**{name: rng.random() * most for name in cls.__dataclass_fields__ if name != "room" and rng.random() < share})


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = Random(seed)
    faults, size, clients = rng.random() < 0.75, rng.choice((5, 20, 60, 120, 200)), rng.randrange(1, 5)
    pace = rng.choice((0.0, 0.0005, 0.005, 0.05))
    share = rng.choice((0.02, 0.2, 0.5))
    ops = []
    for _ in range(size):
        client, pause = rng.randrange(clients), 0.0 if rng.random() < 0.3 else rng.expovariate(1.0) * pace
        do, arguments = draw_op(rng, faults) if rng.random() < share else ("start", _start(rng, faults))
        ops.append(Op(client, pause, do, arguments))
    if rng.random() < 0.15:
        ops.insert(rng.randrange(len(ops)), Op(rng.randrange(clients), 0.0, "shutdown"))
    lends = rng.random() < 0.6
    scenario = Scenario(seed, tuple(ops), _config(rng), listens=rng.random() < 0.4)
    if faults:
        room = rng.choice((0, 0, 0, 1, 2))
        scenario = replace(scenario, faults=replace(draw_some(rng, Faults, rng.choice((0.01, 0.1, 0.3))), room=room))
    if lends:
        resources = rng.choice((None, None, Resources, Resources, Resources, Admission))
        scenario = replace(scenario, registry=rng.random() < 0.4, resources=resources, broadcaster=rng.random() < 0.3)
        if faults:
            scenario = replace(scenario, habits=draw_some(rng, Habits, 0.02), moods=draw_some(rng, Moods, 0.1))
    if rng.random() < 0.25:
        ops, slow = _deadly(rng, ops, clients), rng.choice((0.0, 0.0, 0.1))
        habits = replace(scenario.habits, hangs=0.0, slow=max(scenario.habits.slow, slow))
        scenario = replace(scenario, store=True, habits=habits, ops=tuple(ops))
    return scenario


def _deadly(rng: Random, ops: list[Op], clients: int) -> list[Op]:
    """The same, but the app dies now and then, and some jobs may run again."""
    for n, op in enumerate(ops):
        if op.do == "start" and rng.random() < 0.3:
            ops[n] = op._replace(arguments=(*op.arguments[:5], {**op.arguments[5], "restartable": True}))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        delay = rng.choice((None, None, 0.0, 0.0003, 0.001, 0.01, 0.5, 3.0))
        ops.insert(rng.randrange(len(ops)), Op(rng.randrange(clients), 0.0, "die", (delay,)))
    return ops
