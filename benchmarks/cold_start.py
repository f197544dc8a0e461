"""How long from making a manager to the result of its first job?"""

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from bench import Row, Target, compare, interleave, main, peer
from workloads import noop

from cjm_worker_protocols import JobManager

LOKY = peer("loky", "loky")


async def cold_start() -> float:
    """Make a manager, run a job that does nothing; its end is not timed."""
    start = time.perf_counter()
    async with JobManager("bench", "cold", plugins={"noop": noop}) as manager:
        await (await manager.start_job("noop"))
        return time.perf_counter() - start


async def python() -> float:
    """Start an interpreter that imports what any worker needs, and wait for its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import pickle, socket"], check=True)
    return time.perf_counter() - start


async def loky() -> float:
    """The same with loky, which starts an interpreter too."""
    start = time.perf_counter()
    with LOKY.ProcessPoolExecutor(1) as executor:
        executor.submit(noop).result()
        return time.perf_counter() - start


async def pool() -> float:
    """The same with a pool that forks, or does what else this Python does by default."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1) as executor:
        executor.submit(noop).result()
        return time.perf_counter() - start


async def measure(rounds: int) -> "list[Row]":
    """Cold start: manager made → first no-op result."""
    peers = {"loky": loky} if LOKY else {}
    times = await interleave(rounds, python=python, ours=cold_start, **peers, pool=pool)
    what = "cold start"
    return [
        compare(what, times["ours"], '`python -c "import pickle, socket"`', times["python"], Target("at most", 3)),
        *(compare(what, times["ours"], name, times[name]) for name in peers),
        compare(what, times["ours"], "`ProcessPoolExecutor(1)`", times["pool"]),
    ]


if __name__ == "__main__":
    main(measure, full={"rounds": 15}, tiny={"rounds": 1})
