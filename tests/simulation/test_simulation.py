"""Thousands of scenarios by seed. What fails says how to repeat it, and is shrunk first."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from repo import ROOT

from cjm_worker_protocols.managers import recovery
from cjm_worker_protocols.managers.marks import Marker
from cjm_worker_protocols.managers.proxy import WorkerProxy
from cjm_worker_protocols.managers.queue import Turns
from cjm_worker_protocols.managers.reports import Ticket
from cjm_worker_protocols.managers.store import StoreChanges
from cjm_worker_protocols.managers.writer import Ending

from .campaign import campaign, explain
from .engine import SimulatedEngine, SimulatedWorker
from .integrations import Admission, Moods
from .invariants import Book
from .long import draw_long
from .scenario import Op, Scenario, draw
from .simulate import run, shrink
from .store import MemoryStore

@pytest.fixture(autouse=True)
def broken_off_simulations_are_gone() -> "Iterator[None]":
    """A simulation that found a fault is broken off. What is left of it is collected here, not in a test of something else."""
    yield
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.disabled = True  # it complains of tasks that were pending
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    asyncio_log.disabled = False


RANGES, JOBS = 8, 2_500  # The plain run has two of eight ranges; CI has all, and 88,000 jobs more


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in range(2, RANGES))])
def test_every_invariant_holds(part: int) -> None:
    """Whatever happens in whatever order."""
    done = campaign(part * 1_000_000, JOBS)
    assert not done.failures, explain(done.failures[0])


@pytest.mark.parametrize("seed", (136, 910, 20000717, 30000089, 30000419, 40000643))
def test_what_a_seed_has_found_is_mended(seed: int) -> None:
    """Such as more jobs than `max_pending` behind one that was taken over, or a refused job in a store that hung until the shutdown."""
    outcome = run(draw(seed))
    assert not outcome.violations, explain(outcome)


def test_refused_jobs_of_two_places_do_not_end_each_others_workers() -> None:
    """The resource manager refuses all; with one worker, and plugins of two interpreters, one takes the other's place now and then."""
    jobs = [Op(0, 0.0, "start", (place, (("work", 0.01),), 0, None, 0, {})) for place in ("far", "near") for _ in range(3)]
    config = {"max_workers": 1, "backoff_base": 0.0, "backoff_max": 0.01}
    scenario = Scenario(0, (*jobs, Op(0, 20.0, "shutdown")), config, registry=True, resources=Admission, moods=Moods(full=1.0))
    outcome = run(scenario)
    assert not outcome.violations and 2 <= outcome.counts["deaths"] <= 10, explain(outcome)  # 969 without a rest after a refusal


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_a_seed_gives_one_trace(seed: int) -> None:
    """Also when everything else in the process is different."""
    first, second = run(draw(seed)), run(draw(seed))
    assert first.digest == second.digest and first.counts == second.counts


