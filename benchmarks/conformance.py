"""How long does the whole conformance kit take on a normal implementation?"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Row, Target, compare, interleave, main

IMPORT = "import time; start = time.perf_counter(); import pytest; print(time.perf_counter() - start)"
CHECK = """
import time; start = time.perf_counter()
from cjm_worker_protocols.conformance import check
import normal
reports = [check(made, protocol, probe=probe) for made, protocol, probe in normal.ALL]
took = time.perf_counter() - start
assert all(report.counts["passed"] == len(report.outcomes) for report in reports), reports
print(took)
"""

CACHE = tempfile.TemporaryDirectory()  # For bytecode, ours and pytest's: an installed package has it


def fresh(code: str) -> float:
    """Run a piece of code in a fresh interpreter, and give the seconds that it says."""
    here, env = Path(__file__).resolve().parent, {**os.environ, "PYTHONPYCACHEPREFIX": CACHE.name}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return float(subprocess.run([sys.executable, "-c", code], cwd=here, env=env, check=True, stdout=subprocess.PIPE).stdout)


async def importing() -> float:
    """Import pytest."""
    return fresh(IMPORT)


async def checking() -> float:
    """Import the kit, and check a registry, a resource manager and a broadcaster."""
    return fresh(CHECK)


async def measure(rounds: int) -> "list[Row]":
    """The whole kit, its import included, on all three: against importing pytest."""
    for warm_up in (importing, checking):
        await warm_up()
    times = await interleave(rounds, pytest=importing, ours=checking)
    return [compare("the whole conformance kit", times["ours"], "`import pytest`", times["pytest"], Target("at most", 1))]


if __name__ == "__main__":
    main(measure, full={"rounds": 15}, tiny={"rounds": 1})
