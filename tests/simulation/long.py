"""Long scenarios: one manager that lives through thousands of jobs, with faults at a natural rate. They are drawn from one seed, too."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from cjm_worker_protocols import RestartPolicy

from .engine import Faults, Steps
from .executor import Habits
from .integrations import PLACES, Admission, Moods, Resources
from .scenario import Arguments, Op, Scenario, draw_op, draw_some

PALETTE = 400  # Kinds of jobs in a scenario: it takes less to choose one of so many than to draw one
ODD: dict[str, tuple[Steps, ...]] = {  # What jobs do that do not just work, and how many of a thousand do so
    "stream": ((("chunks", 3),), (("chunks", 20), ("work", 0.01))),
    "polite": ((("ask",), ("work", 0.02), ("progress", 0.5), ("work", 0.02), ("ask",)),),
    "noisy": ((("print",), ("work", 0.001), ("writes",), ("progress", 0.1)),),
    "fails": ((("fails", "exception"),), (("fails", "serialization"),), (("stop",),)),
    "dies": ((("dies", None, 9),), (("dies", 3),), (("dies", 0),), (("poison",),)),
    "hangs": ((("hangs",),), (("work", 30.0),)),
    "garbles": ((("garbage",),), (("hangs up",),)),
}
RATES = {"stream": 40, "polite": 20, "noisy": 20, "fails": 20, "dies": 4, "hangs": 2, "garbles": 2}


def _kind(rng: Random, plan: Steps) -> Arguments:
    """A kind of job."""
    plugin = rng.choices(("one", "two", "three", *PLACES, "unknown"), (800, 120, 50, 15, 12, 3))[0]
    waits = {
        "retry_on": rng.choice((("exception",), ("timeout", "crash"), ("crash", "exception", "timeout"))),
        "retry_delay": rng.choice((0.001, 0.1, 3.0)),
        "owner": rng.choice(("ann", "bob", "eve")),
        "expires": rng.choice((0.05, 1.0, 20.0)),
    }
    rates = {"retry_on": 0.1, "retry_delay": 0.1, "owner": 0.4, "expires": 0.02}
    options = {name: value for name, value in waits.items() if rng.random() < rates[name]}
    timeout = rng.choice((None, None, None, None, 1.0, 5.0, 0.05 if rng.random() < 0.1 else None))
    return plugin, plan, rng.choice((0, 0, 0, 0, 0, 1, -1, 5)), timeout, rng.choice((0, 0, 0, 1, 3)), options


def _palette(rng: Random) -> tuple[list[Arguments], list[int]]:
    """Kinds of jobs, and how often each is chosen."""
    kinds, weights = [], []
    for _ in range(PALETTE // 2):
        kinds.append(_kind(rng, (("work", rng.choice((0.0, 0.001, 0.001, 0.01, rng.random() * 0.03))),)))
        weights.append((1000 - sum(RATES.values())) * 10 // (PALETTE // 2))
    for what, rate in RATES.items():
        for _ in range(PALETTE // 2 // len(RATES)):
            kinds.append(_kind(rng, (("work", 0.001), *rng.choice(ODD[what]))))
            weights.append(max(1, rate * 10 // (PALETTE // 2 // len(RATES))))
    return kinds, weights


def _config(rng: Random) -> dict[str, Any]:
    """Limits and times as in apps."""
    return {
        "max_workers": rng.choice((1, 1, 2, 2, 4)),
        "standby": rng.random() < 0.7,
        "start_timeout": 5.0,
        "load_timeout": 5.0,
        "job_timeout": rng.choice((None, 10.0)),
        "grace_timeout": rng.choice((0.1, 1.0)),
        "integration_timeout": rng.choice((0.2, 1.0)),
        "restart": rng.choice((RestartPolicy.ALWAYS, RestartPolicy.BACKOFF, RestartPolicy.BACKOFF)),
        "backoff_max": 2.0,
        "keep_finished": rng.choice((0, 30, 300)),
        "max_pending": rng.choice((8, 30, *[1000] * 8)),
        "stream_buffer": rng.choice((4, 100)),
        "stall_timeout": 0.5,
        "event_buffer": 10_000,  # a listener that is as fast as its app misses nothing
        "loaded_plugins": rng.choice((1, 1, 2)),
        "max_running_per_owner": rng.choice((None, None, None, None, 1)),
        "max_pending_per_owner": rng.choice((None, None, None, None, None, None, 20)),
    }


def _round(rng: Random, kinds: list[Arguments], weights: list[int], size: int) -> list[Op]:
    """What clients do until they rest: at a pace of their own, and now and then other things than starting jobs."""
    clients, pace, share = rng.randrange(1, 5), rng.choice((0.0, 0.001, 0.005, 0.02)), rng.choice((0.01, 0.03, 0.1))
    chosen = rng.choices(kinds, weights, k=size)
    ops = []
    for arguments in chosen:
        client, pause = rng.randrange(clients), 0.0 if rng.random() < 0.7 else rng.expovariate(1.0) * pace * 3
        ops.append(Op(client, pause, *draw_op(rng, True) if rng.random() < share else ("start", arguments)))
    return ops


def draw_long(seed: int, rounds: int = 20, size: int = 1000) -> Scenario:
    """The long scenario of a seed, which rests after so many operations."""
    rng = Random(seed)
    kinds, weights = _palette(rng)
    ops = [op for _ in range(rounds) for op in _round(rng, kinds, weights, size)]
    faults = replace(draw_some(rng, Faults, rng.choice((0.001, 0.01))), room=rng.choice((0, 0, 0, 2)), undead=0.0)
    scenario = Scenario(seed, tuple(ops), _config(rng), faults, rest_every=size, listens=rng.random() < 0.2)
    scenario = replace(scenario, backlog=rng.choice((2, 10, 10, 50, 200)))
    if rng.random() < 0.5:
        return scenario
    resources = rng.choice((None, Resources, Resources, Admission))
    scenario = replace(scenario, registry=rng.random() < 0.4, resources=resources, broadcaster=rng.random() < 0.4)
    habits, moods = draw_some(rng, Habits, 0.002), draw_some(rng, Moods, 0.01)
    return replace(scenario, habits=replace(habits, hangs=0.0), moods=moods, store=rng.random() < 0.2)
