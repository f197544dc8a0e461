"""How many jobs that do nothing are done in a second, when many are asked for at once?"""

import asyncio
from concurrent.futures import Executor, ProcessPoolExecutor

from bench import Row, Target, compare, interleave, main, timed
from loky import ProcessPoolExecutor as LokyExecutor  # type: ignore[import-untyped]
from workloads import noop

from cjm_worker_protocols import JobManager


async def measure(rounds: int, jobs: int) -> "list[Row]":
    """Pipelined no-op jobs per second: all are started, then all are awaited."""

    async def run() -> None:
        for job in [await manager.start_job("noop") for _ in range(jobs)]:
            await job

    async def submit(executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        for future in [loop.run_in_executor(executor, noop) for _ in range(jobs)]:
            await future

    with ProcessPoolExecutor(1) as pool:
        await submit(pool)  # it forks: before anything else is there
        with LokyExecutor(1) as loky:
            async with JobManager("bench", "none", plugins={"noop": noop}) as manager:
                times = await interleave(
                    rounds,
                    pool=lambda: timed(lambda: submit(pool)),
                    ours=lambda: timed(run),
                    loky=lambda: timed(lambda: submit(loky)),
                )
    each = {name: [jobs / t for t in took] for name, took in times.items()}
    what = "pipelined no-op jobs"
    return [
        compare(what, each["ours"], "`ProcessPoolExecutor(1)`", each["pool"], Target("at least", 2), rates=True),
        compare(what, each["ours"], "loky", each["loky"], rates=True),
    ]


if __name__ == "__main__":
    main(measure, full={"rounds": 30, "jobs": 500}, tiny={"rounds": 1, "jobs": 5})
