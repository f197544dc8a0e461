"""What the worker system offers, call by call: jobs, hooks, plugins of every kind, streams, events, logs. Real processes throughout."""

import asyncio
import functools
import gc
import importlib
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
import sample_plugins
from harness import Gate, Seen, end, first_chunk, gate, manager, nothing_left, run, said_json, script, until  # noqa: F401
from repo import NBS

from cjm_worker_protocols import BaseJobManager, Job, JobCancelled, JobError, JobManager, WorkerConfig, check_cancel, report_progress
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.worker.context import CancelRequested
from cjm_worker_protocols.worker.describe import PATH, parameters_of

pytestmark = pytest.mark.filterwarnings("error")
WORKER_LOG = "cjm_worker_protocols.worker"
ORIGIN = {"worker_type", "manager_id", "manager_host", "manager_pid"}  # What every event says of its manager


# Running a job


def test_managers_have_the_engine_of_the_run(request: pytest.FixtureRequest) -> None:
    """A test that is named after an engine runs on it."""
    kind = request.node.callspec.params["engine"]
    assert type(manager("pid").engine).__name__ == {"local": "LocalEngine", "ray": "RayEngine"}[kind]


async def test_a_job_runs_in_another_process() -> None:
    """The plugin runs elsewhere, and the job knows where."""
    async with manager("pid") as m:
        job = await m.start_job("pid")
        assert await job == job.worker_pid != os.getpid()
        assert [w.pid for w in m.workers] == [job.worker_pid]


async def test_start_job_returns_before_the_job_has_ended(gate: Gate) -> None:
    """A job is pending, then running, and only then completed."""
    async with manager("wait_at") as m:
        seen = Seen(m)
        job = await m.start_job("wait_at", gate=gate.path)
        assert job.status == "pending" and not job.done and job.result is None and job.started_at is None
        await seen.until("job:progress")
        assert job.status == "running" and not job.done and job.completed_at is None
        gate.open()
        await job
        assert job.status == "completed" and job.done and job.error is None


async def test_a_job_can_be_told_at_any_time(gate: Gate) -> None:
    """`asdict`, and FastAPI's encoder with it, takes a job that runs and is read, and one that failed; it has the facts alone."""
    encode = pytest.importorskip("fastapi.encoders", reason="fastapi is not installed: pip install -e '.[dev]'").jsonable_encoder

    async with manager("wait_at", "fail") as m:
        seen = Seen(m)
        job = await m.start_job("wait_at", gate=gate.path)
        waiting, reader = asyncio.ensure_future(job.wait()), job.stream()
        await seen.until("job:progress")
        running = json.loads(json.dumps(encode(job)))
        assert running["status"] == "running" and running["worker_pid"] == job.worker_pid
        gate.open()
        await waiting
        failed = await end(await m.start_job("fail"))
        told = json.loads(json.dumps(encode(m.get_all_jobs())))
        assert [facts["id"] for facts in told] == [job.id, failed.id] and [facts["status"] for facts in told] == ["completed", "failed"]
        assert told[1]["error"]["message"] == failed.error.message and not any(name.startswith("_") for name in told[0])
        await reader.aclose()


def test_an_endpoint_of_fastapi_may_return_a_job() -> None:
    """As it is, also when it says so, if FastAPI is to make no model of it."""
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[dev]'")
    from fastapi.testclient import TestClient

    app, job = fastapi.FastAPI(), Job("whisper", {"audio": "a.wav"})

    @app.get("/plain")
    def plain():  # type: ignore[no-untyped-def]
        return job

    @app.get("/annotated", response_model=None)  # type: ignore[untyped-decorator]
    def annotated() -> Job:
        return job

    for path in ("/plain", "/annotated"):
        told = TestClient(app).get(path).json()
        assert told["id"] == job.id and told["params"] == {"audio": "a.wav"}


async def test_nothing_is_started_before_it_is_needed() -> None:
    """A manager without jobs has no process, also when it has been entered."""
    unused = manager("pid", standby=True)
    assert unused.workers == []
    async with unused:
        assert unused.workers == [] and unused.jobs == {}


def test_a_manager_may_be_made_where_no_loop_runs() -> None:
    """Construction needs no event loop, and neither does a manager that is never used."""
    m = manager("echo")

    async def scenario() -> Any:
        async with m:
            return await (await m.start_job("echo", x=1))

    assert run(scenario()) == 1
    del m
    manager("echo")


async def test_one_worker_runs_many_jobs() -> None:
    """Jobs on one worker run one after the other in the same process, in the order in which they came."""
    async with manager("pid") as m:
        seen = Seen(m)
        jobs = [await m.start_job("pid") for _ in range(50)]
        assert len({await job for job in jobs}) == 1
    started = [e.data["job_id"] for e in await seen.rest() if e.type == "job:started"]
    assert started == [job.id for job in jobs]


async def test_nobody_stays_awake_for_long() -> None:
    """Neither a pause after quick jobs nor a job that takes its time costs CPU time."""
    async with JobManager("text", "demo", plugins={"pause": sample_plugins.pause}) as m:

        async def spent(seconds: float, pause: "Callable[[float], Awaitable[Any]]") -> float:
            for _ in range(50):
                await job(0)
            worker = psutil.Process(m.workers[0].pid)
            before = time.process_time() + sum(worker.cpu_times()[:2])
            await pause(seconds)
            return time.process_time() + sum(worker.cpu_times()[:2]) - before

        async def job(seconds: float) -> None:
            await (await m.start_job("pause", seconds=seconds))

        for pause in (job, asyncio.sleep):
            assert await spent(1.0, pause) < 0.2


class Watchful(Job):
    """A job that notes what can be read of it when its status changes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "status" and value in ("completed", "failed", "cancelled"):
            self.__dict__["at_the_end"] = self.result, self.error, self.completed_at
        super().__setattr__(name, value)


async def test_the_outcome_is_readable_before_the_status_says_so() -> None:
    """When the status becomes an end, the result or the error and the time of the end are there already."""

    class WatchfulManager(JobManager):
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
            return Watchful(plugin_id, parameters)

    async with manager("echo", "fail", "stuck", cls=WatchfulManager) as m:
        good, bad, cancelled = [await m.start_job(*a, **k) for a, k in ((("echo",), {"x": 5}), (("fail",), {}), (("stuck",), {}))]
        await first_chunk(cancelled)
        assert await m.cancel_job(cancelled.id)
        assert good.at_the_end == (5, None, good.completed_at)
        assert bad.at_the_end == (None, bad.error, bad.completed_at) and bad.error.category == "exception"
        assert cancelled.at_the_end == (None, cancelled.error, cancelled.completed_at)
        assert None not in (good.completed_at, bad.completed_at, cancelled.completed_at)


async def test_times_are_aware_and_in_order() -> None:
    """created_at, started_at and completed_at know their time zone and follow one another."""
    async with manager("echo") as m:
        job = await m.start_job("echo")
        await job
        assert job.created_at <= job.started_at <= job.completed_at
        for moment in (job.created_at, job.started_at, job.completed_at):
            assert moment.utcoffset() == timedelta(0)


async def test_a_job_can_be_awaited_by_many_and_often() -> None:
    """Every waiter gets the outcome, early or late, and one that gives up disturbs no other."""
    async with manager("echo", "fail") as m:
        job = await m.start_job("echo", x=[1])
        quitter = asyncio.ensure_future(job.wait())
        waiters = [asyncio.ensure_future(job.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        quitter.cancel()
        assert await job == await job == [1]
        assert {id(await w) for w in waiters} == {id(job)}
        bad = await m.start_job("fail")
        for _ in range(2):
            with pytest.raises(JobError, match="ValueError: no"):
                await bad
        assert (await bad.wait()).status == "failed"


async def test_cancelling_a_waiter_does_not_cancel_the_job(gate: Gate) -> None:
    """A timeout around `await job` leaves the job as it was."""
    async with manager("wait_at") as m:
        job = await m.start_job("wait_at", gate=gate.path, tag="still here")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(job.wait(), 0.01)
        gate.open()
        assert (await job)[1] == "still here"


# Parameters


NAMES = "type job_id status self plugin_id priority timeout retries owner params id result config"
CLASHING = {name: f"a {name}" for name in NAMES.split()}


async def test_a_parameter_may_have_any_name() -> None:
    """Names that the manager uses itself go through `params`, untouched."""
    async with manager("anything") as m:
        job = await m.start_job("anything", params=CLASHING)
        assert await job == CLASHING
        assert (job.priority, job.timeout, job.retries, job.owner) == (0, None, 0, None)


async def test_names_that_the_manager_has_no_use_for_need_no_params() -> None:
    """`type`, `job_id`, `status` and `self` are just parameters."""
    names = {k: CLASHING[k] for k in ("type", "job_id", "status", "self", "id", "config")}

    async with manager("anything") as m:
        assert await (await m.start_job("anything", **names)) == names
        assert await (await m.start_job("anything", params={"a": 1, "timeout": 2}, b=3)) == {"a": 1, "timeout": 2, "b": 3}


async def test_the_callers_mapping_is_not_kept() -> None:
    """Changing `params` afterwards changes nothing."""
    given = {"x": 1}
    async with manager("echo") as m:
        job = await m.start_job("echo", params=given)
        given["x"] = 2
        assert await job == 1 and job.params == {"x": 1}


async def test_wrong_parameters_fail_the_job() -> None:
    """Where the signature is not at hand, a parameter that the plugin does not take is that job's failure, in the plugin's own words."""
    async with manager(plugins={"echo": "sample_plugins:echo"}) as m:
        job = await end(await m.start_job("echo", y=1))
        assert job.status == "failed" and job.error.category == "exception" and "unexpected keyword argument 'y'" in job.error.message
        assert await (await m.start_job("echo", x=1)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": "high"},
        {"priority": 1.5},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": "1"},
        {"retries": -1},
        {"retries": 1.5},
        {"retries": None},
        {"owner": ""},
        {"owner": 7},
        {"params": ["x"]},
        {"params": "x"},
    ],
    ids=str,
)
async def test_a_setting_that_cannot_be_is_refused(wrong: "dict[str, Any]") -> None:
    """A priority, timeout, retries or params of no sense raises ConfigError, which names it, and no job exists."""
    async with manager("echo") as m:
        with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
            await m.start_job("echo", **wrong)
        assert m.get_all_jobs() == [] and m.workers == []


async def test_a_job_and_each_of_its_events_say_whose_it_is() -> None:
    """`owner` is kept on the job and is in all of its events, also where it is None."""
    async with manager("progress", "stuck") as m:
        seen = Seen(m)
        jobs = [await m.start_job("progress", owner=owner) for owner in ("ann", None)]
        await asyncio.gather(*jobs)
        jobs.append(await m.start_job("stuck", owner="bob"))
        await m.cancel_job(jobs[2].id)
    owners = {job.id: job.owner for job in jobs}
    told = [(e.data["owner"], owners[e.data["job_id"]]) for e in await seen.rest() if e.type.startswith("job:")]
    assert list(owners.values()) == ["ann", None, "bob"] and all(owner == right for owner, right in told)
    assert len({e.type for e in seen if e.data.get("owner") == "ann"}) > 3


# Priority and time


async def test_higher_priorities_run_sooner_and_equals_in_order(gate: Gate) -> None:
    """Among the jobs that wait the highest priority is next; among equals the oldest."""
    async with manager("wait_at", "echo") as m:
        seen = Seen(m)
        blocker = await m.start_job("wait_at", gate=gate.path)
        await seen.until("job:progress")
        jobs = [await m.start_job("echo", priority=p) for p in (0, 5, -5, 5, 0, 10)]
        gate.open()
        await asyncio.gather(*(job.wait() for job in jobs))
    started = [e.data["job_id"] for e in await seen.rest() if e.type == "job:started"]
    assert started == [blocker.id, *(jobs[i].id for i in (5, 1, 3, 0, 4, 2))]


async def test_a_job_has_a_timeout_of_its_own() -> None:
    """A job that takes longer than its own timeout fails with category `timeout`; the next one runs."""
    async with manager("stuck_quietly", "echo", job_timeout=100) as m:
        job = await end(await m.start_job("stuck_quietly", timeout=0.2))
        assert job.status == "failed" and job.error.category == "timeout" and "0.2 s" in job.error.message
        assert (job.completed_at - job.started_at).total_seconds() >= 0.2
        assert await (await m.start_job("echo", x=2)) == 2


async def test_jobs_without_a_timeout_have_the_managers() -> None:
    """`job_timeout` is for jobs that name none, and a job's own wins, also when it is longer."""
    async with manager("stuck_quietly", SleepFor, job_timeout=0.2) as m:
        job = await end(await m.start_job("stuck_quietly"))
        assert job.error.category == "timeout"
        assert await (await m.start_job("SleepFor", timeout=20, seconds=0.4)) == 0.4


