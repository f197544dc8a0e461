"""What is installed: the right files, imports that only point down, and a contract that costs nothing to import."""

import ast
import importlib
import importlib.util
import json
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Iterator, NamedTuple

import pytest
from repo import LIB, PACKAGE, ROOT, SETTINGS, copy_checkout, module_name, modules, run, said

OFFLINE = re.compile(r"No matching distribution|Could not find a version|Failed to establish|Max retries|resolution")


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Path]":
    """The sdist, and the wheel made from it, built in isolation from a copy of the checkout; or those that .ci/run has built."""
    if given := os.environ.get("CJM_WORKERS_DIST"):
        return built(Path(given))
    if importlib.util.find_spec("build") is None:
        pytest.skip("build is not installed: pip install -e '.[dev]'")
    tmp = tmp_path_factory.mktemp("dist")
    there = copy_checkout(tmp / "checkout")
    done = run(sys.executable, "-m", "build", "--outdir", str(tmp / "out"), str(there), cwd=tmp)
    if done.returncode and OFFLINE.search(done.stdout + done.stderr):
        pytest.skip("an isolated build needs a package index, to install setuptools from")
    assert done.returncode == 0, said(done)
    return built(tmp / "out")


def built(folder: Path) -> "dict[str, Path]":
    """The wheel and the sdist of a folder."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="session")
def wheel(dist: "dict[str, Path]") -> "dict[str, bytes]":
    """What is in the wheel."""
    with zipfile.ZipFile(dist["wheel"]) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: "dict[str, bytes]", name: str) -> str:
    """A file of the wheel's metadata."""
    (found,) = (text for path, text in wheel.items() if path.endswith(f".dist-info/{name}"))
    return found.decode()


@pytest.mark.slow
def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    """In a fresh environment, from a checkout: it installs what it needs, and transcribes the package's recording."""
    (command,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("pip install") and "demo" in line)
    there = copy_checkout(tmp_path / "checkout")
    made = run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    assert made.returncode == 0, said(made)
    done = run("bash", "-c", command, cwd=there, PATH=f"{tmp_path / 'venv/bin'}:{os.environ['PATH']}")
    if done.returncode and OFFLINE.search(done.stdout + done.stderr):
        pytest.skip("the command needs a package index")
    assert done.returncode == 0, said(done)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    (end,) = (line["data"] for line in told if line["event"] == "job:completed")
    assert "worker" in end["result"]["text"] and {"job:chunk", "job:progress"} <= {line["event"] for line in told}


@pytest.mark.slow
def test_twine_finds_nothing_wrong(dist: "dict[str, Path]") -> None:
    """The package index would take both files, and show the README."""
    pytest.importorskip("twine")
    done = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.values()), cwd=ROOT)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, said(done)


@pytest.mark.slow
def test_wheel_has_every_module_and_nothing_else(wheel: "dict[str, bytes]") -> None:
    """Every module, py.typed, the recording and its licence; no notebook, no test, no tool."""
    data = [p for p in LIB.rglob("*") if p.parent.name in ("data", "static") and p.is_file()]
    want = {PurePosixPath(PACKAGE, path) for path in modules()} | {PurePosixPath(PACKAGE, "py.typed")}
    want |= {PurePosixPath(p.relative_to(ROOT).as_posix()) for p in data}
    got = {PurePosixPath(path) for path in wheel if ".dist-info/" not in path}
    assert got == want
    for path in want:
        assert wheel[str(path)] == (ROOT / path).read_bytes(), path


@pytest.mark.slow
def test_wheel_carries_a_recording_and_its_licence(wheel: "dict[str, bytes]") -> None:
    """The demo's recording is installed with the package, a text beside it that says where it comes from."""
    there = f"{PACKAGE}/plugins/data/"
    kinds = {PurePosixPath(path).suffix for path in wheel if path.startswith(there)}
    assert ".wav" in kinds and kinds - {".wav"}


@pytest.mark.slow
def test_sdist_builds_but_carries_no_notebook(dist: "dict[str, Path]") -> None:
    """The sdist has what a build needs (the wheel was made from it), and no notebook or test."""
    with tarfile.open(dist["sdist"]) as archive:
        names = {PurePosixPath(*PurePosixPath(n).parts[1:]) for n in archive.getnames()}
    for needed in ("settings.ini", "setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"):
        assert PurePosixPath(needed) in names
    assert not [n for n in names if n.suffix == ".ipynb" or n.parts[:1] in {("tests",), ("nbs",), ("tools",)}]


