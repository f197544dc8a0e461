"""How many jobs that do nothing are done in a second, when many are asked for at once?"""

import asyncio
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack

from bench import Row, Target, compare, interleave, main, peer, timed
from workloads import noop

from cjm_worker_protocols import JobManager

LOKY = peer("loky", "loky")


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
        with ExitStack() as stack:
            loky = stack.enter_context(LOKY.ProcessPoolExecutor(1)) if LOKY else None
            peers = {"loky": lambda: timed(lambda: submit(loky))} if loky else {}
            async with JobManager("bench", "none", plugins={"noop": noop}) as manager:
                times = await interleave(
                    rounds,
                    pool=lambda: timed(lambda: submit(pool)),
                    ours=lambda: timed(run),
                    **peers,
                )
    each = {name: [jobs / t for t in took] for name, took in times.items()}
    what = "pipelined no-op jobs"
    return [
        compare(what, each["ours"], "`ProcessPoolExecutor(1)`", each["pool"], Target("at least", 3), rates=True),
        *(compare(what, each["ours"], name, each[name], rates=True) for name in peers),
    ]


if __name__ == "__main__":
    main(measure, full={"rounds": 30, "jobs": 500}, tiny={"rounds": 1, "jobs": 5})