class SleepFor:
    """Takes a known time."""

    def run(self, seconds: float) -> float:
        """Sleep."""
        time.sleep(seconds)
        return seconds


async def test_loading_does_not_count_as_running() -> None:
    """A job's timeout limits its run; what its plugin's load takes has a limit of its own."""
    async with manager("SlowLoad") as m:
        assert await (await m.start_job("SlowLoad", timeout=0.3)) == "fine"


# Looking


async def test_jobs_can_be_looked_up(gate: Gate) -> None:
    """get_job and get_all_jobs show the very jobs that start_job gave, the oldest first."""
    async with manager("wait_at", "echo") as m:
        jobs = [await m.start_job("wait_at", gate=gate.path), await m.start_job("echo")]
        assert m.get_all_jobs() == jobs and all(m.get_job(job.id) is job for job in jobs)
        assert m.get_job("unknown") is None and m.get_job_result("unknown") is None
        assert len({job.id for job in jobs}) == 2
        gate.open()


async def test_get_job_result_has_one_shape_for_each_end() -> None:
    """None before the end; then success with data, error with a text, or cancelled."""
    async with manager("echo", "fail", "stuck") as m:
        good, bad, stuck = await m.start_job("echo", x={"a": 1}), await m.start_job("fail"), await m.start_job("stuck")
        await first_chunk(stuck)
        assert m.get_job_result(stuck.id) is None
        await m.cancel_job(stuck.id)
        assert m.get_job_result(good.id) == {"status": "success", "data": {"a": 1}}
        failure = m.get_job_result(bad.id)
        assert failure == {"status": "error", "error": failure["error"]} and "ValueError: no" in failure["error"]
        assert m.get_job_result(stuck.id) == {"status": "cancelled"}


async def test_clear_completed_jobs_forgets_only_what_has_ended(gate: Gate) -> None:
    """All three ends are forgotten; what runs or waits is kept and still ends."""
    async with manager("wait_at", "echo", "fail", max_workers=2) as m:
        running = await m.start_job("wait_at", gate=gate.path)
        ended = [await m.start_job("echo"), await m.start_job("fail"), await m.start_job("echo", priority=-1)]
        await asyncio.gather(*(job.wait() for job in ended))
        assert m.clear_completed_jobs() == 3 and m.clear_completed_jobs() == 0
        assert m.get_all_jobs() == [running] and m.get_job(ended[0].id) is None
        assert ended[0].status == "completed"
        gate.open()
        await running
        assert m.clear_completed_jobs() == 1 and m.jobs == {}


async def test_only_the_newest_finished_jobs_are_kept() -> None:
    """`keep_finished` bounds what a manager remembers; a job that is held is whole all the same."""
    async with manager("echo", keep_finished=3) as m:
        jobs = [await m.start_job("echo", x=i) for i in range(10)]
        assert [await job for job in jobs] == list(range(10))
        assert m.get_all_jobs() == jobs[-3:] and m.get_job_result(jobs[0].id) is None
    async with manager("echo", keep_finished=0) as m:
        assert await (await m.start_job("echo", x=1)) == 1
        assert m.get_all_jobs() == []


async def test_too_many_pending_jobs_are_refused(gate: Gate) -> None:
    """At `max_pending` jobs in line QueueFullError is raised, no job exists, and there is room again later."""
    async with manager("wait_at", "echo", max_pending=3) as m:
        seen = Seen(m)
        await m.start_job("wait_at", gate=gate.path)
        await seen.until("job:progress")
        jobs = [await m.start_job("echo") for _ in range(3)]
        with pytest.raises(errors.QueueFullError, match="3 jobs are pending"):
            await m.start_job("echo")
        assert len(m.get_all_jobs()) == 4
        gate.open()
        await asyncio.gather(*(job.wait() for job in jobs))
        assert await (await m.start_job("echo", x=1)) == 1


# Hooks


class HookedJob(Job):
    """A job with more in it."""

    label: str = ""


class Hooked(JobManager):
    """Overrides every hook."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.completed: "list[tuple[str, str, str]]" = []
        self.validated: "list[tuple[str, Any]]" = []

    def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
        job = HookedJob(plugin_id, parameters)
        job.label = parameters.pop("label")
        job.metadata["made"] = "here"
        return job

    def prepare_execute_request(self, job: Job) -> "dict[str, Any]":
        assert isinstance(job, HookedJob)
        return {"x": [job.label, *job.params.values()]}

    def extract_job_result(self, job: Job, result_data: Any) -> Any:
        return {"of": job.id, "data": result_data}

    async def _validate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> "str | None":
        await asyncio.sleep(0)
        self.validated.append((plugin_id, plugin_config))
        return "the GPU is full" if plugin_id == "pid" else None

    def _on_job_completed(self, job_id: str) -> None:
        self.completed.append((job_id, self.jobs[job_id].status, threading.current_thread().name))


async def test_every_hook_is_used() -> None:
    """A subclass makes the job, the request and the result, validates before, and hears of each completion, in order, on another thread."""
    async with manager("echo", "pid", cls=Hooked) as m:
        jobs = [await m.start_job("echo", label=f"job {i}", y=i) for i in range(3)]
        assert [await job for job in jobs] == [{"of": job.id, "data": [f"job {i}", i]} for i, job in enumerate(jobs)]
        assert all(type(job) is HookedJob and job.metadata == {"made": "here"} for job in jobs)
        with pytest.raises(errors.ResourceValidationError, match="the GPU is full") as refusal:
            await m.start_job("pid", label="too big")
        assert refusal.value.reason == "the GPU is full" and len(m.jobs) == 3
    assert m.validated == [("echo", {})] * 3 + [("pid", {})]
    assert [(i, s) for i, s, _ in m.completed] == [(job.id, "completed") for job in jobs]
    assert threading.current_thread().name not in {thread for _, _, thread in m.completed}


async def test_a_hook_is_used_from_the_moment_it_is_there() -> None:
    """Set on the manager itself, or on its class by a later cell of a notebook."""

    class Late(JobManager):
        """Its hooks come later."""

    heard: "list[str]" = []

    async def refuse(self: Any, plugin_id: str, plugin_config: "dict[str, Any]") -> "str | None":
        return "the GPU is full"

    async with manager("echo", cls=Late) as m:
        assert await (await m.start_job("echo", x=1)) == 1
        Late._on_job_completed = lambda self, job_id: heard.append(job_id)  # type: ignore[method-assign]
        m.extract_job_result = lambda job, result_data: [result_data]
        job = await m.start_job("echo", x=2)
        assert await job == [2]
        await until(lambda: heard == [job.id])
        Late._validate_resources = refuse  # type: ignore[method-assign]
        with pytest.raises(errors.ResourceValidationError, match="the GPU is full"):
            await m.start_job("echo", x=3)


async def test_coroutine_hooks_are_awaited_in_order() -> None:
    """One after the other, however long each takes, and what one raises keeps no other from being called."""
    heard = []

    class Async(JobManager):
        async def _on_job_completed(self, job_id: str) -> None:
            heard.append(("begins", job_id))
            await asyncio.sleep(0.05 if len(heard) == 1 else 0)
            heard.append(("ends", job_id))
            if len(heard) == 4:
                raise asyncio.CancelledError

    async with manager("echo", cls=Async) as m:
        jobs = [await m.start_job("echo") for _ in range(4)]
        await asyncio.gather(*jobs)
    assert heard == [(what, job.id) for job in jobs for what in ("begins", "ends")]
    assert m.integration_errors == {"hooks._on_job_completed": 1}


async def test_the_completion_hook_may_be_a_coroutine() -> None:
    """An async hook runs on the loop, only for completed jobs, and shutdown waits for it."""
    heard = []

    class Async(JobManager):
        async def _on_job_completed(self, job_id: str) -> None:
            await asyncio.sleep(0.05)
            heard.append((job_id, threading.current_thread()))

    async with manager("echo", "fail", cls=Async) as m:
        good, bad = await m.start_job("echo"), await m.start_job("fail")
        await asyncio.gather(good.wait(), bad.wait())
    assert heard == [(good.id, threading.current_thread())]


@pytest.mark.parametrize(
    "parameters", [{"x": 1, "y": 2}, {"plugin_id": "p", "x": 1}], ids=["plain", "a parameter called plugin_id"]
)
def test_create_job_gets_the_parameters(parameters: "dict[str, Any]") -> None:
    """create_job is called with the plugin's id by position, and with the parameters by name."""
    calls = []

    class Recorder(JobManager):
        def create_job(self, *args: Any, **kwargs: Any) -> Job:
            calls.append((args, kwargs))
            return super().create_job(*args, **kwargs)

    async def scenario() -> Any:
        async with manager("anything", cls=Recorder) as m:
            return await (await m.start_job("anything", params=parameters))

    assert run(scenario()) == parameters
    assert calls == [(("anything",), parameters)]


async def test_a_hook_that_raises_before_the_job_exists_leaves_none() -> None:
    """What create_job, prepare_execute_request and _validate_resources raise comes out of start_job, and no job is kept."""

    class Raising(JobManager):
        at = ""

        def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
            assert self.at != "create_job", self.at
            return super().create_job(plugin_id, **parameters)

        def prepare_execute_request(self, job: Job) -> "dict[str, Any]":
            assert self.at != "prepare_execute_request", self.at
            return super().prepare_execute_request(job)

        async def _validate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> "str | None":
            assert self.at != "_validate_resources", self.at
            return None

    async with manager("echo", cls=Raising) as m:
        for m.at in ("create_job", "prepare_execute_request", "_validate_resources"):
            with pytest.raises(AssertionError, match=m.at):
                await m.start_job("echo")
        assert m.jobs == {} and m.workers == []
        m.at = ""
        assert await (await m.start_job("echo", x=3)) == 3


async def test_a_job_whose_id_is_taken_is_refused() -> None:
    """create_job may choose ids; one that a living job has cannot take its place."""

    class SameId(JobManager):
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
            return Job(plugin_id, parameters, id="same")

    async with manager("stuck", "echo", cls=SameId) as m:
        first = await m.start_job("stuck")
        await first_chunk(first)
        with pytest.raises(Exception, match="same"):
            await m.start_job("echo")
        assert m.get_job("same") is first and await m.cancel_job("same")


@pytest.mark.parametrize("answer", [False, True, {"ok": False}], ids=repr)
async def test_a_validation_that_gives_no_reason_is_refused(answer: Any) -> None:
    """False would let the job pass, and True refuse it: ConfigError says what was expected, and no job exists."""

    class Validating(JobManager):
        async def _validate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> Any:
            return answer

    async with manager("echo", cls=Validating) as m:
        with pytest.raises(errors.ConfigError, match="_validate_resources.*a reason as text, or None"):
            await m.start_job("echo")
        assert m.jobs == {} and m.workers == []