@pytest.mark.slow
def test_metadata_is_that_of_the_settings(wheel: "dict[str, bytes]") -> None:
    """Name, version, licence expression, Python, requirements and extras are those of settings.ini."""
    requirements = pytest.importorskip("packaging.requirements")
    lines = metadata(wheel, "METADATA").split("\n\n", 1)[0].splitlines()
    for line in (
        f"Name: {SETTINGS['lib_name']}",
        f"Version: {SETTINGS['version']}",
        f"License-Expression: {SETTINGS['license']}",
        "License-File: LICENSE",
        f"Requires-Python: >={SETTINGS['min_python']}",
        f"Summary: {SETTINGS['description']}",
    ):
        assert line in lines
    extras = {key.removesuffix("_requirements") for key in SETTINGS if key.endswith("_requirements")}
    assert {line.split(": ")[1] for line in lines if line.startswith("Provides-Extra")} == extras
    required = [requirements.Requirement(x.split(": ", 1)[1]) for x in lines if x.startswith("Requires-Dist")]
    for extra, key in [("", "requirements"), *((extra, f"{extra}_requirements") for extra in extras)]:
        wanted = {"requirements", key} if extra else {key}
        asked = [requirements.Requirement(text) for name in wanted for text in SETTINGS[name].split()]
        here = {r.name for r in asked if not r.marker or r.marker.evaluate({"extra": ""})}
        got = {r.name for r in required if not r.marker or r.marker.evaluate({"extra": extra})}
        assert got == here and {r.name for r in required} >= {r.name for r in asked}
    assert metadata(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


@pytest.mark.slow
def test_entry_points_lead_to_what_exists(wheel: "dict[str, bytes]") -> None:
    """The command and the plugins can be loaded, and nbdev finds the index for its links."""
    points = dict(re.findall(r"^(\S+) ?= ?(\S+)$", metadata(wheel, "entry_points.txt"), re.MULTILINE))
    assert {"cjm-workers", "pocketsphinx", PACKAGE} <= set(points)
    for target in points.values():
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name), target


# A folder may import itself and those before it
HOUSE = ("extensions", "core", "worker", "engines", "managers", "integrations", "plugins", "web")
ALLOWED = {
    **{folder: set(HOUSE[:number]) for number, folder in enumerate(HOUSE)},
    "core": set(),  # what both processes share: the standard library only
    "worker": {"core"},
    "plugins": {"core", "worker"},
    "conformance": {"extensions"},  # is an implementation right? the contract only
    "cli": {*HOUSE, "conformance"},
}
CODE = [path for path in modules() if not path.endswith(("__init__.py", "__main__.py", "_modidx.py"))]
each_module = pytest.mark.parametrize("path", CODE)


def part(module: str) -> str:
    """The part of the package that a module of it belongs to."""
    return module.split(".")[1]


class Import(NamedTuple):
    """A module that a module imports."""

    target: str
    line: int
    when: str  # "import", "call" (inside a function) or "never" (for type checkers only)


