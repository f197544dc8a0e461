"""What waits is limited in bytes as well as in number: parameters, results, chunks and events."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Gate, Seen, end, gate, manager  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.core.buffers import SizedBuffer
from cjm_worker_protocols.core.jobs import live_of

MB = 1 << 20


@given(st.lists(st.tuples(st.sampled_from(["add", "take"]), st.integers(0, 50))), st.integers(1, 5), st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_a_buffer_knows_its_bytes(steps: "list[tuple[str, int]]", limit: int, limit_bytes: int) -> None:
    """As a list of sizes does, whatever is added and taken."""
    buffer, model = SizedBuffer(limit, limit_bytes), list[int]()
    for what, size in steps:
        if what == "take" and model:
            assert buffer.popleft() == model.pop(0)
        elif what == "add":
            buffer.append(size, size)
            model.append(size)
        assert (len(buffer), buffer.size) == (len(model), sum(model))
        over = buffer.over()
        assert not model or over < len(model)
        left = model[over:]
        assert len(left) <= limit and (sum(left) <= limit_bytes or len(left) == 1)
        assert over == 0 or len(model[over - 1 :]) > limit or sum(model[over - 1 :]) > limit_bytes
        for index in range(-1, len(model) + 2):
            unread = model[max(index, 0) :]
            assert buffer.full_from(index) == bool(unread and (len(unread) >= limit or sum(unread) >= limit_bytes))


async def test_parameters_of_jobs_that_wait(gate: Gate) -> None:  # noqa: F811
    """One more job is refused, and is accepted once another has ended; a single one may be of any size."""
    async with manager("wait_at", max_pending_bytes=3 * MB) as m:
        jobs = [await m.start_job("wait_at", gate=gate.path, tag=bytes(5 * MB))]
        with pytest.raises(errors.PendingBytesError, match="max_pending_bytes") as caught:
            await m.start_job("wait_at", gate=gate.path, tag=bytes(MB))
        assert isinstance(caught.value, errors.QueueFullError) and len(m.jobs) == 1
        gate.open()
        await end(jobs[0])
        jobs = [await m.start_job("wait_at", gate=gate.path, tag=bytes(MB)) for _ in range(2)]
        with pytest.raises(errors.PendingBytesError):
            await m.start_job("wait_at", gate=gate.path, tag=bytes(MB))
        await m.cancel_job(jobs[1].id)
        jobs.append(await m.start_job("wait_at", gate=gate.path, tag=bytes(MB)))
        gate.open(2)
        await asyncio.gather(jobs[0], jobs[2])


def large_chunks(count: int, size: int) -> "Iterator[bytes]":
    """Yield chunks of one size."""
    for n in range(count):
        yield bytes([n % 256]) * size


async def test_results_that_are_kept() -> None:
    """The oldest job goes, the newest stays, however large; chunks count too."""
    async with manager("large", large_chunks, keep_finished_bytes=3 * MB) as m:
        jobs = [await m.start_job("large", size=MB) for _ in range(5)]
        await asyncio.gather(*jobs)
        assert [job.id in m.jobs for job in jobs] == [False] * 3 + [True] * 2
        streamed = await m.start_job("large_chunks", count=4, size=MB)
        await streamed
        assert list(m.jobs) == [streamed.id]


@pytest.mark.parametrize("size", [MB, 100_000])
async def test_a_reader_of_large_chunks_loses_nothing(size: int) -> None:
    """The plugin waits for it, long before it has as many chunks as may wait."""
    async with manager(large_chunks, stream_buffer_bytes=4 * size, stall_timeout=60) as m:
        job = await m.start_job("large_chunks", count=60, size=size)
        most, found = 0, []
        async for chunk in job.stream():
            found.append(chunk[0])
            await asyncio.sleep(0.005)
            most = max(most, live_of(job).chunks.size())
        assert found == list(range(60)) and most < 40 * size
        assert live_of(job).chunks.size() <= 8 * size


async def test_chunks_that_are_not_read() -> None:
    """The newest are kept, as many as the bytes allow."""
    async with manager(large_chunks, stream_buffer_bytes=3 * MB) as m:
        job = await m.start_job("large_chunks", count=10, size=MB)
        await end(job)
        assert job.dropped_chunks == 8 and [chunk[0] async for chunk in job.stream(start=8)] == [8, 9]


async def test_events_that_are_not_read() -> None:
    """A listener loses the oldest, and a broadcaster too, which is counted."""

    class Stuck:
        async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            await asyncio.sleep(60)

    async with manager("echo", event_broadcaster=Stuck(), event_buffer_bytes=200_000, integration_timeout=0.2) as m:
        seen = Seen(m)
        for n in range(20):
            await m.broadcast_event("mine", {"n": n, "text": "a" * 50_000})
        assert seen.listener.dropped >= 16 and m.integration_errors["event_broadcaster.dropped"] >= 16
    assert [e.data["n"] for e in await seen.rest()][-1] == 19


class Tracked:
    """A parameter or a result whose copies in this process are counted."""

    alive: "weakref.WeakSet[Tracked]" = weakref.WeakSet()

    def __init__(self) -> None:
        self.body = bytes(100_000)
        self.alive.add(self)

    def __setstate__(self, state: "dict[str, Any]") -> None:
        vars(self).update(state)
        self.alive.add(self)


def passes(value: Any) -> Any:
    """Return it."""
    return value


class Hangs:
    """Integrations whose calls do not end before the test does."""

    def __init__(self) -> None:
        self.released, self.opened = threading.Event(), asyncio.Event()

    def register_worker(self, pid: int, worker_type: str) -> None: ...
    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, **state: Any) -> None:
        self.released.wait(20)

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        await self.opened.wait()


class HangingHook(JobManager):
    """A manager whose hook hangs, too."""

    resource_manager: Any

    def _on_job_completed(self, job_id: str) -> Any:
        self.resource_manager.released.wait(20)


class HangingAsyncHook(HangingHook):
    """The same, and the hook is async."""

    async def _on_job_completed(self, job_id: str) -> Any:
        await self.resource_manager.opened.wait()


@pytest.mark.parametrize("cls", [HangingHook, HangingAsyncHook])
async def test_calls_that_wait_hold_no_parameters_and_no_results(cls: Any) -> None:
    """Of integrations and hooks that hang: what was passed to jobs that have ended is freed all the same."""
    hangs = Hangs()
    async with manager(passes, cls=cls, keep_finished=0, resource_manager=hangs, event_broadcaster=hangs) as m:
        for _ in range(20):
            assert isinstance(await (await m.start_job("passes", value=Tracked())), Tracked)
        gc.collect()
        assert len(Tracked.alive) <= 2
        hangs.released.set()
        hangs.opened.set()


def test_a_full_buffer_costs_little() -> None:
    """Adding to one of 10,000 items takes no longer the more there are."""
    buffer, began = SizedBuffer(10_000, 1 << 40), time.perf_counter()
    for n in range(100_000):
        buffer.append(n, 100)
        for _ in range(buffer.over()):
            buffer.popleft()
    assert time.perf_counter() - began < 5
