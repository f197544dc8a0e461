"""What all the systems run."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def noop() -> None:
    """Nothing."""


def pid() -> int:
    """Say which process this is."""
    return os.getpid()


def spin(mark: str) -> None:
    """Never end, and never ask whether it should."""
    Path(mark).touch()
    while True:
        pass


def nap(mark: str, seconds: float) -> None:
    """Sleep."""
    Path(mark).touch()
    time.sleep(seconds)


def look(data: Any) -> int:
    """Read a byte of each page."""
    return int(data[::4096].max())


def stream() -> "Iterator[int]":
    """Two chunks."""
    yield 1
    yield 2


FUNCTIONS = (noop, pid, spin, nap, look)
