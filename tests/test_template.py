"""The template for plugin packages is a package: it is built, installed, found, and passes its own tests."""

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from repo import NBS, ROOT, run, said
from test_packaging import OFFLINE


@pytest.mark.slow
def test_the_template_is_a_plugin_package(tmp_path: Path) -> None:
    """pip makes a wheel of it, which carries its schema; from there it is a plugin like any other."""
    made = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    there = shutil.copytree(ROOT / "templates/plugin", tmp_path / "plugin", ignore=made)
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(there), cwd=tmp_path)
    if done.returncode and OFFLINE.search(done.stdout + done.stderr):
        pytest.skip("an isolated build needs a package index, to install setuptools from")
    assert done.returncode == 0, said(done)
    assert (tmp_path / "site/babbler/Babbler.schema.json").exists()
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=there, PYTHONPATH=path)
    assert done.returncode == 0 and "4 passed" in done.stdout, said(done)
    done = run(sys.executable, "-m", "cjm_worker_protocols", "run", "babbler", "words=3", "seed=1", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0 and done.stdout.count('{"event": "job:chunk"') == 3, said(done)


def test_the_recipes_of_the_how_to_are_python() -> None:
    """Each fence with code can be parsed, and has a class with the methods of a plugin."""
    cells = json.loads((NBS / "howto/write_a_plugin.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    recipes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(recipes) >= 4
    for recipe in recipes:
        (made,) = (node for node in ast.parse(recipe).body if isinstance(node, ast.ClassDef))
        assert {"load", "run"} <= {node.name for node in made.body if isinstance(node, ast.FunctionDef)}, recipe
