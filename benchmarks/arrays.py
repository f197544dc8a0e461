"""What does it take to pass large arrays to a worker, and back?"""

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

import numpy as np
from bench import Row, Target, compare, interleave, main, peer
from workloads import array, frames, look, overwrite

from cjm_worker_protocols import JobManager, WorkerConfig

Works = "dict[str, Callable[[], Awaitable[Any]]]"  # What is compared; each returns what is dropped after it was timed


class Actor:
    """The plugins of this benchmark, as an actor of Ray without anything else."""

    def look(self, data: Any) -> int:
        """Read a byte of each page."""
        return look(data)

    def array(self, size: int) -> Any:
        """The same array every time."""
        return array(size)


def looked_at(data: Any) -> Any:
    """An array, once a byte of each page has been read."""
    look(data)
    return data


async def follow(manager: JobManager, count: int, size: int) -> None:
    """A stream of arrays, each looked at as it comes."""
    job, came = await manager.start_job("frames", count=count, size=size), 0
    async for frame in job.stream():
        came += look(frame) >= 0
    assert came == count


async def pool_frames(pool: Executor, count: int, size: int) -> None:
    """As many arrays from a pool, which cannot stream: one call for each."""
    loop = asyncio.get_running_loop()
    for future in [loop.run_in_executor(pool, array, size) for _ in range(count)]:
        look(await future)


def works(manager: JobManager, pool: Executor, actor: Any, size: int) -> Works:
    """What is compared for arrays of one size."""
    data, loop = np.full(size, 3, np.uint8), asyncio.get_running_loop()

    async def memcpy() -> Any:
        return data.copy()

    async def give() -> Any:
        return await (await manager.start_job("look", data=data))

    async def take() -> Any:
        return looked_at(await (await manager.start_job("array", size=size)))

    async def pool_give() -> Any:
        return await loop.run_in_executor(pool, look, data)

    async def pool_take() -> Any:
        return looked_at(await loop.run_in_executor(pool, array, size))

    async def ray_give() -> Any:
        return await actor.look.remote(data)

    async def ray_take() -> Any:
        return looked_at(await actor.array.remote(size))

    ours = {"memcpy": memcpy, "give": give, "take": take, "pool_give": pool_give, "pool_take": pool_take}
    return ours if actor is None else {**ours, "ray_give": ray_give, "ray_take": ray_take}


async def in_turn(manager: JobManager, rounds: int, pause: float, works: Works) -> "dict[str, list[float]]":
    """The seconds of each in every round. Memory is freed afterwards, and none pays for what the one before left behind."""

    async def timed_alone(work: "Callable[[], Awaitable[Any]]") -> float:
        start = time.perf_counter()
        kept = await work()
        took = time.perf_counter() - start
        del kept
        manager.clear_completed_jobs()
        await asyncio.sleep(pause)
        return took

    return await interleave(rounds, **{name: (lambda work=work: timed_alone(work)) for name, work in works.items()})


def puts(ray: Any, rounds: int, size: int) -> "tuple[list[float], list[float]]":
    """The seconds of putting an array into Ray's store: into memory that the store has not used yet, and into memory that it has."""
    data = np.full(size, 3, np.uint8)

    def put() -> "tuple[float, Any]":
        start = time.perf_counter()
        kept = ray.put(data)
        return time.perf_counter() - start, kept

    put()
    new, kept = zip(*(put() for _ in range(rounds)))
    del kept
    used = []
    for _ in range(rounds):
        time.sleep(0.5)  # the store frees what is not referenced any more
        used.append(put()[0])
    return list(new), used


def rows_of(times: "dict[str, list[float]]", mb: float, largest: bool) -> "list[Row]":
    """The rows of one size; targets are for the largest."""
    name, found = (f"{mb:g} MB" if mb >= 1 else f"{mb * 1000:g} kB"), []
    limits = {"give": (3, 0.25, 1.5), "take": (3, 0.25, 1.2)}
    for ours, words in (("give", f"array as parameter, {name}"), ("take", f"array as result, {name}")):
        targets = [Target("at most", limit) if largest else None for limit in limits[ours]]
        found.append(compare(words, times[ours], "one `memcpy` into fresh memory", times["memcpy"], targets[0]))
        found.append(compare(words, times[ours], "`ProcessPoolExecutor(1)`", times[f"pool_{ours}"], targets[1]))
        if f"ray_{ours}" in times:
            found.append(compare(words, times[ours], "Ray actor", times[f"ray_{ours}"], targets[2]))
    return found


async def measure(rounds: int, sizes: "tuple[float, ...]", count: int, frame: int) -> "list[Row]":
    """Arrays as parameter, as result and as a stream, against a memcpy, a pool and an actor; a byte of each page is read."""
    rows: "list[Row]" = []
    ray, actor = peer("ray", "ray"), None
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("forkserver")))
        if ray is not None:
            importlib.import_module("cjm_worker_protocols.engines.ray").start_ray(ray, None, num_cpus=2, object_store_memory=2_000_000_000)
            stack.callback(ray.shutdown)
            new, used = puts(ray, min(rounds, 8), round(max(sizes) * 1_000_000))
            words = "`ray.put` of 100 MB, into memory that Ray's store has not used yet"  # also of a tiny run's rows
            rows.append(compare(words, new, "into memory used before", used))
            actor = ray.remote(Actor).remote()
        plugins: Any = {"look": look, "array": array, "frames": frames, "overwrite": overwrite}
        config = WorkerConfig(standby=False)
        async with JobManager("bench", "arrays", supports_streaming=True, plugins=plugins, worker_config=config) as manager:
            for mb in sizes:
                size = round(mb * 1_000_000)
                large = size >= 10_000_000
                times = await in_turn(manager, rounds * (1 if large else 4), 0.1 if large else 0.005, works(manager, pool, actor, size))
                rows += rows_of(times, mb, mb == max(sizes))
            data = np.full(round(max(sizes) * 1_000_000), 3, np.uint8)

            async def run(plugin: str) -> Any:
                return await (await manager.start_job(plugin, data=data))

            pair: Any = {"write": lambda: run("overwrite"), "read": lambda: run("look")}
            times = await in_turn(manager, rounds, 0.1, pair)
            rows.append(compare(f"array as parameter, {max(sizes):g} MB, all of it written to", times["write"], "only read", times["read"]))
            pair = {"ours": lambda: follow(manager, count, frame), "pool": lambda: pool_frames(pool, count, frame)}
            times = await in_turn(manager, max(1, rounds // 2), 0.1, pair)
            rows.append(compare("stream of 100 frames of 6 MB", times["ours"], "`ProcessPoolExecutor(1)`, a call each", times["pool"]))
    return rows


if __name__ == "__main__":
    main(
        measure,
        full={"rounds": 15, "sizes": (0.001, 1, 6, 10, 100), "count": 100, "frame": 6_000_000},
        tiny={"rounds": 1, "sizes": (0.001, 1, 6, 10, 100), "count": 100, "frame": 1000},
        limit=300,
    )