@pytest.mark.parametrize("answer", [None, [("x", 3)], "x"], ids=repr)
async def test_a_request_that_is_no_mapping_is_refused(answer: Any) -> None:
    """prepare_execute_request gives the parameters by name; ConfigError says so, also of one that is async, and no job exists."""

    class Preparing(JobManager):
        def prepare_execute_request(self, job: Job) -> Any:
            return answer

    class PreparingLater(JobManager):
        async def prepare_execute_request(self, job: Job) -> Any:  # type: ignore[override]
            return {}

    for cls in (Preparing, PreparingLater):
        async with manager("echo", cls=cls) as m:
            reason = r"prepare_execute_request\(\): expected a mapping of names to values, from a plain `def`"
            with pytest.raises(errors.ConfigError, match=reason):
                await m.start_job("echo")
            assert m.jobs == {} and m.workers == []


# Plugins of every kind


def by_closure(greeting: str) -> Any:
    """A plugin that exists nowhere but in this process."""

    def greet(name: str) -> str:
        return f"{greeting}, {name}"

    return greet


def closed_class(factor: int) -> Any:
    """A class that exists nowhere but in this process."""

    class Multiply:
        def load(self, config: "dict[str, Any]") -> None:
            self.factor = factor

        def run(self, x: int) -> int:
            return self.factor * x

    return Multiply


def closed_generator() -> Any:
    """A generator function that exists nowhere but in this process."""

    def letters(word: str) -> Any:
        yield from word
        return len(word)

    return letters


class Instance:
    """Used as an instance that was made here."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def run(self, x: str) -> str:
        """Add the suffix."""
        return x + self.suffix


KINDS: "dict[str, tuple[Any, dict[str, Any], Any, list[Any]]]" = {
    "function": (sample_plugins.echo, {"x": 1}, 1, []),
    "coroutine function": (sample_plugins.slowly, {"x": 2}, 2, []),
    "generator function": (sample_plugins.count, {"n": 3}, "counted to 3", [0, 1, 2]),
    "async generator function": (sample_plugins.count_slowly, {"n": 3}, None, [0, 1, 2]),
    "class with async methods": (sample_plugins.Awaited, {}, ["loaded"], []),
    "class": (SleepFor, {"seconds": 0}, 0, []),
    "class with a generator": (sample_plugins.Streaming, {"n": 2}, "end", [0, 1]),
    "instance": (Instance("!"), {"x": "hi"}, "hi!", []),
    "import string of a function": ("sample_plugins:echo", {"x": 3}, 3, []),
    "import string of a class": ("sample_plugins:Streaming", {"n": 1}, "end", [0]),
    "import string with dots": ("os.path:join.__name__.upper", {}, "JOIN", []),
    "lambda": (lambda x: x + 1, {"x": 1}, 2, []),
    "closure": (by_closure("Hello"), {"name": "you"}, "Hello, you", []),
    "class in a function": (closed_class(3), {"x": 4}, 12, []),
    "generator in a function": (closed_generator(), {"word": "ab"}, 2, ["a", "b"]),
    "partial": (functools.partial(sample_plugins.anything, a=1), {"b": 2}, {"a": 1, "b": 2}, []),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_plugin_may_be(kind: str) -> None:
    """Each kind of plugin runs, streams what it yields, and gives its result."""
    plugin, parameters, result, chunks = KINDS[kind]

    async with JobManager("test", "kinds", worker_config=WorkerConfig(standby=False), plugins={"it": plugin}) as m:
        job = await m.start_job("it", **parameters)
        assert [chunk async for chunk in job.stream()] == chunks
        assert await job == result


MAIN = '''
import asyncio, json, os, sys
from dataclasses import dataclass
from cjm_worker_protocols import BaseJobManager, JobManager, WorkerConfig

print(json.dumps("top"), flush=True)
FACTOR = 3

@dataclass
class Point:
    x: int

def double(p): return Point(p.x * 2 * FACTOR)
def letters(word):
    yield from word
    return len(word)
class Counter:
    def load(self, config): self.n = 0
    def run(self):
        self.n += 1
        return self.n
    def unload(self): pass
class Mine(BaseJobManager):
    def get_plugin_loader(self): return lambda: {"double": double, "letters": letters, "counter": Counter}

async def use(m):
    async with m:
        point = await (await m.start_job("double", p=Point(2)))
        chunks = [c async for c in (await m.start_job("letters", word="ab")).stream()]
        counts = [await (await m.start_job("counter")) for _ in range(2)]
        return isinstance(point, Point), point.x, chunks, counts

config = WorkerConfig(standby=True)
table = {"double": double, "letters": letters, "counter": Counter}
print(json.dumps(asyncio.run(use(JobManager("t", "c", worker_config=config, plugins=table)))), flush=True)
print(json.dumps(asyncio.run(use(Mine("t", "c", worker_config=config)))), flush=True)
'''


def test_plugins_may_be_defined_in_main(tmp_path: Path) -> None:
    """A script with no main guard runs its own plugins, its classes come back as themselves, and nothing of it runs twice."""
    with script(tmp_path / "main.py", MAIN) as process:
        assert said_json(process) == "top"
        for _ in range(2):
            assert said_json(process) == [True, 12, ["a", "b"], [1, 2]]
        out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    "wrong",
    [42, None, "no_colon", "two:colons:here", "spa ce:x", Path, object()],
    ids=lambda wrong: wrong if isinstance(wrong, str) else type(wrong).__name__,
)
def test_what_cannot_be_a_plugin_is_refused_at_once(wrong: Any) -> None:
    """PluginTypeError at construction names the plugin and shows what it got."""
    with pytest.raises(errors.PluginTypeError, match="'wrong'"):
        JobManager("test", "kinds", plugins={"good": sample_plugins.echo, "wrong": wrong})


@pytest.mark.parametrize(
    "wrong", [[sample_plugins.echo], sample_plugins.echo, "sample_plugins:echo", None], ids=lambda wrong: type(wrong).__name__
)
def test_plugins_that_are_no_mapping_are_refused_at_once(wrong: Any) -> None:
    """ConfigError at construction says what was expected."""
    with pytest.raises(errors.ConfigError, match="plugins: expected a mapping of ids to plugins"):
        JobManager("test", "kinds", plugins=wrong)


@pytest.mark.parametrize("wrong", [{"max_workers": 2}, {}, 2, WorkerConfig], ids=repr)
def test_what_is_no_worker_config_is_refused_at_once(wrong: Any) -> None:
    """ConfigError at construction says what was expected."""
    with pytest.raises(errors.ConfigError, match=r"worker_config: expected a WorkerConfig, as WorkerConfig\(max_workers=2\)"):
        JobManager("test", "kinds", worker_config=wrong, plugins={"echo": sample_plugins.echo})


@pytest.mark.parametrize("wrong", [None, {"echo": sample_plugins.echo}], ids=["nothing", "the plugins themselves"])
async def test_a_loader_that_is_none_is_refused_before_a_worker_starts(wrong: Any) -> None:
    """A get_plugin_loader that gives no function raises ConfigError, each time, and no job exists."""

    class Loads(BaseJobManager):
        def get_plugin_loader(self) -> Any:
            return wrong

    m = manager(cls=Loads)
    for _ in range(2):
        with pytest.raises(errors.ConfigError, match="get_plugin_loader.*expected a function"):
            await m.start_job("echo")
    assert m.get_all_jobs() == [] and m.workers == []
    await m.shutdown()


async def test_a_loader_that_is_a_method_of_the_manager_is_refused() -> None:
    """With it the manager would travel to the worker, so ConfigError says that it cannot."""

    class Loads(BaseJobManager):
        def get_plugin_loader(self) -> Any:
            return self.load

        def load(self) -> Any:
            return {"echo": sample_plugins.echo}

    with pytest.raises(errors.ConfigError, match="get_plugin_loader.*a method"):
        await manager(cls=Loads).start_job("echo")


def test_an_async_unload_is_run_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged, so it has run."""

    async def scenario() -> None:
        async with manager("Awaited") as m:
            assert await (await m.start_job("Awaited")) == ["loaded"]
            await m.unload_plugin("Awaited")

    run(scenario())
    assert "ValueError: it was unloaded" in caplog.text


def test_a_plugin_that_cannot_be_sent_is_refused_at_once() -> None:
    """PluginNotSendableError at construction names the plugin and the reason."""
    lock = threading.Lock()
    with pytest.raises(errors.PluginNotSendableError, match="plugin 'locked'.*lock"):
        JobManager("test", "kinds", plugins={"locked": lambda: lock})


@pytest.mark.parametrize(
    ("source", "reason"),
    [("no_such_module_at_all:x", "No module named"), ("os:no_such_name", "no_such_name"), ("os:pathconf_names", "expected a function")],
)
async def test_an_import_string_that_leads_nowhere_fails_the_job(source: str, reason: str) -> None:
    """The job fails with category `load` and the reason; the worker goes on."""
    plugins = {"lost": source, "echo": sample_plugins.echo}
    async with JobManager("test", "kinds", worker_config=WorkerConfig(standby=False), plugins=plugins) as m:
        job = await end(await m.start_job("lost"))
        assert job.error.category == "load" and reason in job.error.message, job.error
        good = await m.start_job("echo", x=1)
        assert await good == 1 and good.worker_pid == job.worker_pid


class WithLoader(BaseJobManager):
    """Subclass, and give a loader."""

    loader: Any = staticmethod(sample_plugins.loader)

    def get_plugin_loader(self) -> Any:
        return self.loader


async def test_a_loader_gives_plugins_in_the_worker() -> None:
    """A loader is called once in a worker; what it maps to ids are plugins of any kind."""
    async with manager(cls=WithLoader) as m:
        assert await (await m.start_job("echo", x=1)) == 1
        assert [c async for c in (await m.start_job("by_name", n=2)).stream()] == [0, 1]
        first = await (await m.start_job("loaded"))
        assert first["log"] == [["load", {}]] and first["pid"] == m.workers[0].pid


def test_a_loader_may_be_defined_anywhere() -> None:
    """A closure is sent by value."""
    greeting = "Good day"

    class Local(BaseJobManager):
        def get_plugin_loader(self) -> Any:
            return lambda: {"greet": by_closure(greeting)}

    async def scenario() -> Any:
        async with manager(cls=Local) as m:
            return await (await m.start_job("greet", name="Ann"))

    assert run(scenario()) == "Good day, Ann"


async def test_a_plugin_that_the_loader_does_not_give_fails_the_job() -> None:
    """Without a registry only the worker can tell; the error lists what there is."""
    async with manager(cls=WithLoader) as m:
        job = await end(await m.start_job("nope"))
        assert job.error.category == "load" and "'nope'" in job.error.message and "by_name, echo, loaded, pid" in job.error.message


async def test_a_loader_that_gives_nothing_of_use_fails_the_job() -> None:
    """The error says what was expected, and what came."""

    class Useless(WithLoader):
        loader = staticmethod(sample_plugins.not_a_catalog)

    async with manager(cls=Useless) as m:
        job = await end(await m.start_job("echo"))
        assert job.error.category == "load" and "got 42" in job.error.message


async def test_a_manager_without_a_loader_says_what_to_do() -> None:
    """BaseJobManager itself raises NotImplementedError with both ways out."""
    with pytest.raises(NotImplementedError, match="get_plugin_loader.*JobManager"):
        await BaseJobManager("test", "kinds").start_job("echo")


class WithAdapter(WithLoader):
    """Uses a plugin manager in the style of cjm-fasthtml-workers."""

    loader = sample_plugins.Adapter


async def test_an_adapter_runs_its_plugins_without_streaming() -> None:
    """A manager that does not stream calls execute_plugin, after discover_plugins and load_plugin, once."""
    async with manager(cls=WithAdapter) as m:
        for _ in range(2):
            job = await m.start_job("words", text="to be or not")
            assert [chunk async for chunk in job.stream()] == []
            assert await job == {"plugin": "words", "config": {}, "log": ["load words"], "text": "to be or not"}
        assert (await (await m.start_job("plain")))["log"] == ["load words", "unload words", "load plain"]