@pytest.mark.slow
def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    """Nothing depends on addresses, on the hashes of texts or on the time."""
    code = (
        "from simulation.scenario import draw; from simulation.simulate import run; "
        "print([run(draw(seed)).digest for seed in range(40)])"
    )
    said = set()
    for seed in ("1", "2"):
        environment = {"PYTHONPATH": f"{ROOT}/tests:{ROOT}", "PYTHONHASHSEED": seed}
        said.add(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    assert len(said) == 1 and "[" in said.pop()


JOB: Any = ("one", (("work", 0.01),), 0, None, 0)
PLAIN = Scenario(0, tuple(Op(0, 0.001, "start", JOB) for _ in range(20)), {"max_workers": 2})


@pytest.mark.parametrize("seed", (0, 1))
def test_nothing_grows_while_a_manager_lives(seed: int) -> None:
    """It rests now and then, and is then as large as before: with 900,000 jobs in `test_more`."""
    outcome = run(draw_long(seed, rounds=8, size=150))
    assert not outcome.violations, explain(outcome)


@pytest.mark.parametrize("kept", ("Turns.waiting", "LiveJob"))
def test_what_grows_is_found(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry for each job that is left in a dict, and a worker's proxy that is kept: what a short life does not show."""
    real, made = Turns.take, WorkerProxy.__init__
    proxies: list[WorkerProxy] = []

    def take(turns: Turns, ticket: Any) -> None:
        real(turns, ticket)
        turns.waiting[f"left {ticket.start}"] = 0

    def make(proxy: WorkerProxy, *arguments: Any, **options: Any) -> None:
        made(proxy, *arguments, **options)
        proxies.append(proxy)

    if kept == "LiveJob":  # the proxy holds its worker, and that one the jobs that it had
        monkeypatch.setattr(WorkerProxy, "__init__", make)
    else:
        monkeypatch.setattr(Turns, "take", take)
    outcome = run(draw_long(6, rounds=9, size=300))
    proxies.clear()
    assert outcome.violations and outcome.violations[0].name == "nothing grows" and kept in str(outcome.violations[0])


def test_without_faults_every_job_is_completed() -> None:
    """A simulation is no place where jobs fail by themselves."""
    outcome = run(PLAIN)
    assert not outcome.violations and outcome.counts["completed"] == outcome.counts["jobs"] == 20


def test_more_events_than_may_wait_are_heard_by_who_reads() -> None:
    """A resource manager without an answer gives each job another reason to wait twice a second; after 30 s they fail."""
    starts = [Op(0, 0.0, "start", (plugin, (("work", 0.01),), 0, None, 0)) for _ in range(20) for plugin in ("one", "two", "three")]
    config = {"event_buffer": 100, "keep_finished": 0, "integration_timeout": 0.2}
    outcome = run(Scenario(1, (*starts, Op(0, 35.0, "shutdown")), config, resources=Admission, moods=Moods(raises=1.0)))
    assert not outcome.violations and outcome.counts["load"] == outcome.counts["jobs"] == 60


def _first_found(seeds: "range" = range(100)) -> str:
    """The first invariant that is seen to be broken."""
    return next(outcome.violations[0].name for outcome in (run(draw(seed)) for seed in seeds) if outcome.violations)


def test_jobs_that_are_run_twice_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a worker that gives back the claims to jobs that it has begun."""
    real = SimulatedWorker.begin

    def begin(worker: SimulatedWorker, tag: int, fate: Any) -> None:
        real(worker, tag, fate)
        worker.claims.append(tag)

    monkeypatch.setattr(SimulatedWorker, "begin", begin)
    assert _first_found() in ("no run too many", "one worker a job", "nothing after the end", "one end")


def test_a_job_that_is_sent_before_it_is_marked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a job store: as by a manager that saves a commit."""

    def mark(marker: Marker, worker: WorkerProxy, ticket: Ticket) -> None:
        ticket.unmarked = False
        worker.marked()

    monkeypatch.setattr(Marker, "mark", mark)
    assert _first_found() in ("marked before it is sent", "no unexpected exception")  # one that was taken over has no frame yet


def test_an_end_that_is_shown_before_it_is_stored_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a job store: as by a manager that is in a hurry."""

    def end(changes: StoreChanges, ending: Ending) -> None:
        ending.show()

    monkeypatch.setattr(StoreChanges, "end", end)
    assert _first_found() == "stored before it is shown"


def test_a_job_that_runs_again_though_it_must_not_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a job store, after the death of the app: as by a manager that restarts whatever was running."""
    monkeypatch.setattr(recovery, "interrupted", lambda job: None)
    assert _first_found() == "no run too many"


def test_an_order_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a job store, after the death of the app: as by one that gives the newest jobs first."""
    real = MemoryStore.claim
    monkeypatch.setattr(MemoryStore, "claim", lambda *given: [job._replace(place=-job.place) for job in real(*given)])
    assert _first_found() == "the old order"


def test_a_timer_that_is_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that a manager would forget when it is shut down."""
    real = SimulatedEngine.close

    async def close(engine: SimulatedEngine) -> None:
        await real(engine)
        asyncio.get_running_loop().call_later(1000, print)

    monkeypatch.setattr(SimulatedEngine, "close", close)
    assert _first_found() == "no timer is left"


def test_a_worker_that_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose end is never told."""
    monkeypatch.setattr(SimulatedWorker, "report", lambda worker, exit: None)
    assert _first_found() in ("no worker is left", "workers end before their engine", "one end", "nothing waits for ever")


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
