"""Run every benchmark, one after the other, and make the table of README.md from what they say.

    python benchmarks/run.py            print the table
    python benchmarks/run.py --write    and put it into README.md
"""

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from bench import HEAD, Row, peer

HERE = Path(__file__).resolve().parent
SCRIPTS = ("round_trip", "throughput", "cold_start", "cancel", "streaming", "large_result", "arrays", "queued")
SCRIPTS += ("durable", "conformance", "registry", "resources", "sse", "over_http", "on_ray")
BEGIN, END = "<!-- made by run.py: begin -->\n", "<!-- made by run.py: end -->\n"


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
    options = parser.parse_args()
    rows, failed = [], []
    print(HEAD, flush=True)
    for script in SCRIPTS:
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
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
        table = "\n".join([HEAD, *map(str, rows), "", circumstances()])
        readme.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
