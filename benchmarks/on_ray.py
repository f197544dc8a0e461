"""What does a job cost on Ray, beside a bare actor of Ray, and how much can one manager drive?"""

import asyncio
import time

import ray
from bench import Row, Target, compare, interleave, main, timed
from workloads import noop, stream

from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.engines.ray import RayEngine, start_ray


class Actor:
    """The plugins of these benchmarks, as an actor without anything else."""

    def noop(self) -> None:
        """Nothing."""

    def stream(self, count: int):  # type: ignore[no-untyped-def] # noqa: ANN201
        """A generator, as it is."""
        yield from stream(count)


async def measure(rounds: int, jobs: int, chunks: int, workers: "tuple[int, ...]") -> "list[Row]":
    """No-op round trips and streams, ours and a bare actor's; CPU time of this process a job; jobs per second of several workers."""

    async def run(manager: JobManager) -> None:
        for _ in range(jobs):
            await (await manager.start_job("noop"))

    async def call() -> None:
        for _ in range(jobs):
            await actor.noop.remote()

    async def chunked() -> None:
        came = 0
        job = await one.start_job("stream", count=chunks)
        async for _ in job.stream():
            came += 1
        assert came == chunks, came

    async def generator() -> None:
        came = 0
        for item in actor.stream.options(num_returns="streaming").remote(chunks):
            ray.get(item)
            came += 1
        assert came == chunks, came

    async def cpu(work) -> float:  # type: ignore[no-untyped-def]
        start = time.process_time()
        await work()
        return time.process_time() - start

    async def many(manager: JobManager) -> None:
        for job in [await manager.start_job("noop") for _ in range(4 * jobs)]:
            await job

    start_ray(ray, None, num_cpus=8, object_store_memory=200_000_000)
    try:
        actor = ray.remote(Actor).remote()
        plugins = {"noop": noop, "stream": stream}
        managers = {
            count: JobManager(
                "bench", "ray", plugins=plugins, engine=RayEngine(), worker_config=WorkerConfig(max_workers=count, standby=False)
            )
            for count in workers
        }
        one = managers[1]
        try:
            for manager in managers.values():
                await many(manager)
            times = await interleave(
                rounds,
                call=lambda: timed(call),
                run=lambda: timed(lambda: run(one)),
                generator=lambda: timed(generator),
                chunked=lambda: timed(chunked),
                cpu_call=lambda: cpu(call),
                cpu_run=lambda: cpu(lambda: run(one)),
                **{f"many{count}": lambda m=manager: timed(lambda: many(m)) for count, manager in managers.items()},  # type: ignore[misc]
            )
        finally:
            await asyncio.gather(*(manager.shutdown() for manager in managers.values()))
    finally:
        ray.shutdown()
    each = {name: [t / jobs for t in took] for name, took in times.items()}
    rates = {name: [chunks / t for t in took] for name, took in times.items()}
    several = {count: [4 * jobs / t for t in times[f"many{count}"]] for count in workers}
    return [
        compare("no-op round trip on Ray", each["run"], "bare actor call", each["call"], Target("at most", 1.5)),
        compare(
            "streamed chunks on Ray", rates["chunked"], "bare streaming generator", rates["generator"], Target("at least", 0.7), rates=True
        ),
        compare("CPU time of the manager's process for a job on Ray", each["cpu_run"], "for a bare actor call", each["cpu_call"]),
        *(
            compare(f"no-op jobs of one manager on Ray, workers: {count}", several[count], "with 1", several[1], rates=True)
            for count in workers
        ),
    ]


if __name__ == "__main__":
    main(
        measure,
        full={"rounds": 6, "jobs": 100, "chunks": 2_000, "workers": (1, 2, 4)},
        tiny={"rounds": 1, "jobs": 3, "chunks": 10, "workers": (1, 2)},
        limit=95,
    )
