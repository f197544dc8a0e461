"""What the pages for users show and do not run themselves: their programs, and their commands."""

import ast
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import until
from repo import NBS, PACKAGE, notebooks

from cjm_worker_protocols.cli.entry import parser

PAGES = [name for name in notebooks() if name.startswith(("howto/", "tutorials/", "explanations/", "index"))]


def prose(name: str) -> str:
    """The text of a page."""
    cells = json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks(name: str, *languages: str) -> "list[str]":
    """Its blocks of these languages."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", prose(name), re.MULTILINE | re.DOTALL)
    return [block[2] for block in found if block[1] in languages]


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name, "python")])
def test_a_program_can_be_parsed_and_finds_what_it_imports(name: str) -> None:
    """What it imports of this package is there."""
    for program in blocks(name, "python"):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("name", [name for name in PAGES if "cjm-workers " in prose(name)])
def test_a_command_is_one(name: str) -> None:
    """The parser of the command line takes it: in a block, and in the text if it has arguments."""
    found = re.findall(r"\bcjm-workers (.+?)(?:\s+#.*)?$", "\n".join(blocks(name, "", "bash", "sh")), re.MULTILINE)
    found += re.findall(r"`cjm-workers (\w+ [^`…|]+)`", prose(name))
    for command in found:
        try:
            _, more = parser().parse_known_args(shlex.split(command))
        except SystemExit:
            pytest.fail(f"cjm-workers {command}")
        assert [word for word in more if word.startswith("-") or "=" not in word] == [], command  # Parameters may follow options


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module whose plugin the programs name."""
    lines = ["class Whisper:", "    def run(self, audio):", "        yield from audio.split()", "        return {'text': audio}"]
    (tmp_path / "my_plugins.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_plugins", raising=False)


def test_the_flask_app_of_the_how_to(plugins: None) -> None:
    """A request waits for a result, another streams."""
    pytest.importorskip("flask")
    (program,) = (text for text in blocks("howto/plain_scripts.ipynb", "python") if "flask" in text)
    names: "dict[str, Any]" = {"__name__": "recipe"}
    exec(program, names)
    with names["manager"], names["app"].test_client() as client:
        assert client.post("/transcribe/so it goes").json == {"text": "so it goes"}
        assert client.get("/words/so it goes").text == "so\nit\ngoes\n"


async def test_the_app_of_the_how_to_on_stored_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the app stops, a running job has its time to finish, and the next app finds it."""
    pytest.importorskip("starlette")
    from cjm_worker_protocols import JobManager
    from cjm_worker_protocols.integrations.store import SQLiteJobStore

    def slow(n: int) -> int:
        import time

        time.sleep(0.3)
        return 2 * n

    (program,) = blocks("howto/keep_jobs.ipynb", "python")
    monkeypatch.chdir(tmp_path)
    names: "dict[str, Any]" = {"JobManager": JobManager, "SQLiteJobStore": SQLiteJobStore, "plugins": {"slow": slow}}
    exec(program, names)
    app = names["app"]
    async with app.router.lifespan_context(app):
        job = await app.state.manager.start_job("slow", n=21)
        await until(lambda: job.status != "pending")
    assert (job.status, job.result) == ("completed", 42)
    async with app.router.lifespan_context(app):
        assert await (await app.state.manager.find_job(job.id)) == 42



def test_a_port_saves_as_many_lines_as_its_page_says() -> None:
    """The classes and functions of the app before that the app after does without."""
    page = "howto/coming_from_cjm_fasthtml_workers.ipynb"
    before = blocks(page, "python")[0]
    made = [node for node in ast.parse(before).body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name != "Summarizer"]
    lines = sum(len((ast.get_source_segment(before, node) or "").splitlines()) + len(node.decorator_list) for node in made)
    assert f" {lines} lines of plumbing are gone" in prose(page)