async def test_an_adapter_streams_when_the_manager_and_the_plugin_do() -> None:
    """execute_plugin_stream's chunks are the stream, its return value is the result; a plugin that cannot stream runs plainly."""
    async with manager(cls=WithAdapter, supports_streaming=True) as m:
        job = await m.start_job("words", text="to be or not")
        assert [chunk async for chunk in job.stream()] == ["to", "be", "or", "not"]
        assert await job == {"plugin": "words", "words": 4}
        plain = await m.start_job("plain", text="x")
        assert (await plain)["text"] == "x" and m.check_streaming_support("words")


class WithAsyncAdapter(WithLoader):
    """Uses one whose methods are async."""

    loader = sample_plugins.AsyncAdapter


async def test_an_adapter_may_be_async() -> None:
    """Its methods are run to their end, and an async generator streams."""
    async with manager(cls=WithAsyncAdapter, supports_streaming=True) as m:
        assert [chunk async for chunk in (await m.start_job("words", text="to be")).stream()] == ["load words", "to", "be"]
        assert await m.unload_plugin("words")
        job = await m.start_job("words", text="")
        assert [chunk async for chunk in job.stream()] == ["load words", "unload words", "load words"]


async def test_an_adapter_reloads_and_unloads() -> None:
    """reload_plugin and unload_plugin reach the plugin manager in the worker."""
    async with manager(cls=WithAdapter) as m:
        await (await m.start_job("plain"))
        assert await m.reload_plugin("plain", {"size": 2})
        assert (await (await m.start_job("plain")))["config"] == {"size": 2}
        assert await m.unload_plugin("plain") and not await m.unload_plugin("plain")
        assert (await (await m.start_job("plain")))["log"] == ["load plain", "reload plain", "unload plain", "load plain"]


async def test_an_adapter_does_not_know_a_plugin() -> None:
    """A plugin that discover_plugins does not list fails the job with the list."""
    async with manager(cls=WithAdapter) as m:
        job = await end(await m.start_job("nope"))
        assert job.error.category == "load" and "plain, words" in job.error.message


# Loading, unloading, configs


class Metadata:
    """What a registry says of a plugin."""

    def __init__(self, plugin_id: str, name: str, is_configured: bool = True) -> None:
        self.name, self.is_configured, self._id = name, is_configured, plugin_id

    def get_unique_id(self) -> str:
        """Its id."""
        return self._id


class Registry:
    """A registry that can be changed."""

    def __init__(self, **names: str) -> None:
        self.plugins = {plugin_id: Metadata(plugin_id, name) for plugin_id, name in names.items()}
        self.configs: "dict[str, dict[str, Any]]" = {}

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        """All of them."""
        return list(self.plugins.values()) if category == "tests" else []

    def get_plugin(self, plugin_id: str) -> Any:
        """One of them."""
        return self.plugins.get(plugin_id)

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        """Its config."""
        return self.configs.get(plugin_id, {})


async def test_a_plugin_is_loaded_once_for_many_jobs() -> None:
    """A worker keeps its plugin loaded, and unloads it before it loads another."""
    async with manager("Loaded", "echo") as m:
        for _ in range(3):
            assert (await (await m.start_job("Loaded")))["log"] == [["load", {}]]
        assert m.workers[0].plugin_id == "Loaded"
        await (await m.start_job("echo"))
        assert (await (await m.start_job("Loaded")))["log"] == [["load", {}], ["unload", {}], ["load", {}]]


def test_a_slow_registry_refuses_no_burst() -> None:
    """Questions wait for each other, each with a time limit of its own; one that hangs fails those behind it, and no later one."""
    registry = Registry(p1="echo")
    delay = [0.05]

    def get_plugin(plugin_id: str) -> Any:
        time.sleep(delay[0])
        return registry.plugins.get(plugin_id)

    async def scenario() -> None:
        async with manager("echo", plugin_registry=registry, integration_timeout=0.3) as m:
            jobs = await asyncio.gather(*[m.start_job("p1", x=n) for n in range(12)])
            assert [await job for job in jobs] == list(range(12)) and not m.integration_errors
            delay[0] = 0.5
            outcomes = await asyncio.gather(*[m.start_job("p1") for _ in range(5)], return_exceptions=True)
            assert {type(o) for o in outcomes} == {errors.RegistryUnavailableError}
            delay[0] = 0.0
            while True:
                try:
                    job = await m.start_job("p1", x="back")
                    break
                except errors.RegistryUnavailableError:
                    await asyncio.sleep(0.01)
            assert await job == "back" and len(asked) <= 14

    asked: "list[int]" = []
    registry.get_plugin = lambda plugin_id: asked.append(1) or get_plugin(plugin_id)  # type: ignore[method-assign,func-returns-value]
    run(scenario())


async def test_a_streaming_plugin_is_known_by_its_id_too() -> None:
    """A plugin that is listed under its registry's name streams, and that can be asked by either."""
    async with manager("count", "echo", plugin_registry=Registry(p1="count", p2="echo")) as m:
        assert [m.check_streaming_support(p) for p in ("count", "p1", "p2", "echo")] == [True, True, False, False]


async def test_a_buffer_that_is_used_again_is_streamed_as_it_was() -> None:
    """A plugin yields one bytearray many times, filled anew: each chunk is what it was when it was yielded."""
    async with manager("one_buffer") as m:
        job = await m.start_job("one_buffer", n=100)
        assert [chunk[0] async for chunk in job.stream()] == list(range(100))


@pytest.mark.parametrize("gives", ["nothing", "an ended job"])
async def test_create_job_gives_a_new_job(gives: str) -> None:
    """Anything else is refused by name, and touches nothing."""

    class Odd(JobManager):
        gives: Any = False

        def create_job(self, plugin_id: str, /, **parameters: Any) -> Any:
            return super().create_job(plugin_id, **parameters) if self.gives is False else self.gives

    async with manager("echo", cls=Odd, keep_finished=0) as m:
        job = await m.start_job("echo", x=1)
        await job
        m.gives = None if gives == "nothing" else job
        with pytest.raises(errors.NotANewJobError, match="create_job: expected a new, pending Job"):
            await m.start_job("echo", x=2)
        assert (job.status, job.result) == ("completed", 1) and m.get_all_jobs() == []


async def test_a_job_of_another_manager_is_not_a_new_job() -> None:
    """`create_job` gives a job that waits elsewhere: it is refused, and the other manager runs it."""

    class Odd(JobManager):
        given: Any = None

        def create_job(self, plugin_id: str, /, **parameters: Any) -> Any:
            return self.given

    async with manager("echo") as first, manager("echo", cls=Odd) as second:
        job = second.given = await first.start_job("echo", x=1)
        with pytest.raises(errors.NotANewJobError):
            await second.start_job("echo")
        assert await job == 1


async def test_a_changed_config_reaches_the_next_job() -> None:
    """The registry's config is read for every job; the plugin is loaded anew only when it has changed."""
    registry = Registry(p1="Loaded")

    async with manager("Loaded", plugin_registry=registry) as m:
        registry.configs["p1"] = {"model": "small"}
        assert (await (await m.start_job("p1")))["config"] == {"model": "small"}
        assert (await (await m.start_job("p1")))["log"] == [["load", {"model": "small"}]]
        registry.configs["p1"]["model"] = "large"  # changed in place, too
        last = await (await m.start_job("p1"))
        assert last["config"] == {"model": "large"}
        assert last["log"] == [["load", {"model": "small"}], ["unload", {"model": "small"}], ["load", {"model": "large"}]]
        assert m.get_plugin_name("p1") == "Loaded" and m.get_plugin_name("p2") is None


class ItsOwnConfig:
    """A plugin that takes a part out of its config, and keeps in it what cannot be sent."""

    def load(self, config: "dict[str, Any]") -> None:
        """Take the model, and keep a lock."""
        self.loads = getattr(self, "loads", 0) + 1
        self.model, self.config = config.pop("model"), config
        config["lock"] = threading.Lock()

    def run(self) -> Any:
        """How often it was loaded, with what."""
        self.config["runs"] = self.config.get("runs", 0) + 1
        return self.loads, self.model


async def test_a_plugin_may_change_the_config_it_was_loaded_with() -> None:
    """It is not loaded anew for that, only for another config of the registry's; and its worker still reloads and unloads it."""
    registry = Registry(p1="ItsOwnConfig", p2="pid")

    async with manager(ItsOwnConfig, "pid", plugin_registry=registry) as m:
        registry.configs["p1"] = {"model": "small"}
        first = await m.start_job("p1")
        assert [await first, *[await (await m.start_job("p1")) for _ in range(2)]] == [(1, "small")] * 3
        assert not await m.unload_plugin("pid")
        assert await m.reload_plugin("p1", {"model": "large"})
        registry.configs["p1"] = {"model": "large"}
        assert [await (await m.start_job("p1")) for _ in range(2)] == [(2, "large")] * 2
        registry.configs["p1"] = {"model": "small"}
        last = await m.start_job("p1")
        assert await last == (3, "small") and last.worker_pid == first.worker_pid


class Handle:
    """Can be sent, and arrives as what cannot be sent again."""

    def __reduce__(self) -> "tuple[Any, ...]":
        return threading.Lock, ()


async def test_a_config_that_cannot_be_sent_again() -> None:
    """Its worker can still be told to unload and to reload, and answers."""
    registry = Registry(p1="pid", p2="echo")
    registry.configs["p1"] = {"handle": Handle()}

    async with manager("pid", "echo", plugin_registry=registry) as m:
        pid = await (await m.start_job("p1"))
        assert not await m.unload_plugin("p2")
        assert await m.reload_plugin("p1", registry.configs["p1"])
        assert await m.unload_plugin("p1")
        assert await (await m.start_job("p1")) == pid


