"""The notebook of the contract, and others, for tests that judge the very code that they show."""

import ast
import json
from typing import Any

from repo import NBS

EXAMPLES = ("MyResourceManager", "PluginMeta", "SimplePluginRegistry", "SimpleResourceManager", "SimpleEventBroadcaster")


def cells() -> "list[dict[str, Any]]":
    """The code cells of the notebook."""
    nb = json.loads((NBS / "extensions/protocols.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code"]


def source(cell: "dict[str, Any]") -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def shown(cell: "dict[str, Any]") -> str:
    """What a cell prints, and then what it displays."""
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.get("outputs", [])]
    return "".join(line for text in texts for line in text)


def example_source() -> str:
    """The example implementations of the notebook as a module: their classes to the letter, and the imports that they need."""
    lines = ["from cjm_worker_protocols.extensions.protocols import UNSET, Unset"]
    found = []
    for text in map(source, cells()):
        body = compile(text, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT).body  # type: ignore[attr-defined]
        for node in body:
            if isinstance(node, ast.ImportFrom) and node.module in ("typing", "dataclasses", "copy") and "export" not in text:
                lines.append(ast.unparse(node))
            elif isinstance(node, ast.ClassDef) and node.name in EXAMPLES:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines += ["", "", *text.splitlines()[first - 1 : node.end_lineno]]
                found.append(node.name)
    assert sorted(found) == sorted(EXAMPLES), found
    return "\n".join(lines) + "\n"


def definitions(name: str) -> str:
    """The imports, classes and functions of a notebook as a module, to the letter."""
    nb, lines = json.loads((NBS / name).read_text(encoding="utf-8")), list[str]()
    for text in (source(cell) for cell in nb["cells"] if cell["cell_type"] == "code"):
        for node in ast.parse(text).body:
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                lines += [ast.get_source_segment(text, node) or "", ""]
    return "\n".join(lines)
