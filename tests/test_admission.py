"""Admission and eviction: a job whose plugin does not fit waits with its reason, and room is made for it. Real workers throughout."""

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import Gate, Seen, end, gate, manager, nothing_left, run, until  # noqa: F401

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.extensions.admission import AdmissionProtocol, EvictionProtocol
from cjm_worker_protocols.managers.admission import Silence

SIZES = {"small": 1, "medium": 2, "large": 4, "huge": 99}


class Loads:
    """A plugin that says who it is; a gate lets it go on."""

    def load(self, config: "dict[str, Any]") -> None:
        """Keep the config."""
        self.config = config

    def run(self, gate: "str | None" = None) -> Any:
        """Wait at the gate, if there is one."""
        if gate is not None:
            with open(gate, "rb", buffering=0) as file:
                file.read(1)
        return self.config.get("of")


class Registry:
    """A plugin for each size."""

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return [self.get_plugin(plugin_id) for plugin_id in SIZES]

    def get_plugin(self, plugin_id: str) -> Any:
        return {"id": plugin_id, "name": plugin_id} if plugin_id in SIZES else None

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        return {"of": plugin_id, "estimate": {"memory": SIZES[plugin_id]}}


class Room:
    """A resource manager with so much room; what is given back is free only after a while."""

    def __init__(self, room: int = 4, slow: float = 0.0) -> None:
        self.room, self.slow, self.calls = room, slow, list[Any]()
        self.held: "dict[int, tuple[str | None, int]]" = {}
        self.coming_back: "list[tuple[float, int]]" = []
        self.victims: "list[list[int]]" = []
        self.promised = Counter[str]()
        self.most = 0

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.held[pid] = (None, 0)

    def unregister_worker(self, pid: int) -> None:
        self._free(self.held.pop(pid, (None, 0))[1])

    def update_worker_state(self, pid: int, **state: Any) -> None:
        name = state["plugin_id"]
        if pid in self.held and self.held[pid][0] != name:
            self._free(self.held[pid][1])
            self.held[pid] = (name, SIZES.get(name, 0) if name else 0)
            self.promised[name] = max(0, self.promised[name] - 1)
        self.most = max(self.most, self._used())

    def _free(self, size: int) -> None:
        self.coming_back.append((time.monotonic() + self.slow, size))

    def _used(self) -> int:
        late = [size for when, size in self.coming_back if when > time.monotonic()]
        return sum(size for _, size in self.held.values()) + sum(late)


class Admits(Room):
    """It also says whether there is room."""

    def can_ever_start(self, plugin_id: str, config: "dict[str, Any]", estimate: "dict[str, int] | None" = None) -> "str | None":
        assert estimate is not None
        return None if estimate["memory"] <= self.room else f"{plugin_id} needs {estimate['memory']} of {self.room}"

    def can_start(self, plugin_id: str, config: "dict[str, Any]", estimate: "dict[str, int] | None" = None) -> "str | None":
        self.calls.append(plugin_id)
        assert estimate is not None
        free = self.room - self._used() - sum(SIZES[name] * times for name, times in self.promised.items() if name)
        if estimate["memory"] <= free:
            self.promised[plugin_id] += 1
        return None if estimate["memory"] <= free else f"{plugin_id} needs {estimate['memory']}, and {free} is free"


class Evicts(Admits):
    """And who has to go."""

    def choose_victim(self, plugin_id: str, config: "dict[str, Any]", idle: "list[int]") -> "int | None":
        self.victims.append(list(idle))
        return next((pid for pid in idle if self.held[pid][1]), None)


def sized(room: Room, cls: Any = JobManager, **settings: Any) -> Any:
    """A manager of plugins of every size."""
    return manager(cls=_manager_of(cls), resource_manager=room, plugin_registry=Registry(), **settings)


def _manager_of(cls: Any) -> Any:
    return lambda *args, **given: cls(*args, plugins={name: Loads for name in SIZES}, **given)


