"""How long from cancelling a job that spins to the result of the next?"""

import asyncio
import time

from bench import Row, Target, compare, interleave, main
from cold_start import cold_start
from workloads import noop, spin

from cjm_worker_protocols import JobManager


async def measure(rounds: int) -> "list[Row]":
    """Cancel of a spinning job → next no-op result, against a cold start of our own."""

    async def cancel() -> float:
        while not any(worker.status == "standby" for worker in manager.workers):
            await asyncio.sleep(0.01)  # the one before has taken it, and the next is starting
        spinning = await manager.start_job("spin")
        await anext(spinning.stream())
        start = time.perf_counter()
        await manager.cancel_job(spinning.id)
        await (await manager.start_job("noop"))
        return time.perf_counter() - start

    async with JobManager("bench", "cancel", plugins={"noop": noop, "spin": spin}) as manager:
        await (await manager.start_job("noop"))
        times = await interleave(rounds, cold=cold_start, cancel=cancel)
    question = "cancel of a spinning job → next no-op result"
    return [compare(question, times["cancel"], "our cold start", times["cold"], Target("at most", 0.5))]


if __name__ == "__main__":
    main(measure, full={"rounds": 15}, tiny={"rounds": 1})
