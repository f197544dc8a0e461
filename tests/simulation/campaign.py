"""Many seeds, one after the other, and what is said of those that fail."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .scenario import Scenario, draw
from .simulate import Outcome, run, shrink


@dataclass
class Campaign:
    """What came of many simulations."""

    first: int
    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0


def campaign(first: int, jobs: int, keep_going: bool = False, draw: Callable[[int], Scenario] = draw) -> Campaign:
    """Simulate seeds from `first` on, until so many jobs were accepted, or until one fails."""
    done = Campaign(first)
    gc.collect()
    gc.freeze()  # what is there already need not be looked at after each simulation
    while done.counts["jobs"] < jobs:
        outcome = run(draw(first + done.seeds), traced=False)
        done.seeds += 1
        done.seconds += outcome.seconds
        done.counts.update(outcome.counts)
        if outcome.violations:
            done.failures.append(outcome)
            if not keep_going:
                break
            print(f"seed {outcome.scenario.seed}: {outcome.violations[0]}", flush=True)
        elif keep_going and outcome.scenario.rest_every:
            print(f"up to seed {outcome.scenario.seed}: {done.counts['jobs']} jobs", flush=True)
    return done


def explain(outcome: Outcome) -> str:
    """A failure, small, with the command that repeats it."""
    traced = run(outcome.scenario)
    small = shrink(traced if traced.violations else outcome)
    ops = "\n".join(f"  {op}" for op in small.scenario.ops)
    scenario = small.scenario
    setting = "\n".join(f"{name}: {value}" for name, value in vars(scenario).items() if name != "ops")
    kind = "--long " if scenario.rest_every else ""
    return (
        f"seed {outcome.scenario.seed}: {outcome.violations[0]}\n"
        f"repeat it: python -m tests.simulation {kind}--only --seed {outcome.scenario.seed}\n"
        f"as small as it gets: {small.violations[0]}\n{setting}\n{ops}\n" + "\n".join(small.trace[-60:])
    )


def report(done: Campaign, took: float) -> str:
    """A campaign in a few lines."""
    jobs, lines = done.counts["jobs"], []
    lines.append(f"{jobs} jobs in {done.seeds} scenarios from seed {done.first} on")
    lines.append(f"{took:.1f} s, {took / max(1, jobs) * 1e6:.0f} µs a job, {done.seconds:.0f} simulated s")
    lines.append(", ".join(f"{count} {what}" for what, count in sorted(done.counts.items())))
    if done.failures:
        seeds: dict[str, list[int]] = {}
        for outcome in done.failures:
            seeds.setdefault(outcome.violations[0].name, []).append(outcome.scenario.seed)
        lines += [f"{len(found)} times {name}: seeds {found[:5]}" for name, found in seeds.items()]
        lines.append(explain(done.failures[0]))
    return "\n".join(lines)


def show(scenario: Scenario) -> int:
    """Replay one seed; gives the exit status."""
    outcome = run(scenario)
    print("\n".join(outcome.trace))
    print(f"{outcome.counts}\ntrace {outcome.digest}")
    if outcome.violations:
        print(explain(outcome))
    return bool(outcome.violations)