def test_the_protocols_are_looked_up() -> None:
    """Each is optional."""
    assert not isinstance(Room(), AdmissionProtocol) and isinstance(Admits(), AdmissionProtocol)
    assert not isinstance(Admits(), EvictionProtocol) and isinstance(Evicts(), EvictionProtocol)


async def test_without_admission_nothing_is_asked() -> None:
    """A plain resource manager admits everything."""
    async with sized(Room(room=0)) as m:
        assert await (await m.start_job("large")) == "large"


async def test_what_fits_runs_and_is_asked_about_only_when_it_is_loaded() -> None:
    """The second job of a plugin finds it loaded."""
    room = Admits()

    async with sized(room) as m:
        for _ in range(3):
            assert await (await m.start_job("medium")) == "medium"
    assert room.calls == ["medium"] and m.integration_errors == {}


async def test_what_can_never_fit_is_refused_at_once() -> None:
    """With the reason; and no job exists, and no worker."""
    async with sized(Admits()) as m:
        with pytest.raises(errors.ResourceValidationError, match="huge needs 99 of 4"):
            await m.start_job("huge")
        assert m.jobs == {} and m.workers == []


async def test_what_does_not_fit_now_waits_with_its_reason(gate: Gate) -> None:
    """It is pending, says why, and runs when the other has ended and was unloaded; a job that fits overtakes it."""
    room = Evicts()

    async with sized(room, max_workers=3) as m:
        seen = Seen(m)
        first = await m.start_job("medium", gate=gate.path)
        await seen.until("job:started", job_id=first.id)
        large = await m.start_job("large")
        await seen.when(lambda e: e.type == "job:queued" and e.data["job_id"] == large.id and "waiting_for" in e.data)
        assert (large.status, large.waiting_for) == ("pending", "large needs 4, and 2 is free")
        small = await m.start_job("small")
        assert await small == "small" and large.status == "pending"
        gate.open()
        assert await large == "large" and large.waiting_for == ""
    assert room.most <= room.room and m.integration_errors == {}


def test_idle_plugins_are_unloaded_the_least_recently_used_first(tmp_path: Path) -> None:
    """Running ones never; and no more than it takes."""
    room, gates = Evicts(room=4), [Gate(tmp_path / f"gate {n}") for n in range(3)]

    async def scenario() -> None:
        async with sized(room, max_workers=4) as m:
            seen = Seen(m)
            medium, small, busy = [
                await m.start_job(plugin, gate=gate.path) for plugin, gate in zip(("medium", "small", "small"), gates)
            ]
            for job in (medium, small, busy):
                await seen.until("job:started", job_id=job.id)
            for job, gate in ((small, gates[1]), (medium, gates[0])):
                gate.open()
                await job
            loaded = {w.pid: w.plugin_id for w in m.workers}
            assert (await end(await m.start_job("medium"))).worker_pid == medium.worker_pid
            large = await m.start_job("large")
            await seen.when(lambda e: e.data.get("job_id") == large.id and "waiting_for" in e.data)
            assert busy.status == "running" and large.status == "pending"
            gates[2].open()
            assert await large == "large" and busy.status == "completed"
            assert room.victims[0] == [small.worker_pid, medium.worker_pid] and len(loaded) == 3
        assert room.most <= room.room and m.integration_errors == {}

    run(scenario())
    for gate in gates:
        gate.close()


async def test_a_worker_that_runs_a_job_is_never_offered(gate: Gate) -> None:
    """The victims are idle ones."""
    room = Evicts(room=2)

    async with sized(room, max_workers=2) as m:
        seen = Seen(m)
        busy = await m.start_job("small", gate=gate.path)
        await seen.until("job:started", job_id=busy.id)
        waiting = await m.start_job("medium")
        await seen.when(lambda e: "waiting_for" in e.data)
        await until(lambda: room.calls.count("medium") > 2)
        assert busy.status == "running" and waiting.status == "pending" and not any(room.victims)
        gate.open()
        assert await waiting == "medium"