class Ambiguous:
    """Like an array: it cannot be asked whether it is equal."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")


async def test_a_config_that_cannot_be_compared() -> None:
    """The plugin is loaded anew when it says something else, and stays loaded when it says the same."""
    registry = Registry(p1="Loaded")

    async def loads(m: Any, value: Any) -> int:
        registry.configs["p1"] = {"it": value}
        await (await m.start_job("p1"))
        return sum(entry[0] == "load" for entry in (await (await m.start_job("p1")))["log"])

    async with manager("Loaded", plugin_registry=registry) as m:
        assert [await loads(m, value) for value in (Ambiguous(1), Ambiguous(2), float("nan"), float("nan"))] == [1, 2, 3, 3]


async def test_a_registry_names_what_it_does_not_know() -> None:
    """An unknown plugin, or one that is not configured, is a named error before any worker starts."""
    registry = Registry(p1="Loaded", p2="echo")
    registry.plugins["p2"].is_configured = False

    async with manager("Loaded", "echo", plugin_registry=registry) as m:
        with pytest.raises(errors.UnknownPluginError, match="'p9'.*p1, p2"):
            await m.start_job("p9")
        with pytest.raises(errors.PluginNotConfiguredError, match="'p2'"):
            await m.start_job("p2")
        assert m.jobs == {} and m.workers == []


@pytest.mark.parametrize("metadata", [{"unique_id": "p1"}, {"id": "p1"}, {"id": "p1", "name": "echo"}], ids=str)
def test_metadata_is_read_tolerantly(metadata: "dict[str, Any]") -> None:
    """An id from `unique_id` or `id` does, a name may be missing, and what says nothing of is_configured is configured."""

    class Plain:
        def __init__(self) -> None:
            self.__dict__.update(metadata)

    registry = Registry()
    registry.plugins["p1"] = Plain()  # type: ignore[assignment]

    async def scenario() -> Any:
        plugins = {metadata.get("name", "p1"): sample_plugins.echo}
        async with JobManager("test", "tests", worker_config=WorkerConfig(standby=False), plugin_registry=registry, plugins=plugins) as m:
            with pytest.raises(errors.UnknownPluginError, match="p1"):
                await m.start_job("p2")
            return await (await m.start_job("p1", x=7))

    assert run(scenario()) == 7


async def test_unload_plugin_frees_every_worker(gate: Gate) -> None:
    """All idle workers that hold it unload it; the next job loads it again; an unknown or unloaded plugin gives False."""
    async with manager("Loaded", "wait_at", max_workers=2) as m:
        seen = Seen(m)
        assert not await m.unload_plugin("Loaded")
        blocked = await m.start_job("wait_at", gate=gate.path)
        await seen.until("job:progress")
        await (await m.start_job("Loaded"))
        gate.open()
        await blocked
        assert sorted(str(w.plugin_id) for w in m.workers) == ["Loaded", "wait_at"]
        assert await m.unload_plugin("Loaded") and not await m.unload_plugin("Loaded") and not await m.unload_plugin("unknown")
        assert sorted(str(w.plugin_id) for w in m.workers) == ["None", "wait_at"]
        assert ["unload", {}] in (await (await m.start_job("Loaded")))["log"]


async def test_unload_plugin_waits_for_the_job_that_runs(gate: Gate) -> None:
    """Unloading never takes a plugin away from a job."""
    async with manager("wait_at") as m:
        seen = Seen(m)
        job = await m.start_job("wait_at", gate=gate.path, tag="whole")
        await seen.until("job:progress")
        unloading = asyncio.ensure_future(m.unload_plugin("wait_at"))
        await asyncio.sleep(0.05)  # an unloading that does not wait is done by then
        assert not unloading.done()
        gate.open()
        assert (await job)[1] == "whole" and await unloading


async def test_unload_and_reload_wait_for_a_stream() -> None:
    """Both come while chunks are read: the stream is whole, and then they are done."""
    async with manager("count", stream_buffer=5) as m:
        for command in (m.unload_plugin("count"), m.reload_plugin("count", {})):
            job = await m.start_job("count", n=200)
            chunks = job.stream()
            got = [await chunks.__anext__()]
            asked = asyncio.ensure_future(command)
            got += [chunk async for chunk in chunks]
            assert got == list(range(200)) and await job == "counted to 200" and await asked


@pytest.mark.parametrize("config", [{"size": 2}, {}], ids=["another config", "the same config"])
async def test_reload_plugin_loads_once(config: "dict[str, Any]") -> None:
    """reload_plugin unloads once and loads once, and without a registry its config stays for the jobs that follow."""
    async with manager("Loaded") as m:
        await (await m.start_job("Loaded"))
        assert await m.reload_plugin("Loaded", config)
        after = await (await m.start_job("Loaded"))
        assert after["log"] == [["load", {}], ["unload", {}], ["load", config]] and after["config"] == config


async def test_reload_plugin_by_name_with_a_registry() -> None:
    """A registry's name stands for its plugin; the next job has the registry's config again."""
    registry = Registry(p1="Loaded")

    async with manager("Loaded", plugin_registry=registry) as m:
        await (await m.start_job("p1"))
        assert await m.reload_plugin("Loaded", {"size": 2})
        assert m.workers[0].plugin_id == "p1"
        assert (await (await m.start_job("p1")))["log"][2:] == [["load", {"size": 2}], ["unload", {"size": 2}], ["load", {}]]


@pytest.mark.parametrize("registry", [None, Registry(Loaded="Loaded")], ids=["no registry", "a registry"])
async def test_a_config_that_cannot_be_sent_is_refused(registry: Any) -> None:
    """reload_plugin raises before anything is changed: what is loaded stays, and so does the config of the next job."""
    async with manager("Loaded", plugin_registry=registry) as m:
        await (await m.start_job("Loaded"))
        with pytest.raises(errors.ParametersNotSendableError, match="'lock'") as refusal:
            await m.reload_plugin("Loaded", {"lock": threading.Lock()})
        assert refusal.value.parameter == "lock"
        assert (await (await m.start_job("Loaded")))["log"] == [["load", {}]]
        assert m.workers[0].status == "idle"


@pytest.mark.parametrize("registry", [None, Registry(Loaded="Loaded")], ids=["no registry", "a registry"])
async def test_what_is_no_config_or_no_name_is_refused(registry: Any) -> None:
    """reload_plugin and unload_plugin say what they expected, and nothing is changed."""
    async with manager("Loaded", plugin_registry=registry) as m:
        await (await m.start_job("Loaded"))
        for wrong in (None, [1], "small", [("key", "s3cret")]):
            with pytest.raises(errors.ConfigError, match="config: expected a dict") as refused:
                await m.reload_plugin("Loaded", wrong)
            assert "s3cret" not in str(refused.value)
        for call in (m.unload_plugin([1]), m.reload_plugin([1], {}), m.reload_plugin(None, {})):
            with pytest.raises(errors.ConfigError, match="plugin_name: expected the name or the id of a plugin"):
                await call
        assert (await (await m.start_job("Loaded")))["log"] == [["load", {}]]


async def test_reload_plugin_without_a_worker_says_so() -> None:
    """False when nobody loaded it; the config is used all the same by the next job."""
    async with manager("Loaded") as m:
        assert not await m.reload_plugin("Loaded", {"size": 3})
        assert (await (await m.start_job("Loaded")))["config"] == {"size": 3}


@pytest.mark.parametrize("edited", ["plugin.py", "lib/helper.py"])
async def test_a_reload_after_an_edit_runs_the_new_code(edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plugin's module, or of one that it imports; its mtime may be an old one."""
    (tmp_path / "edit_me/lib").mkdir(parents=True)
    (tmp_path / "edit_me/lib/helper.py").write_text("code = 'old'\n")
    (tmp_path / "edit_me/plugin.py").write_text("import os\nfrom .lib.helper import code\ndef f(): return code, os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = {"f": "edit_me.plugin:f", "pid": sample_plugins.pid}
    async with JobManager("t", "d", plugins=plugins, worker_config=WorkerConfig(max_workers=1, standby=False)) as m:
        await (await m.start_job("pid"))
        code, first = await (await m.start_job("f"))
        assert await m.reload_plugin("f", {"a": 1}) and code == "old"
        assert await (await m.start_job("f")) == ("old", first)
        file = tmp_path / "edit_me" / edited
        file.write_text(file.read_text().replace("'old'", "'new'").replace("return code", "return 'new'"))
        os.utime(file, (0, 0))
        waiting = [await m.start_job("pid") for _ in range(3)]
        assert await m.reload_plugin("f", {"a": 2})
        code, second = await (await m.start_job("f"))
        assert code == "new" and second != first
        assert await m.reload_plugin("f", {"a": 3}) and await (await m.start_job("f")) == ("new", second)
        assert {await job for job in waiting} <= {first, second} and m.totals["failed"] == 0


async def test_a_plugin_that_cannot_be_unloaded_is_dropped() -> None:
    """What unload raises is logged, and the worker goes on with the next plugin."""
    async with manager("BadUnload", "echo") as m:
        await (await m.start_job("BadUnload"))
        job = await m.start_job("echo", x=1)
        assert await job == 1 and len(m.workers) == 1


def test_check_streaming_support() -> None:
    """Generators stream; with supports_streaming the manager says yes to all."""
    m = manager("echo", "count", "count_slowly", "Streaming")
    expected = {"echo": False, "count": True, "count_slowly": True, "Streaming": True, "unknown": False}
    assert {plugin: m.check_streaming_support(plugin) for plugin in expected} == expected
    assert manager("echo", supports_streaming=True).check_streaming_support("echo")
    assert manager("echo").get_plugin_name("echo") is None


async def test_a_job_manager_names_the_plugins_it_has() -> None:
    """An unknown plugin raises UnknownPluginError with the ids that would have been right; no worker, no job."""
    async with manager("echo", "pid") as m:
        with pytest.raises(ValueError, match="no plugin 'ehco'.*echo, pid") as unknown:
            await m.start_job("ehco")
        assert isinstance(unknown.value, errors.UnknownPluginError) and unknown.value.plugin_id == "ehco"
        assert m.jobs == {} and m.workers == []


# Interpreter and environment


def test_a_worker_may_have_an_interpreter_of_its_own(tmp_path: Path) -> None:
    """With `python` workers run in another virtual environment, see its packages, and take plugins by import string."""
    home = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "only_there.py").write_text(
        "import sys\n"
        "from cjm_worker_protocols import report_progress\n"
        "def where():\n"
        "    report_progress(1.0, 'found')\n"
        "    try: import psutil, cloudpickle\n"
        "    except ImportError: return sys.prefix\n"
        "    return 'the packages of the manager'\n"
    )

    async def scenario() -> None:
        plugins = {"where": "only_there:where", "by value": lambda: 1}
        async with manager(plugins=plugins, python=str(home / "bin" / "python")) as m:
            job = await m.start_job("where")
            assert Path(await job).resolve() == home.resolve() and job.message == "found"
            reason = "No module named 'cloudpickle'.*install it in the worker's environment, or name the plugin by import string"
            with pytest.raises(JobError, match=reason):
                await (await m.start_job("by value"))

    run(scenario())


def test_env_is_laid_over_the_managers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`env` adds and overrides; the rest is inherited."""
    monkeypatch.setenv("CJM_TEST_INHERITED", "inherited")
    monkeypatch.setenv("CJM_TEST_BOTH", "manager")

    async def scenario() -> "list[Any]":
        async with manager("env", env={"CJM_TEST_BOTH": "worker", "CJM_TEST_NEW": "new"}) as m:
            return [await (await m.start_job("env", name=f"CJM_TEST_{n}")) for n in ("INHERITED", "BOTH", "NEW")]

    assert run(scenario()) == ["inherited", "worker", "new"]


def test_a_worker_needs_the_standard_library_only() -> None:
    """A plugin by import string is run without cloudpickle, psutil or fastcore, and without anything of the manager's side."""

    async def scenario() -> "list[str]":
        async with JobManager("test", "tests", worker_config=WorkerConfig(standby=False), plugins={"it": "sample_plugins:imported"}) as m:
            return list(await (await m.start_job("it")))

    modules = run(scenario())
    assert not {"cloudpickle", "psutil", "fastcore", "nbdev", "pytest", "test_jobs"} & set(modules)
    assert not [m for m in modules if m.startswith(("cjm_worker_protocols.managers", "cjm_worker_protocols.integrations"))]


GLOBALS = '''
import asyncio, atexit, json, multiprocessing, signal, sys, threading, warnings
warnings.simplefilter("error")
from cjm_worker_protocols import JobManager, WorkerConfig

def facts():
    return [multiprocessing.get_start_method(allow_none=True), atexit._ncallbacks(), threading.active_count(),
            sys.excepthook is sys.__excepthook__,
            *(repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM))]

async def work():
    async with JobManager("t", "c", plugins={"echo": lambda x: x}) as m:
        job = await m.start_job("echo", x=1)
        assert await job == 1

asyncio.run(work())  # the first run imports, and makes the loop's own
before = facts()
asyncio.run(work())
print(json.dumps([before, facts()]), flush=True)
'''


def test_nothing_global_is_changed(tmp_path: Path) -> None:
    """No start method, exit handler, signal handler or thread is left by a manager that came and went, and nothing is printed."""
    with script(tmp_path / "main.py", GLOBALS) as process:
        before, after = said_json(process)
        out, err = process.communicate(timeout=20)
    assert before == after and before[0] is None and (out, err) == ("", "")


