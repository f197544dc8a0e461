"""How the notebooks and the package are written, as far as it can be counted. Tables of exceptions may only shrink."""

import ast
import functools
import json
import re
import runpy
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import engines
import pytest
from repo import LIB, NBS, ROOT, modules, notebooks

CELL = 60  # Lines of an export cell: not blank ones, directives, and those below the first of a docstring
LARGE_CELLS = {  # Classes whose cell may be larger, and how large
    "BaseJobManager": 115,
    "EntryPointRegistry": 110,
    "EventStreams": 78,
    "Job": 64,
    "Lifecycle": 150,
    "ManagerView": 84,
    "RedisBroadcaster": 92,
    "Scheduler": 137,
    "WorkerPool": 137,
    "WorkerProxy": 150,
}
LONG_CELL, LONG_SHARE = 40, 0.197  # Lines of a long cell, and the share of all exported lines in such cells
HIDDEN_SHARE = 0.15  # Of the lines that are not exported
NOT_SHOWN: "dict[str, int]" = {}  # Export cells with nothing shown below them
COLUMNS = 140
ONE_LINE = 100  # Columns of a function on one line
SCRIPTS = ("tests", "tools", "benchmarks", "templates")
WIDE = {"managers/integrations.ipynb": 1}  # Lines that are wider
MODULE = 450  # Lines, without those below the first of a docstring
LARGE_MODULES: "dict[str, int]" = {}  # Modules that may be larger
SMELL = 3  # How often each of these words may stand in the notebooks and in what is written by hand
SMELLS = ("told", "nobody", "whoever", "somebody else's", "lets go", "at the door")
NODES = 217_898  # AST nodes of the package, docstrings apart, as tools/count.py counts them
PUBLIC = {  # Documented all the same: of named tuples, of the standard library, and the hooks that users override
    *("_asdict", "_fields", "_make", "_replace", "_exit", "_getframe", "_current_frames"),
    *("_get_running_loop", "_enter_task", "_leave_task", "_run_exitfuncs"),
    *("_validate_resources", "_on_job_completed", "_extract_plugin_resource_identifier"),
}
SUMMARY = 80  # Characters of the first line of a docstring
SECOND = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!\.\.)[.!?][\"')`]* +\S")  # Where a second sentence begins: not after e.g., i.e. and ...
NO_VERBS = ("A", "All", "An", "Each", "How", "If", "It", "Raises", "The", "This", "What", "When", "Whether", "Which", "Who")
FOREIGN = {  # What has no public face elsewhere
    "engines/ray/cluster.py": {"_conn_str", "_raylet"},
    "engines/ray/engine.py": {"_private"},
    "worker/context.py": {"_WorkItem", "_worker"},  # of concurrent.futures.thread
}


FOREIGN_IN_TESTS = {
    *("_repr_html_", "_xoptions", "_DummyThread", "_serve"),  # of IPython, sys, threading and uvicorn
    "_session",  # of a manager, to stop a worker between two turns of the loop, for which no public call can be used
}


class Cell(NamedTuple):
    """A cell of code, its directives and blank lines apart."""

    notebook: str
    text: str
    outputs: "list[Any]"

    @property
    def lines(self) -> "list[str]":
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#|")]

    @property
    def size(self) -> int:
        """How many lines it has, without those below the first of a docstring."""
        return len(self.lines) - below(ast.parse("\n".join(self.lines)))

    @property
    def exports(self) -> bool:
        return bool(re.search(r"^#\|\s*export", self.text, re.M))

    @property
    def hidden(self) -> bool:
        return bool(re.search(r"^#\|\s*hide", self.text, re.M))

    @property
    def defines(self) -> bool:
        """Whether there is more than imports and constants."""
        plain = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
        return not all(isinstance(node, plain) for node in ast.parse("\n".join(self.lines)).body)

    @property
    def shows(self) -> bool:
        checks = r"\b(test_\w+|assert|test_fail|expect_fail|ExceptionExpected)\b"
        return not self.exports and bool(self.outputs or re.search(checks, self.text))

    def __str__(self) -> str:
        return f"{self.notebook}: {self.lines[0][:60] if self.lines else ''}"


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def below(tree: ast.Module) -> int:
    """How many lines docstrings have below their first: they are free, so that no limit keeps a docstring short."""
    found = [node.body[0] for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and ast.get_docstring(node)]
    return sum((node.end_lineno or 0) - node.lineno for node in found)


def read(notebook: str) -> "list[dict[str, Any]]":
    """The cells of a notebook."""
    cells: "list[dict[str, Any]]" = json.loads((NBS / notebook).read_text(encoding="utf-8"))["cells"]
    return cells