async def test_after_an_eviction_the_memory_is_seen_to_come_back(gate: Gate) -> None:
    """Memory that comes back late is waited for, and nothing else is unloaded meanwhile."""
    room = Evicts(room=4, slow=0.4)

    async with sized(room, max_workers=2) as m:
        jobs = [await m.start_job("medium", gate=gate.path), await m.start_job("small", gate=gate.path)]
        await until(lambda: all(job.status == "running" for job in jobs))
        gate.open(2)
        for job in jobs:
            await job
        began = time.monotonic()
        assert await (await m.start_job("large")) == "large" and time.monotonic() - began > 0.4
    assert room.most <= room.room and len(room.victims) == 2


async def test_one_worker_makes_room_for_its_next_plugin() -> None:
    """With a single worker, its own plugin is the one that goes."""
    room = Evicts(room=4)

    async with sized(room) as m:
        jobs = [await m.start_job(plugin) for plugin in ("large", "medium", "large", "small")]
        assert [await job for job in jobs] == ["large", "medium", "large", "small"]
        assert len({job.worker_pid for job in jobs}) == 1
    assert room.most <= room.room


class Unspeakable:
    """An answer that raises when it is looked at."""

    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize("what", ["estimate", "answer"])
async def test_what_raises_where_room_is_asked_for_holds_up_no_job(what: str) -> None:
    """The hook that says what a plugin needs is counted, and the job runs; an answer that cannot be read counts as none."""
    room = Admits(room=4)
    asked: "list[str]" = []

    class Manager(JobManager):
        def estimate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> Any:
            asked.append(plugin_id)
            if what == "estimate" and len(asked) > 1:
                raise OSError("the model cannot be looked at")
            return super().estimate_resources(plugin_id, plugin_config)

    answers: "list[Any]" = [Unspeakable()] if what == "answer" else []
    room.can_start = lambda *arguments: answers.pop() if answers else None  # type: ignore[method-assign,assignment]

    async with sized(room, Manager) as m:
        assert await (await m.start_job("small")) == "small"
        assert set(m.integration_errors) == {"hooks.estimate_resources" if what == "estimate" else "resource_manager.can_start"}


