"""The repository around the package: workflows, extras, and what the linter holds."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from repo import ROOT, SETTINGS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

yaml = pytest.importorskip("yaml")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def name_of(requirement: str) -> str:
    """The package that a requirement names."""
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return found[0].lower().replace("_", "-")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_little_and_ends(path: Path) -> None:
    """It says what it may do, no token of PyPI's is among its secrets, and each job has a time limit."""
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"]["contents"] == "read" and "secrets." not in text
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())


def test_publishing_needs_no_token() -> None:
    """Trusted publishing: only the job that uploads may ask for an identity."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())["jobs"]
    assert {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})} == {"publish"}
    assert any("pypa/gh-action-pypi-publish" in step.get("uses", "") for step in jobs["publish"]["steps"])


def test_a_fast_job_lints_beside_the_long_one() -> None:
    """And the core is tested on a Python for which Ray has no wheels yet."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    assert any("ruff check" in step.get("run", "") for step in jobs["lint"]["steps"]) and "needs" not in jobs["lint"]
    assert "3.14" in jobs["core"]["strategy"]["matrix"]["python"]
    named = re.findall(r"tests/\w+\.py", jobs["core"]["steps"][-1]["run"])
    assert named and all((ROOT / file).exists() for file in named)


def test_the_linter_holds_the_line_lengths() -> None:
    """120 columns are the target, 140 the limit, in modules, tests, tools and benchmarks."""
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert ruff["line-length"] == 120 and ruff["lint"]["pycodestyle"]["max-line-length"] == 140
    assert "E501" in ruff["lint"]["select"] and "E501" not in str(ruff["lint"]["per-file-ignores"])


def third_party(path: Path) -> "set[str]":
    """The packages that a script imports, at its top or in a function."""
    found: "set[str]" = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "peer":
            found |= {arg.value for arg in node.args[1:] if isinstance(arg, ast.Constant)}
    local = {other.stem for other in path.parent.glob("*.py")} | {other.parent.name for other in path.parent.glob("*/__init__.py")}
    return {name for name in found if name not in sys.stdlib_module_names and name not in local} - {"cjm_worker_protocols"}


def test_the_benchmarks_say_what_they_need() -> None:
    """Every package they import is a requirement of theirs or of the package; the development extra has no peer of theirs."""
    lines = (ROOT / "benchmarks/requirements.txt").read_text().splitlines()
    wanted = {name_of(line) for line in lines if line and not line.startswith("#")}
    ours = {name_of(text) for text in SETTINGS["requirements"].split()} | {"ray"}
    known: "dict[str, Any]" = {"fasthtml": "python-fasthtml", "sse_starlette": "sse-starlette"}
    needed = {known.get(name, name) for path in (ROOT / "benchmarks").glob("*.py") for name in third_party(path)}
    assert needed <= wanted | ours, needed - wanted - ours
    assert not {"loky", "sse-starlette"} & {name_of(text) for text in SETTINGS["dev_requirements"].split()}
