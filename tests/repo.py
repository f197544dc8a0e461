"""What the tests of the repository itself share: where things are, and copies to try things on."""

import os
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
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


def run(*command: str, cwd: Path, timeout: float = 600, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command without what test runners leave in the environment; past its time, it and its children are killed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=cwd, env=kept | env, stdin=null, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def python(code: str, *args: str, cwd: Path, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Run a piece of Python in a fresh interpreter that imports the package from the checkout."""
    kwargs.setdefault("PYTHONPATH", str(ROOT))
    return run(sys.executable, "-c", code, *args, cwd=cwd, **kwargs)


def said(done: "subprocess.CompletedProcess[str]", last: int = 6000) -> str:
    """What a command said, for the message of a failed assertion."""
    return f"exit status {done.returncode}\n" + (done.stdout + done.stderr)[-last:]
