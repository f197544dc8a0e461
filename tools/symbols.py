"""What the notebooks export: every public name, the page that documents it, and its source.

Nothing is imported or executed: the source of a cell says all that a reader is shown, comments included.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
EXPORT = re.compile(r"^#\|\s*exports?\b", re.MULTILINE)
HIDE = re.compile(r"^#\|\s*hide\b", re.MULTILINE)
MODULE = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.MULTILINE)
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Symbol:
    """One public name of a page."""

    name: str  # Such as `BaseJobManager.start_job`
    page: str  # Below nbs/, such as `managers/base.ipynb`
    module: str  # Such as `managers.base`
    node: ast.stmt
    comments: dict[int, str]  # The comments of its cell, by line
    suffix: str = ""  # Of the anchor, where a class of the page has the same name in other letters
    defined: str = ""  # Of an inherited method: its name where it is defined, such as `ManagerView.events`

    @property
    def anchor(self) -> str:
        """The identifier of its heading."""
        return self.name.lower() + self.suffix

    @property
    def last(self) -> str:
        """The name without that of its class."""
        return self.name.rpartition(".")[2]

    @property
    def doc(self) -> str:
        """Its docstring, or nothing."""
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        return ast.get_docstring(self.node) or "" if isinstance(self.node, kinds) else ""

    @property
    def body(self) -> list[ast.stmt]:
        """The statements of a class."""
        return self.node.body if isinstance(self.node, ast.ClassDef) else []

    @property
    def bases(self) -> list[str]:
        """What a class derives from."""
        return [ast.unparse(base) for base in self.node.bases] if isinstance(self.node, ast.ClassDef) else []

    @property
    def decorators(self) -> set[str]:
        """The names of its decorators."""
        if not isinstance(self.node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)): return set()
        return {ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in self.node.decorator_list}

    @property
    def is_protocol(self) -> bool:
        """Whether it is a Protocol."""
        return any(base.startswith("Protocol") for base in self.bases)


@dataclass
class Page:
    """The public names of one notebook, by the cell that exports them."""

    path: str
    cells: dict[str, list[Symbol]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)  # Cells that export nothing to show
    private: dict[str, Symbol] = field(default_factory=dict)  # Classes with a leading underscore, which public ones inherit from


def public(name: str) -> bool:
    """Whether a name has no leading underscore."""
    return not name.startswith("_")


def comments(source: str) -> dict[int, str]:
    """The comments of a piece of code, by line; those for tools apart."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
    return {line: text for line, text in found.items() if not text.startswith(("type:", "noqa", "pyright:", "mypy:"))}


def documented(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: dict[int, str]) -> bool:
    """Whether a method is for users: public, special with a docstring, or a hook, whose parameters are explained."""
    if public(node.name): return True
    if node.name.startswith("__"): return node.name != "__init__" and bool(ast.get_docstring(node))
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return any(arg.end_lineno in lines for arg in args if arg.arg not in ("self", "cls"))


def methods(symbol: Symbol) -> Iterator[Symbol]:
    """The methods and properties of a class that are for users; of an overloaded one, the implementation."""
    found = {}
    for node in symbol.body:
        if not isinstance(node, Function) or not documented(node, symbol.comments): continue
        if not any(ast.unparse(d).endswith(".setter") for d in node.decorator_list):
            found[node.name] = Symbol(f"{symbol.name}.{node.name}", symbol.page, symbol.module, node, symbol.comments)
    yield from found.values()


def stored(node: ast.stmt) -> list[str]:
    """The names that a statement stores values in."""
    return [name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]


def names(node: ast.stmt) -> list[str]:
    """The public names that a statement defines, type variables apart."""
    if isinstance(node, (*Function, ast.ClassDef)): return [node.name] if public(node.name) else []
    if not isinstance(node, (ast.Assign, ast.AnnAssign)): return []
    targets = stored(node)
    is_variable = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("TypeVar", "ParamSpec")
    return [] if is_variable else [name for name in targets if public(name)]