def statements(node: ast.AST, when: str = "import") -> "Iterator[tuple[ast.Import | ast.ImportFrom, str]]":
    """Every import statement below a node, and when it is executed."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for branch, kept in ((child.body, "never"), (child.orelse, when)):
                yield from statements(ast.Module(branch, []), kept)
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from statements(child, "call" if function and when == "import" else when)


def imports(path: str) -> Iterator[Import]:
    """Everything that a module imports, anywhere in it; names that our own packages give lazily are looked up."""
    package = module_name(path).rpartition(".")[0]
    for node, when in statements(ast.parse((LIB / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, when) for alias in node.names)
            continue
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        ours = base.split(".")[0] == PACKAGE
        is_package = ours and (LIB.parent / base.replace(".", "/")).is_dir()
        for alias in node.names:
            target = base
            if is_package and importlib.util.find_spec(f"{base}.{alias.name}"):
                target = f"{base}.{alias.name}"
            elif is_package:
                target = getattr(getattr(importlib.import_module(base), alias.name), "__module__", base)
            yield Import(target, node.lineno, when)


@each_module
def test_imports_only_point_down(path: str) -> None:
    """A folder imports only itself and the folders before it: the contract nothing of ours, the managers never an integration."""
    here = part(module_name(path))
    assert here in ALLOWED, f"{here} is a new part of the package: say above what it may import"
    ours = [found for found in imports(path) if found.target.startswith(f"{PACKAGE}.")]
    assert not [found for found in ours if part(found.target) not in ALLOWED[here] | {here}]


def test_the_contract_imports_only_typing() -> None:
    """Importing extensions.protocols imports enum and typing, and nothing else."""
    assert {found.target for found in imports("extensions/protocols.py") if found.when == "import"} == {"enum", "typing"}


def test_the_worker_side_is_standard_library_only() -> None:
    """worker.main and all it imports need no package, save cloudpickle inside a function, for a plugin sent by value."""
    todo, seen = ["worker/main.py"], set()
    while todo:
        path = todo.pop()
        seen.add(path)
        for found in imports(path):
            top = found.target.split(".")[0]
            file = found.target.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py"
            if top == PACKAGE and found.when != "never" and (LIB / file).exists():
                todo += {file} - seen
            elif top != PACKAGE and found.when != "never" and (top, found.when) != ("cloudpickle", "call"):
                assert top in sys.stdlib_module_names, f"{path}:{found.line} imports {found.target}"
    assert len(seen) > 1


def loaded_by(code: str) -> "set[str]":
    """The modules that a fresh interpreter has loaded after some code."""
    done = run(sys.executable, "-S", "-c", f"{code}\nimport sys\nprint(*sys.modules)", cwd=ROOT, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, said(done)
    return set(done.stdout.split())


def test_the_worker_loads_only_the_standard_library() -> None:
    """Importing worker.main in an interpreter that sees no installed package works, and loads nothing but ours."""
    extra = {name.split(".")[0] for name in loaded_by(f"import {PACKAGE}.worker.main")}
    assert not {name for name in extra if name not in sys.stdlib_module_names} - {PACKAGE, "__main__"}


def test_importing_the_contract_loads_nothing_else() -> None:
    """extensions.protocols loads nothing of ours save the packages it lies in, and nothing beyond typing's own imports."""
    extra = loaded_by(f"import {PACKAGE}.extensions.protocols") - loaded_by("import enum, typing")
    assert extra == {PACKAGE, f"{PACKAGE}.extensions", f"{PACKAGE}.extensions.protocols"}


def test_importing_the_package_is_lazy() -> None:
    """`import cjm_worker_protocols` loads no module of ours until a name is asked for, and dir() tells the names."""
    assert loaded_by(f"import {PACKAGE}") - loaded_by("import typing") <= {PACKAGE}
    package = importlib.import_module(PACKAGE)
    face = {"PluginRegistryProtocol", "ResourceManagerProtocol", "EventBroadcasterProtocol"}
    face |= {"BaseJobManager", "JobManager", "WorkerConfig", "Job", "JobError"}
    assert face <= set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        package.nonsense


@each_module
def test_no_print(path: str) -> None:
    """The library logs; only the command line prints."""
    if path.startswith("cli/"):
        return
    calls = [n for n in ast.walk(ast.parse((LIB / path).read_text())) if isinstance(n, ast.Call)]
    assert not [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id in ("print", "pprint")]


def test_the_page_on_installing_explains_each_extra() -> None:
    """Its table has a row for each extra, which names every package that the extra installs for its users."""
    text = "".join("".join(cell["source"]) for cell in json.loads((ROOT / "nbs/howto/install.ipynb").read_text())["cells"])
    rows = {m[1]: m[2] for m in re.finditer(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)}
    extras = {key.removesuffix("_requirements"): value for key, value in SETTINGS.items() if key.endswith("_requirements")}
    assert set(rows) == set(extras)
    for extra in set(extras) - {"tutorials", "dev"}:
        wanted = {re.split(r"[<>=;]", name)[0] for name in extras[extra].split() if not name.startswith("python_version")}
        assert not [name for name in wanted if name.partition("[")[0] not in rows[extra]], extra
