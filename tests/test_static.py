"""The exported package satisfies the type checkers, as a user's project would see it."""

import json
import sys
from pathlib import Path

import pytest
from repo import PACKAGE, ROOT, run, said


def test_mypy_strict_finds_nothing(tmp_path: Path) -> None:
    """mypy --strict has no complaint about any module."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    done = run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), PACKAGE, cwd=ROOT)
    assert done.returncode == 0 and "Success" in done.stdout, said(done)


def test_pyright_finds_nothing() -> None:
    """pyright has no complaint about any module."""
    pytest.importorskip("pyright", reason="pyright is not installed: pip install -e '.[dev]'")
    done = run(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, cwd=ROOT)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        pytest.fail(said(done))
    errors = [d for d in report["generalDiagnostics"] if d["severity"] == "error"]
    found = [f"{d['file']}:{d['range']['start']['line'] + 1} {d['message']}" for d in errors]
    assert report["summary"]["filesAnalyzed"] > 0 and not found, "\n".join(found)