async def test_it_can_be_looked_at_from_threads() -> None:
    """Whatever is said to be readable from any thread, while jobs come and go."""
    over, wrong, turns = threading.Event(), list[Exception](), Counter[str]()

    def looks(m: Any, job: Job) -> None:
        while not over.is_set():
            reads: "list[Callable[[], Any]]" = [lambda: repr(m), m._repr_html_, m.get_all_jobs, lambda: m.workers, lambda: dict(m.totals)]
            reads += [lambda: m.get_job(job.id), lambda: m.get_job_result(job.id), lambda: job.position, job._repr_html_, lambda: repr(job)]
            reads += [lambda: m.check_streaming_support("echo"), lambda: m.get_plugin_name("echo"), lambda: dict(m.integration_errors)]
            for read in reads:
                try:
                    read()
                except Exception as e:
                    wrong.append(e)
            turns[threading.current_thread().name] += 1

    interval = sys.getswitchinterval()
    async with manager("echo", max_workers=2, keep_finished=10, plugin_registry=Registry(echo="echo")) as m:
        threads = [threading.Thread(target=looks, args=(m, await m.start_job("echo"))) for _ in range(2)]
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            while len(turns) < 2 or min(turns.values()) < 10:
                await asyncio.gather(*[await m.start_job("echo", x=n) for n in range(10)])
                m.clear_completed_jobs()
        finally:
            over.set()
            sys.setswitchinterval(interval)
            for thread in threads:
                await asyncio.to_thread(thread.join)
    assert not wrong, wrong[0]


def test_a_manager_may_live_on_a_loop_of_another_thread() -> None:
    """Nothing needs the main thread."""
    outcome: "list[Any]" = []

    async def scenario() -> Any:
        async with manager("echo", "stuck", standby=True) as m:
            stuck = await m.start_job("stuck")
            await first_chunk(stuck)
            assert await m.cancel_job(stuck.id)
            return await (await m.start_job("echo", x="from a thread"))

    thread = threading.Thread(target=lambda: outcome.append(run(scenario())))
    thread.start()
    thread.join(30)
    assert outcome == ["from a thread"]


# Several workers


async def test_several_workers_work_at_the_same_time(gate: Gate) -> None:
    """With max_workers=3 three jobs run at once, in three processes, and a fourth waits."""
    async with manager("wait_at", max_workers=3) as m:
        seen = Seen(m)
        jobs = [await m.start_job("wait_at", gate=gate.path, tag=i) for i in range(4)]
        for job in jobs[:3]:
            await seen.until("job:progress", job_id=job.id)
        assert [job.status for job in jobs] == ["running"] * 3 + ["pending"]
        assert len({job.worker_pid for job in jobs[:3]}) == len(m.workers) == 3
        gate.open(4)
        results = [await job for job in jobs]
        assert [tag for _, tag in results] == [0, 1, 2, 3] and len({pid for pid, _ in results}) == 3


async def test_two_workers_take_jobs_by_priority(gate: Gate) -> None:
    """Both are busy while jobs come; then the two of the highest priority are next, and so on."""
    async with manager("wait_at", max_workers=2) as m:
        seen = Seen(m)
        running = [await m.start_job("wait_at", gate=gate.path) for _ in range(2)]
        for job in running:
            await seen.until("job:progress", job_id=job.id)
        jobs = {p: await m.start_job("wait_at", gate=gate.path, priority=p) for p in (0, 30, 10, 20)}
        for pair in ((30, 20), (10, 0)):
            gate.open(2)
            for p in pair:
                await seen.until("job:progress", job_id=jobs[p].id)
        gate.open(2)
        await asyncio.gather(*jobs.values())
    started = [e.data["job_id"] for e in await seen.rest() if e.type == "job:started"]
    assert set(started[2:4]) == {jobs[30].id, jobs[20].id} and set(started[4:]) == {jobs[10].id, jobs[0].id}


async def test_no_more_workers_are_started_than_needed() -> None:
    """Jobs that come one at a time share one worker, whatever max_workers allows."""
    async with manager("pid", max_workers=3) as m:
        assert len({await (await m.start_job("pid")) for _ in range(5)}) == 1


async def test_a_job_goes_to_the_worker_that_has_its_plugin(gate: Gate) -> None:
    """Among idle workers, the one that has loaded the plugin is chosen."""
    async with manager("Loaded", "wait_at", "count", max_workers=2) as m:
        seen = Seen(m)
        blocked = await m.start_job("wait_at", gate=gate.path)
        await seen.until("job:progress")
        holder = (await (await m.start_job("Loaded")))["pid"]
        gate.open()
        other, _ = await blocked
        assert holder != other
        for _ in range(3):
            gate.open()
            assert (await (await m.start_job("wait_at", gate=gate.path)))[0] == other
            assert (await (await m.start_job("Loaded")))["pid"] == holder


async def test_a_standby_takes_over() -> None:
    """A standby is started in the background; after a cancel it runs the next job, and another takes its place."""
    async with manager("stuck", "pid", standby=True) as m:
        seen = Seen(m)
        job = await m.start_job("stuck")
        mine = await first_chunk(job)
        spare = (await seen.when(lambda e: e.type == "worker:ready" and e.data["pid"] != mine)).data["pid"]
        assert {(w.pid, w.status) for w in m.workers} == {(mine, "running"), (spare, "standby")}
        assert await m.cancel_job(job.id)
        assert await (await m.start_job("pid")) == spare
        await seen.when(lambda e: e.type == "worker:ready" and e.data["pid"] not in (mine, spare))


# Cancelling


async def test_cancel_says_what_it_did() -> None:
    """True for a job that it ended, running or pending; False for one that is unknown or had ended."""
    async with manager("stuck", "echo") as m:
        running, pending = await m.start_job("stuck"), await m.start_job("stuck")
        await first_chunk(running)
        assert await m.cancel_job(pending.id) and pending.status == "cancelled" and pending.worker_pid is None
        assert running.status == "running"
        assert await m.cancel_job(running.id) and running.status == "cancelled"
        assert not await m.cancel_job(running.id) and not await m.cancel_job("unknown")
        done = await m.start_job("echo")
        await done
        assert not await m.cancel_job(done.id) and done.status == "completed"
        with pytest.raises(JobCancelled, match="cancelled"):
            await running
        assert isinstance(running.error, JobError) and running.error.category == "cancelled"


async def test_a_validation_that_is_not_async_is_refused() -> None:
    """ConfigError says that it has to be awaited, and no job exists."""

    class Validating(JobManager):
        def _validate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> Any:  # type: ignore[override]
            return None

    async with manager("echo", cls=Validating) as m:
        with pytest.raises(errors.ConfigError, match=r"_validate_resources\(\): expected an `async def`"):
            await m.start_job("echo")
        assert m.jobs == {} and m.workers == []


@pytest.mark.parametrize("plugin_id", [None, 1, ["echo"], b"echo"], ids=repr)
async def test_a_plugin_id_that_is_no_text_is_refused(plugin_id: Any) -> None:
    """Also one that could not even be looked up."""
    async with manager("echo") as m:
        with pytest.raises(errors.ConfigError, match="plugin_id: expected the id of a plugin"):
            await m.start_job(plugin_id)


async def test_a_job_in_place_of_its_id_is_refused() -> None:
    """cancel_job says that it wants the id, where False would leave the job to run on unnoticed; so do the other methods."""
    async with manager("stuck") as m:
        job = await m.start_job("stuck")
        await first_chunk(job)
        with pytest.raises(errors.ConfigError, match=r"job_id: expected the id of a job, as job\.id"):
            await m.cancel_job(job)
        for call in (m.get_job, m.get_job_result):
            with pytest.raises(errors.ConfigError, match="job_id"):
                call(job)
        assert job.status == "running" and await m.cancel_job(job.id)


async def test_an_async_generator_is_cancelled_while_it_waits(tmp_path: Path) -> None:
    """It ends, and its `finally` has run."""
    marker = tmp_path / "marker"

    async with manager("count_slowly") as m:
        job = await m.start_job("count_slowly", n=1, forever=True, marker=str(marker))
        await first_chunk(job)
        assert await m.cancel_job(job.id) and job.status == "cancelled" and marker.exists()


async def test_a_plugin_that_asks_is_cancelled_in_peace(tmp_path: Path) -> None:
    """check_cancel raises in a cancelled job, `finally` runs, and the worker goes on with the next job."""
    marker = tmp_path / "marker"

    async with manager("cooperative", "pid") as m:
        for _ in range(3):
            job = await m.start_job("cooperative", marker=str(marker))
            mine = await first_chunk(job)
            assert await m.cancel_job(job.id) and marker.read_text() == "cleaned up"
            assert await (await m.start_job("pid")) == mine
            marker.unlink()


async def test_a_timeout_asks_too() -> None:
    """A job that asks, and runs out of time, fails with `timeout`, and its worker goes on."""
    async with manager("cooperative", "pid") as m:
        job = await end(await m.start_job("cooperative", timeout=0.2))
        assert job.status == "failed" and job.error.category == "timeout"
        assert await (await m.start_job("pid")) == job.worker_pid


async def test_a_plugin_that_asked_once_and_never_again_is_killed() -> None:
    """The grace period is all the time that a cooperative plugin has."""
    async with manager("cooperative_no_more", "pid", grace_timeout=0.3) as m:
        job = await m.start_job("cooperative_no_more")
        mine = await first_chunk(job)
        assert await m.cancel_job(job.id)
        assert await (await m.start_job("pid")) != mine


@pytest.mark.parametrize("plugin", ["tidy", "tidy_generator"])
async def test_finally_runs_in_a_plugin_that_does_not_ask(plugin: str, tmp_path: Path) -> None:
    """A cancel arrives as an exception, so that a plugin can clean up, also where a generator waits for its reader."""
    marker = tmp_path / "marker"

    async with manager(plugin, stream_buffer=5) as m:
        seen = Seen(m)
        job = await m.start_job(plugin, marker=str(marker))
        reader = job.stream()
        await seen.when(lambda e: e.type == "job:progress" or e.data.get("index") == 4)
        assert await m.cancel_job(job.id) and marker.read_text() == "cleaned up"
        await reader.aclose()


async def test_a_plugin_may_stop_by_itself() -> None:
    """Raising CancelRequested without being asked ends the job as cancelled."""

    def gives_up() -> None:
        raise CancelRequested("enough")

    async with manager(gives_up) as m:
        assert (await end(await m.start_job("gives_up"))).status == "cancelled"


def test_outside_a_worker_the_plugins_functions_do_nothing() -> None:
    """A plugin can be called as a plain function: report_progress and check_cancel are silent, a wrong fraction is not."""
    report_progress(0.5, "half")
    check_cancel()
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            report_progress(wrong)


# Progress, streams


async def test_progress_is_seen_on_the_job_and_as_events() -> None:
    """Every report makes an event, in order; the job shows the last, and 1.0 when it is completed."""
    async with manager("progress", "echo") as m:
        seen = Seen(m)
        job = await m.start_job("progress")
        await job
        assert (job.progress, job.message) == (1.0, "step 4")
        other = await m.start_job("echo")
        await other
        assert (other.progress, other.message) == (1.0, "")
    reports = [(e.data["progress"], e.data["message"]) for e in await seen.rest() if e.type == "job:progress"]
    assert reports == [(0.25, "step 1"), (0.5, "step 2"), (0.75, "step 3"), (1.0, "step 4")]


@pytest.mark.parametrize("fraction", [-0.5, 1.5, float("nan"), "half"], ids=str)
async def test_progress_that_cannot_be_fails_the_job(fraction: Any) -> None:
    """The mistake is shown where it was made."""
    async with manager("impossible_progress") as m:
        job = await end(await m.start_job("impossible_progress", fraction=fraction))
        assert job.error.category == "exception" and "in impossible_progress" in job.error.traceback


async def test_a_stream_gives_every_chunk_then_ends() -> None:
    """Chunks come in order, whole and as they are, and the result is the generator's return value."""
    async with manager("count") as m:
        job = await m.start_job("count", n=500)
        assert [chunk async for chunk in job.stream()] == list(range(500))
        assert await job == "counted to 500" and job.dropped_chunks == 0
        empty = await m.start_job("count", n=0)
        assert [chunk async for chunk in empty.stream()] == [] and await empty == "counted to 0"


async def test_a_stream_is_live() -> None:
    """A chunk can be read while the plugin goes on."""
    async with manager("stuck") as m:
        job = await m.start_job("stuck")
        assert await first_chunk(job) == job.worker_pid and job.status == "running"


