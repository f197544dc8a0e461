"""The plugins that the benchmarks run, here and in the peers' processes."""

from typing import Iterator

SIZE = 100_000_000  # bytes of a large result
_large = b""


def noop() -> None:
    """Nothing."""


def stream(count: int) -> Iterator[str]:
    """Many short pieces of text."""
    for i in range(count):
        yield f"segment {i}"


def large() -> bytes:
    """The same 100 MB every time, made by the first call, which is not timed."""
    global _large
    _large = _large or b"\xa5" * SIZE
    return _large


def spin() -> Iterator[str]:
    """Say that it runs, then never end and never ask whether it should."""
    yield "spinning"
    while True:
        pass