class Ambiguous:
    """Like an array: it cannot be asked whether it is equal."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")


async def test_a_config_that_cannot_be_compared_holds_up_no_job() -> None:
    """Many jobs of a plugin whose config has an array in it run, one after the other, and room is asked for once."""

    class Odd(Registry):
        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {**super().load_plugin_config(plugin_id), "prompt": Ambiguous()}

    room = Admits()
    async with JobManager("test", "sizes", plugins={"small": Loads}, plugin_registry=Odd(), resource_manager=room) as m:
        jobs = [await m.start_job("small") for _ in range(4)]
        assert [(await end(job)).result for job in jobs] == ["small"] * 4
        assert room.calls == ["small"]


async def test_a_slow_resource_manager_holds_up_no_start(gate: Gate) -> None:
    """Its updates pile up; a question that has to wait behind them for too long is passed over and counted."""
    room = Admits(room=4)
    room.update_worker_state = lambda *_, **__: time.sleep(0.15)  # type: ignore[method-assign]

    async with sized(room, integration_timeout=0.2) as m:
        jobs = [await m.start_job("small") for _ in range(10)]
        for job in jobs:
            await job
        began = time.monotonic()
        job = await m.start_job("small")
        assert time.monotonic() - began < 1.0 and await job == "small"
        assert m.integration_errors["resource_manager.can_ever_start"] > 0


async def test_a_job_that_waits_for_room_can_be_cancelled(gate: Gate) -> None:
    """It ends at once, and the next one goes on."""
    room = Admits(room=2)

    async with sized(room, max_workers=2) as m:
        seen = Seen(m)
        busy = await m.start_job("small", gate=gate.path)
        await seen.until("job:started", job_id=busy.id)
        waiting = await m.start_job("medium")
        await seen.when(lambda e: "waiting_for" in e.data)
        assert await m.cancel_job(waiting.id) and waiting.status == "cancelled" and waiting.waiting_for == ""
        assert await (await m.start_job("small")) == "small"
        gate.open()
        await busy


def test_shutdown_ends_what_waits_for_room() -> None:
    """A job that waits for room ends as cancelled, like any other that waits."""
    room = Admits(room=4)
    room.held[1] = ("somebody else's", 3)

    async def scenario() -> Any:
        async with sized(room) as m:
            seen = Seen(m)
            job = await m.start_job("medium")
            await seen.when(lambda e: "waiting_for" in e.data)
        return job

    assert run(scenario()).status == "cancelled"


async def test_memory_that_others_give_back_is_noticed() -> None:
    """A job that waits is asked about again, although nothing happens here."""
    room = Admits(room=4)
    room.held[1] = ("somebody else's", 3)

    async with sized(room) as m:
        seen = Seen(m)
        job = await m.start_job("medium")
        await seen.when(lambda e: "waiting_for" in e.data)
        del room.held[1]
        assert await asyncio.wait_for(job.wait(), 5) is job and job.result == "medium"


async def test_what_was_asked_about_a_job_is_forgotten_when_it_has_run_without(gate: Gate) -> None:
    """A job that was refused finds its plugin loaded, in a worker that has become idle."""
    room = Admits(room=2)
    async with sized(room, max_workers=2) as m:
        first = await m.start_job("medium", gate=gate.path)
        await until(lambda: first.status == "running")
        second = await m.start_job("medium")
        await until(lambda: second.waiting_for)
        kept = weakref.ref(second)
        gate.open()
        assert await first == await second == "medium" and room.calls.count("medium") > 1
        m.clear_completed_jobs()
        del first, second
        await until(lambda: gc.collect() is not None and kept() is None)


def test_a_request_that_ctrl_c_interrupts_holds_up_no_job() -> None:
    """As in a notebook, whose loop goes on."""
    asked: "list[str]" = []

    class Manager(JobManager):
        def estimate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> Any:
            asked.append(plugin_id)
            if len(asked) == 2:  # by `start_job` first
                raise KeyboardInterrupt
            return super().estimate_resources(plugin_id, plugin_config)

    loop = asyncio.new_event_loop()
    try:
        m = sized(Admits(room=4), Manager)
        starting = loop.create_task(m.start_job("small"))
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        job = loop.run_until_complete(starting)
        loop.run_until_complete(asyncio.wait_for(job.wait(), 10))
        assert job.result == "small" and len(asked) > 2
        loop.run_until_complete(m.shutdown())
    finally:
        loop.close()


async def test_a_worker_that_stops_just_when_a_job_is_admitted_is_given_none() -> None:
    """The answer is acted on a turn of the loop later; another worker is asked for."""
    loop, stopped = asyncio.get_running_loop(), list[int]()
    async with sized(Admits(room=8)) as m:

        def stop(_: object) -> None:
            for worker in () if stopped else m._session.lifecycle.pool.workers:
                stopped.append(worker.pid)
                worker.stop("room")

        def make_task(loop: Any, coro: Any, **more: Any) -> Any:
            task = asyncio.Task(coro, loop=loop, **more)
            if "AdmissionGate" in repr(coro):
                task.add_done_callback(stop)
            return task

        loop.set_task_factory(make_task)
        seen = Seen(m)
        job = await m.start_job("small")
        await seen.until("job:completed")
        assert job.result == "small" and len(stopped) == 1
        assert [event.data["pid"] for event in seen.events if event.type == "job:started"] == [job.worker_pid] != stopped


class Silent(Admits):
    """Raises or hangs in place of an answer, until it is mended."""

    def __init__(self, how: str) -> None:
        super().__init__(room=4)
        self.how, self.mended = how, threading.Event()

    def can_ever_start(self, *_: Any) -> Any:
        return self._bad()

    def can_start(self, plugin_id: str, config: Any, estimate: Any = None) -> Any:
        self._bad()
        return super().can_start(plugin_id, config, estimate)

    def _bad(self) -> None:
        if self.how == "hang":
            self.mended.wait(10)
        elif not self.mended.is_set():
            raise OSError("postgres://user:password@host")


@pytest.mark.parametrize("how", ["raise", "hang"])
async def test_without_an_answer_nothing_is_loaded(how: str, caplog: Any) -> None:
    """The job waits, and says why, without what the exception says; a log line says it once; with an answer it runs."""
    room = Silent(how)

    async with sized(room, integration_timeout=0.1) as m:
        seen = Seen(m)
        job = await m.start_job("small")
        said = await seen.when(lambda e: "waiting_for" in e.data)
        assert "can_start" in said.data["waiting_for"] and "password" not in str(said.data)
        await until(lambda: m.integration_errors["resource_manager.can_start"] >= 3)
        assert job.status == "pending" and not room.calls
        room.mended.set()
        assert (await end(job)).result == "small"
        assert m.integration_errors["resource_manager.can_ever_start"] == 1
    warnings = [r for r in caplog.records if r.levelname == "WARNING" and "without an answer" in r.getMessage()]
    assert len(warnings) == 1


@pytest.mark.parametrize("how", ["raise", "hang"])
async def test_a_job_does_not_wait_for_an_answer_for_ever(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time without an answer it fails, and so does the next; what is loaded runs; with an answer all is well again."""
    monkeypatch.setattr(Silence, "LIMIT", 0.3)
    room = Silent(how)
    room.mended.set()

    async with sized(room, integration_timeout=0.1) as m:
        assert await (await m.start_job("small")) == "small"
        room.mended.clear()
        for _ in range(2):
            job = await end(await m.start_job("medium"))
            assert job.status == "failed" and job.error.category == "load" and "can_start" in job.error.message
        assert await (await m.start_job("small")) == "small"
        room.mended.set()
        assert (await end(await m.start_job("medium"))).result == "medium"


