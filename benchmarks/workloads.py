"""The plugins that the benchmarks run, here and in the peers' processes."""

from typing import Any, Iterator

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


_arrays: "dict[int, Any]" = {}


def array(size: int) -> Any:
    """The same array of bytes every time, made by the first call."""
    import numpy

    if size not in _arrays:
        _arrays[size] = numpy.full(size, 7, numpy.uint8)
    return _arrays[size]


def frames(count: int, size: int) -> "Iterator[Any]":
    """The frames of a video."""
    for _ in range(count):
        yield array(size)


def look(data: Any) -> int:
    """Read a byte of each page of an array."""
    return int(data[::4096].max())


def overwrite(data: Any) -> int:
    """Write to all of an array."""
    data += 1
    return int(data[0])
