"""What the benchmarks share: rounds that interleave what is compared, medians, and one row of a table for each answer."""

import argparse
import asyncio
import faulthandler
import importlib
import signal
import sys
import time
from statistics import median
from typing import Any, Awaitable, Callable, Coroutine, NamedTuple, Optional

Work = Callable[[], Awaitable[float]]  # does one round of work and gives the seconds that it took

HEAD = "| question | ours | peer | ratio | target | met |\n|---|--:|--:|--:|--:|---|"


class Target(NamedTuple):
    """What a ratio of ours to the peer's must be."""

    words: str  # `at most` or `at least`
    ratio: float

    def __str__(self) -> str:
        return f"{self.words} {self.ratio:g}×"

    def met(self, ratio: float) -> bool:
        """Whether that is so."""
        return ratio <= self.ratio if self.words == "at most" else ratio >= self.ratio


class Row(NamedTuple):
    """One answer, as it stands in the table."""

    question: str
    ours: str
    peer: str
    ratio: str
    target: str
    met: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"

    @classmethod
    def parse(cls, line: str) -> "Row":
        """Read a row back. Raises `ValueError` when it is none, or when its last cell contradicts the others."""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != len(cls._fields):
            raise ValueError(f"a row of the table: expected {len(cls._fields)} cells (got {line!r})")
        row = cls(*cells)
        ratio = float(row.ratio.rstrip("×"))
        if row.target != "—":
            words, number = row.target.rsplit(" ", 1)
            if row.met != verdict(ratio, Target(words, float(number.rstrip("×")))):
                raise ValueError(f"a row of the table: {row.ratio} of {row.target} is not {row.met!r}")
        return row


def verdict(ratio: float, target: Optional[Target]) -> str:
    """The last cell of a row."""
    if target is None:
        return "—"
    return "yes" if target.met(ratio) else "**no**"


def seconds(value: float) -> str:
    """A time to three digits: `152 µs`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def rate(value: float) -> str:
    """So many in a second: `8,230 /s`."""
    return f"{float(f'{value:.3g}'):,.0f} /s"


def size(value: float) -> str:
    """Bytes to three digits: `15.2 KB`."""
    return f"{value / 2**20:.3g} MB" if value >= 2**20 else f"{value / 2**10:.3g} KB"


def compare(
    question: str,
    ours: "list[float]",
    peer: str,
    theirs: "list[float]",
    target: Optional[Target] = None,
    *,
    rates: bool = False,
    sizes: bool = False,
) -> Row:
    """A row from seconds (or, with `rates`, numbers per second; with `sizes`, bytes) of the same rounds.

    The ratio is the median of the rounds' own ratios, so that what slows a whole round down does not count."""
    show = rate if rates else seconds
    if sizes:
        show = size
    ratio = f"{median((a or 1e-9) / (b or 1e-9) for a, b in zip(ours, theirs)):.2f}"
    told = f"{peer} {show(median(theirs))}"
    return Row(question, show(median(ours)), told, f"{ratio}×", str(target or "—"), verdict(float(ratio), target))


def peer(package: str, module: str) -> Any:
    """Import a peer's module. Without it return None and say on stderr that its rows are left out."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        print(f"skipped: {package} ({e}): pip install -r benchmarks/requirements.txt", file=sys.stderr)
        return None


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """The seconds that something takes."""
    start = time.perf_counter()
    await work()
    return time.perf_counter() - start


async def interleave(rounds: int, *, warm_up: bool = True, **works: Work) -> "dict[str, list[float]]":
    """A B C A B C …: each work once in every round, after one round that does not count."""
    times: "dict[str, list[float]]" = {name: [] for name in works}
    for number in range(rounds + warm_up):
        for name, work in works.items():
            took = await work()
            if number >= warm_up:
                times[name].append(took)
    return times


def _stop(*_: object) -> None:
    raise SystemExit("stopped: it takes too long")


def main(
    measure: Callable[..., Coroutine[Any, Any, "list[Row]"]], full: "dict[str, Any]", tiny: "dict[str, Any]", limit: int = 60
) -> None:
    """Run one benchmark, print its rows, and stop after `limit` seconds whatever happens."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--tiny", action="store_true", help="only see whether it works: what it prints means nothing")
    size = tiny if parser.parse_args().tiny else full
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(limit)
    faulthandler.dump_traceback_later(limit + 20, exit=True)
    print(HEAD, *asyncio.run(measure(**size)), sep="\n")