@functools.cache
def cells(notebook: str) -> "list[Cell]":
    """Its cells of code."""
    return [Cell(notebook, "".join(c["source"]), c["outputs"]) for c in read(notebook) if c["cell_type"] == "code"]


def all_cells() -> "list[Cell]":
    """Those of all notebooks."""
    return [cell for name in notebooks() for cell in cells(name)]


def exported() -> "list[Cell]":
    """Those that are exported."""
    return [cell for cell in all_cells() if cell.exports]


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax of a module."""
    return ast.parse((LIB / module).read_text(encoding="utf-8"))


def test_an_export_cell_holds_one_small_thing() -> None:
    """No export cell is over 60 lines, except those of a few named classes, which may not grow."""
    too_large = []
    for cell in exported():
        limits = [LARGE_CELLS.get(name, CELL) for name in re.findall(r"^class (\w+)", cell.text, re.M)]
        if cell.size > max(limits, default=CELL):
            too_large.append(f"{cell} has {cell.size} lines")
    assert not too_large, "\n".join(too_large)


def test_most_code_is_in_short_cells() -> None:
    """The share of exported lines in cells over 40 lines."""
    sizes = [cell.size for cell in exported()]
    assert sum(size for size in sizes if size > LONG_CELL) <= LONG_SHARE * sum(sizes)


def test_little_is_hidden() -> None:
    """At most 15 % of the lines that show something are hidden from readers."""
    shown = [cell for cell in all_cells() if not cell.exports and not setup(cell)]
    hidden = sum(len(cell.lines) for cell in shown if cell.hidden)
    assert hidden <= HIDDEN_SHARE * sum(len(cell.lines) for cell in shown)


def setup(cell: Cell) -> bool:
    """Whether a cell only brings the checks of fastcore."""
    return "fastcore.test import *" in cell.text and len(cell.lines) <= 3


@pytest.mark.parametrize("notebook", notebooks())
def test_each_export_cell_is_shown(notebook: str) -> None:
    """Below each export cell that defines something, and before the next, is a shown value or an assertion."""
    missing, waits = [], None
    for cell in cells(notebook):
        if cell.exports:
            if waits:
                missing.append(str(waits))
            waits = cell if cell.defines else None
        elif cell.shows:
            waits = None
    if waits:
        missing.append(str(waits))
    assert len(missing) <= NOT_SHOWN.get(notebook, 0), "\n".join(missing)


@pytest.mark.parametrize("notebook", notebooks())
def test_lines_fit(notebook: str) -> None:
    """No line of an export cell has over 140 columns, and no class is put together by `@patch`."""
    lines = "\n".join(cell.text for cell in cells(notebook) if cell.exports).splitlines()
    wide = [line for line in lines if len(line) > COLUMNS]
    assert len(wide) <= WIDE.get(notebook, 0), "\n".join(wide)
    assert not [line for line in lines if re.match(r"\s*@patch\b", line)]


CODE = sorted({path for folder in SCRIPTS for path in (ROOT / folder).rglob("*.py")} | {LIB / module for module in modules()})


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_line_of_code_is_read_once(path: Path) -> None:
    """No ternary in another, no comprehension with two `for`s and a condition, no long function on one line, no decision in a lambda."""
    wrong = [(node.lineno, what) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for what in puzzles(node)]
    assert not [(line, what) for line, what in wrong if what != "lambda" or path.is_relative_to(LIB)]


def puzzles(node: Any) -> "Iterator[str]":
    """What makes a node hard to read."""
    if isinstance(node, ast.IfExp) and any(isinstance(inner, ast.IfExp) for inner in list(ast.walk(node))[1:]):
        yield "ternary"
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        if len(node.generators) > 1 and any(part.ifs for part in node.generators):
            yield "comprehension"
    if isinstance(node, ast.Lambda):
        if isinstance(node.body, ast.BoolOp) or any(isinstance(inner, ast.IfExp) for inner in ast.walk(node)):
            yield "lambda"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if node.lineno == node.end_lineno and node.end_col_offset > ONE_LINE:
            yield "function"


def test_words_that_hide_who_does_what() -> None:
    """Some words mark sentences that do not say who does what; they stay rare."""
    texts = ["".join(cell["source"]) for name in notebooks() for cell in read(name)]
    texts += [(LIB / module).read_text(encoding="utf-8") for module in modules() if not generated(module)]
    text = re.sub(r"\s+", " ", "\n".join(texts)).lower().replace("events.nobody", "")  # the id of a check
    found = {word: len(re.findall(rf"\b{word}\b", text)) for word in SMELLS}
    assert not {word: n for word, n in found.items() if n > SMELL}


@pytest.mark.parametrize("module", modules())
def test_a_docstring_begins_with_one_sentence(module: str) -> None:
    """A short one, on the first line; of a function, in the imperative. All else, such as what is raised, stands below."""
    found = [(where, doc.splitlines()[0], is_call) for where, doc, is_call in docstrings(tree_of(module))]
    wrong = [f"{where}: {first}" for where, first, is_call in found if not is_summary(first, is_call, where.endswith("__init__"))]
    assert not wrong, "\n".join(wrong)


def is_summary(first: str, is_call: bool, makes: bool) -> bool:
    """Whether a line can be the first of a docstring; that of `__init__` may begin with what it raises, below that of its class."""
    if makes and first.startswith(":raises"):
        return True
    ends = bool(re.search(r"[.?:][\"')`]*$", first)) and not SECOND.search(first)
    return ends and len(first) <= SUMMARY and not (is_call and first.split()[0] in NO_VERBS)


def docstrings(node: Any, where: str = "") -> "Iterator[tuple[str, str, bool]]":
    """The docstrings of a module or a class and of what is public in it: whose, the text, and whether one calls it."""
    properties = any("property" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ()))
    if doc := ast.get_docstring(node):
        yield where or "the module", doc, isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not properties
    for inner in node.body if isinstance(node, (ast.Module, ast.ClassDef)) else ():
        if isinstance(inner, DOCUMENTED) and not private(inner.name):
            yield from docstrings(inner, f"{where}.{inner.name}".lstrip("."))


def generated(module: str) -> bool:
    """Whether a notebook makes this module."""
    return "# AUTOGENERATED" in (LIB / module).read_text(encoding="utf-8")[:2000]


@pytest.mark.parametrize("module", modules())
def test_a_module_is_one_idea(module: str) -> None:
    """No module has over 450 lines."""
    size = len((LIB / module).read_text(encoding="utf-8").splitlines()) - below(tree_of(module))
    assert module == "_modidx.py" or size <= LARGE_MODULES.get(module, MODULE)


def test_no_two_classes_share_a_name() -> None:
    """A class can be spoken of by its name alone."""
    where: "defaultdict[str, list[str]]" = defaultdict(list)
    for module, tree in ((module, tree_of(module)) for module in modules()):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(module)
    assert not {name: found for name, found in where.items() if len(found) > 1}


@pytest.mark.parametrize("module", modules())
def test_private_names_stay_in_their_module(module: str) -> None:
    """No name with a leading underscore is imported, or reached for on another object, unless this module itself defines it."""
    tree = tree_of(module)
    known = defined(tree) | PUBLIC | FOREIGN.get(module, set())
    strange = [f"line {line}: {name}" for line, name in reached(tree) if private(name) and name not in known]
    assert not strange, "\n".join(strange)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_use_public_names(path: Path) -> None:
    """As the package does: a test that needs a private name of it misses a public one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = defined(tree) | PUBLIC | FOREIGN_IN_TESTS
    assert not [f"line {line}: {name}" for line, name in reached(tree) if private(name) and name not in known]


