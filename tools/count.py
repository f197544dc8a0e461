"""Count the package's code as AST nodes, docstrings apart, by folder: `python tools/count.py [FOLDER]` (default: the package)."""

import ast
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "cjm_worker_protocols"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def nodes(source: str) -> int:
    """How many AST nodes a module has, without those of its docstrings."""
    tree = ast.parse(source)
    found = list(ast.walk(tree))
    docstrings = sum(ast.get_docstring(node, clean=False) is not None for node in found if isinstance(node, DOCUMENTED))
    return len(found) - 2 * docstrings  # a statement and its value


def count(package: Path = PACKAGE) -> "Counter[str]":
    """How many nodes each folder of the package has; modules at the top count as `.`."""
    found: "Counter[str]" = Counter()
    for path in sorted(package.rglob("*.py")):
        if path.name != "_modidx.py":  # an index that nbdev makes
            found[path.relative_to(package).parent.as_posix()] += nodes(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    total = 0
    for folder, size in sorted((count(Path(sys.argv[1])) if len(sys.argv) > 1 else count()).items()):
        total += size
        print(f"{size:8,} {folder}")
    print(f"{total:8,} together")
