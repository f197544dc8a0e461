"""How long from asking for a job that does nothing to having its result?"""

import asyncio
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench import Row, Target, compare, interleave, main, peer, timed
from integrations import all_three
from peers import Bare, BareOnLoop
from workloads import noop

from cjm_worker_protocols import JobManager

LOKY = peer("loky", "loky")


async def measure(rounds: int, jobs: int) -> "list[Row]":
    """No-op round trips, one after the other: none of the integrations, all three, and the peers."""

    async def run(manager: JobManager) -> None:
        for _ in range(jobs):
            await (await manager.start_job("noop"))

    async def ping() -> None:
        for _ in range(jobs):
            bare.ping()

    async def ask() -> None:
        for _ in range(jobs):
            await on_loop.ask()

    async def submit(executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(jobs):
            await loop.run_in_executor(executor, noop)

    plugins: Any = {"noop": noop}
    none = JobManager("bench", "none", plugins=plugins)
    all3 = JobManager("bench", "all", plugins=plugins, **all_three())
    with ProcessPoolExecutor(1) as pool:
        await submit(pool)  # it forks: before anything else is there
        with ExitStack() as stack, Bare() as bare, BareOnLoop() as on_loop:
            loky = stack.enter_context(LOKY.ProcessPoolExecutor(1)) if LOKY else None
            peers = {"loky": lambda: timed(lambda: submit(loky))} if loky else {}
            async with none, all3:
                times = await interleave(
                    rounds,
                    bare=lambda: timed(ping),
                    none=lambda: timed(lambda: run(none)),
                    all3=lambda: timed(lambda: run(all3)),
                    loop=lambda: timed(ask),
                    pool=lambda: timed(lambda: submit(pool)),
                    **peers,
                )
    each = {name: [t / jobs for t in took] for name, took in times.items()}
    what, bare_name = "no-op round trip", "bare ping-pong"
    return [
        compare(f"{what}, no integrations", each["none"], bare_name, each["bare"], Target("at most", 3.5)),
        compare(f"{what}, all three integrations", each["all3"], bare_name, each["bare"], Target("at most", 5)),
        compare(f"{what}, no integrations", each["none"], "ping-pong on asyncio", each["loop"]),
        compare("ping-pong on asyncio", each["loop"], bare_name, each["bare"]),
        compare(f"{what}, no integrations", each["none"], "`ProcessPoolExecutor(1)`", each["pool"]),
        *(compare(f"{what}, no integrations", each["none"], name, each[name]) for name in peers),
    ]


if __name__ == "__main__":
    main(measure, full={"rounds": 40, "jobs": 100}, tiny={"rounds": 1, "jobs": 3})
