"""Other processes that keep the machine busy, for as long as something is measured."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import Dict, Iterator, List

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STATES: Dict[str, int] = {"idle machine": 0, "one other busy process": 1, "every core busy": CORES}  # And how many processes run


class Others:
    """Processes that do nothing but run. They are stopped until they are wanted."""

    def __enter__(self) -> "Others":
        self._processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
        self._signal(self._processes, signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(self._processes, signal.SIGKILL)
        for process in self._processes:
            process.wait(10)

    @staticmethod
    def _signal(processes: "List[subprocess.Popen[bytes]]", number: int) -> None:
        for process in processes:
            process.send_signal(number)

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        """Let so many of them run meanwhile."""
        self._signal(self._processes[:count], signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(self._processes[:count], signal.SIGSTOP)
