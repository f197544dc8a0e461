"""What does it cost to measure 8 workers once, each with a child, compared to psutil's own calls?"""

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any, Callable

import psutil
from bench import Row, Target, compare, interleave, main

from cjm_worker_protocols.integrations.resources import ProcessResourceManager

WORKERS = 8
APART = 0.11  # seconds between two measurements: CPU time is not read more often than every tenth of a second
CHILD = "import time; print(flush=True); time.sleep(1000)"
WORKER = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {CHILD!r}])"
QUESTION = "measuring 8 workers once, each with a child"


def start(stack: ExitStack) -> int:
    """Start a worker with a child; gives its pid. Both end with the stack."""
    worker = stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", WORKER], stdout=subprocess.PIPE))

    def end() -> None:
        below = psutil.Process(worker.pid).children(recursive=True)
        for process in (worker, *below):
            process.kill()

    stack.callback(end)
    assert worker.stdout is not None
    worker.stdout.readline()  # the child is there
    return worker.pid


def timed(work: Callable[[], Any]) -> "Callable[[], Any]":
    """Do the work once, a while after the work before."""

    async def once() -> float:
        await asyncio.sleep(APART)
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return once


async def measure(rounds: int) -> "list[Row]":
    """Measure 8 workers and their children, in ours and in psutil, in turn."""
    with ExitStack() as stack:
        pids = [start(stack) for _ in range(WORKERS)]
        ours, with_pss = (stack.enter_context(ProcessResourceManager(pss_interval=pace)) for pace in (3600, 0))
        for pid in pids:
            ours.register_worker(pid, "benchmark")
            with_pss.register_worker(pid, "benchmark")
        workers = [psutil.Process(pid) for pid in pids]
        known = [process for worker in workers for process in (worker, *worker.children(recursive=True))]
        assert len(known) == 2 * WORKERS

        def calls() -> None:
            for worker in workers:
                for process in (worker, *worker.children(recursive=True)):
                    process.memory_info()
                    process.cpu_percent()

        def calls_of_known() -> None:
            for process in known:
                process.memory_info()
                process.cpu_percent()

        def calls_with_pss() -> None:
            for worker in workers:
                for process in (worker, *worker.children(recursive=True)):
                    process.memory_full_info()
                    process.cpu_percent()

        times = await interleave(
            rounds,
            ours=timed(ours.sample),
            calls=timed(calls),
            known=timed(calls_of_known),
            with_pss=timed(with_pss.sample),
            full=timed(calls_with_pss),
        )
        assert all(w.usage.processes == 2 and w.usage.cpu_percent is not None for w in ours.snapshot().workers)
    return [
        compare(QUESTION, times["ours"], "psutil, children found for each", times["calls"], Target("at most", 1.5)),
        compare(QUESTION, times["ours"], "psutil, children known beforehand", times["known"], Target("at most", 1.5)),
        compare(f"{QUESTION}, pss too", times["with_pss"], "psutil, `memory_full_info`", times["full"]),
    ]


if __name__ == "__main__":
    main(measure, full={"rounds": 40}, tiny={"rounds": 2})