def test_the_page_inside_names_every_module_of_the_managers() -> None:
    """Its table says which file to open for which change, so no file may be missing."""
    page = (NBS / "explanations/inside.ipynb").read_text(encoding="utf-8")
    assert not [name for name in notebooks() if name.startswith("managers/") and f"(../{name})" not in page]


def private(name: str) -> bool:
    """Whether a name is private by its spelling."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def of_self(node: ast.Attribute) -> bool:
    """Whether an attribute is one of `self` or `cls`."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def defined(tree: ast.Module) -> "set[str]":
    """The names that a module defines: functions, classes, variables, attributes of its own objects, and slots."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            found.add(node.attr)
    return found


def reached(tree: ast.Module) -> "Iterator[tuple[int, str]]":
    """The names that a module imports, or takes as an attribute of another object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and not of_self(node):
            yield node.lineno, node.attr


def test_the_package_does_not_grow_unseen() -> None:
    """The AST nodes of the package, docstrings apart, stay below a limit that is raised on purpose only."""
    size: "Counter[str]" = runpy.run_path(str(ROOT / "tools/count.py"))["count"]()
    assert sum(size.values()) <= NODES, dict(size)


def test_what_runs_on_ray_too_is_there() -> None:
    """Each name of `engines.ON_RAY` is that of one test."""
    tests = Counter(name for path in sorted((ROOT / "tests").glob("test_*.py")) for name in functions(path))
    assert not [name for name in engines.ON_RAY if tests[name.partition("[")[0]] != 1]


def functions(path: Path) -> "list[str]":
    """The functions at the top of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
