"""Thousands of scenarios by seed. What fails says how to repeat it, and is shrunk first."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from repo import ROOT

from .campaign import campaign, explain
from .engine import SimulatedWorker
from .invariants import Book
from .scenario import Op, Scenario, draw, run, shrink

RANGES, JOBS = 8, 12_500  # 100,000 jobs in all, split so that several processes can share them


@pytest.mark.parametrize("part", range(RANGES))
def test_every_invariant_holds(part: int) -> None:
    """Whatever happens in whatever order."""
    done = campaign(part * 1_000_000, JOBS)
    assert not done.failures, explain(done.failures[0])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(RANGES))
def test_every_invariant_holds_for_long(part: int) -> None:
    """The same with a million jobs."""
    done = campaign(part * 1_000_000 + 100_000, JOBS * 10)
    assert not done.failures, explain(done.failures[0])


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_a_seed_gives_one_trace(seed: int) -> None:
    """Also when everything else in the process is different."""
    first, second = run(draw(seed)), run(draw(seed))
    assert first.digest == second.digest and first.counts == second.counts


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    """Nothing depends on addresses, on the hashes of texts or on the time."""
    code = "from simulation.scenario import draw, run; print([run(draw(seed)).digest for seed in range(40)])"
    command, path = [sys.executable, "-c", code], f"{ROOT}/tests:{ROOT}"
    said = {subprocess.run(command, env={"PYTHONPATH": path, "PYTHONHASHSEED": seed}, capture_output=True, text=True).stdout for seed in ("1", "2")}
    assert len(said) == 1 and "[" in said.pop()


JOB: Any = ("one", (("work", 0.01),), 0, None, 0)
PLAIN = Scenario(0, tuple(Op(0, 0.001, "start", JOB) for _ in range(20)), {"max_workers": 2, "restart": draw(0).config["restart"].ALWAYS})


def test_without_faults_every_job_is_completed() -> None:
    """A simulation is no place where jobs fail by themselves."""
    outcome = run(PLAIN)
    assert not outcome.violations and outcome.counts == {"jobs": 20, "completed": 20, "deaths": outcome.counts["deaths"]}


def _found(**lie: Any) -> "set[str]":
    """The invariants that are broken when the engine lies."""
    names = set()
    for seed in range(200):
        outcome = run(replace(draw(seed), **lie))
        names |= {violation.name for violation in outcome.violations}
    return names


def test_a_lying_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says of jobs which were begun that they were not has them run twice."""
    def withdraw(worker: SimulatedWorker) -> "frozenset[int]":
        return frozenset(worker._fates)

    monkeypatch.setattr(SimulatedWorker, "withdraw", withdraw)
    assert _found() & {"no run too many", "nothing after the end", "one worker a job", "legal moves", "no unexpected exception"}


def test_a_failing_seed_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the operations that matter."""
    real = Book.moved

    def moved(book: Book, fate: Any, old: str, new: str) -> None:
        real(book, fate, old, new)
        book.check("nobody is cancelled", new != "cancelled", fate)

    monkeypatch.setattr(Book, "moved", moved)
    failed = next(outcome for outcome in (run(draw(seed)) for seed in range(100)) if outcome.violations)
    small = shrink(failed)
    assert small.violations[0].name == failed.violations[0].name == "nobody is cancelled"
    assert len(small.scenario.ops) <= 3 < len(failed.scenario.ops)
    assert f"--seed {failed.scenario.seed}" in explain(failed)
