"""Every notebook runs in a real Jupyter kernel, as people run them: from the installed package, outside the checkout.

The interpreter to use is that of a virtual environment with the wheel and its extra `tutorials`, named by the variable
CJM_WORKERS_TUTORIALS_PYTHON; .ci/run makes one.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import models
import pytest
from repo import NBS, PACKAGE, ROOT, Server, notebooks, run, said, server

PYTHON = os.environ.get("CJM_WORKERS_TUTORIALS_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs a virtual environment with the wheel: .ci/run makes one"),
]

OFFLINE = '''"""Every Python process that sees this file can reach nothing but its own machine."""
import sys

def refuse(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host not in (None, "", "localhost", "::1", "0.0.0.0") and not str(host).startswith("127."):
        raise OSError(f"offline: {host}")

sys.addaudithook(refuse)
'''


EXECUTE = """
import sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient

for line in sys.stdin:
    path = Path(line.strip()).resolve()
    try:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}).execute()
        status = 0
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
        status = 1
    print(status, flush=True)
"""  # What `jupyter execute` does, for one notebook after the other, each in a kernel of its own


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the notebooks, and no checkout anywhere near."""
    there = tmp_path_factory.mktemp("jupyter")
    shutil.copytree(NBS, there / "nbs", ignore=shutil.ignore_patterns(".*", "*.yml"))
    (there / "offline").mkdir()
    (there / "offline/sitecustomize.py").write_text(OFFLINE)
    return there


def environment(there: Path) -> "dict[str, str]":
    """An environment of its own for Jupyter: no network, no settings of the user's."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    path = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
    return {name: str(there / name.lower()) for name in names} | {"PYTHONPATH": str(there / "offline"), "PATH": path}


def test_the_package_is_the_installed_one(outside: Path) -> None:
    """The environment has the package from the wheel, not from the checkout, and the network is cut off."""
    code = f"import {PACKAGE}, socket\nprint({PACKAGE}.__file__)\nsocket.create_connection(('192.0.2.1', 80), 1)"
    done = run(PYTHON, "-c", code, cwd=outside, **environment(outside))
    assert str(ROOT) not in done.stdout and "site-packages" in done.stdout, said(done)
    assert "offline: 192.0.2.1" in done.stderr, said(done)


@pytest.fixture(scope="session")
def jupyter(outside: Path) -> Iterator[Server]:
    """What runs notebooks in kernels."""
    with server(PYTHON, "-c", EXECUTE, cwd=outside, log=outside / "log", **environment(outside)) as it:
        yield it


@pytest.mark.parametrize("name", notebooks())
def test_runs_in_a_kernel(name: str, jupyter: Server) -> None:
    """The notebook runs top to bottom, cell by cell, in a kernel that no other notebook has used."""
    models.need(*models.NOTEBOOKS.get(name, ()))
    done = jupyter.ask(f"nbs/{name}", timeout=240)
    assert done.returncode == 0, said(done)
