"""The benchmarks run, say what can be read, and the table in their README is of their making. No time is judged here."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from repo import ROOT, run, said

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    """benchmarks/run.py, as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("run")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in ("run", "bench", "rivals"):
            sys.modules.pop(name, None)


def scripts() -> "list[str]":
    """Every file of benchmarks/ that answers a question."""
    found = (p for p in BENCHMARKS.glob("*.py") if "\nasync def measure(" in p.read_text(encoding="utf-8"))
    return sorted(p.stem for p in found)


def test_the_table_is_made_of_every_script(bench: Any) -> None:
    """run.py leaves none out, and the README names each."""
    assert sorted(bench.SCRIPTS) == scripts()
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [name for name in bench.SCRIPTS if f"[`{name}.py`]({name}.py)" not in readme] == []


@pytest.mark.slow
@pytest.mark.parametrize("script", scripts())
def test_script_runs_and_its_rows_are_those_of_the_readme(bench: Any, script: str, tmp_path: Path) -> None:
    """A tiny run prints rows that parse; the README has the same questions, peers and targets, in the same order."""
    if script == "sse" and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    path = BENCHMARKS / f"{script}.py"
    done = run(sys.executable, str(path), "--tiny", cwd=tmp_path, timeout=100, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, said(done)
    rows = bench.rows_of(done.stdout)
    assert rows, said(done)
    questions = {row.question for row in rows}
    absent = [name.lower() for name in re.findall(r"^skipped: (\S+)", done.stderr, re.MULTILINE)]
    asked = (row for row in bench.rows_in_readme() if row.question in questions)
    committed = [facts(row) for row in asked if row.peer.split()[0].lower() not in absent]
    assert committed == [facts(row) for row in rows], said(done)


def facts(row: Any) -> "tuple[str, str, str]":
    """What is the same in every run: the question, the peer without its number, the target."""
    return row.question, row.peer.rsplit(" ", 2)[0], row.target


def test_the_readme_has_no_other_rows(bench: Any) -> None:
    """Each row of the table comes from a script that still asks its question."""
    text = "".join((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8") for name in bench.SCRIPTS)
    rows = bench.rows_in_readme()
    assert rows and [r.question for r in rows if r.question.split(",")[0].split(" with ")[0] not in text] == []


@pytest.mark.parametrize("line", ["| too | few |", "| q | 1 µs | bare 1 µs | 9.00× | at most 3× | yes |"])
def test_a_row_that_cannot_be_is_refused(bench: Any, line: str) -> None:
    """Too few cells, or a verdict that its own numbers contradict."""
    with pytest.raises(ValueError, match="a row of the table"):
        bench.Row.parse(line)


def test_the_comparison_in_the_readme_is_made_of_its_results(bench: Any) -> None:
    """rivals.json has an answer of each system to each question, and the README shows them."""
    rivals = importlib.import_module("rivals")
    rows = json.loads(rivals.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert list(rows) == [*(question for question, _, _ in rivals.QUESTIONS), rivals.MEMORY]
    assert {frozenset(row) for row in rows.values()} == {frozenset(kind.name for kind in rivals.MODULES)}
    values = [str(value) for row in rows.values() for value in row.values()]
    assert not [value for value in values if value.startswith("failed: ")], "an accident is no answer"
    assert rivals.BEGIN + "\n" + rivals.section() in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_comparison_runs(tmp_path: Path) -> None:
    """A tiny run asks each system that is installed everything: ours can do all of it, and each "cannot" has a reason and no accident."""
    done = run(sys.executable, str(BENCHMARKS / "rivals.py"), "--tiny", cwd=tmp_path, timeout=300, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "failed: " not in done.stdout, said(done)
    head, _, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert head.startswith("| | cjm-worker-protocols | ProcessPoolExecutor(1) |")
    committed = [line.split(" | ")[0] for line in (BENCHMARKS / "README.md").read_text().split("made by rivals.py")[1].splitlines()]
    assert [row.split(" | ")[0] for row in rows] == [line for line in committed if line.startswith("| ") and len(line) > 3]
    ours = [row.split(" | ")[1] for row in rows]
    assert not [answer for answer in ours if answer.startswith("cannot")] and ours[5] == "3"
    reasons = {line.partition(". ")[0] for line in done.stdout.splitlines() if re.match(r"\d+\. .", line)}
    assert set(re.findall(r"cannot \((\d+)\)", done.stdout)) == reasons


def test_the_figures_on_the_page_about_large_data_are_those_that_were_measured(bench: Any) -> None:
    """Each time in its table and in its text is one of `arrays.py`, to the digits that are shown."""
    page = json.loads((ROOT / "nbs/howto/passing_large_data.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in page if cell["cell_type"] == "markdown")
    measured = bench.rows_in_readme()

    def time_of(cell: str) -> float:
        number, unit = cell.split()
        return float(number) * {"µs": 1e-3, "ms": 1.0, "s": 1e3}[unit]

    def agree(shown: str, found: float) -> bool:
        number = shown.split()[0]
        return abs(float(number) - found) <= 0.5001 * 10 ** -len(number.partition(".")[2])

    table = re.findall(r"^\| (\d+ [kM]B) \| (parameter|result) \| (.+ ms) \| (.+ ms) \| (.+ ms) \|$", text, re.MULTILINE)
    assert len(table) == 10
    for size, way, *shown in table:
        rows = {row.peer.rsplit(" ", 2)[0]: row for row in measured if row.question == f"array as {way}, {size}"}
        found = [rows["Ray actor"].ours, *(rows[peer].peer.split(peer)[1] for peer in ("`ProcessPoolExecutor(1)`", "Ray actor"))]
        assert all(agree(cell, time_of(time)) for cell, time in zip(shown, found)), (size, way, shown, found)
    (copied,) = (row for row in measured if row.question == "array as parameter, 100 MB" and "memcpy" in row.peer)
    (put,) = (row for row in measured if row.question.startswith("`ray.put` of 100 MB"))
    (written,) = (row for row in measured if row.question.endswith("all of it written to"))
    prose = {
        "one plain copy of 100 MB": [copied.peer],
        "to put 100 MB into memory": [put.ours, put.peer],
        "all of a 100 MB parameter": [written.ours],
    }
    for words, cells in prose.items():
        sentence = text.replace("\n", " ").split(words)[1].split(".  ")[0][:250]
        for cell in cells:
            time = time_of(" ".join(cell.split()[-2:]))
            assert any(agree(said, time) for said in re.findall(r"[\d.]+ ms", sentence)), (words, sentence, cell)


@pytest.mark.parametrize("page", ["index", "explanations/compared"])
def test_the_comparison_on_the_site_is_what_was_measured(page: str) -> None:
    """Yes where a system did it in the last run of `rivals.py`, and no where it could not."""
    text = "\n".join("".join(cell["source"]) for cell in json.loads((ROOT / f"nbs/{page}.ipynb").read_text())["cells"])
    rows = json.loads((ROOT / "benchmarks/rivals.json").read_text())["rows"]
    questions = {
        "stops a job that runs": "cancel of a job that spins → next result",
        "a worker is killed: the caller gets an error": "SIGKILL of the worker → error seen",
        "the app is killed: waiting jobs are kept": "kill -9 of the app: pending jobs",
        "knows which plugin a worker has loaded": "A B A C A B A with room for one: loads",
        "streams partial results": "first streamed chunk",
    }
    systems = {"this package": "cjm-worker-protocols", "ProcessPoolExecutor": "ProcessPoolExecutor(1)"}
    (head,) = re.findall(r"^\| \| (this package \| .+) \|$", text, re.MULTILINE)
    shown = {m[1]: m[2].split(" | ") for m in re.finditer(r"^\| (.+?) \| ((?:yes|no)(?: \| (?:yes|no))*) \|$", text, re.MULTILINE)}
    assert set(shown) == set(questions)
    for row, question in questions.items():
        measured = [rows[question][systems.get(name, name)] for name in head.replace("<wbr>", "").split(" | ")]
        assert shown[row] == ["no" if isinstance(value, str) else "yes" for value in measured], row