async def test_a_stream_can_begin_anywhere() -> None:
    """`start` is the index of the first chunk wanted, before and after the end."""
    async with manager("count") as m:
        job = await m.start_job("count", n=5)
        assert [chunk async for chunk in job.stream(start=3)] == [3, 4]
        await job
        assert [chunk async for chunk in job.stream(start=4)] == [4] and [chunk async for chunk in job.stream(start=9)] == []
        assert [chunk async for chunk in job.stream()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("start", [-1, 1.5, None, True])
async def test_a_stream_begins_at_an_index(start: Any) -> None:
    """ConfigError for a start that is none."""
    async with manager("count") as m:
        job = await m.start_job("count", n=5)
        with pytest.raises(errors.ConfigError, match="start: expected an integer of at least 0"):
            job.stream(start=start)


async def test_a_stream_that_is_closed_ends_for_whoever_waits() -> None:
    """`aclose` in one task ends `async for` in another, at once and for good."""
    async with manager("stuck") as m:
        job = await m.start_job("stuck")
        stream = job.stream()
        await stream.__anext__()
        waiting = asyncio.ensure_future(anext(stream, "the end"))
        await asyncio.sleep(0)  # it waits
        await stream.aclose()
        assert await asyncio.wait_for(waiting, 5) == "the end" == await anext(stream, "the end")
        assert await first_chunk(job) == job.worker_pid


async def test_waiting_with_a_limit_leaves_nothing_behind() -> None:
    """`asyncio.wait_for` around a job, a chunk or an event may be repeated for ever."""
    async with manager("stuck") as m:
        job, events = await m.start_job("stuck"), m.events()
        stream = job.stream()
        await stream.__anext__()
        for _ in range(20):
            for what in (job.wait(), stream.__anext__()):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(what, 0.001)
        while True:
            try:
                await asyncio.wait_for(events.__anext__(), 0.05)
            except asyncio.TimeoutError:
                break
        assert await m.cancel_job(job.id)
        with pytest.raises(JobCancelled):
            await stream.__anext__()


async def test_a_job_needs_no_reader() -> None:
    """A generator that nobody reads runs to its end, and its newest chunks can be read later."""
    async with manager("count", stream_buffer=10) as m:
        job = await m.start_job("count", n=1000)
        assert await job == "counted to 1000" and job.dropped_chunks == 990
        assert [chunk async for chunk in job.stream(start=990)] == list(range(990, 1000))


# Events and integrations


class Hub:
    """A broadcaster that keeps what it gets."""

    def __init__(self) -> None:
        self.events: "list[tuple[str, dict[str, Any]]]" = []

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        """Keep it."""
        self.events.append((event_type, data))


class Pool:
    """A resource manager that keeps every call."""

    def __init__(self) -> None:
        self.calls: "list[tuple[str, int, Any]]" = []
        self.threads: "set[threading.Thread]" = set()

    def register_worker(self, pid: int, worker_type: str) -> None:
        """Keep it."""
        self._keep("register", pid, worker_type)

    def unregister_worker(self, pid: int) -> None:
        """Keep it."""
        self._keep("unregister", pid, None)

    def update_worker_state(self, pid: int, **state: Any) -> None:
        """Keep it."""
        self._keep("update", pid, state)

    def _keep(self, *call: Any) -> None:
        self.threads.add(threading.current_thread())
        self.calls.append(call)


class NoCopy:
    """It can be sent to another process, and not be copied in this one."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")


async def test_a_config_that_cannot_be_copied_hurts_no_job() -> None:
    """The resource manager gets as much of a copy as there can be, and it is counted."""
    pool, registry = Pool(), Registry(p1="Loaded")
    registry.configs["p1"] = config = {"odd": NoCopy()}
    async with manager("Loaded", plugin_registry=registry, resource_manager=pool) as m:
        assert (await (await m.start_job("p1")))["log"][0][0] == "load"
    given = [state["config"] for call, _, state in pool.calls if call == "update" and state["config"]]
    assert given and all(c.keys() == config.keys() and c is not config for c in given)
    assert set(m.integration_errors) == {"resource_manager.config"}


async def test_each_job_tells_its_story_in_order() -> None:
    """queued, started, chunks, progress, one end; with the payloads that are promised, JSON-safe, each with its time."""
    hub = Hub()
    async with manager("count", "fail", "stuck", "echo", event_broadcaster=hub, worker_type="story") as m:
        seen = Seen(m)
        good, bad, odd = await m.start_job("count", n=2), await m.start_job("fail"), await m.start_job("echo", x={1: {2}, "b": b"ytes"})
        await asyncio.gather(good.wait(), bad.wait(), odd.wait())
        running = await m.start_job("stuck")
        await first_chunk(running)
        await m.cancel_job(running.id)
    events = await seen.rest()
    assert [tuple(e) for e in events] == hub.events
    assert json.loads(json.dumps([e.data for e in events], allow_nan=False)) == [e.data for e in events]
    assert seen.types(good) == ["job:queued", "job:started", "job:chunk", "job:chunk", "job:completed"]
    assert seen.types(bad) == ["job:queued", "job:started", "job:failed"]
    assert seen.types(running) == ["job:queued", "job:started", "job:chunk", "job:cancelled"]
    assert [e.type for e in events if "job_id" not in e.data] == ["worker:started", "worker:ready", "worker:exited"]
    for event in events:
        assert event.data["worker_type"] == "story" and event.data["time"].endswith("+00:00")
        assert "pid" in event.data or {"job_id", "plugin_id"} <= event.data.keys()
    of = {e.type: e.data for e in events}
    assert [(e.data["index"], e.data["chunk"]) for e in events if e.type == "job:chunk"][:2] == [(0, 0), (1, 1)]
    assert [e.data["result"] for e in events if e.type == "job:completed"] == ["counted to 2", {"1": [2], "b": "<4 bytes>"}]
    assert of["job:failed"]["error"]["category"] == "exception" and "ValueError: no" in of["job:failed"]["error"]["message"]
    assert of["job:started"]["pid"] == good.worker_pid
    assert [e.data["time"] for e in events] == sorted(e.data["time"] for e in events)


def test_events_have_what_the_docs_say(tmp_path: Path) -> None:
    """The table on the page of events: what each type always has, and what it may have."""
    page = json.loads((NBS / "core/events.ipynb").read_text(encoding="utf-8"))
    text = "".join("".join(cell["source"]) + "\n" for cell in page["cells"])
    rows = re.findall(r"^\| `(\w+:\w+)` \| [^|]+ \|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    told = {event: [{name for name in re.findall(r"`(\w+)`", names)} for names in columns] for event, *columns in rows}

    async def scenario() -> None:
        async with manager("count", "progress", "fail", "stuck", "crash_first", backoff_base=0.01) as m:
            seen = Seen(m)
            jobs = [await m.start_job("count", n=1), await m.start_job("progress"), await m.start_job("fail")]
            jobs.append(await m.start_job("crash_first", marker=str(tmp_path / "marker"), retries=1))
            await asyncio.gather(*(job.wait() for job in jobs))
            stuck = await m.start_job("stuck")
            await first_chunk(stuck)
            await m.cancel_job(stuck.id)
        for event in await seen.rest():
            always, sometimes = told[event.type]
            every = ORIGIN | {"time"} | ({"job_id", "plugin_id", "owner"} if event.type.startswith("job:") else set())
            assert every | always <= set(event.data) <= every | always | sometimes, event
        assert {event.type for event in seen} == told.keys()
        assert any("attempt" in event.data for event in seen if event.type == "job:queued")

    run(scenario())


async def test_metadata_of_a_job() -> None:
    """What `start_job` is given is on the job, beside what create_job has set, and in `job:queued`; the caller's own dict is not kept."""

    class Uploads(JobManager):
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
            return Job(plugin_id, parameters, metadata={"user": "ann", "file": "?"})

    given = {"file": "a.wav", "odd": {1, 2}}
    async with manager("echo", "anything", cls=Uploads) as m:
        seen = Seen(m)
        job = await m.start_job("echo", metadata=given)
        given["late"] = 1
        assert await (await m.start_job("anything", params={"metadata": 1})) == {"metadata": 1}
        with pytest.raises(errors.ConfigError, match="metadata: expected a mapping"):
            await m.start_job("echo", metadata="a.wav")  # type: ignore[arg-type]
    assert job.metadata == {"user": "ann", "file": "a.wav", "odd": {1, 2}}
    queued = [e.data["metadata"] for e in await seen.rest() if e.type == "job:queued"]
    assert queued[0] == {"user": "ann", "file": "a.wav", "odd": [1, 2]} and queued[1] == {"user": "ann", "file": "?"}


async def test_an_event_of_ones_own_goes_the_same_way() -> None:
    """broadcast_event reaches the broadcaster and the listeners, in its place among the others."""
    hub = Hub()
    async with manager("echo", event_broadcaster=hub) as m:
        seen = Seen(m)
        await m.broadcast_event("mine:before", {"a": 1})
        await (await m.start_job("echo"))
        await m.broadcast_event("mine:after", {"b": {2}})
    types = [e.type for e in await seen.rest()]
    assert types[0] == "mine:before" and types.index("mine:after") == types.index("job:completed") + 1
    assert [t for t, _ in hub.events] == types
    before, after = (data for kind, data in hub.events if kind.startswith("mine:"))
    assert before.pop("time") < after.pop("time")
    origin = {"worker_type": "test", "manager_id": m.id, "manager_host": os.uname().nodename, "manager_pid": os.getpid()}
    assert (before, after) == ({**origin, "a": 1}, {**origin, "b": [2]}) and origin.keys() == ORIGIN


async def test_an_event_of_ones_own_has_data() -> None:
    """Anything but a mapping is refused, by name."""
    async with manager("echo") as m:
        with pytest.raises(errors.ConfigError, match=r"data: expected a mapping \(got 5\)"):
            await m.broadcast_event("mine", 5)


async def test_events_can_be_heard_by_several_and_from_any_moment() -> None:
    """Each listener gets everything from the moment it began; the iterators end at shutdown."""
    async with manager("echo") as m:
        early = Seen(m)
        await (await m.start_job("echo"))
        late = Seen(m)
        second = await m.start_job("echo")
        await second
    assert (await early.rest())[-len(await late.rest()) :] == late.events
    assert late.types(second) == early.types(second) and len(late.events) < len(early.events)
    assert early.listener.dropped == 0


async def test_a_listener_that_is_gone_costs_nothing() -> None:
    """An iterator over events that nobody holds any more is forgotten."""
    async with manager("echo") as m:
        ghosts = [weakref.ref(m.events()) for _ in range(5)]
        gc.collect()
        await (await m.start_job("echo"))
        assert [ghost() for ghost in ghosts] == [None] * 5


async def test_who_waits_is_held(gate: Gate) -> None:
    """A task that nothing else refers to is not collected while it waits for a result, a chunk or an event."""
    got: "list[str]" = []

    async def awaits(job: Job) -> None:
        await job
        got.append("result")

    async def reads(job: Job) -> None:
        async for _ in job.stream():
            pass
        got.append("stream")

    async def hears(m: Any) -> None:
        async for event in m.events():
            if event.type == "job:completed":
                got.append("event")

    async with manager("wait_at") as m:
        job = await m.start_job("wait_at", gate=gate.path)
        for waits in (awaits(job), reads(job), hears(m)):
            asyncio.get_running_loop().create_task(waits)
        del waits
        for _ in range(3):
            await asyncio.sleep(0.01)
            gc.collect()
        gate.open()
        await job
        while len(got) < 3:
            await asyncio.sleep(0.01)
            gc.collect()
    assert sorted(got) == ["event", "result", "stream"]


def test_listening_after_the_shutdown_ends_at_once() -> None:
    """A loop over the events of a manager that was shut down has nothing to wait for."""

    async def scenario() -> None:
        async with manager("echo") as m:
            pass
        assert await asyncio.wait_for(collect(m.events()), 2) == []

    async def collect(listener: Any) -> "list[Any]":
        return [event async for event in listener]

    run(scenario())


async def test_the_resource_manager_sees_every_change(gate: Gate) -> None:
    """Registered once when ready, always all six fields by keyword, unregistered once at the end; in order, on one other thread."""
    registry = Registry(p1="wait_at")
    registry.configs["p1"] = {"model": "large"}

    pool = Pool()
    async with manager("wait_at", plugin_registry=registry, resource_manager=pool, worker_type="gpu") as m:
        gate.open()
        job = await m.start_job("p1", gate=gate.path)
        pid, _ = await job
        assert await m.unload_plugin("wait_at")
    blank = dict.fromkeys(("job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config"))
    plugin = {"plugin_name": "wait_at", "plugin_id": "p1", "loaded_plugin_resource": "large", "config": {"model": "large"}}
    assert pool.calls == [
        ("register", pid, "gpu"),
        ("update", pid, {**blank, "status": "idle"}),
        ("update", pid, {**plugin, "status": "running", "job_id": job.id}),
        ("update", pid, {**plugin, "status": "idle", "job_id": None}),
        ("update", pid, {**blank, "status": "idle"}),
        ("unregister", pid, None),
    ]
    assert len(pool.threads) == 1 and threading.current_thread() not in pool.threads


# Logs


def test_what_a_plugin_says_reaches_the_managers_log(caplog: pytest.LogCaptureFixture) -> None:
    """print, stderr, logging, and what its children print become log records that name the job, the plugin and the worker."""

    async def scenario() -> "tuple[Job, int]":
        async with manager("says", "echo") as m:
            job = await m.start_job("says")
            pid = await first_chunk(job)
            await job
            await (await m.start_job("echo"))
            return job, pid

    with caplog.at_level(logging.INFO, WORKER_LOG):
        job, pid = run(scenario())
    mine = [r for r in caplog.records if r.name.startswith(WORKER_LOG)]
    assert {(r.job_id, r.plugin_id, r.worker_pid) for r in mine} == {(job.id, "says", pid)}  # type: ignore[attr-defined]
    said = [(r.name.removeprefix(WORKER_LOG + "."), r.levelname, r.getMessage()) for r in mine]
    texts = [(name, level, text.splitlines()[0]) for name, level, text in said]
    assert sorted(t for t in texts if t[0] == "stdout") == [
        ("stdout", "INFO", line) for line in ("from a child", "no newline at its end", "printed")
    ]
    assert sorted(t for t in texts if t[0] == "stderr") == [("stderr", "WARNING", line) for line in ("child error", "to stderr")]
    assert ("third.party", "WARNING", "logged text") in texts and ("third.party", "INFO", "in detail") in texts
    caught = next(text for name, _, text in said if name == "root")
    assert caught.startswith("caught\n") and "ValueError: ünïcödé" in caught
    logged = next(r for r in mine if r.getMessage() == "logged text")
    assert logged.funcName == "says" and Path(logged.pathname).name == "sample_plugins.py"


async def test_names_of_loggers_are_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A plugin may use a new name for each file or request: records carry it, and no logger is registered for it in the app."""

    def logs(names: "list[str]") -> None:
        for name in names:
            logging.getLogger(name).warning("hello")

    names = [f"plugin.{how}{n}{end}" for n in range(50) for how, end in (("", ""), ("a.b.", ""), ("", ".c"), ("ü ", "..d."))]
    with caplog.at_level(logging.INFO, WORKER_LOG):
        async with manager(logs) as m:
            await (await m.start_job("logs", names=names[:1]))
            known = len(logging.Logger.manager.loggerDict)
            await (await m.start_job("logs", names=names))
    assert [r.name for r in caplog.records if r.message == "hello"] == [f"{WORKER_LOG}.{name}" for name in (names[0], *names)]
    assert len(logging.Logger.manager.loggerDict) == known


def test_a_log_level_holds_for_workers_too(caplog: pytest.LogCaptureFixture) -> None:
    """Records below the level of the manager's logger do not even cross; a changed level reaches the next job."""

    async def scenario() -> "list[str]":
        async with manager("says") as m:
            await (await m.start_job("says"))
            caplog.set_level(logging.INFO, WORKER_LOG)
            await (await m.start_job("says"))
        return [r.levelname for r in caplog.records if r.name == f"{WORKER_LOG}.third.party"]

    caplog.set_level(logging.WARNING, WORKER_LOG)
    assert run(scenario()) == ["WARNING", "WARNING", "INFO"]


def test_the_manager_itself_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of a worker's, and nothing of the manager's, lands on this process's stdout or stderr."""

    async def scenario() -> None:
        async with manager("says", "crash", event_broadcaster=Hub(), restart=WorkerConfig().restart, backoff_base=0.0) as m:
            await (await m.start_job("says"))
            await end(await m.start_job("crash"))

    logging.getLogger(WORKER_LOG).addHandler(handler := logging.NullHandler())
    logging.getLogger("cjm_worker_protocols").propagate = False
    try:
        run(scenario())
    finally:
        logging.getLogger("cjm_worker_protocols").propagate = True
        logging.getLogger(WORKER_LOG).removeHandler(handler)
    out, err = capfd.readouterr()
    assert out == "" and "from a child" not in err and "printed" not in err


# Errors and how things look


def test_an_error_tells_all_in_one_look() -> None:
    """The text has the category, the message and the traceback in the worker, which begins with the plugin's own code."""

    async def scenario() -> JobError:
        async with manager("fail") as m:
            error = (await end(await m.start_job("fail", message="<b>bad</b>"))).error
            assert isinstance(error, JobError)
            return error

    error = run(scenario())
    assert (error.category, error.message) == ("exception", "ValueError: <b>bad</b>")
    assert (error.exit_code, error.signal, error.stderr_tail) == (None, None, "")
    frames = [line for line in error.traceback.splitlines() if line.startswith("  File")]
    assert [("sample_plugins.py" in f, f.rpartition(" ")[2]) for f in frames] == [(True, "fail"), (True, "_really_fail")]
    assert str(error).startswith("exception: ValueError: <b>bad</b>\n") and error.traceback in str(error)
    assert "&lt;b&gt;" in error._repr_html_() and "<b>bad" not in error._repr_html_()
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), repr(again), again.to_dict()) == (str(error), repr(error), error.to_dict())
    assert json.loads(json.dumps(error.to_dict())) == error.to_dict()
    cancelled = pickle.loads(pickle.dumps(JobCancelled("stopped")))
    assert type(cancelled) is JobCancelled and cancelled.message == "stopped"


