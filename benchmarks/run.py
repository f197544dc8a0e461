"""Run the benchmarks, one after the other, and make the tables of README.md from what they say.

    python benchmarks/run.py                        print the table
    python benchmarks/run.py --write                and put it into README.md
    python benchmarks/run.py --write round_trip     the same, but only for the rows of that script
"""

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from bench import HEAD, Row, peer
from busy import STATES

TRIP = "no-op round trip, "
HERE = Path(__file__).resolve().parent
SCRIPTS: "tuple[str, ...]" = ("round_trip", "asking", "throughput", "cold_start", "cancel", "streaming", "large_result", "arrays", "queued")
SCRIPTS += ("durable", "conformance", "registry", "resources", "sse", "over_http", "page", "on_ray")
BEGIN, END = "<!-- made by run.py: begin -->\n", "<!-- made by run.py: end -->\n"
SIDE_BEGIN, SIDE_END = "<!-- made by run.py: begin of the round trip -->\n", "<!-- made by run.py: end of the round trip -->\n"


def rows_of(output: str) -> "list[Row]":
    """The rows that a script printed."""
    return [Row.parse(line) for line in output.splitlines() if line.startswith("|") and line not in HEAD.splitlines()]


def rows_in_readme() -> "list[Row]":
    """The rows of the committed table."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    return rows_of(text[text.index(BEGIN) : text.index(END)])


def run(script: str, *options: str) -> "list[Row]":
    """Run one script in an interpreter of its own. Raises `CalledProcessError` or `TimeoutExpired`."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    command = [sys.executable, str(HERE / f"{script}.py"), *options]
    done = subprocess.run(command, env=env, cwd=HERE, stdout=subprocess.PIPE, text=True, timeout=900, check=True)
    return rows_of(done.stdout)


def rows_by_script() -> "dict[str, list[Row]]":
    """The rows of the committed table, by the script that asks; what is not found in any is asked by that of the row before."""
    texts = {name: (HERE / f"{name}.py").read_text(encoding="utf-8") for name in SCRIPTS}
    found: "dict[str, list[Row]]" = {name: [] for name in SCRIPTS}
    script = SCRIPTS[0]
    for row in rows_in_readme():
        question = row.question.split(", ")[0].split(" with ")[0]
        script = next((name for name, text in texts.items() if question in text), script)
        found[script].append(row)
    return found


def side_by_side(rows: "list[Row]") -> str:
    """The round trip in the three states of the machine, with the ratios to what is measured in the same rounds."""
    cells: "dict[str, dict[str, str]]" = {}
    for row in rows:
        if row.question.startswith(TRIP):
            ours, state = row.question[len(TRIP) :].split(", ")
            name, took = row.peer.rsplit(" ", 2)[0], " ".join(row.peer.rsplit(" ", 2)[1:])
            cells.setdefault(f"a job, {ours}", {})[state] = row.ours
            cells.setdefault(name, {})[state] = took
            if row.target != "—":
                cells.setdefault(f"ratio of a job, {ours}, to {name}", {})[state] = f"{row.ratio} ({row.target}: {row.met})"
    table = [f"| {' | '.join(['', *STATES])} |", "|---|" + "--:|" * len(STATES)]
    return "\n".join([*table, *(f"| {' | '.join([name, *took.values()])} |" for name, took in sorted(cells.items()))])


def circumstances() -> str:
    """What the numbers depend on, without saying where they were taken."""
    spec = importlib.util.find_spec("cjm_worker_protocols")
    wheel = spec is not None and spec.origin is not None and "site-packages" in Path(spec.origin).parts
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    package = "the package installed from its wheel" if wheel else "the package imported from a checkout"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {cores} cores, {package}."


def main() -> int:
    """Run all; the exit status is 1 when a script failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []], help="the scripts to run; without any, all")
    options = parser.parse_args()
    rows, failed = [], []
    print(HEAD, flush=True)
    for script in SCRIPTS:
        if options.scripts and script not in options.scripts:
            rows += rows_by_script()[script]
            continue
        try:
            for row in run(script):
                print(row, flush=True)
                rows.append(row)
        except (subprocess.SubprocessError, ValueError) as e:
            failed.append(script)
            print(f"{script}: {e}", file=sys.stderr)
    print(f"\n{circumstances()}")
    if options.write and not (peer("loky", "loky") and peer("sse-starlette", "sse_starlette")):
        return 1
    if options.write and not failed:
        readme = HERE / "README.md"
        text, table = readme.read_text(encoding="utf-8"), "\n".join([HEAD, *map(str, rows), "", circumstances()])
        for begin, made, end in (BEGIN, table, END), (SIDE_BEGIN, side_by_side(rows), SIDE_END):
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{made}\n\n{end}{rest.split(end)[1]}"
        readme.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