async def test_a_reload_without_an_answer_loads_nothing() -> None:
    """It returns False."""
    room = Silent("raise")
    room.mended.set()
    async with sized(room) as m:
        assert await (await m.start_job("small")) == "small"
        room.mended.clear()
        assert await m.reload_plugin("medium", {}) is False


async def test_nonsense_from_an_admission_is_a_reason() -> None:
    """Whatever is not None refuses, in its own words."""
    room = Admits()
    room.can_ever_start = lambda *_: 42  # type: ignore[method-assign,assignment,return-value]
    async with sized(room) as m:
        with pytest.raises(errors.ResourceValidationError, match="42"):
            await m.start_job("small")


async def test_a_worker_that_dies_while_it_is_held() -> None:
    """The job goes to another worker."""

    class Kills(Admits):
        def can_start(self, plugin_id: str, config: Any, estimate: Any = None) -> "str | None":
            reason = super().can_start(plugin_id, config, estimate)
            if len(self.calls) == 1:
                (pid,) = self.held
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.2)
            return reason

    async with sized(Kills(), backoff_base=0.01) as m:
        job = await m.start_job("small")
        assert await asyncio.wait_for(job.wait(), 10) is job and job.result == "small" and job.attempts == 1


@pytest.mark.limit(60)
async def test_many_jobs_of_every_size_never_use_more_than_there_is() -> None:
    """Each ends once, whatever order the room allows."""
    room = Evicts(room=5, slow=0.01)

    async with sized(room, max_workers=3) as m:
        jobs = [await m.start_job(plugin) for plugin in ("small", "large", "medium") * 8]
        for job in jobs:
            assert (await end(job, 30)).status == "completed", job
    assert room.most <= room.room and m.integration_errors == {}