class _Balanced(HTMLParser):
    """Checks that every tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: "list[str]" = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def well_formed(text: str) -> str:
    """The same text, once it is known to be well-formed HTML."""
    parser = _Balanced()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return text


async def test_reprs_are_useful() -> None:
    """A manager shows its jobs by status and its workers; a job its plugin and status; their HTML is well-formed and escaped."""
    async with manager("echo", "fail", "stuck", worker_type="<w>", swap_patience=0) as m:
        assert repr(m) == "JobManager('<w>', 'tests': no jobs; 0 worker processes)"
        good, bad, running, waiting = [await m.start_job(p) for p in ("echo", "fail", "stuck", "echo")]
        await first_chunk(running)
        assert repr(m) == "JobManager('<w>', 'tests': 1 pending, 1 running, 1 completed, 1 failed; 1 worker processes)"
        page = well_formed(m._repr_html_())
        assert all(job.id in page for job in (good, bad, running, waiting)) and str(running.worker_pid) in page and "<w>" not in page
        for job in (good, bad, running, waiting):
            assert job.status in repr(job) and job.plugin_id in repr(job) and job.id in repr(job)
            assert job.status in well_formed(job._repr_html_())
        assert "ValueError: no" in bad._repr_html_()
        assert repr(bad.error) == "JobError('exception', 'ValueError: no')"
    assert repr(m).endswith("shut down)")


def test_a_manager_that_was_not_shut_down_warns(tmp_path: Path) -> None:
    """Forgetting a manager is a ResourceWarning, as it is for files."""
    source = (
        "import asyncio, gc, warnings\nfrom cjm_worker_protocols import JobManager\n"
        "async def main():\n"
        "    m = JobManager('t', 'c', plugins={'echo': lambda x: x})\n"
        "    await (await m.start_job('echo', x=1))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    asyncio.run(main())\n    gc.collect()\n"
        "import json; print(json.dumps([[w.category.__name__, str(w.message)] for w in caught]), flush=True)\n"
    )
    with script(tmp_path / "main.py", source) as process:
        caught = said_json(process)
        process.communicate(timeout=20)
    assert any(category == "ResourceWarning" and "JobManager" in text and "not shut down" in text for category, text in caught)
    assert process.returncode == 0


WRONG_CONFIGS: "list[dict[str, Any]]" = [
    {"max_workers": 0},
    {"max_workers": 1.5},
    {"max_workers": True},
    {"standby": 1},
    {"python": ""},
    {"python": Path("/usr/bin/python3")},
    {"python": "python\0"},
    {"env": {"": "x"}},
    {"env": {"A=B": "x"}},
    {"env": {"A": "x\0y"}},
    {"env": {"A": 1}},
    {"env": "A=1"},
    {"start_timeout": 0},
    {"load_timeout": -1},
    {"job_timeout": 0},
    {"job_timeout": float("inf")},
    {"grace_timeout": -0.1},
    {"integration_timeout": None},
    {"restart": "never"},
    {"max_restarts": -1},
    {"backoff_base": "fast"},
    {"backoff_max": float("nan")},
    {"keep_finished": -1},
    {"max_pending": 0},
    {"stream_buffer": 0},
    {"event_buffer": 0},
    {"stderr_tail": -1},
]


@pytest.mark.parametrize("wrong", WRONG_CONFIGS, ids=str)
def test_a_config_that_cannot_work_is_refused_at_construction(wrong: "dict[str, Any]") -> None:
    """ConfigError names the setting and shows the value."""
    name, value = next(iter(wrong.items()))
    with pytest.raises(errors.ConfigError) as refusal:
        WorkerConfig(**wrong)
    assert str(refusal.value).startswith(f"{name}: expected ") and f"got {value!r}" in str(refusal.value)


async def test_annotations_that_only_type_checkers_can_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin with them is checked, described and run. From Python 3.14 on they need no quotes, and fail when they are asked for."""
    array, path = ("ndarray", "Path") if sys.version_info >= (3, 14) else ("'ndarray'", "'Path'")
    (tmp_path / "for_checkers.py").write_text(f"""from typing import TYPE_CHECKING, Optional
if TYPE_CHECKING: from pathlib import Path; from numpy import ndarray
def run(audio: {array}, file: Optional[{path}] = None, rate: int = 1) -> {array}: return [audio, rate]
""")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = importlib.import_module("for_checkers").run
    assert [parameter["schema"] for parameter in parameters_of(plugin)] == [{}, PATH, {"type": "integer"}]
    async with manager(plugins={"p": plugin}) as m:
        with pytest.raises(errors.WrongParametersError, match=r"takes: \(audio, file=…, rate=…\)"):
            await m.start_job("p", sound=1)
        assert await (await m.start_job("p", audio=2)) == [2, 1]


async def test_workers_are_described_while_they_live() -> None:
    """`manager.workers` shows pid, host, status, plugin and job of every process."""
    async with manager("stuck", "echo") as m:
        job = await m.start_job("stuck")
        [starting] = m.workers
        assert (starting.status, starting.plugin_id, starting.job_id) == ("starting", None, None)
        pid = await first_chunk(job)
        assert m.workers == [(pid, os.uname().nodename, "running", "stuck", job.id, ("stuck",))]
        cancelling = asyncio.ensure_future(m.cancel_job(job.id))
        while m.workers[0].status == "running":
            await asyncio.sleep(0)
        assert m.workers[0].status == "stopping"
        await cancelling
        await (await m.start_job("echo"))
        assert (m.workers[0].status, m.workers[0].plugin_id, m.workers[0].job_id) == ("idle", "echo", None)
    assert m.workers == []
