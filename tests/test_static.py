"""The exported package satisfies the type checkers, as a user's project would see it, and documents all that is public.

The code of the whole repository satisfies the linter.
"""

import ast
import functools
import importlib
import inspect
import io
import json
import re
import sys
import textwrap
import tokenize
from types import FunctionType, ModuleType
from typing import Any, Iterator

import pytest
from repo import LIB, PACKAGE, ROOT, module_name, modules, run, said


@pytest.mark.slow
def test_mypy_strict_finds_nothing() -> None:
    """mypy --strict has no complaint about any module. What it finds is kept, so that the next time only what has changed takes long."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e '.[dev]'")
    done = run(sys.executable, "-m", "mypy", "--strict", PACKAGE, cwd=ROOT)
    assert done.returncode == 0 and "Success" in done.stdout, said(done)


@pytest.mark.slow
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


def test_ruff_finds_nothing() -> None:
    """Ruff has no complaint about the code of the repository: no line over the hard limit, no unused import."""
    pytest.importorskip("ruff", reason="ruff is not installed: pip install -e '.[dev]'")
    done = run(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ".", cwd=ROOT)
    assert done.returncode == 0, said(done)


def public(name: str) -> bool:
    """Whether no part of a dotted name has a leading underscore."""
    return not any(part.startswith("_") for part in name.split("."))


PUBLIC = [path for path in modules() if public(module_name(path))]
each_module = pytest.mark.parametrize("path", PUBLIC)


def things(module: ModuleType) -> "dict[str, Any]":
    """The public classes and functions that a module defines."""
    names = sorted({*vars(module), *getattr(module, "__all__", ())})
    found = {name: getattr(module, name) for name in names if public(name)}
    return {name: thing for name, thing in found.items() if getattr(thing, "__module__", "") == module.__name__}


def function(thing: Any) -> "FunctionType | None":
    """The function that a function, a method or a property was made of."""
    for name in ("fget", "func", "__func__"):
        if isinstance(thing, (property, functools.cached_property, staticmethod, classmethod)):
            thing = getattr(thing, name, thing)
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return thing if isinstance(thing, FunctionType) else None


@functools.cache
def protocols() -> "dict[type, dict[str, list[str]]]":
    """Every public Protocol of the package, with the parameters of its public methods."""
    found = [thing for path in PUBLIC for thing in things(importlib.import_module(module_name(path))).values()]
    return {thing: methods(thing) for thing in found if inspect.isclass(thing) and getattr(thing, "_is_protocol", False)}


def methods(protocol: type) -> "dict[str, list[str]]":
    """The parameters of the public methods of a class."""
    return {name: parameters(member) for name, member in vars(protocol).items() if public(name) and function(member)}


def parameters(member: Any) -> "list[str]":
    """The names of a method's parameters; none for what is no method."""
    made_of = function(member)
    return list(inspect.signature(made_of).parameters) if made_of else []


def shown_elsewhere(cls: type, name: str) -> bool:
    """Whether a public base class, or a Protocol of which a class has every method, has a method like this one."""
    bases = [base for base in cls.__mro__[1:] if base.__module__.split(".")[0] != PACKAGE or public(base.__qualname__)]
    if any(name in vars(base) for base in bases):
        return True
    found = [methods for protocol, methods in protocols().items() if cls not in protocols() and name in methods]
    return any(all(parameters(getattr(cls, name, None))[: len(names)] == names for name, names in wanted.items()) for wanted in found)


def undocmented(made_of: FunctionType) -> Iterator[str]:
    """The parameters that have no comment on their line, and the result if it has none; a comment belongs to the last of its line."""
    source = textwrap.dedent(inspect.getsource(made_of))
    (tree,) = ast.parse(source).body
    assert isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef))
    comments = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    args = tree.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    lines = {f"parameter {arg.arg!r}": arg.end_lineno for arg in every if arg and arg.arg not in ("self", "cls")}
    if tree.returns and ast.unparse(tree.returns) not in ("None", "'None'"):
        lines["what it returns"] = tree.returns.end_lineno
    last = {line: name for name, line in lines.items()}
    for name, line in lines.items():
        if line not in comments or last[line] != name or line == tree.body[0].lineno:
            yield name


def undocumented(where: str, thing: Any) -> Iterator[str]:
    """What a public class, function, method or property, and all that it contains, leaves unsaid."""
    if inspect.isclass(thing):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
        assert isinstance(tree, ast.ClassDef)
        if not ast.get_docstring(tree):  # `__doc__` is no proof: a dataclass that has none makes one
            yield f"{where}: no docstring"
        for name, member in vars(thing).items():
            if public(name) and not shown_elsewhere(thing, name):
                yield from undocumented(f"{where}.{name}", member)
    elif made_of := function(thing):
        if not (made_of.__doc__ or "").strip():
            yield f"{where}: no docstring"
        yield from (f"{where}: no docment for {name}" for name in undocmented(made_of))


@each_module
def test_all_that_is_public_is_documented(path: str) -> None:
    """Classes, functions, methods and properties have a docstring; parameters and results have a docment.

    Exempt are dunder methods, and methods that a base class or a Protocol documents.
    """
    module = importlib.import_module(module_name(path))
    found = [line for name, thing in things(module).items() for line in undocumented(f"{module.__name__}: {name}", thing)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("path", modules())
def test_no_comment_is_a_heading(path: str) -> None:
    """Between the methods of a class no comment is a heading, such as `# To the workers`."""
    source = (LIB / path).read_text(encoding="utf-8")
    inside: "set[int]" = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            within = [range(member.lineno, member.end_lineno + 1) for member in node.body if member.end_lineno is not None]
            inside |= set(range(node.body[0].lineno, (node.end_lineno or 0) + 1)).difference(*within)
    comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT and t.start[0] in inside]
    found = [f"{path}:{t.start[0]} {t.string}" for t in comments if re.fullmatch(r"#+ *[A-Z][\w'-]*( [\w'-]+){0,3}", t.string)]
    assert not found, "\n" + "\n".join(found)
