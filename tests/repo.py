"""What the tests of the repository itself share: where things are, and copies to try things on."""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_parser = ConfigParser(delimiters=["="])
_parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = _parser["DEFAULT"]
PACKAGE = SETTINGS["lib_path"]
LIB = ROOT / PACKAGE
NBS = ROOT / SETTINGS["nbs_path"]

SUGGESTION = r"\.? Did you mean '\w+'\?"  # What only a newer Python adds to an error

_MADE = (".*", "_proc", "_docs", "build", "dist", "*.egg-info", "__pycache__", "*.pyc", "venv")


def notebooks() -> list[str]:
    """Every notebook, as a path below nbs/."""
    found = (p.relative_to(NBS) for p in NBS.rglob("*.ipynb"))
    return sorted(p.as_posix() for p in found if not any(part[0] in "._" for part in p.parts))


def modules() -> list[str]:
    """Every Python file of the package, as a path below it."""
    return sorted(p.relative_to(LIB).as_posix() for p in LIB.rglob("*.py"))


def module_name(path: str) -> str:
    """The dotted name of a Python file of the package."""
    parts = [PACKAGE, *Path(path).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def copy_checkout(to: Path) -> Path:
    """A copy of the checkout, without what tools have made in it."""
    return shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_MADE))


def environment() -> "dict[str, str]":
    """The environment without what test runners leave in it."""
    return {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}


def run(*command: str, cwd: Path, timeout: float = 600, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a clean environment; past its time, it and its children are killed."""
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=cwd, env=environment() | env, stdin=null, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class Server:
    """A program that imports once what many tests need: it takes a line for each, and answers with a line."""

    def __init__(self, *command: str, cwd: Path, log: Path, **env: str) -> None:
        self.command, self.cwd, self.log, self.env = command, cwd, log, environment() | env
        self.process: "subprocess.Popen[str] | None" = None

    def ask(self, line: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        """The answer, and what the program and its children wrote to stderr meanwhile; past its time they are killed."""
        if self.process is None:
            pipe = subprocess.PIPE
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    self.command, cwd=self.cwd, env=self.env, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True
                )
        os.truncate(self.log, 0)
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout
        print(line, file=stdin, flush=True)
        answer = stdout.readline() if select.select([stdout], [], [], timeout)[0] else ""
        if not answer:
            self.end()
        return subprocess.CompletedProcess(self.command, int(answer or -signal.SIGKILL), "", self.log.read_text(errors="replace"))

    def end(self) -> None:
        """Kill it and its children."""
        process, self.process = self.process, None
        if process:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextmanager
def server(*command: str, cwd: Path, log: Path, **env: str) -> "Iterator[Server]":
    """A server that is killed at the end."""
    try:
        yield (it := Server(*command, cwd=cwd, log=log, **env))
    finally:
        it.end()


def python(code: str, *args: str, cwd: Path, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Run a piece of Python in a fresh interpreter that imports the package from the checkout."""
    kwargs.setdefault("PYTHONPATH", str(ROOT))
    return run(sys.executable, "-c", code, *args, cwd=cwd, **kwargs)


def said(done: "subprocess.CompletedProcess[str]", last: int = 6000) -> str:
    """What a command said, for the message of a failed assertion."""
    return f"exit status {done.returncode}\n" + (done.stdout + done.stderr)[-last:]
