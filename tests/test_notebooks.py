"""The notebooks are what the modules, the README and the site are made of: clean, fresh, and in step with all three."""

import ast
import copy
import difflib
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any, Iterator

import models
import pytest
from repo import LIB, NBS, PACKAGE, ROOT, SETTINGS, SUGGESTION, Server, copy_checkout, modules, notebooks, python, said, server

nbdev = pytest.importorskip("nbdev", reason="nbdev is not installed: pip install -e '.[dev]'")
yaml = pytest.importorskip("yaml")

BY_HAND = ("__init__.py", "__main__.py")
FACES = tuple(path for path in modules() if path.endswith(BY_HAND) and (LIB / path).stat().st_size)
each_notebook = pytest.mark.parametrize("name", notebooks())
Notebook = dict[str, Any]


def load(path: Path) -> Notebook:
    """A notebook as plain JSON."""
    nb: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return nb


def source(cell: dict[str, Any]) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def exports(cell: dict[str, Any]) -> bool:
    """Whether a cell is part of a module."""
    return bool(re.search(r"^#\|\s*export[is]?\b", source(cell), re.MULTILINE))


def default_exp(nb: Notebook) -> "str | None":
    """The module that a notebook makes, if it makes one."""
    found = [m[1] for c in nb["cells"] if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", source(c), re.MULTILINE))]
    return found[0] if found else None


def differences(want: str, got: str, names: "tuple[str, str]") -> str:
    """A short unified diff."""
    lines = difflib.unified_diff(want.splitlines(), got.splitlines(), *names, lineterm="", n=1)
    return "\n".join(list(lines)[:60])


SOURCE_LINK = re.compile(r"(blob/\w+/[\w/.]+\.py)#L\d+")


def shown(outputs: "list[dict[str, Any]]") -> str:
    """The outputs of a cell as text, less line numbers in links to the source, and what only a newer Python suggests."""

    def joined(value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return "".join(value)
        return {k: joined(v) for k, v in sorted(value.items())} if isinstance(value, dict) else value

    kept = [{k: joined(v) for k, v in o.items() if k not in ("execution_count", "metadata")} for o in outputs]
    text = json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True).replace("\\n", "\n")
    return re.sub(SUGGESTION, "", SOURCE_LINK.sub(r"\1", text))


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """tools/execute.py in a copy of the checkout."""
    tmp = tmp_path_factory.mktemp("execute")
    command = (sys.executable, "tools/execute.py", "-")
    with server(*command, cwd=copy_checkout(tmp / "checkout"), log=tmp / "log", PYTHONPATH=str(ROOT)) as it:
        yield it


LONG = (  # Take more than two seconds of processor time
    "cli/commands.ipynb",
    "conformance/any_clients.ipynb",
    "conformance/any_workers.ipynb",
    "explanations/at_the_limit.ipynb",
    "integrations/registry/judge.ipynb",
    "integrations/registry/registry.ipynb",
    "plugins/image.ipynb",
    "plugins/speech.ipynb",
    "plugins/text.ipynb",
    "tutorials/laptop_to_cluster.ipynb",
    "tutorials/live_events.ipynb",
    "tutorials/more_models_than_memory.ipynb",
    "tutorials/three_models.ipynb",
    "tutorials/what_workers_use.ipynb",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in notebooks()])
def test_runs_and_shows_what_is_stored(name: str, executor: Server) -> None:
    """A notebook runs top to bottom, and its stored outputs are those of this run."""
    models.need(*models.NOTEBOOKS.get(name, ()))
    done = executor.ask(f"nbs/{name}", timeout=180)
    assert done.returncode == 0, said(done)
    stale = []
    stored, now = (load(base / name)["cells"] for base in (NBS, executor.cwd / "nbs"))
    for number, (cell, again) in enumerate(zip(stored, now)):
        want, got = shown(cell.get("outputs", [])), shown(again.get("outputs", []))
        if want != got:
            stale.append(f"cell {number}: {source(cell)[:80]}\n{differences(want, got, ('stored', 'now'))}")
    assert not stale, f"run python tools/execute.py nbs/{name}:\n" + "\n".join(stale)


@each_notebook
def test_has_no_error_output(name: str) -> None:
    """No stored output is an exception: an error that a notebook wants to show is caught and shown as a value."""
    kinds = [o["output_type"] for c in load(NBS / name)["cells"] for o in c.get("outputs", [])]
    assert "error" not in kinds