def read_page(path: str, root: Path = ROOT) -> Page:
    """The names that a notebook exports."""
    page, module = Page(path), ""
    for cell in json.loads((root / "nbs" / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code": continue
        if found := MODULE.search(source): module = found[1]
        if not EXPORT.search(source): continue
        if HIDE.search(source):
            page.hidden.add(cell["id"])
            continue
        lines, body = comments(source), ast.parse(source).body
        pairs = [(name, node) for node in body for name in names(node)]
        hidden = [node for node in body if isinstance(node, ast.ClassDef) and not public(node.name)]
        page.private |= {node.name: Symbol(node.name, path, module, node, lines) for node in hidden}
        page.cells[cell["id"]] = list({name: Symbol(name, path, module, node, lines) for name, node in pairs}.values())
    every = {s.name for symbols in page.cells.values() for s in symbols}
    for symbols in page.cells.values():
        for number, symbol in enumerate(symbols):
            others = {name.lower() for name in every - {symbol.name}}
            if symbol.anchor in others and not isinstance(symbol.node, ast.ClassDef):
                symbols[number] = replace(symbol, suffix="-function" if isinstance(symbol.node, Function) else "-value")
    return page


def internal_pages(root: Path) -> set[str]:
    """The pages below Internals in the sidebar."""
    def pages(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str): yield entry
            else: yield from pages(entry["contents"])

    sections = yaml.safe_load((root / "nbs/sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    (internals,) = (section for section in sections if section["section"] == "Internals")
    return set(pages(internals["contents"]))


class Index:
    """All public names of the package."""

    def __init__(self, root: Path = ROOT) -> None:
        paths = sorted(p.relative_to(root / "nbs").as_posix() for p in (root / "nbs").rglob("*.ipynb"))
        paths = [path for path in paths if not any(part[0] in "._" for part in path.split("/"))]
        self.root, self.pages = root, {path: read_page(path, root) for path in paths}
        offers = next(root.glob("*/_modidx.py")).with_name("__init__.py").read_text(encoding="utf-8")
        self.faces = {*re.findall(r'"(\w+)": "[\w.]+"', offers), "Hooks", "ManagerView"}
        self.by_name: dict[str, list[Symbol]] = {}
        self.taken: set[str] = set()  # Names of parameters and fields, which mean something else in a sentence
        self.internal = internal_pages(root)
        every = [symbol for page in self.pages.values() for symbols in page.cells.values() for symbol in symbols]
        for symbol in every: self._add(symbol)
        for symbol in every: self._adopt(symbol)

    def _add(self, symbol: Symbol) -> None:
        self.by_name.setdefault(symbol.name, []).append(symbol)
        self.taken |= {arg.arg for arg in ast.walk(symbol.node) if isinstance(arg, ast.arg)}
        fields = (field for field in symbol.body if isinstance(field, ast.AnnAssign))
        self.taken |= {name for field in fields for name in stored(field)}
        for method in methods(symbol):
            self.by_name.setdefault(method.name, []).append(method)
            self.by_name.setdefault("." + method.last, []).append(method)

    def _adopt(self, symbol: Symbol) -> None:
        """Let the names of inherited methods lead to the class that shows them as its own, and the others to where they are defined."""
        for method in self.inherited(symbol):
            self.by_name[method.name] = [method]
            others = [m for m in self.by_name.get("." + method.last, []) if m.name != method.defined]
            self.by_name["." + method.last] = [*others, method]
        for method in (method for base in self.ancestors(symbol) for method in methods(base)):
            self.by_name.setdefault(f"{symbol.name}.{method.last}", [method])

    def find(self, name: str, page: str = "") -> "Symbol | None":
        """Return what a name means on a page: the page's own, else the only one of the package, else `None`."""
        found = self.by_name.get(name, [])
        here = [symbol for symbol in found if symbol.page == page]
        chosen = here or found
        return chosen[0] if len(chosen) == 1 else None

    def owner(self, name: str, page: str = "") -> "Symbol | None":
        """The class that a field or a member such as `WorkerConfig.max_pending` belongs to."""
        owner, _, last = name.rpartition(".")
        symbol = self.find(owner, page) if owner else None
        if symbol is None: return None
        fields = [f for f in symbol.body if isinstance(f, (ast.Assign, ast.AnnAssign))]
        return symbol if any(last in stored(f) for f in fields) else None

    def parents(self, symbol: Symbol) -> list[Symbol]:
        """The classes of the package that a class names as its bases."""
        words = [base.partition("[")[0].rpartition(".")[2] for base in symbol.bases]
        found = [self.pages[symbol.page].private.get(word) or self.find(word, symbol.page) for word in words]
        return [parent for parent in found if parent is not None and isinstance(parent.node, ast.ClassDef)]

    def ancestors(self, symbol: Symbol) -> list[Symbol]:
        """The classes of the package that a class inherits from, the nearest first."""
        return [found for parent in self.parents(symbol) for found in (parent, *self.ancestors(parent))]

    def speaks_for(self, symbol: Symbol, base: Symbol) -> bool:
        """Whether a class shows the methods of a base class as its own: readers are not sent to what is private, or internal."""
        return not public(base.name) or base.page in self.internal and symbol.page not in self.internal

    def inherited(self, symbol: Symbol) -> list[Symbol]:
        """The methods that a class inherits and shows as its own."""
        found: dict[str, Symbol] = {}
        waiting = self.parents(symbol)
        while waiting:
            base = waiting.pop(0)
            if not self.speaks_for(symbol, base): continue
            for method in methods(base): found.setdefault(method.last, method)
            waiting += self.parents(base)
        own = {method.last for method in methods(symbol)}
        return [replace(m, name=f"{symbol.name}.{m.last}", page=symbol.page, defined=m.name) for m in found.values() if m.last not in own]

    def protocols(self) -> list[Symbol]:
        """The public Protocols."""
        symbols = (symbol for found in self.by_name.values() for symbol in found)
        return [symbol for symbol in symbols if symbol.is_protocol]


@functools.lru_cache(maxsize=None)
def index(root: Path = ROOT) -> Index:
    """The index of this checkout."""
    return Index(root)


@functools.lru_cache(maxsize=None)
def lines_of(path: Path) -> dict[str, int]:
    """Where a module defines its classes, functions and methods."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for name in names(node): found[name] = node.lineno
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{m.name}": m.lineno for m in node.body if isinstance(m, Function)}
    return found
