"""How long from asking for a job that does nothing to having its result, on an idle machine and on busy ones?"""

import asyncio
from collections import defaultdict
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench import Row, Target, compare, interleave, main, peer, timed
from busy import STATES, Others
from integrations import all_three
from peers import BareOnLoop
from workloads import noop

from cjm_worker_protocols import JobManager

LOKY = peer("loky", "loky")
TARGETS = {"no integrations": (0.5, 0.65, 0.65), "all three integrations": (0.9, 0.9, 0.9)}  # Of `ProcessPoolExecutor(1)`, by state
POOL, LOOP = "`ProcessPoolExecutor(1)`", "ping-pong on asyncio"


async def measure(rounds: int, jobs: int) -> "list[Row]":
    """No-op round trips, one after the other: none of the integrations, all three, and the peers. Each round has all three states."""

    async def run(manager: JobManager) -> None:
        for _ in range(jobs):
            await (await manager.start_job("noop"))

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
    each: "defaultdict[tuple[str, str], list[float]]" = defaultdict(list)
    with ProcessPoolExecutor(1) as pool, ExitStack() as stack:
        await submit(pool)  # it forks: before anything else is there
        on_loop, others = stack.enter_context(BareOnLoop()), stack.enter_context(Others())
        loky = stack.enter_context(LOKY.ProcessPoolExecutor(1)) if LOKY else None
        peers = {"loky": lambda: timed(lambda: submit(loky))} if loky else {}
        async with none, all3:
            for number in range(rounds + 1):
                for state, count in STATES.items():
                    with others.running(count):
                        times = await interleave(
                            1,
                            warm_up=False,
                            none=lambda: timed(lambda: run(none)),
                            pool=lambda: timed(lambda: submit(pool)),
                            all3=lambda: timed(lambda: run(all3)),
                            loop=lambda: timed(ask),
                            **peers,
                        )
                    for name, (took,) in times.items() if number else ():  # the first round warms up
                        each[name, state].append(took / jobs)
    rows = []
    for n, state in enumerate(STATES):
        for name, ours in ("no integrations", "none"), ("all three integrations", "all3"):
            question, target = f"no-op round trip, {name}, {state}", Target("at most", TARGETS[name][n])
            rows.append(compare(question, each[ours, state], POOL, each["pool", state], target))
            others_peers = [("loky", "loky")] * bool(peers) + [(LOOP, "loop")]
            rows += [compare(question, each[ours, state], shown, each[key, state]) for shown, key in others_peers if ours == "none"]
    return rows


if __name__ == "__main__":
    main(measure, full={"rounds": 30, "jobs": 50}, tiny={"rounds": 1, "jobs": 3}, limit=120)