@each_notebook
def test_shows_nothing_of_stderr(name: str) -> None:
    """No stored output is a log line, a warning or anything else that was written to stderr."""
    outputs = [o for c in load(NBS / name)["cells"] for o in c.get("outputs", [])]
    assert not [o["text"] for o in outputs if o.get("name") == "stderr"]


@each_notebook
def test_is_clean(name: str) -> None:
    """nbdev_clean would change nothing."""
    from execnb.nbio import nb2str, read_nb
    from nbdev.clean import clean_nb

    nb = read_nb(NBS / name)
    for cell in nb.cells:  # what read_nb adds for its own use
        cell.pop("idx_", None)
    before, after = nb2str(nb), copy.deepcopy(nb)
    clean_nb(after)
    assert nb2str(after) == before, "run nbdev_clean"
    ids = [cell["id"] for cell in load(NBS / name)["cells"]]
    assert len(ids) == len(set(ids)), "two cells have the same id"


@each_notebook
def test_begins_with_a_title_and_a_subtitle(name: str) -> None:
    """The first cell is the title of the page and, as a quote, what the module is for."""
    first = load(NBS / name)["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.fullmatch(r"# \S.*\n\n> \S.*", source(first).strip(), re.DOTALL)


@each_notebook
def test_begins_with_a_title_for_people(name: str) -> None:
    """No page is called by its module's name."""
    title = source(load(NBS / name)["cells"][0]).splitlines()[0].removeprefix("# ")
    assert title[0].isupper() or title == SETTINGS["lib_name"]


ANSWERS = {  # What newcomers search for, and the page that answers
    "parallel": "howto/run_several",
    "several workers": "howto/run_several",
    "uvicorn": "howto/run_several",
    "deploy": "howto/deploy",
    "docker": "howto/deploy",
    "migrate": "howto/coming_from_cjm_fasthtml_workers",
    "celery": "explanations/compared",
    "processpoolexecutor": "explanations/compared",
    "retry": "howto/retry_and_time_limits",
    "crash": "howto/retry_and_time_limits",
    "timeout": "howto/retry_and_time_limits",
    "progress bar": "howto/show_progress",
    "fastapi": "howto/web_apps",
    "fasthtml": "howto/web_apps",
    "stream": "howto/web_apps",
    "cancel": "explanations/cancellation",
    "gpu": "howto/limit_memory_and_gpu",
    "memory": "howto/limit_memory_and_gpu",
    "environment": "howto/own_environment",
    "jupyter": "tutorials/first_job",
    "cluster": "tutorials/laptop_to_cluster",
    "none": "explanations/clearing",
    "registry": "tutorials/plug_in_your_app",
    "install": "howto/install",
}


@pytest.mark.parametrize("word", ANSWERS)
def test_what_newcomers_search_for_stands_where_it_is_answered(word: str) -> None:
    """In the title or the description, which the site's search counts most; and the home page has a link to the page."""
    assert word in source(load(NBS / f"{ANSWERS[word]}.ipynb")["cells"][0]).lower()
    assert f"({ANSWERS[word]}.ipynb)" in text(load(NBS / "index.ipynb"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as nbdev_export makes it from the notebooks alone, given only the faces, which are written by hand."""
    there = copy_checkout(tmp_path_factory.mktemp("export") / "checkout")
    for path in (there / PACKAGE).rglob("*.py"):
        if path.relative_to(there / PACKAGE).as_posix() not in FACES:
            path.unlink()
    done = python("from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()", cwd=there)
    assert done.returncode == 0, said(done)
    return there / PACKAGE


@pytest.mark.parametrize("module", modules())
def test_module_is_its_notebooks_export(module: str, exported: Path) -> None:
    """A module is, to the letter, what its notebook exports; and there is no module without a notebook."""
    assert (exported / module).exists(), f"{PACKAGE}/{module} has no notebook"
    want, got = ((base / module).read_text(encoding="utf-8") for base in (exported, LIB))
    assert want == got, "run nbdev_export:\n" + differences(want, got, ("exported", module))


def test_every_notebook_is_exported(exported: Path) -> None:
    """No notebook exports a module that the package lacks."""
    assert {p.relative_to(exported).as_posix() for p in exported.rglob("*.py")} == set(modules())


@each_notebook
def test_makes_the_module_of_its_own_name(name: str) -> None:
    """One notebook makes one module, and a folder of nbs/ is a package."""
    nb = load(NBS / name)
    exporting = any(exports(cell) for cell in nb["cells"])
    want = name.removesuffix(".ipynb").replace("/", ".") if exporting else None
    assert default_exp(nb) == want


def test_version_of_the_package_is_that_of_the_settings() -> None:
    """`__version__` is the one in settings.ini."""
    done = python(f"import {PACKAGE}; print({PACKAGE}.__version__)", cwd=ROOT)
    assert done.stdout.strip() == SETTINGS["version"], said(done)


def test_readme_is_the_index_notebook() -> None:
    """README.md is what tools/readme.py makes of nbs/index.ipynb."""
    want = runpy.run_path(str(ROOT / "tools/readme.py"))["render"]()
    got = (ROOT / "README.md").read_text(encoding="utf-8")
    assert got == want, "run python tools/readme.py:\n" + differences(want, got, ("index.ipynb", "README.md"))


OURS = f"{SETTINGS['git_url']}/blob/{SETTINGS['branch']}/"  # A file of this repository, from anywhere
TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")


def text(nb: Notebook) -> str:
    """The text of a notebook."""
    return "\n\n".join(source(cell) for cell in nb["cells"] if cell["cell_type"] == "markdown")


def links(markdown: str) -> "list[str]":
    """Where the links of a text lead."""
    return re.findall(r"\]\(([^)\s]+)\)", markdown)


def anchors(markdown: str) -> "set[str]":
    """What the headings of a page can be reached by: Pandoc's identifiers."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", heading.strip().lower())) for heading in headings}


@each_notebook
def test_links_lead_somewhere(name: str) -> None:
    """Relative links of a notebook lead to files below nbs/, so that they work on the site too, and to headings that are there."""
    for target in links(text(load(NBS / name))):
        if not re.match(r"\w+:", target):
            file, _, anchor = target.partition("#")
            path = (NBS / name).parent.joinpath(file).resolve() if file else NBS / name
            assert path.exists() and NBS in path.parents, target
            assert not anchor or anchor in anchors(text(load(path))), target


@pytest.mark.parametrize("page", [*TEXTS, *(f"nbs/{name}" for name in notebooks())])
def test_links_to_this_repository_lead_somewhere(page: str) -> None:
    """What is linked to as a file of this repository is one, from a notebook and from any other text."""
    path = ROOT / page
    is_notebook = path.suffix == ".ipynb"
    for target in links(text(load(path)) if is_notebook else path.read_text(encoding="utf-8")):
        file, _, anchor = target.removeprefix(OURS).partition("#")
        if target.startswith(OURS) or not (is_notebook or re.match(r"\w+:", target)):
            there = (ROOT if target.startswith(OURS) else path.parent) / file
            assert there.exists(), target
            assert not anchor or anchor in anchors(text(load(there))), target


@pytest.mark.parametrize("name", [name for name in notebooks() if name.startswith("tutorials/")])
def test_a_tutorial_says_where_to_go_next(name: str) -> None:
    """The last thing that a reader sees of a tutorial are links to other pages."""
    shown = [cell for cell in load(NBS / name)["cells"] if not source(cell).startswith("#| hide")]
    _, found, after = source(shown[-1]).partition("## Where to go next\n")
    assert found and links(after)


@each_notebook
def test_imports_have_cells_of_their_own(name: str) -> None:
    """A cell of imports has no other code: nbdev executes the whole cell, and few others, when it makes the site."""
    for cell in load(NBS / name)["cells"]:
        if cell["cell_type"] == "code" and "nbdev_export(" not in source(cell):
            statements = compile(source(cell), name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT).body
            kinds = {isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements}
            assert kinds != {True, False} or exports(cell), source(cell)


def test_nbdev_leaves_the_site_configuration_alone(tmp_path: Path) -> None:
    """Building the docs rewrites neither nbs/nbdev.yml nor the hand-ordered nbs/sidebar.yml nor nbs/_quarto.yml."""
    there = copy_checkout(tmp_path / "checkout")
    refresh = "from nbdev.quarto import refresh_quarto_yml as r, nbdev_sidebar as s; r(); s.__wrapped__()"
    done = python(refresh, cwd=there)
    assert done.returncode == 0, said(done)
    for file in ("nbdev.yml", "sidebar.yml", "_quarto.yml"):
        assert (there / "nbs" / file).read_text() == (NBS / file).read_text(), f"nbs/{file}: copy what nbdev makes of it"


def test_the_sidebar_lists_every_notebook_once() -> None:
    """The hand-ordered sidebar has every notebook, and nothing else."""

    def pages(entries: "list[Any]") -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                if "href" in entry:
                    yield entry["href"]
                yield from pages(entry.get("contents", []))

    sidebar = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]
    assert sorted(pages(sidebar["contents"])) == notebooks()
