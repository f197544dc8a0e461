"""What does it cost to list the plugins of 300 installed packages, the first time and again?"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Row, Target, compare, interleave, main

GROUP = "benchmark.plugins"
ASK = """
import json, os, sys, time
from statistics import median
from importlib.metadata import entry_points
from pathlib import Path
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
sys.path.append(sys.argv[2])
calls = int(sys.argv[3])
if sys.argv[1] == "ours":
    registry = EntryPointRegistry(groups={GROUP!r})
    list_all = lambda: registry.get_plugins_by_category({GROUP!r})
elif sys.argv[1] == "bare":
    files = [str(path) for path in Path(sys.argv[2]).glob("*.dist-info/entry_points.txt")]
    list_all = lambda: [os.stat(file).st_mtime_ns for file in files]
else:
    list_all = lambda: entry_points(group={GROUP!r})
took = []
for _ in range(1 + calls):
    start = time.perf_counter()
    found = list_all()
    took.append(time.perf_counter() - start)
    assert len(found) == int(sys.argv[4]), len(found)
print(json.dumps([took[0], median(took[1:])]))
""".replace("{GROUP!r}", repr(GROUP))


def install(site: Path, distributions: int) -> None:
    """What is left of so many packages once they are installed: each with its metadata, and one plugin."""
    for number in range(distributions):
        info = site / f"package_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: package-{number}\nVersion: 1.0\n")
        points = f"[console_scripts]\ncommand-{number} = package_{number}:main\n\n[{GROUP}]\nplugin-{number} = package_{number}:run\n"
        (info / "entry_points.txt").write_text(points)
        os.utime(info / "entry_points.txt", (1_700_000_000, 1_700_000_000))
    os.utime(site, (1_700_000_000, 1_700_000_000))


async def measure(rounds: int, distributions: int, calls: int) -> "list[Row]":
    """The first listing in a fresh interpreter, and those after it, against `importlib.metadata.entry_points(group=...)`; no imports."""
    again: "dict[str, list[float]]" = {"ours": [], "theirs": [], "bare": []}
    with tempfile.TemporaryDirectory() as site:
        install(Path(site), distributions)

        async def fresh(who: str) -> float:
            command = [sys.executable, "-c", ASK, who, site, str(calls), str(distributions)]
            first, later = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            again[who].append(later)
            return float(first)

        first = await interleave(rounds, theirs=lambda: fresh("theirs"), ours=lambda: fresh("ours"), bare=lambda: fresh("bare"))
    peer, kept = "`entry_points(group=…)`", {who: [1 / time for time in times[-rounds:]] for who, times in again.items()}
    return [
        compare("first listing of 300 packages", first["ours"], peer, first["theirs"], Target("at most", 1.2)),
        compare("repeat listing of 300 packages", kept["ours"], peer, kept["theirs"], Target("at least", 20), rates=True),
        compare("repeat listing of 300 packages", kept["ours"], "`os.stat` of each `entry_points.txt`", kept["bare"], rates=True),
    ]


if __name__ == "__main__":
    main(measure, full={"rounds": 15, "distributions": 300, "calls": 20}, tiny={"rounds": 1, "distributions": 10, "calls": 1})
