"""What mypy --strict and pyright say of implementations of the contract, right and wrong ones."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Callable

import pytest
from contract_notebook import example_source
from repo import ROOT, python, run, said

CONTRACT = ROOT / "tests/typing/contract.py"
Verdict = set[tuple[str, int]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own, with the typed file and the classes that the notebook shows."""
    there = tmp_path_factory.mktemp("typing")
    (there / "contract.py").write_text(CONTRACT.read_text(encoding="utf-8"), encoding="utf-8")
    (there / "notebook_examples.py").write_text(example_source(), encoding="utf-8")
    return there


def mypy(project: Path) -> Verdict:
    """The lines that mypy --strict rejects."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: pip install -e '.[dev]'")
    options = "--strict --follow-imports silent --config-file= --output json --cache-dir".split()
    files = "contract.py", "notebook_examples.py"
    done = run(sys.executable, "-m", "mypy", *options, os.devnull, *files, cwd=project, MYPYPATH=str(ROOT))
    assert done.returncode in (0, 1), said(done)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(Path(o["file"]).name, o["line"]) for o in found if o["severity"] == "error"}


def pyright(project: Path) -> Verdict:
    """The lines that pyright rejects."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install -e '.[dev]'")
    if run(sys.executable, "-m", "pyright", "--version", cwd=project).returncode:
        pytest.skip("pyright is installed but cannot run: it fetches its own code at first use")
    config = {"include": ["*.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (project / "pyrightconfig.json").write_text(json.dumps(config))
    done = run(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, cwd=project)
    assert done.returncode in (0, 1), said(done)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2, said(done)
    found = [o for o in report["generalDiagnostics"] if o["severity"] == "error"]
    return {(Path(o["file"]).name, o["range"]["start"]["line"] + 1) for o in found}


@pytest.mark.parametrize("checker", [mypy, pytest.param(pyright, marks=pytest.mark.slow)])
def test_checkers_judge_implementations_line_by_line(checker: Callable[[Path], Verdict], project: Path) -> None:
    """A checker rejects every line marked `# rejected`, and nothing else; least of all the classes of the notebook."""
    lines = CONTRACT.read_text(encoding="utf-8").splitlines()
    marks = "# rejected", f"# rejected by {checker.__name__}"
    want = {("contract.py", number) for number, line in enumerate(lines, 1) if line.endswith(marks)}
    assert len(want) > 20
    got = checker(project)
    text = {place: lines[place[1] - 1].strip() if place[0] == "contract.py" else "" for place in want | got}
    assert {p: text[p] for p in want - got} == {}, "accepted, but should be rejected"
    assert {p: text[p] for p in got - want} == {}, "rejected, but should be accepted"


def test_classes_under_judgement_are_those_of_the_notebook(project: Path) -> None:
    """The module that the checkers see can be imported, and has the three implementations."""
    names = "SimplePluginRegistry", "SimpleResourceManager", "SimpleEventBroadcaster"
    done = python(f"from notebook_examples import {', '.join(names)}", cwd=project)
    assert done.returncode == 0, said(done)
