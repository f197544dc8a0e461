"""The registry, on packages that are really installed: what it finds, what it refuses, what it keeps, and that it imports none of them."""

import base64
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import finish, nothing_left, run, said_json, script, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from repo import ROOT, python, said
from repo import run as command
from test_cli import cli, events, of

from cjm_worker_protocols import BaseJobManager, JobManager, WorkerConfig
from cjm_worker_protocols.conformance import check
from cjm_worker_protocols.core.errors import (
    ConfigError,
    PluginNotConfiguredError,
    PluginTypeError,
    RegistryUnavailableError,
    UnknownPluginError,
)
from cjm_worker_protocols.core.masking import Secret, masked
from cjm_worker_protocols.extensions.protocols import PluginRegistryProtocol
from cjm_worker_protocols.integrations.registry import (
    GROUP,
    ConfigFileError,
    ConfigFolderError,
    DuplicatePluginError,
    EntryPointRegistry,
    PluginConfigError,
    PluginIdError,
    PluginSchemaError,
    RegistryExtraError,
    check_id,
    file_name,
)
from cjm_worker_protocols.integrations.registry import files, judge
from cjm_worker_protocols.integrations.registry import registry as module
from cjm_worker_protocols.integrations.registry import schema as schemas

pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install -e '.[registry]'")
__all__ = ["nothing_left"]
TEXT = "app.text"
SCHEMA = {
    "properties": {
        "model": {"type": "string", "default": "base"},
        "beam": {"type": "integer", "default": 5},
        "fast": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string"}},
        "decoder": {"type": "object", "properties": {"a": {"default": 1}, "b": {"default": 2}}},
        "api_key": {"type": "string", "writeOnly": True},
    },
    "additionalProperties": False,
}
CODE = """class Plugin:
    def load(self, config): self.config = config
    def run(self): return {k: v + '' if isinstance(v, str) else v for k, v in self.config.items()}
"""


def install(
    site: Path,
    name: str,
    points: "str | None" = None,
    code: "str | None" = CODE,
    schema: Any = None,
    version: str = "1.0",
) -> Path:
    """What pip leaves behind of a package."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = f"[{TEXT}]\n{name} = {name}:Plugin\n" if points is None else points
    if points:
        (info / "entry_points.txt").write_text(points)
    if code is not None:
        (site / name).mkdir(exist_ok=True)
        (site / name / "__init__.py").write_text(code)
    if schema is not None:
        (site / name / "Plugin.schema.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return info


@pytest.fixture(autouse=True)
def judged_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas are applied in this process, which takes a tenth of the time, unless a test is about the other one."""

    def here(*question: Any, **more: Any) -> "dict[str, Any]":
        found = judge.answer(*question, **more)
        if "broken" in found:
            raise judge.JudgeError(found["broken"])
        return found

    if "killable" not in request.fixturenames:
        monkeypatch.setattr(schemas, "judge", here)


@pytest.fixture
def killable() -> None:
    """Schemas are applied in a process that can be killed, as outside of these tests."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, on the import path."""
    there = tmp_path / "site"
    there.mkdir()
    monkeypatch.syspath_prepend(str(there))
    for name in [name for name in os.environ if name.startswith("CJM_WORKERS")]:
        monkeypatch.delenv(name)
    return there


def of_text(**more: Any) -> EntryPointRegistry:
    """A registry of one category, `text`."""
    return EntryPointRegistry(groups={"text": TEXT}, **more)


def ids(registry: EntryPointRegistry) -> "list[str]":
    """What it lists."""
    return [plugin.id for plugin in registry.get_plugins_by_category("text")]


# Finding


def test_nothing_is_imported(site: Path, tmp_path: Path) -> None:
    """To list, search, disable, configure and save imports no plugin, not even the package above its module."""
    for name in ("one", "two"):
        install(site, name, code="raise SystemExit(7)\n", schema=SCHEMA)
    install(site, "deep", f"[{TEXT}]\ndeep = deep.below.far:Plugin\n", code="raise SystemExit(7)\n")
    (site / "deep/below").mkdir()
    (site / "deep/below/Plugin.schema.json").write_text(json.dumps(SCHEMA))
    code = f"""
import sys
sys.path.append({str(site)!r})
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
registry = EntryPointRegistry(groups={{"text": {TEXT!r}}}, config_dir={str(tmp_path / "config")!r})
assert [p.id for p in registry.get_plugins_by_category("text")] == ["deep", "one", "two"]
assert [p.id for p in registry.search("TW")] == ["two"]
registry.disable("two")
assert not registry.get_plugin("two").is_configured
for name in ("one", "deep"):
    registry.save_plugin_config(name, {{"beam": 7}})
    assert registry.load_plugin_config(name)["beam"] == 7 and registry.load_plugin_config(name)["model"] == "base"
registry.loader(), registry.targets()
assert not {{"one", "two", "deep"}} & sys.modules.keys(), sorted(sys.modules)
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, said(done)


def test_each_category_has_its_group(site: Path) -> None:
    """A category is anything hashable; a group alone is its own category; other groups are not ours."""
    install(site, "both", "[app.text]\nwords = both:w\n[app.image]\npixels = both:p\n[app.texts]\nother = both:o\n")
    registry = EntryPointRegistry(groups={("text", 1): "app.text", "image": "app.image"})
    assert [p.id for p in registry.get_plugins_by_category(("text", 1))] == ["words"]
    assert [p.id for p in registry.get_plugins_by_category("image")] == ["pixels"]
    assert registry.get_plugins_by_category("app.text") == []
    assert [p.id for p in EntryPointRegistry(groups="app.image").get_plugins_by_category("app.image")] == ["pixels"]


@pytest.mark.parametrize(
    "wrong", [{"groups": ["app.text"]}, {"groups": None}, {"plugins": ["mod:words"]}, {"plugins": "mod:words"}], ids=str
)
def test_groups_and_plugins_of_another_type_are_refused(wrong: "dict[str, Any]") -> None:
    """ConfigError says which, and what was expected."""
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: expected .*a mapping of"):
        EntryPointRegistry(**wrong)


def test_one_bad_plugin_does_not_hurt_the_others(site: Path, tmp_path: Path) -> None:
    """Damaged metadata, odd ids, no import string, broken manifests: each is a record with its reason."""
    install(site, "good", schema=SCHEMA)
    install(site, "garbage", f"[{TEXT}]\nno equals sign\n")
    (install(site, "latin") / "entry_points.txt").write_bytes(f"[{TEXT}]\nl\xe4tin = latin:Plugin\n".encode("latin-1"))
    install(site, "odd", f"[{TEXT}]\n../../escape = odd:Plugin\n")
    install(site, "bare", f"[{TEXT}]\nbare = no target!\n")
    (site / "nameless.dist-info").mkdir()
    (site / "nameless.dist-info/entry_points.txt").write_text(f"[{TEXT}]\nnameless = good:Plugin [extra]\n")
    (site / "afile.dist-info").write_text("not a folder")
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for name, text in {
        "syntax": "[plugin",
        "empty": "",
        "number": "[plugin]\ntarget = 5",
        "unknown": "[plugin]\ntarget = 'a:b'\nnope = 'x'",
        "category": "[plugin]\ntarget = 'a:b'\ncategory = 'image'",
        "without": "[plugin]\nid = 'x'",
        "ok": "[plugin]\ntarget = 'a:b'\nname = 'Fine'\ndescription = 'It is.'\ncategory = 'text'",
        "hostile": "[plugin]\nid = '../x'\ntarget = 'a:b'",
    }.items():
        (manifests / f"{name}.toml").write_text(text)
    (manifests / "binary.toml").write_bytes(b"\xff\xfe")
    (manifests / "folder.toml").mkdir()
    registry = of_text(manifests=manifests)
    found = registry.plugins
    assert {i: found[i].problem for i in ("good", "nameless", "ok")} == {"good": "", "nameless": "", "ok": ""}
    assert (found["ok"].name, found["ok"].description, found["ok"].distribution) == ("Fine", "It is.", "ok.toml")
    reasons = {
        "garbage": "entry_points.txt: TypeError",
        "latin": "UnicodeDecodeError",
        "%2e.%2f..%2fescape": "expected an id of 1 to 128",
        "bare": "import string 'package.module:name'",
        "syntax": "TOMLDecodeError",
        "empty": "expected a table [plugin]",
        "number": "target: expected a string (got 5)",
        "unknown": "(got 'nope')",
        "category": "(got image)",
        "without": "expected the key target",
        "%2e.%2fx": "expected an id",
        "binary": "UnicodeDecodeError",
        "folder": "Is a directory",
    }
    for name, reason in reasons.items():
        assert reason in found[name].problem, (name, found[name].problem)
        assert not found[name].is_configured and registry.load_plugin_config(name) is not None
    assert set(found) == {"good", "nameless", "ok", *reasons}
    assert registry.load_plugin_config("good")["beam"] == 5
    assert ids(registry) == sorted(found)


def test_files_that_are_none_and_files_without_an_end(site: Path, tmp_path: Path) -> None:
    """A pipe, a device, a link in a circle, more than anybody writes, nested without end: each is read at once, or not at all, and told."""
    manifests, config = tmp_path / "manifests", tmp_path / "config"
    manifests.mkdir()
    config.mkdir()
    install(site, "pipe", points="", schema=SCHEMA)
    os.mkfifo(site / "pipe-1.0.dist-info/entry_points.txt")
    os.mkfifo(manifests / "pipe.toml")
    for name, to in {"zero": "/dev/zero", "circle": "circle.toml", "nowhere": "gone.toml"}.items():
        (manifests / f"{name}.toml").symlink_to(to)
    (manifests / "huge.toml").write_text("[plugin]\ntarget = 'a:b'\n#" + "x" * 100_000)
    (manifests / "deep.toml").write_text("x = " + "[" * 10_000 + "]" * 10_000)
    began = time.monotonic()
    registry = of_text(manifests=manifests, config_dir=config, plugins={name: f"m:{name}" for name in ("a", "b", "c", "d")})
    found = registry.plugins
    reasons = {
        "pipe": "not a regular file",
        "zero": "not a regular file",
        "circle": "symbolic links",
        "nowhere": "No such file",
        "huge": "larger than 65,536 bytes",
        "deep": "Recursion",
    }
    for name, reason in reasons.items():
        assert reason in found[name].problem, found[name].problem
    os.mkfifo(config / "a.json")
    (config / "b.json").symlink_to("/dev/zero")
    (config / "c.json").write_text('{"a":' * 10_000)
    for name, reason in {"a": "not a regular file", "b": "not a regular file", "c": "100 levels"}.items():
        with pytest.raises(ConfigFileError, match=reason):
            registry.load_plugin_config(name)
    registry.register("e", "m:e", schema=manifests / "pipe.toml")
    with pytest.raises(PluginSchemaError, match="not a regular file"):
        registry.load_plugin_config("e")
    assert registry.load_plugin_config("d") == {} and time.monotonic() - began < 5


BOMBS = {
    "arrays": "x=" + "[" * 65_000,
    "tables": "x=" + "{a=" * 21_000,
    "key": "plugin" + ".a" * 32_000 + "=1",
    "quoted": "plugin" + '."a"' * 16_000 + "=1",
    "header": "[" + "a." * 32_000 + "a]",
    "inline": "x={" + "a." * 32_000 + "a=1}",
    "many": "".join(f"[[a{number}]]\n" for number in range(5000)),
    "digits": "x=" + "1" * 65_000,
    "float": "x=1e" + "9" * 65_000,
    "unclosed": 'x=""' + '"\n' * 30_000,
    "large": "#" * 70_000,
    "value": "[plugin]\ntarget=['" + "a" * 60_000 + "']",
    "other": "[plugin]\ntarget='a:b'\n" + "a" * 60_000 + "='x'",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_manifest_that_is_a_bomb(text: str, site: Path, tmp_path: Path) -> None:
    """It is refused within a second, in a sentence."""
    (tmp_path / "m.toml").write_text(text)
    began = time.process_time()
    problem = of_text(manifests=tmp_path).plugins["m"].problem
    assert problem and len(problem) < 500 and time.process_time() - began < 2


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_files_that_windows_has_written(mark: bytes, end: str, site: Path, tmp_path: Path) -> None:
    """A byte order mark and its line ends: in a manifest, a schema, a config, an entry point."""
    for folder in ("manifests", "config"):
        (tmp_path / folder).mkdir()
    text = end.join(["[plugin]", 'target = "a:b"', 'schema = "s.json"', 'python = "venv/bin/python"', ""])
    (tmp_path / "manifests/p.toml").write_bytes(mark + text.encode())
    (tmp_path / "manifests/s.json").write_bytes(mark + f'{{{end}"properties": {{"n": {{"default": 3}}}}}}'.encode())
    (tmp_path / "config/p.json").write_bytes(mark + f'{{{end}"x": 1}}'.encode())
    (install(site, "good") / "entry_points.txt").write_bytes(mark + f"[{TEXT}]{end}good = good:Plugin{end}".encode())
    registry = of_text(manifests=tmp_path / "manifests", config_dir=tmp_path / "config")
    assert registry.load_plugin_config("p") == {"n": 3, "x": 1} and registry.get_plugin("good") and registry.plugins["good"].is_configured
    assert registry.plugins["p"].python == str(tmp_path / "manifests/venv/bin/python")


def test_a_folder_of_manifests_that_is_none_is_told(site: Path, tmp_path: Path) -> None:
    """A file in its place is a record with its reason; all else goes on, and the folder is noticed when it is there."""
    install(site, "good")
    there = tmp_path / "manifests"
    there.write_text("")
    registry = of_text(manifests=there)
    assert ids(registry) == ["good", "manifests"]
    assert "cannot use this folder of manifests: Not a directory" in registry.plugins["manifests"].problem
    there.unlink()
    assert ids(registry) == ["good"]
    there.mkdir()
    (there / "mine.toml").write_text("[plugin]\ntarget = 'a:b'\n")
    assert ids(registry) == ["good", "mine"]


def test_two_packages_with_one_id_are_a_conflict(site: Path) -> None:
    """Neither has the id, each can be had by its qualified one, and the id says who claims it."""
    install(site, "loud", f"[{TEXT}]\nshout = loud:Plugin\n", schema=SCHEMA)
    install(site, "quiet", f"[{TEXT}]\nshout = quiet:Plugin\n")
    install(site, "twice", f"[{TEXT}]\nboth = twice:a\nboth = twice:b\n")
    registry = of_text()
    assert ids(registry) == ["both", "shout", "shout@loud", "shout@quiet"]
    shout = registry.plugins["shout"]
    assert not shout.target and not shout.is_configured and "loud 1.0" in shout.problem and "quiet 1.0" in shout.problem
    assert "mistake in the package" in registry.plugins["both"].problem
    assert registry.targets() == {"shout@loud": "loud:Plugin", "shout@quiet": "quiet:Plugin"}
    assert registry.load_plugin_config("shout") == {} and registry.load_plugin_config("shout@loud")["beam"] == 5
    shutil.rmtree(site / "quiet-1.0.dist-info")
    assert registry.targets() == {"shout": "loud:Plugin"}
    chosen = of_text(plugins={"shout": "mine:Shout"})
    assert chosen.targets() == {"shout": "mine:Shout", "shout@loud": "loud:Plugin"}


def test_a_package_counts_where_it_would_be_imported_from(site: Path, tmp_path: Path) -> None:
    """The same package further down the path is not offered again; a zip file and a checkout on the path count."""
    other, packed = tmp_path / "other", tmp_path / "packed.zip"
    install(site, "same_one", f"[{TEXT}]\nsame = same_one:new\n", version="2.0")
    install(other, "Same.One", f"[{TEXT}]\nsame = same_one:old\n", code=None)
    (other / "checkout.egg-info").mkdir()
    (other / "checkout.egg-info/PKG-INFO").write_text("Metadata-Version: 2.1\nName: checkout\nVersion: 3.0\n")
    (other / "checkout.egg-info/entry_points.txt").write_text(f"[{TEXT}]\nhere = checkout:run\n")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("packed-4.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: packed\nVersion: 4.0\n")
        archive.writestr("packed-4.0.dist-info/entry_points.txt", f"[{TEXT}]\nzipped = packed:run\n")
    code = f"""
import json, sys
sys.path += {[str(site), str(other), str(packed)]!r}
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
print(json.dumps({{p.id: [p.target, p.origin] for p in EntryPointRegistry(groups={TEXT!r}).plugins.values()}}))
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, said(done)
    assert json.loads(done.stdout) == {
        "same": ["same_one:new", "same-one 2.0"],
        "here": ["checkout:run", "checkout 3.0"],
        "zipped": ["packed:run", "packed 4.0"],
    }


def egg(folder: Path, name: str, points: "str | None" = None, metadata: bool = True) -> None:
    """What buildout and `setup.py install` make: a folder with the metadata in EGG-INFO."""
    info = folder / "EGG-INFO"
    info.mkdir(parents=True)
    if metadata:
        (info / "PKG-INFO").write_text(f"Metadata-Version: 2.1\r\nName: {name}\r\nVersion: 1.5\r\n\r\nName: none of it\r\n")
    (info / "entry_points.txt").write_text(points or f"[{TEXT}]\n{name} = {name}:run\n")
    sys.path.append(str(folder))


def test_eggs_have_names_of_their_own(site: Path, tmp_path: Path) -> None:
    """Each egg counts, by the name in its PKG-INFO or of its folder, also in a zip file; two that claim one id are rivals."""
    egg(tmp_path / "alpha-1.0-py3.11.egg", "alpha")
    egg(tmp_path / "beta-1.0-py3.11.egg", "beta-two")
    egg(tmp_path / "bare_one-2.0-py3.11.egg", "bare", metadata=False)
    with zipfile.ZipFile(tmp_path / "packed-3.0-py3.11.egg", "w") as archive:
        archive.writestr("EGG-INFO/PKG-INFO", "Name: packed\n")
        archive.writestr("EGG-INFO/entry_points.txt", f"[{TEXT}]\npacked = packed:run\n")
    sys.path.append(str(tmp_path / "packed-3.0-py3.11.egg"))
    install(site, "gamma", f"[{TEXT}]\nshout = gamma:run\n")
    egg(tmp_path / "delta-1.0-py3.11.egg", "delta", f"[{TEXT}]\nshout = delta:run\n")
    found = of_text().plugins
    want = {"alpha": "alpha 1.5", "beta-two": "beta-two 1.5", "bare": "bare-one 2.0", "packed": "packed 3.0"}
    assert {name: found[name].origin for name in want} == want
    assert set(found) == {*want, "shout", "shout@delta", "shout@gamma"} and not found["shout"].target


def test_metadata_that_are_there_twice(site: Path, tmp_path: Path) -> None:
    """The newest version counts, a wheel's before an egg's; what a removal left hides nothing, and counts only when it is alone."""
    for version in ("1.0", "1.10rc2", "1.10", "1.10.dev3", "1.9"):
        install(site, "many", f"[{TEXT}]\nmany = many:v{version.replace('.', '_')}\n", version=version)
    install(site, "both", f"[{TEXT}]\nboth = both:wheel\n")
    (site / "both-1.0-py3.11.egg-info").mkdir()
    (site / "both-1.0-py3.11.egg-info/PKG-INFO").write_text("Name: both\n")
    (site / "both-1.0-py3.11.egg-info/entry_points.txt").write_text(f"[{TEXT}]\nboth = both:egg\n")
    install(site, "half", f"[{TEXT}]\nhalf = half:left\n", version="9.0")
    (site / "half-9.0.dist-info/METADATA").unlink()
    install(site, "empty", f"[{TEXT}]\nempty = empty:left\n", version="9.0")
    (site / "empty-9.0.dist-info/METADATA").write_text("")
    install(site, "rest", f"[{TEXT}]\nrest = rest:left\n")
    (site / "rest-1.0.dist-info/METADATA").unlink()
    install(site, "~one", f"[{TEXT}]\ngone = one:gone\n", code=None)
    (site / "old-1.0.egg-info").write_text("Name: old\n")  # as distutils made them
    other = tmp_path / "other"
    for name in ("half", "empty", "old"):
        install(other, name, f"[{TEXT}]\n{name} = {name}:whole\n")
    sys.path.append(str(other))
    registry = of_text()
    want = {"both": "both:wheel", "empty": "empty:whole", "half": "half:whole", "many": "many:v1_10", "rest": "rest:left"}
    assert registry.targets() == want
    time.sleep(0.1)  # what has just changed is not kept
    assert registry.targets() == want
    (site / "half-9.0.dist-info/METADATA").write_text("Name: half\n")  # it was not removed after all
    assert registry.targets() == {**want, "half": "half:left"}


NAMES = st.lists(
    st.from_regex(r"[a-z][a-z0-9]{0,6}([_.]?[a-z0-9]{1,4})?", fullmatch=True),
    min_size=1,
    max_size=6,
    unique_by=lambda name: name.replace("_", "").replace(".", ""),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(NAMES, st.sampled_from(["{}-1.0.dist-info", "{}.egg-info", "{}-1.0-py3.11.egg-info"]), st.booleans())
def test_tidy_installations_are_as_importlib_sees_them(names: "list[str]", form: str, described: bool) -> None:
    """The same plugins, of the same packages and versions, whatever the form of their metadata."""
    from importlib.metadata import entry_points

    with tempfile.TemporaryDirectory() as there:
        for name in names:
            info = Path(there, form.format(name))
            info.mkdir()
            (info / ("METADATA" if "dist" in form else "PKG-INFO")).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[{TEXT}]\np-{name} = {name}:run [extra]\n# a comment\n[console_scripts]\nx = y:z\n")
        sys.path.append(there)
        try:
            theirs = {(e.name, e.module, e.dist.name.replace("_", "-"), e.dist.version) for e in entry_points(group=TEXT) if e.dist}
            ours = {(p.id, p.target.partition(":")[0], p.distribution, p.version) for p in of_text().plugins.values()}
        finally:
            sys.path.remove(there)
        assert ours == theirs and len(ours) == len(names)


def test_odd_entries_of_the_import_path_are_ignored(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no text, what cannot be a path, a pipe, a device, a damaged zip file: as Python does."""
    install(site, "good")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 and no more")
    pipe, damaged = str(tmp_path / "pipe"), str(tmp_path / "damaged.zip")
    odd = [None, site, bytes(site), 3, "nul\0byte", "/nowhere", "x" * 5000, pipe, "/dev/zero", damaged, "\udcff"]
    monkeypatch.setattr(sys, "path", [*odd, *sys.path, *odd])
    registry = of_text()
    assert ids(registry) == ["good"] and registry.load_plugin_config("good") == {}


@pytest.mark.parametrize("entry", ["", "relative", "."])
def test_a_working_directory_that_was_removed(entry: str, site: Path, tmp_path: Path) -> None:
    """Its relative entries of the import path lead nowhere; everything else goes on, and a job too."""
    code = f"""
import asyncio, os, sys
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
sys.path[0] = {entry!r}
sys.path.append({str(site)!r})
registry = EntryPointRegistry({{"j": "json:dumps"}}, groups={TEXT!r}, config_dir={str(tmp_path / "config")!r})
async def main():
    async with JobManager(worker_type="w", category="c", plugins=registry.targets(), plugin_registry=registry) as manager:
        assert await (await manager.start_job("j", obj=1)) == "1"
        os.rmdir(os.getcwd())
        assert sorted(registry.plugins) == ["j", "one"], registry.plugins
        registry.save_plugin_config("one", {{"beam": 7}})
        assert registry.load_plugin_config("one")["beam"] == 7
        assert await (await manager.start_job("j", obj=2)) == "2"
asyncio.run(main())
"""
    install(site, "one", schema=SCHEMA)
    (tmp_path / "gone").mkdir()
    done = python(code, cwd=tmp_path / "gone")
    assert done.returncode == 0, said(done)


def test_what_is_too_large_is_not_read(site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sparse file of a terabyte, a member of a zip file that grows, endless headers: each is passed over, and hides nothing."""
    install(site, "good")
    for name, file in (("sparse", "entry_points.txt"), ("headers", "METADATA")):
        with open(install(site, name, version="") / file, "r+b") as opened:
            opened.truncate(1 << 40)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb-1.0.dist-info/entry_points.txt", f"[{TEXT}]\nbomb = bomb:run\n#" + "x" * (1 << 26))
        archive.writestr("calm-1.0.dist-info/entry_points.txt", f"[{TEXT}]\ncalm = calm:run\n")
    sys.path.append(str(tmp_path / "bomb.zip"))
    began = time.monotonic()
    found = of_text().plugins
    assert {"good", "headers", "calm"} <= set(found) and "sparse" not in found and time.monotonic() - began < 5
    assert "sparse" in caplog.text and "262,144 bytes" in caplog.text


def test_plugins_registered_in_code(site: Path) -> None:
    """They have their ids; what cannot be one is refused."""
    registry = of_text(plugins={"a": "mod:a"})
    made = registry.register("b", "mod:b", name="Bee", description="Buzzes.", schema=SCHEMA)
    assert registry.get_plugin("b") == made and (made.name, made.category, made.get_unique_id()) == ("Bee", "text", "b")
    assert registry.load_plugin_config("b")["beam"] == 5 and registry.search("buzz") == [made]
    with pytest.raises(DuplicatePluginError, match="is registered already, as mod:b: register mod:c under another id"):
        registry.register("b", "mod:c")
    for target in ("mod", "mod:", "a b:c", print, None):
        with pytest.raises(PluginTypeError, match="import string 'package.module:name'"):
            registry.register("c", target)  # type: ignore[arg-type]
    for name in ("", "..", "a/b", "a@b", "ä", "x" * 129):
        with pytest.raises(PluginIdError, match="expected an id of 1 to 128"):
            registry.register(name, "mod:c")
    assert ids(registry) == ["a", "b"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=300), min_size=2, max_size=6, unique=True))
def test_ids_neither_collide_nor_escape(names: "list[str]") -> None:
    """As file names, any ids stay apart, also where case does not count, and each is one plain name."""
    made = [file_name(name) for name in names if name]
    assert len({name.lower() for name in made}) == len(made)
    for name in made:
        assert "/" not in name and "\0" not in name and not name.startswith(".") and len(name) < 230 and name.isascii()
    assert all(check_id(name) or "/" not in name and name.isascii() and name[0] != "." for name in names)


def test_a_changed_installation_is_noticed(site: Path, tmp_path: Path) -> None:
    """Installing, upgrading in place, editing in place, uninstalling, a new folder on the path, a manifest: each at the next look."""
    manifests = tmp_path / "manifests"
    registry = of_text(manifests=manifests)
    assert ids(registry) == []
    for wait in (0.0, 0.15):  # at once, and after the time in which a look is not kept
        info = install(site, "first")
        assert ids(registry) == ["first"]
        time.sleep(wait)
        (info / "entry_points.txt").write_text(f"[{TEXT}]\nsecond = first:Plugin\n")
        assert ids(registry) == ["second"]
        time.sleep(wait)
        info.rename(site / "first-2.0.dist-info")
        assert registry.plugins["second"].version == "2.0"
        time.sleep(wait)
        late = tmp_path / f"late{wait}"
        sys.path.append(str(late))
        assert ids(registry) == ["second"]
        install(late, "third")
        assert ids(registry) == ["second", "third"]
        manifests.mkdir()
        (manifests / "fourth.toml").write_text("[plugin]\ntarget = 'a:b'\n")
        assert ids(registry) == ["fourth", "second", "third"]
        time.sleep(wait)
        (manifests / "fourth.toml").write_text("[plugin]\ntarget = 'a:b'\nid = 'fifth'\n")
        assert ids(registry) == ["fifth", "second", "third"]
        shutil.rmtree(manifests)
        shutil.rmtree(site / "first-2.0.dist-info")
        sys.path.remove(str(late))
        assert ids(registry) == []


def test_repeated_lookups_read_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing changes, nothing is scanned, listed or parsed again."""
    install(site, "one")
    registry = of_text()
    time.sleep(0.1)  # what has just changed is not kept
    registry.get_plugins_by_category("text")
    scans: "list[Any]" = []
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_installed", scans.append)
        patched.setattr(os, "listdir", scans.append)
        for _ in range(10):
            assert ids(registry) == ["one"] and registry.get_plugin("one") and registry.get_plugin("nope") is None
    assert not scans


@pytest.mark.slow
def test_packages_that_pip_installs(tmp_path: Path) -> None:
    """Two wheels, installed, upgraded and uninstalled by pip in an environment of their own, while a registry is in use there."""

    def wheel(name: str, version: str, point: str) -> Path:
        info, path = f"{name}-{version}.dist-info", tmp_path / f"{name}-{version}-py3-none-any.whl"
        files = {
            f"{name}/__init__.py": "raise SystemExit(7)\n",
            f"{name}/Plugin.schema.json": json.dumps(SCHEMA),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[{TEXT}]\n{point} = {name}:Plugin\n",
        }
        record = ""
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
                digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
                record += f"{file},sha256={digest},{len(text)}\n"
            archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
        return path

    one, two, newer = wheel("one", "1.0", "first"), wheel("two", "1.0", "second"), wheel("two", "1.1", "newer")
    assert command(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path).returncode == 0
    here = str(tmp_path / "venv/bin/python")

    def pip(*args: str) -> None:
        done = command(here, "-m", "pip", "-q", "--disable-pip-version-check", *args, cwd=tmp_path)
        assert done.returncode == 0, said(done)

    packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    code = f"""
import json, sys
sys.path += {packages.split(os.pathsep)!r}
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
registry = EntryPointRegistry(groups={{"text": {TEXT!r}}})
for line in sys.stdin:
    found = registry.get_plugins_by_category("text")
    origins, beams = {{p.id: p.origin for p in found}}, [registry.load_plugin_config(p.id).get("beam") for p in found]
    print(json.dumps([origins, beams, sorted({{"one", "two"}} & sys.modules.keys())]), flush=True)
"""
    pipe = subprocess.PIPE
    process = subprocess.Popen([here, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)
    with process:
        assert process.stdin

        def asked() -> Any:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return said_json(process)

        assert asked() == [{}, [], []]
        pip("install", "--no-deps", "--no-index", str(one), str(two))
        assert asked() == [{"first": "one 1.0", "second": "two 1.0"}, [5, 5], []]
        pip("install", "--no-deps", "--no-index", "--upgrade", str(newer))
        assert asked() == [{"first": "one 1.0", "newer": "two 1.1"}, [5, 5], []]
        pip("uninstall", "-y", "one")
        assert asked() == [{"newer": "two 1.1"}, [5], []]
        process.stdin.close()
        assert process.wait(20) == 0


# Configuring


async def test_a_secret_in_a_variable_reaches_its_plugin_and_no_environment(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config arrives; a worker and its children have no variable with a plugin's setting, but what `WorkerConfig(env=…)` gives them."""
    code = """
import os, subprocess, sys
class Plugin:
    def load(self, config): self.config = config
    def run(self):
        child = subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, text=True)
        return self.config.get("api_key"), open("/proc/self/environ").read() + str(dict(os.environ)) + child.stdout
"""
    schema = {"properties": {"api_key": {"type": "string", "writeOnly": True}}}
    for name in ("mine", "other"):
        install(site, name, code=code, schema=schema)
    monkeypatch.setenv("CJM_WORKERS__MINE__API_KEY", "sk-mine")
    monkeypatch.setenv("CJM_WORKERS__OTHER__API_KEY", "sk-other")
    monkeypatch.setenv("CJM_WORKERS__UNINSTALLED__API_KEY", "sk-old")
    registry, config = of_text(), WorkerConfig(env={"CJM_WORKERS__NESTED__KEY": "for-nested"})
    async with JobManager("text", "text", plugins=registry.targets(), plugin_registry=registry, worker_config=config) as manager:
        for name in ("mine", "other"):
            key, environment = await (await manager.start_job(name))
            assert key == f"sk-{name}" and "for-nested" in environment
            assert not {secret for secret in ("sk-mine", "sk-other", "sk-old") if secret in environment}


def test_another_interpreter_is_asked_without_settings_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `sitecustomize` and `.pth` files are code of the plugins that are installed there."""
    (tmp_path / "python").write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho '[]'\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("CJM_WORKERS__OTHER__API_KEY", "sk-other")
    assert EntryPointRegistry(pythons=[tmp_path / "python"]).plugins is not None
    assert "PATH=" in (tmp_path / "seen").read_text() and "sk-other" not in (tmp_path / "seen").read_text()


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", "1e999", "7e12345", "[" * 3000, "[" * 101 + "]" * 101, "{'a': 1}", "", "1" * 5000, "[1,]"],
    ids=lambda text: text[:9],
)
def test_what_is_no_json_is_text(text: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a variable and on a command line; in a file it is an error that says so."""
    registry = of_text(plugins={"a": "m:a"}, config_dir=tmp_path / "config")
    registry.register("b", "m:b", schema={"properties": {"rate": {"type": "number", "minimum": 0}, "label": {"type": ["string", "null"]}}})
    registry.set_plugin_option("a", "name", text)
    assert registry.load_plugin_config("a") == {"name": text}
    monkeypatch.setenv("CJM_WORKERS__B__LABEL", text)
    assert registry.load_plugin_config("b") == {"label": text}
    monkeypatch.setenv("CJM_WORKERS__B__RATE", text)
    with pytest.raises(PluginConfigError) as info:
        registry.load_plugin_config("b")
    assert info.value.key == "rate"
    Path(registry.config_file("a")).write_text(f'{{"name": {text}}}')
    with pytest.raises(ConfigFileError, match="no JSON"):
        registry.load_plugin_config("a")


@pytest.mark.parametrize(
    "text, types, value",
    [
        ("3", ["integer"], 3),
        ("3", ["string"], "3"),
        ("3", ["string", "null"], "3"),
        ("3", ["string", "number"], 3),
        ("3", [], 3),
        ("null", ["string", "null"], None),
        ("null", ["string"], "null"),
        ("true", ["boolean"], True),
        ("true", ["integer"], True),
        ("true", ["string", "integer"], "true"),
        ('"a"', [], "a"),
        ('"a"', ["integer"], '"a"'),
        ("[1]", ["array"], [1]),
        ("many", ["integer"], "many"),
        ("12e05", ["number"], 1200000.0),
    ],
)
def test_the_types_of_a_schema_decide_what_a_text_is(text: str, types: "list[str]", value: Any, site: Path, tmp_path: Path) -> None:
    """Also when they are spread over references and unions, as pydantic writes them."""
    registry = of_text(config_dir=tmp_path / "config")
    spread = {"anyOf": [{"type": one} for one in types]} if types else {}
    for name, schema in {"a": {"type": types} if types else {}, "b": {"$ref": "#/$defs/b"}}.items():
        registry.register(name, "m:a", schema={"properties": {"k": schema}, "$defs": {"b": {"allOf": [spread]}}})
        try:
            registry.set_plugin_option(name, "k", text)
            assert registry.load_plugin_config(name) == {"k": value} and type(registry.load_plugin_config(name)["k"]) is type(value)
        except PluginConfigError as e:
            assert e.got == f"{value!r}", e


@pytest.mark.parametrize(
    "config",
    [
        {"k": "\ud83d"},
        {"\udce4": 1},
        {"k": [{"x": "p\udce4ss"}]},
        {"k": float("nan")},
        {"k": float("inf")},
        {"k": b"x"},
        {"k": {1, 2}},
        {("a",): 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("described", [True, False])
def test_what_cannot_be_saved_is_said_first(config: Any, described: bool, site: Path, tmp_path: Path) -> None:
    """Half of a surrogate pair, or what is no JSON: an error that shows none of it, and the old file stays."""
    registry = of_text(config_dir=tmp_path / "config")
    registry.register("a", "m:a", schema={} if described else None)
    registry.save_plugin_config("a", {"old": 1})
    with pytest.raises(PluginConfigError, match="plain data") as info:
        registry.save_plugin_config("a", config)
    f"{info.value}".encode()
    assert "ss" not in info.value.got.replace("surrogate", "") and registry.load_plugin_config("a") == {"old": 1}


@pytest.mark.parametrize(
    "value",
    [b"hush", float("nan"), float("-inf"), {"hush"}, object(), {(1,): "hush"}, {"deep": [b"hush"]}],
    ids=lambda value: type(value).__name__,
)
def test_a_config_with_a_schema_is_plain_data(value: Any, site: Path) -> None:
    """What JSON cannot express is refused, with its place and its type, and not shown; without a schema it reaches the plugin."""
    registry = of_text(plugins={"b": "m:b"}, config={"a": {"k": value}, "b": {"k": value}})
    registry.register("a", "m:a", schema={"properties": {"k": {"writeOnly": True}}})
    with pytest.raises(PluginConfigError, match="plain data") as info:
        registry.load_plugin_config("a")
    assert info.value.key == "k" and info.value.origin == "the code" and "hush" not in f"{info.value!r}"
    assert registry.load_plugin_config("b") == {"k": value} or value != value


def test_layers_in_order(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults, then the file, then the environment, then the code; objects are merged, and nothing is shared with the caller."""
    install(site, "one", schema=SCHEMA)
    over = {"one": {"words": ["code"]}}
    registry = of_text(config_dir=tmp_path / "config", config=over)
    want = {"model": "base", "beam": 5, "decoder": {"a": 1, "b": 2}, "words": ["code"]}
    assert registry.load_plugin_config("one") == want
    registry.save_plugin_config("one", {"model": "file", "beam": 6, "words": ["file"], "decoder": {"b": 3}})
    assert registry.load_plugin_config("one") == {"model": "file", "beam": 6, "decoder": {"a": 1, "b": 3}, "words": ["code"]}
    for key, value in {"BEAM": "7", "WORDS": '["env"]', "FAST": "true", "DECODER": '{"a": 4}', "MODEL": "8"}.items():
        monkeypatch.setenv(f"CJM_WORKERS__ONE__{key}", value)
    config = registry.load_plugin_config("one")
    assert config == {"model": "8", "beam": 7, "decoder": {"a": 4, "b": 3}, "words": ["code"], "fast": True}
    config["words"].append("mine")
    config["decoder"]["a"] = over["one"]["words"].append("mine")
    assert registry.load_plugin_config("one")["words"] == ["code"] and registry.load_plugin_config("one")["decoder"]["a"] == 4
    assert of_text().load_plugin_config("nope") == {}


def test_without_a_schema_a_variable_is_json_or_text(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key is in lower case, unless another layer spells it otherwise."""
    install(site, "one")
    monkeypatch.setenv("CJM_WORKERS__ONE__BEAM", "7")
    monkeypatch.setenv("CJM_WORKERS__ONE__MODEL_NAME", "large v3")
    monkeypatch.setenv("CJM_WORKERS__ONE__TOPK", "null")
    registry = of_text(config={"one": {"topK": 4}})
    assert registry.load_plugin_config("one") == {"beam": 7, "model_name": "large v3", "topK": 4}


def test_a_variable_that_could_be_anybodys_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins with one prefix, or two keys with one name; only while the variable is set, and for no other plugin."""
    registry = of_text(plugins={"a-b": "m:x", "a.b": "m:y", "c": "m:z", "a": "m:w"}, config={"c": {"k-1": 1, "k.1": 2}})
    assert registry.load_plugin_config("a-b") == {}
    monkeypatch.setenv("CJM_WORKERS__A_B__KEY", "1")
    for plugin, other in (("a-b", "a.b"), ("a.b", "a-b")):
        with pytest.raises(PluginConfigError, match=f"CJM_WORKERS__A_B__KEY.*'{plugin}' and '{other}'"):
            registry.load_plugin_config(plugin)
    assert registry.load_plugin_config("a") == {} and registry.load_plugin_config("c") == {"k-1": 1, "k.1": 2}
    monkeypatch.setenv("CJM_WORKERS__C__K_1", "1")
    with pytest.raises(PluginConfigError, match="'k-1' and 'k.1'"):
        registry.load_plugin_config("c")


@pytest.mark.parametrize(
    "config, key, expected, got",
    [
        ({"beam": "many"}, "beam", "a value of type integer", "'many'"),
        ({"beam": None}, "beam", "a value of type integer", "None"),
        ({"words": ["a", 5]}, "words.1", "a value of type string", "5"),
        ({"modle": "x"}, "modle", "one of the keys api_key, beam, decoder, fast, model, words", "a key that is none of them"),
        ({"api_key": 12345}, "api_key", "a value of type string", "*** that is a int"),
    ],
)
def test_a_wrong_value_is_named(config: "dict[str, Any]", key: str, expected: str, got: str, site: Path, tmp_path: Path) -> None:
    """Plugin, key, expected, got, and where it comes from; it is neither loaded nor saved."""
    install(site, "one", schema=SCHEMA)
    with pytest.raises(PluginConfigError) as info:
        of_text(config={"one": config}).load_plugin_config("one")
    e = pickle.loads(pickle.dumps(info.value))
    assert (e.plugin_id, e.key, e.expected, e.got, e.origin) == ("one", key, expected, got, "the code")
    assert str(e) == f"plugin 'one', key '{key}': expected {expected} (got {got}, from the code)"
    registry = of_text(config_dir=tmp_path / "config")
    with pytest.raises(PluginConfigError, match="plugin 'one', key"):
        registry.save_plugin_config("one", config)
    assert not Path(registry.config_file("one")).exists()


def test_what_is_required_may_come_from_anywhere(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file alone need not have it; all layers together must."""
    install(site, "one", schema={**SCHEMA, "required": ["model", "fast"]})
    registry = of_text(config_dir=tmp_path / "config")
    registry.save_plugin_config("one", {"beam": 1})
    with pytest.raises(PluginConfigError, match="plugin 'one', key 'fast': expected a value, since it is required"):
        registry.load_plugin_config("one")
    monkeypatch.setenv("CJM_WORKERS__ONE__FAST", "false")
    assert registry.load_plugin_config("one")["fast"] is False


CACHE = {"type": "object", "properties": {"size": {"type": "integer", "default": 4}, "name": {"default": "x"}}}
SIZED = {"properties": {"cache": {"size": 4, "name": "x"}}}


@pytest.mark.parametrize(
    "schema, want",
    [
        ({"properties": {"cache": CACHE}}, {"cache": {"size": 4, "name": "x"}}),
        ({"$defs": {"C": CACHE}, "properties": {"cache": {"$ref": "#/$defs/C"}}}, {"cache": {"size": 4, "name": "x"}}),
        (
            {"definitions": {"C": CACHE}, "properties": {"cache": {"allOf": [{"$ref": "#/definitions/C"}]}}},
            {"cache": {"size": 4, "name": "x"}},
        ),
        (
            {"$defs": {"C": {**CACHE, "$anchor": "c"}}, "properties": {"cache": {"$ref": "#c", "default": {"size": 5}}}},
            {"cache": {"size": 5}},
        ),
        ({"$defs": {"C": CACHE}, "$ref": "#/$defs/C"}, {"size": 4, "name": "x"}),
        ({"allOf": [CACHE, {"properties": {"more": {"default": 1}}}]}, {"size": 4, "name": "x", "more": 1}),
        ({"$defs": {"S": {"default": 4}}, "properties": {"size": {"$ref": "#/$defs/S"}}}, {"size": 4}),
        ({"$defs": {"T": {"properties": {"k": {"default": 1}, "below": {"$ref": "#/$defs/T"}}}}, "$ref": "#/$defs/T"}, {"k": 1}),
        ({"anyOf": [CACHE, {"properties": {"more": {"default": 1}}}]}, {}),
    ],
    ids=["inline", "ref", "allOf", "anchor", "top", "top allOf", "scalar", "itself", "anyOf"],
)
def test_defaults_are_the_same_wherever_they_are_declared(schema: "dict[str, Any]", want: "dict[str, Any]", site: Path) -> None:
    """Inline, behind a reference, in an `allOf`; not where they may not apply."""
    registry = of_text()
    registry.register("a", "m:a", schema=schema)
    assert registry.load_plugin_config("a") == want


RULES = [
    {"properties": {"a": {"type": "integer", "default": "many"}}},
    {"properties": {"a": {"properties": {"x": {"default": 1}}, "required": ["y"]}}},
    {"properties": {"a": {"default": 1}, "b": {"default": 2}}, "maxProperties": 1},
    {"properties": {"a": {"default": 1}}, "dependentRequired": {"a": ["z"]}},
    {"properties": {"a": {"default": 1}}, "not": {"required": ["a"]}},
    {"properties": {"a": {"default": 1}, "b": {"default": 2}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}, {"maxProperties": 0}]},
    {"properties": {"a": {"default": 1}}, "propertyNames": {"pattern": "^b"}},
    {"properties": {"a": {"default": 1}}, "if": {"required": ["a"]}, "then": {"required": ["z"]}},
    {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"default": 1, "type": "string"}}},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("config", [{}, {"k": 1}], ids=str)
def test_defaults_never_make_a_valid_config_invalid(rule: "dict[str, Any]", config: "dict[str, Any]", site: Path) -> None:
    """A default that its own schema, or its neighbours, forbid is left out; those that fit are there."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = {**rule, "properties": {**rule["properties"], "good": {"default": 3}}}
    for chosen in (rule, schema):
        valid = jsonschema.Draft202012Validator(chosen)
        if not valid.is_valid(config):
            continue
        registry = of_text(config={"p": config})
        registry.register("p", "m:p", schema=chosen)
        filled = registry.load_plugin_config("p")
        assert valid.is_valid(filled) and config.items() <= filled.items()
        if chosen is schema and valid.is_valid({**config, "good": 3}) and not {"maxProperties", "oneOf"} & rule.keys():
            assert filled["good"] == 3


def test_a_default_that_is_required_and_one_that_is_wrong(site: Path) -> None:
    """The wrong one is left out, and the error is about what is really wrong."""
    registry = of_text(config={"b": {"beam": "many"}})
    schema = {
        "properties": {
            "model": {"default": "base"},
            "odd": {"type": "integer", "default": "x"},
            "beam": {"type": "integer"},
        },
        "required": ["model"],
    }
    for name in ("a", "b"):
        registry.register(name, "m:a", schema=schema)
    assert registry.load_plugin_config("a") == {"model": "base"}
    with pytest.raises(PluginConfigError) as info:
        registry.load_plugin_config("b")
    assert info.value.key == "beam"


BROKEN = {
    "half": "{",
    "array": "[]",
    "type": {"type": 5},
    "draft": {"$schema": ["x"]},
    "properties": {"properties": [1]},
    "regex": {"patternProperties": {"(": {}}},
    "remote": {"properties": {"a": {"$ref": "https://example.invalid/x"}}},
    "file": {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "nowhere": {"properties": {"a": {"$ref": "#/$defs/none"}}},
    "circle": {"$ref": "#"},
    "circles": {"$ref": "#", "anyOf": [{"$ref": "#"}] * 50},
    "deep": '{"allOf": [' * 5000 + "]}" * 5000,
    "deep enough": '{"allOf": [' * 300 + "{}" + "]}" * 300,
}


@pytest.mark.parametrize("schema", BROKEN.values(), ids=BROKEN)
def test_a_broken_schema_is_named_and_fetches_nothing(schema: Any, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the plugin's problem, told with the file's name, whoever looks at it; nothing else suffers, and no network is asked."""
    install(site, "one", schema=schema)
    install(site, "two", schema=SCHEMA)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    registry, began = of_text(config={"one": {"a": 1}}, config_dir=tmp_path / "config"), time.monotonic()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/one.json").write_text("{}")
    actions: "list[Callable[[], Any]]" = [
        lambda: registry.load_plugin_config("one"),
        lambda: registry.save_plugin_config("one", {"a": 2}),
        lambda: registry.set_plugin_option("one", "a", "2"),
    ]
    for act in actions:
        with pytest.raises(PluginSchemaError, match="plugin 'one': expected a JSON Schema in .*one/Plugin.schema.json"):
            act()
    assert (tmp_path / "config/one.json").read_text() == "{}" and time.monotonic() - began < 5
    assert ids(registry) == ["one", "two"] and registry.load_plugin_config("two")["beam"] == 5


NEXT = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(40)}
DOUBLED: "dict[str, Any]" = {
    "$defs": {name: {"allOf": [ref] * 2} for name, ref in NEXT.items()} | {"a40": {}},
    "$ref": "#/$defs/a0",
}
WIDE = {
    "$defs": {name: {"properties": {"p": ref, "q": ref}} for name, ref in NEXT.items()} | {"a40": {"default": 1}},
    "$ref": "#/$defs/a0",
}
ATTACKS: "dict[str, tuple[Any, Any]]" = {
    "pattern": ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 40 + "!"}),
    "default": ({"properties": {"a": {"pattern": "^(a+)+$", "default": "a" * 40 + "!"}}}, {}),
    "pattern of a name": ({"patternProperties": {"^(a+)+$": {}}}, {"a" * 40 + "!": 1}),
    "doubled": (DOUBLED, {"a": 1}),
    "doubled defaults": (WIDE, {}),
    "unique": ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"x": i} for i in range(20_000)]}),
}


@pytest.mark.parametrize("schema, config", ATTACKS.values(), ids=ATTACKS)
def test_a_schema_that_attacks(schema: Any, config: Any, killable: None, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is its plugin's problem once its processor time is spent; meanwhile this process goes on, and what was found out is remembered."""
    monkeypatch.setattr(judge, "CPU_LIMIT", 0.2)
    registry = of_text(config={"a": config, "b": {"n": 1}})
    registry.register("a", "m:a", schema=schema)
    registry.register("b", "m:b", schema={"properties": {"n": {"type": "integer"}}})
    with ThreadPoolExecutor(1) as pool:
        judging, ticks = pool.submit(registry.load_plugin_config, "a"), 0
        while not judging.done():
            time.sleep(0.01)
            ticks += 1
        with pytest.raises(PluginSchemaError, match="processor time|Error"):
            judging.result()
    assert ticks > 10  # `re` held no lock of this process
    began = time.process_time()
    with pytest.raises(PluginSchemaError):
        registry.load_plugin_config("a")
    assert time.process_time() - began < 1 and registry.load_plugin_config("b") == {"n": 1}


def test_a_config_that_was_judged_starts_no_process(killable: None, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one without a schema; one that has changed does, and it says when none can be started, and tries again."""
    registry = of_text(plugins={"free": "m:f"}, config={"free": {"k": 1}}, config_dir=tmp_path / "config")
    registry.register("a", "m:a", schema=SCHEMA)
    registry.save_plugin_config("a", {"beam": 7, "api_key": "hush"})
    want = registry.load_plugin_config("a")

    def none(*args: Any, **more: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", none)
        for _ in range(3):
            assert registry.load_plugin_config("a") == want and want["beam"] == 7
            assert registry.load_plugin_config("free") == {"k": 1}
        patched.setenv("CJM_WORKERS__A__BEAM", "8")
        with pytest.raises(PluginSchemaError, match="Resource temporarily unavailable"):
            registry.load_plugin_config("a")
    monkeypatch.setenv("CJM_WORKERS__A__BEAM", "8")
    assert registry.load_plugin_config("a")["beam"] == 8
    assert "hush" not in repr(vars(registry))


def test_the_judge_sees_what_this_process_sees(killable: None, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of these changes an answer.

    A blocked or ignored SIGPROF, a module of the working directory, a variable of Python's, output at its start.
    """
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    monkeypatch.setattr(judge, "CPU_LIMIT", 0.2)
    handler, mask = signal.signal(signal.SIGPROF, signal.SIG_IGN), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    try:
        with pytest.raises(judge.JudgeError, match="processor time"):
            judge.judge(*ATTACKS["pattern"])
        assert judge.judge({"properties": {"k": {"default": 1}}}, {}) == {"defaults": {"k": 1}, "error": None}
    finally:
        signal.signal(signal.SIGPROF, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(judge.JudgeError, match="no Python interpreter"):
        judge.judge({}, {})


def test_the_judge_is_gone_when_its_app_is(killable: None, tmp_path: Path) -> None:
    """An app that is killed while a schema is applied leaves a process for no more than its limit."""
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from cjm_worker_protocols.integrations.registry import judge
judge.CPU_LIMIT = 0.5
print("1", flush=True)
judge.judge({{"properties": {{"a": {{"pattern": "^(a+)+$"}}}}}}, {{"a": "a" * 40 + "!"}})
"""
    import psutil

    with script(tmp_path / "app.py", code) as process:
        said_json(process)
        children = wait_until(lambda: psutil.Process(process.pid).children())
        process.kill()
        process.wait(10)
    gone, alive = psutil.wait_procs(children, 30)
    assert gone and not alive


def test_without_the_extra_only_a_schema_needs_it(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin without a schema is configured without jsonschema; one with a schema says what to install."""
    install(site, "one", schema=SCHEMA)
    install(site, "two")
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    registry = of_text(config={"two": {"a": 1}})
    assert registry.load_plugin_config("two") == {"a": 1}
    with pytest.raises(RegistryExtraError, match="run pip install 'cjm-worker-protocols\\[registry\\]'"):
        registry.load_plugin_config("one")


def test_a_file_that_cannot_be_read_is_not_overwritten(site: Path, tmp_path: Path) -> None:
    """Half a file, another kind of JSON, other bytes, a folder: an error that says which, and nothing is lost."""
    install(site, "one")
    registry = of_text(config_dir=tmp_path / "config")
    registry.save_plugin_config("one", {})
    path = Path(registry.config_file("one"))
    for data in (b'{"half": ', b"[]", b"\xff\xfe", b""):
        path.write_bytes(data)
        actions: "list[Callable[[], Any]]" = [
            lambda: registry.load_plugin_config("one"),
            lambda: registry.save_plugin_config("one", {"a": 1}),
            lambda: registry.set_plugin_option("one", "a", "1"),
            lambda: registry.unset_plugin_option("one", "a"),
        ]
        for act in actions:
            with pytest.raises(ConfigFileError, match="one.json: expected a JSON object .*mend it, or move it away"):
                act()
        assert path.read_bytes() == data
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigFileError, match="cannot be used: Is a directory"):
        registry.save_plugin_config("one", {})
    with pytest.raises(PluginConfigError, match="plain data, as JSON has it"):
        path.rmdir()
        registry.save_plugin_config("one", {"a": object()})
    for wrong in ([1], None, "a"):
        got = f"got a {type(wrong).__name__}"
        with pytest.raises(PluginConfigError, match=f"plugin 'one': expected a mapping of settings to values .{got}"):
            registry.save_plugin_config("one", wrong)  # type: ignore[arg-type]
    assert not path.exists()


def test_saving_stays_in_its_folder(site: Path, tmp_path: Path) -> None:
    """Ids that differ in case have files of their own; nothing is written elsewhere; unknown ids are refused."""
    registry = of_text(config_dir=tmp_path / "config", plugins={"Case": "m:a", "case": "m:b", "a:b.c+d-e": "m:c"})
    for number, plugin in enumerate(ids(registry)):
        registry.save_plugin_config(plugin, {"n": number})
    names = [path.name for path in (tmp_path / "config").iterdir() if not path.name.startswith(".")]
    assert len({name.lower() for name in names}) == 3
    assert [registry.load_plugin_config(plugin)["n"] for plugin in ids(registry)] == [0, 1, 2]
    for plugin in ("../x", "", "nope", "/etc/passwd"):
        with pytest.raises(UnknownPluginError):
            registry.save_plugin_config(plugin, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "site"]


@contextmanager
def not_root(uid: int = 65534) -> "Iterator[None]":
    """As a user who may not read and write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(uid)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_named(site: Path) -> None:
    """Read-only, not to be looked into, or a file in its place: an error that says which and what to do, and what was there stays."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        folder, other = Path(made, "config"), Path(made, "file")
        other.write_text("")
        of_text(plugins={"a": "m:a"}, config_dir=folder).save_plugin_config("a", {"n": 1})
        os.chmod(folder / "a.json", 0o644)
        os.chmod(folder, 0o555)
        with not_root():
            for there, loads in {folder: {"n": 1}, folder / "below": {}, other: None}.items():
                registry = of_text(plugins={"a": "m:a"}, config_dir=there)
                actions: "list[Callable[[], Any]]" = [
                    lambda: registry.save_plugin_config("a", {"n": 2}),
                    lambda: registry.set_plugin_option("a", "n", "2"),
                    lambda: registry.disable("a"),
                ]
                for act in actions:
                    message = f"{there}.*(expected a folder that configs can be written in|Not a directory)"
                    with pytest.raises((ConfigFolderError, ConfigFileError), match=message):
                        act()
                assert registry.plugins["a"].enabled
                if loads is not None:
                    assert registry.load_plugin_config("a") == loads
        os.chmod(folder, 0o700)
        assert json.loads((folder / "a.json").read_text()) == {"n": 1}


def test_a_folder_that_cannot_be_read_is_no_silence(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who may not see which plugins are disabled, or what a config says, is told."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        folder = Path(made, "config")
        of_text(plugins={"a": "m:a"}, config_dir=folder).save_plugin_config("a", {"n": 1})
        with not_root():
            if os.geteuid() == os.getuid():
                os.chmod(folder, 0)
            registry = of_text(plugins={"a": "m:a"}, config_dir=folder)
            assert registry.plugins["a"] and "cannot read the disabled flags" in caplog.text
            with pytest.raises(ConfigFileError, match="cannot be used: Permission denied"):
                registry.load_plugin_config("a")
        os.chmod(folder, 0o700)


def test_a_config_that_is_a_link_stays_one(site: Path, tmp_path: Path) -> None:
    """Who keeps configs elsewhere finds the change there; a draft that is a link is not followed."""
    folder, kept, precious = tmp_path / "config", tmp_path / "kept.json", tmp_path / "precious"
    folder.mkdir()
    kept.write_text('{"n": 1}')
    precious.write_text("precious")
    (folder / "a.json").symlink_to(kept)
    (tmp_path / "kept.json.draft").symlink_to(precious)
    registry = of_text(plugins={"a": "m:a"}, config_dir=folder)
    registry.save_plugin_config("a", {"n": 2})
    assert (folder / "a.json").is_symlink() and json.loads(kept.read_text()) == {"n": 2} == registry.load_plugin_config("a")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and precious.read_text() == "precious"


def refusals(registry: EntryPointRegistry) -> "list[str]":
    """What comes of loading, saving, changing, disabling and enabling plugin `a`."""
    actions: "list[Callable[[], Any]]" = [
        lambda: registry.load_plugin_config("a"),
        lambda: registry.stored_plugin_config("a"),
        lambda: registry.save_plugin_config("a", {"n": 2}),
        lambda: registry.set_plugin_option("a", "n", "2"),
        lambda: registry.unset_plugin_option("a", "n"),
        lambda: registry.disable("a"),
        lambda: registry.enable("a"),
    ]
    found = []
    for act in actions:
        try:
            act()
            found.append("")
        except (ConfigFileError, ConfigFolderError) as e:
            found.append(str(e))
    return found


def test_a_folder_that_others_may_write_is_not_used(site: Path, tmp_path: Path) -> None:
    """Neither its configs nor its manifests nor its switches; once it is mended, all of them, without a restart."""
    folder = tmp_path / "both"
    registry = of_text(plugins={"a": "m:a"}, config_dir=folder, manifests=folder)
    registry.save_plugin_config("a", {"n": 1})
    (folder / "m.toml").write_text("[plugin]\ntarget = 'a:b'\n")
    registry.disable("a")
    assert ids(registry) == ["a", "m"] and not registry.plugins["a"].enabled
    for mode in (0o777, 0o1777, 0o702):
        folder.chmod(mode)
        assert all("every user may write it" in refusal for refusal in refusals(registry))
        assert ids(registry) == ["a", "both"] and "every user may write it" in registry.plugins["both"].problem
    for mode in (0o775, 0o755, 0o700):
        folder.chmod(mode)
        assert ids(registry) == ["a", "m"] and not registry.plugins["a"].enabled and registry.load_plugin_config("a") == {"n": 1}
    assert not any(refusals(registry))


def test_a_file_that_others_may_write_is_not_used(site: Path, tmp_path: Path) -> None:
    """A config that all may write is neither read nor replaced; of a manifest the plugin has the problem."""
    registry = of_text(plugins={"a": "m:a"}, config_dir=tmp_path / "c", manifests=tmp_path)
    registry.save_plugin_config("a", {"n": 1})
    for name in ("good", "bad"):
        (tmp_path / f"{name}.toml").write_text("[plugin]\ntarget = 'a:b'\n")
    (tmp_path / "c/a.json").chmod(0o666)
    (tmp_path / "bad.toml").chmod(0o606)
    assert all("every user may write it" in refusal for refusal in refusals(registry)[:5])
    assert registry.plugins["good"].is_configured and "every user may write it" in registry.plugins["bad"].problem
    (tmp_path / "bad.toml").chmod(0o664)
    assert registry.plugins["bad"].is_configured


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_another_user_owns_is_not_used(site: Path) -> None:
    """Neither a folder nor a file; what root owns is used by everybody."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        folder = Path(made, "config")
        registry = of_text(plugins={"a": "m:a"}, config_dir=folder, manifests=folder)
        registry.save_plugin_config("a", {"n": 1})
        (folder / "m.toml").write_text("[plugin]\ntarget = 'a:b'\n")
        for path in (folder / "a.json", folder / "m.toml"):
            os.chown(path, 1234, -1)
        assert all("owned by user 1234" in refusal for refusal in refusals(registry)[:5])
        assert "owned by user 1234" in registry.plugins["m"].problem
        for path in (folder / "a.json", folder / "m.toml"):
            os.chown(path, 0, -1)
            os.chmod(path, 0o644)
        os.chown(folder, 1234, -1)
        assert all("owned by user 1234" in refusal for refusal in refusals(registry))
        assert "owned by user 1234" in registry.plugins["config"].problem
        os.chown(folder, 0, -1)
        os.chmod(folder, 0o755)
        with not_root():
            assert registry.load_plugin_config("a") == {"n": 1} and registry.plugins["m"].is_configured


def test_links_are_not_followed_to_what_is_not_there(site: Path, tmp_path: Path) -> None:
    """A dangling config, lock or switch makes no file elsewhere, and a lock that is a link is refused."""
    folder, precious = tmp_path / "config", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("precious")
    registry = of_text(plugins={"a": "m:a", "b": "m:b"}, config_dir=folder)
    (folder / "a.json").symlink_to(tmp_path / "made")
    assert all("a link to a file that does not exist" in refusal for refusal in refusals(registry)[:5])
    (folder / "b.disabled").symlink_to(tmp_path / "made")
    with pytest.raises(ConfigFolderError, match="symbolic links"):
        registry.disable("b")
    (folder / ".lock").unlink()
    for target in (tmp_path / "made", precious):
        (folder / ".lock").symlink_to(target)
        with pytest.raises(ConfigFolderError, match="symbolic links"):
            registry.save_plugin_config("b", {})
        (folder / ".lock").unlink()
    registry.save_plugin_config("b", {})
    assert not (tmp_path / "made").exists() and precious.read_text() == "precious"


def test_folders_are_made_for_their_owner(site: Path, tmp_path: Path) -> None:
    """Each that is missing, whatever the umask; so are the files in them."""
    before = os.umask(0)
    try:
        registry = of_text(plugins={"a": "m:a"}, config_dir=tmp_path / ".config/app/config")
        registry.save_plugin_config("a", {})
        registry.disable("a")
    finally:
        os.umask(before)
    made = list((tmp_path / ".config").rglob("*"))
    assert {path.name for path in made} == {"app", "config", "a.json", "a.disabled", ".lock"}
    assert all(stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600) for path in [tmp_path / ".config", *made])


def test_a_lock_that_is_held_is_not_waited_for_without_end(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process: the error says so; once it is free, it is taken."""
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.2)
    registry = of_text(plugins={"a": "m:a"}, config_dir=tmp_path)
    registry.save_plugin_config("a", {"n": 1})
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); time.sleep(600)"
    with script(tmp_path / "holder.py", code, str(tmp_path / ".lock")) as process:
        said_json(process)
        for act in (lambda: registry.save_plugin_config("a", {"n": 2}), lambda: registry.disable("a")):
            with pytest.raises(ConfigFolderError, match="another process is saving"):
                act()
        assert registry.load_plugin_config("a") == {"n": 1} and registry.plugins["a"].enabled
        process.kill()
        process.wait(10)
    registry.save_plugin_config("a", {"n": 2})
    assert registry.load_plugin_config("a") == {"n": 2}


def test_paths_are_meant_from_where_they_are_given(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative ones and those with a tilde, of schemas and folders, whatever the working directory becomes."""
    home = tmp_path / "home"
    for folder in (home / "plugins", tmp_path / "there"):
        folder.mkdir(parents=True)
    for folder in (home, tmp_path):
        (folder / "s.json").write_text('{"properties": {"n": {"default": 1}}}')
    (home / "plugins/m.toml").write_text("[plugin]\ntarget = 'a:b'\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    registry = of_text(config_dir="~/config", manifests=Path("~/plugins"))
    relative = of_text(config_dir="config", manifests="home/plugins")
    registry.register("a", "m:a", schema="s.json")
    registry.register("b", "m:b", schema=Path("~/s.json"))
    monkeypatch.chdir(tmp_path / "there")
    for name in ("a", "b"):
        assert registry.load_plugin_config(name) == {"n": 1}
        registry.save_plugin_config(name, {"n": 2})
    assert ids(registry) == ["a", "b", "m"] and ids(relative) == ["m"]
    assert relative.config_file("m") == str(tmp_path / "config/m.json") and (home / "config/a.json").exists() and not os.listdir()


SAVER = """
import json, sys
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
registry = EntryPointRegistry({"one": "m:x"}, config_dir=sys.argv[1])
print("1", flush=True)
for number in range(int(sys.argv[2])):
    registry.save_plugin_config("one", {"number": number, "padding": [number] * 20_000})
"""


@pytest.mark.slow
def test_killed_while_it_saves(site: Path, tmp_path: Path) -> None:
    """At whatever moment a process is killed, the file is whole, the next save works, and no drafts pile up."""
    folder, seen = tmp_path / "config", []
    registry = EntryPointRegistry({"one": "m:x"}, config_dir=folder)
    began = time.monotonic()
    registry.save_plugin_config("one", {"number": -1, "padding": [-1] * 20_000})
    took = time.monotonic() - began
    for attempt in range(12):
        with script(tmp_path / "saver.py", SAVER, str(folder), "1000000") as process:
            said_json(process)
            time.sleep(took * attempt * 0.7)  # the last after several saves, however busy the machine is
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        config = registry.load_plugin_config("one")
        assert config["padding"] == [config["number"]] * 20_000
        seen.append(config["number"])
    assert max(seen) > 0
    registry.save_plugin_config("one", {"number": 0})
    assert registry.load_plugin_config("one") == {"number": 0}
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "one.json"]


def test_many_save_at_once(site: Path, tmp_path: Path) -> None:
    """Threads and processes that set different keys all find theirs; whoever reads meanwhile sees a whole file."""
    folder = tmp_path / "config"
    registry = EntryPointRegistry({"one": "m:x"}, config_dir=folder)
    registry.save_plugin_config("one", {})
    code = """
import sys
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
registry = EntryPointRegistry({"one": "m:x"}, config_dir=sys.argv[1])
for number in range(20): registry.set_plugin_option("one", f"{sys.argv[2]}-{number}", str(number))
"""
    done, errors = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                registry.load_plugin_config("one")
            except Exception as e:
                errors.append(e)

    def write(name: str) -> None:
        for number in range(20):
            registry.set_plugin_option("one", f"{name}-{number}", str(number))

    with script(tmp_path / "a.py", code, str(folder), "a") as a, script(tmp_path / "b.py", code, str(folder), "b") as b:
        with ThreadPoolExecutor(3) as pool:
            reading = pool.submit(read)
            for writing in [pool.submit(write, name) for name in "cd"]:
                writing.result(60)
            assert [finish(process, 60)[0] for process in (a, b)] == [0, 0]
            done.set()
            reading.result(10)
    assert not errors
    assert registry.load_plugin_config("one") == {f"{name}-{number}": number for name in "abcd" for number in range(20)}


def test_disabling_is_kept(site: Path, tmp_path: Path) -> None:
    """In every process that uses the folder, at the next look; without a folder, in this registry."""
    registry = of_text(plugins={"a": "m:a"}, config_dir=tmp_path / "config")
    other = of_text(plugins={"a": "m:a"}, config_dir=tmp_path / "config")
    assert other.plugins["a"].enabled
    registry.disable("a")
    assert not other.plugins["a"].enabled and not registry.plugins["a"].is_configured
    other.enable("a")
    assert registry.plugins["a"].is_configured
    alone = of_text(plugins={"a": "m:a"})
    alone.disable("a")
    assert not alone.plugins["a"].enabled
    with pytest.raises(UnknownPluginError):
        alone.disable("nope")


# Secrets


def test_a_secret_is_not_shown(site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in repr, str, JSON, logs or errors; pickled it is a string, whose repr does not show it either."""
    install(site, "one", schema=SCHEMA)
    monkeypatch.setenv("CJM_WORKERS__ONE__API_KEY", "hush")
    config = of_text().load_plugin_config("one")
    key = config["api_key"]
    assert isinstance(key, Secret) and key.reveal() == "hush"
    caplog.set_level(logging.DEBUG)
    logging.getLogger("app").warning("%s %r %s", config, key, f"{key}")
    assert "hush" not in caplog.text and "hush" not in json.dumps(masked(config)) and "hush" not in json.dumps(config, default=str)
    there = pickle.loads(pickle.dumps(config))
    assert there["api_key"] + "!" == "hush!" and "hush" not in repr(there)
    assert "hush" not in json.dumps(masked(pickle.loads(pickle.dumps(there))))
    monkeypatch.setenv("CJM_WORKERS__ONE__BEAM", "wrong")
    with pytest.raises(PluginConfigError) as info:
        of_text().load_plugin_config("one")
    assert "hush" not in f"{info.value} {info.value!r}" and info.value.__context__ is None


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"k": {"$ref": "#key"}}, "$defs": {"a": {"$anchor": "key", "writeOnly": True}}},
        {"properties": {"k": {"$ref": "#/$defs/a%20key/allOf/0"}}, "$defs": {"a key": {"allOf": [{"writeOnly": True}]}}},
        {"dependentSchemas": {"k": {"properties": {"k": {"format": "password"}}}}},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "dependencies": {"k": {"properties": {"k": {"format": "password"}}}, "x": ["k"]},
        },
        {"unevaluatedProperties": {"writeOnly": True}},
        {"properties": {"k": {"type": ["string", "array"], "items": {"$ref": "#/properties/k"}, "writeOnly": True}}},
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"properties": {"k": {"writeOnly": True}, "more": {"$ref": "#/$defs/tree"}}}}},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "additionalProperties": {"items": [{"writeOnly": True}, {}], "format": "password"},
        },
    ],
    ids=["anchor", "pointer", "dependent", "dependent, draft 7", "unevaluated", "itself", "tree", "draft 7"],
)
def test_a_secret_is_found_wherever_a_schema_says_so(schema: "dict[str, Any]", site: Path) -> None:
    """By name or by path, below whatever applies to its value, in a schema that has itself as a part."""
    registry = of_text(config={"a": {"k": "hush", "more": {"more": {"k": "hush"}}} if "tree" in str(schema) else {"k": "hush"}})
    registry.register("a", "m:a", schema=schema)
    config = registry.load_plugin_config("a")
    assert "hush" not in f"{config}" and "***" in f"{config}" and config["k"].reveal() == "hush"


KEY = {"type": "string", "writeOnly": True}
ACCOUNT = {"type": "object", "properties": {"password": KEY}}


@pytest.mark.parametrize("value", ["hush", 48555348, 4.8555348, '{"hush": '])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": KEY},
        {"type": "array", "prefixItems": [{}, KEY]},
        {"type": "object", "properties": {"password": {"type": "string", "format": "password"}}},
        {"type": "object", "properties": {"default": KEY}},
        {"type": "object", "patternProperties": {"^k": KEY}},
        {"type": "object", "additionalProperties": {"type": "array", "items": KEY}},
        {"type": "array", "contains": {"anyOf": [{"type": "integer"}, KEY]}},
        {"$ref": "#/$defs/login"},
        {"allOf": [{"oneOf": [{"$ref": "#/$defs/login"}, {"type": "array", "items": {"$ref": "#/$defs/login"}}]}]},
        {"anyOf": [{"type": "string", "pattern": "^public"}, {"$ref": "#/$defs/login"}]},
        {"$ref": "#/$defs/tree"},
    ],
    ids=["items", "prefix", "property", "default", "pattern", "additional", "contains", "reference", "combined", "union", "tree"],
)
def test_what_is_in_the_place_of_secrets_is_not_shown(
    schema: "dict[str, Any]", value: Any, site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An array or an object of secrets was to be given, and one of them was: in the code, or in a file."""
    caplog.set_level(logging.DEBUG)
    tree = {"type": "object", "properties": {"k": KEY, "more": {"$ref": "#/$defs/tree"}}}
    defs = {"login": {"type": "object", "properties": {"k": KEY}}, "tree": tree}
    registry = of_text(config={"a": {"k": value}}, config_dir=tmp_path / "config")
    for plugin_id in ("a", "b"):
        registry.register(plugin_id, "m:a", schema={"properties": {"k": schema}, "$defs": defs})
    with pytest.raises(PluginConfigError, match=f"key 'k': expected .*got .*that is a {type(value).__name__}, from the code") as info:
        registry.load_plugin_config("a")
    errors = [info.value]
    with pytest.raises(PluginConfigError) as info:
        registry.save_plugin_config("b", {"k": value})
    errors.append(info.value)
    Path(registry.config_file("b")).write_text(json.dumps({"k": value}))
    assert str(value) not in f"{registry.stored_plugin_config('b')}"
    for e in errors:
        assert "hush" not in f"{e} {e!r}" and "8555348" not in f"{e} {e!r}" and e.__context__ is None
    assert "hush" not in caplog.text and "8555348" not in caplog.text


def test_secrets_in_another_shape_are_not_shown(tmp_path: Path) -> None:
    """In the file as it is, and in the error.

    An object where an array of them belongs, an array where an object, and what is below that.
    """
    registry = of_text(config_dir=tmp_path / "config")
    registry.register("a", "m:a", schema={"properties": {"tokens": {"type": "array", "items": KEY}, "login": ACCOUNT}})
    path = Path(registry.config_file("a"))
    path.parent.mkdir()
    for wrong in ({"tokens": {"main": "hush"}}, {"login": ["me", "hush"]}, {"login": [{"password": {"old": ["hush"]}}]}):
        path.write_text(json.dumps(wrong))
        path.chmod(0o600)
        assert "hush" not in f"{registry.stored_plugin_config('a')!r}"
        with pytest.raises(PluginConfigError, match="key '(tokens|login)': expected a value of type") as info:
            registry.load_plugin_config("a")
        assert "hush" not in f"{info.value!r}"


@pytest.mark.parametrize("schema", [{"anyOf": [ACCOUNT, {"minimum": 0}]}, {"anyOf": [ACCOUNT, {}]}, {"properties": {"password": KEY}}])
def test_a_number_beside_secrets_is_no_secret(schema: "dict[str, Any]", tmp_path: Path) -> None:
    """No part of the schema says that a number may be there, and none says that it may not: the plugin gets it."""
    registry = of_text(config_dir=tmp_path / "config")
    registry.register("a", "m:a", schema={"properties": {"k": schema}})
    registry.save_plugin_config("a", {"k": 3})
    assert registry.load_plugin_config("a") == {"k": 3} == registry.stored_plugin_config("a")


@pytest.mark.parametrize("given", ["hush", '{"hush": 1}', "48555348"])
def test_a_variable_in_the_place_of_secrets_is_not_shown(given: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret as plain text where an array of them belongs; of an object there, not even the keys."""
    registry = of_text()
    registry.register("a", "m:a", schema={"properties": {"tokens": {"type": "array", "items": KEY}}})
    monkeypatch.setenv("CJM_WORKERS__A__TOKENS", given)
    message = "key 'tokens': expected a value of type array .*from the environment variable CJM_WORKERS__A__TOKENS"
    with pytest.raises(PluginConfigError, match=message) as info:
        registry.load_plugin_config("a")
    assert "hush" not in f"{info.value!r}" and "48555348" not in f"{info.value!r}"


LOGIN = {"properties": {"password": KEY}}


@pytest.mark.parametrize(
    "schema, value, shown",
    [
        (LOGIN, "hush", "***"),  # no type: so it is valid
        ({**LOGIN, "type": ["string", "object"]}, "hush", "***"),
        ({**LOGIN, "type": ["integer", "object"]}, 3, "3"),
        ({"anyOf": [{"type": "string"}, {**LOGIN, "type": "object"}]}, "public", "***"),
        ({"anyOf": [{"enum": ["none"]}, {**LOGIN, "type": "object"}]}, "none", "***"),
        ({"anyOf": [{"type": "number"}, {**LOGIN, "type": "object"}]}, 3.5, "3.5"),
        ({**LOGIN, "type": ["null", "object"]}, None, "None"),
        ({"type": "string"}, Secret("hush"), "***"),
    ],
)
def test_what_is_valid_in_the_place_of_secrets(schema: "dict[str, Any]", value: Any, shown: str, site: Path) -> None:
    """A text is masked, a number is not. What the code calls a secret is one."""
    registry = of_text(config={"a": {"k": value}})
    registry.register("a", "m:a", schema={"properties": {"k": schema}})
    config = registry.load_plugin_config("a")
    assert repr(config) == f"{{'k': {shown}}}" and config["k"] == value


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"k": {"writeOnly": True}}},
        {"properties": {"k": {"$ref": "#/odd/k", "writeOnly": True}}, "odd": {"k": {"type": "text"}}},
        {"$schema": "http://json-schema.org/draft-03/schema#", "properties": {"k": {"type": "text", "format": "password"}}},
    ],
    ids=["a number", "an unchecked part", "draft 3"],
)
def test_a_schema_that_is_none_does_not_show_a_secret(schema: "dict[str, Any]", site: Path) -> None:
    """Neither what the validator says, nor a secret that is no string."""
    registry = of_text(config={"a": {"k": 48555348}})
    registry.register("a", "m:a", schema=schema)
    with pytest.raises(PluginSchemaError) as info:
        registry.load_plugin_config("a")
    assert "48555348" not in f"{info.value} {info.value!r}"


@pytest.mark.parametrize(
    "rule",
    [
        {"maxProperties": 0},
        {"propertyNames": {"enum": ["api_key"]}},
        {"unevaluatedProperties": False},
        {"not": {"required": ["api_kye"]}},
    ],
    ids=str,
)
def test_a_misspelled_secret_is_not_shown(rule: "dict[str, Any]", site: Path) -> None:
    """Nobody said that it is one, so an error tells the keys of an object, and not what they hold."""
    registry = of_text(config={"a": {"api_kye": "hush"}})
    registry.register("a", "m:a", schema={"properties": {"api_key": {"writeOnly": True}}, **rule})
    with pytest.raises(PluginConfigError, match="plugin 'a'") as info:
        registry.load_plugin_config("a")
    assert "hush" not in f"{info.value!r} {info.value}" and "api_kye" in str(info.value)


def test_a_file_with_a_secret_is_its_owners(site: Path, tmp_path: Path) -> None:
    """Whatever the umask, it is made 0600; one that others may read is refused if there is a secret in it."""
    install(site, "one", schema=SCHEMA)
    registry = of_text(config_dir=tmp_path / "config")
    before = os.umask(0)
    try:
        registry.save_plugin_config("one", {"api_key": "hush"})
    finally:
        os.umask(before)
    path = Path(registry.config_file("one"))
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert registry.load_plugin_config("one")["api_key"].reveal() == "hush"
    assert "hush" not in repr(registry.stored_plugin_config("one"))
    for mode in (0o604, 0o644, 0o660):
        path.chmod(mode)
        with pytest.raises(ConfigFileError, match="a secret that others may read.*chmod 600") as info:
            registry.load_plugin_config("one")
        assert "hush" not in str(info.value)
    path.write_text('{"beam": 3}')
    assert registry.load_plugin_config("one")["beam"] == 3
    registry.save_plugin_config("one", {**registry.load_plugin_config("one"), "api_key": Secret("again")})
    assert json.loads(path.read_text())["api_key"] == "again" and path.stat().st_mode & 0o777 == 0o600


WRAPS: "dict[str, Callable[[Any], Any]]" = {
    "allOf": lambda one: {"allOf": [{}, one]},
    "anyOf": lambda one: {"anyOf": [one, {}]},
    "oneOf": lambda one: {"oneOf": [one]},
    "if": lambda one: {"if": one},
    "then": lambda one: {"if": {}, "then": one},
    "else": lambda one: {"if": False, "else": one},
    "not": lambda one: {"not": {"not": one}},
    "dependent": lambda one: {"dependentSchemas": {"definitions": one, "k": one}},
    "draft 7": lambda one: {"dependencies": {"x": one}},
    "other keyword": lambda one: {"x-odd": [one]},
}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(sorted(WRAPS)), max_size=4),
    st.lists(st.sampled_from(sorted(WRAPS)), max_size=3),
    st.booleans(),
    st.sampled_from(["k", "properties", "$defs", "items", "default"]),
)
def test_no_way_to_mark_a_secret_is_missed(outer: "list[str]", inner: "list[str]", referred: bool, name: str) -> None:
    """It is masked, also where it is misplaced.

    However a schema combines it, in whatever a setting is called, directly or behind a reference, below anything.
    """
    marked: Any = {"format": "password", "type": "string"}
    for wrap in inner:
        marked = WRAPS[wrap](marked)
    schema: Any = {"properties": {name: {"$ref": "#/$defs/properties"} if referred else marked, "plain": {"type": "string"}}}
    for wrap in outer:
        schema = WRAPS[wrap](schema)
    schema.setdefault("$defs", {})["properties"] = marked
    names = schemas.secret_names(schema)
    for wrong in (False, True):
        for config in ({name: "hush"}, {name: ["hush"]}, {"plain": {name: {"a": ["hush"]}}}, {"misspelled": "hush"}):
            assert "hush" not in f"{names.hide(config, wrong)!r}", config
        assert names.hide({"plain": "shown", "n": 5 if not wrong else None}, wrong) == {"plain": "shown", "n": 5 if not wrong else None}


@pytest.mark.parametrize("reference", ["other.json", "https://example.com/s.json#/a", "#/nowhere", "#nowhere", "#/$defs/a/x"])
def test_a_reference_that_cannot_be_followed_may_lead_to_a_secret(reference: str) -> None:
    """So what it describes is masked; and all that is referred to, where a part has an id of its own."""
    schema = {"properties": {"k": {"allOf": [{"$ref": reference}]}, "plain": {}}, "$defs": {"a": {}}}
    assert f"{schemas.secret_names(schema).hide({'k': 'hush', 'plain': 'shown'})}" == "{'k': ***, 'plain': 'shown'}"
    inner = {"$id": "https://example.com/b", "properties": {"k": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"writeOnly": True}}}
    assert "hush" not in f"{schemas.secret_names({'properties': {'b': inner}, '$defs': {'a': {}}}).hide({'b': {'k': 'hush'}})}"


def test_a_name_that_is_secret_elsewhere_may_hold_a_number(site: Path, tmp_path: Path) -> None:
    """`token` is a secret text in one place and a number in another: the number reaches the plugin.

    A secret that may be a number is refused.
    """
    registry = of_text(config={"a": {"login": {"token": "hush"}, "limits": {"token": 5}}, "b": {"token": 5}})
    parts = {"login": {"properties": {"token": KEY}}, "limits": {"properties": {"token": {"type": "integer"}}}}
    registry.register("a", "m:a", schema={"properties": parts})
    registry.register("b", "m:b", schema={"properties": {"token": {"writeOnly": True}}})
    config = registry.load_plugin_config("a")
    assert config["limits"] == {"token": 5} and "hush" not in f"{config}"
    with pytest.raises(PluginSchemaError, match="a secret that is no text, 'token'"):
        registry.load_plugin_config("b")


def test_secrets_are_found_in_time_that_grows_with_the_schema() -> None:
    """A megabyte of references to names, of references in a row, of settings."""
    count = 8000
    large: "list[dict[str, Any]]" = [
        {"properties": {f"k{i}": {"$ref": f"#a{i}"} for i in range(count)}, "$defs": {f"a{i}": {"$anchor": f"a{i}"} for i in range(count)}},
        {
            "properties": {"k": {"$ref": "#/$defs/a0"}},
            "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(count)} | {f"a{count}": KEY},
        },
        {
            "properties": {f"k{i}": {"allOf": [{"$ref": "#/$defs/a"}]} for i in range(count)},
            "$defs": {"a": {"allOf": [{"format": "x"}] * count}},
        },
    ]
    began = time.process_time()
    found = [schemas.secret_names(schema) for schema in large]
    assert time.process_time() - began < 4 and "k" in found[1].secret


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(
    "uid, mode, fine",
    [
        (0, 0o440, True),
        (0, 0o640, True),
        (0, 0o444, False),
        (0, 0o660, False),
        (1234, 0o400, True),
        (1234, 0o440, False),
    ],
)
def test_a_mounted_secret(uid: int, mode: int, fine: bool, site: Path) -> None:
    """Kubernetes mounts secrets as root's, readable for a group; of another owner only that owner may read."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        path = Path(made, "a.json")
        path.write_text('{"api_key": "hush"}')
        path.chmod(mode)
        os.chown(path, uid, 0)
        registry = of_text(config_dir=made)
        registry.register("a", "m:a", schema=SCHEMA)
        with not_root(uid or 4321):
            if fine:
                assert registry.load_plugin_config("a")["api_key"].reveal() == "hush"
            else:
                with pytest.raises(ConfigFileError, match="chmod 600"):
                    registry.load_plugin_config("a")


# In use


class Resources:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: "list[Any]" = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        """A worker."""

    def unregister_worker(self, pid: int) -> None:
        """Its end."""

    def update_worker_state(self, pid: int, **state: Any) -> None:
        """What it does."""
        self.told.append(state)


def test_in_a_manager_with_all_four_layers(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin in its worker gets the config, its secret as a string.

    Events and resource managers get a mask, also after a reload and an unload.
    """
    install(site, "one", schema=SCHEMA)
    install(site, "bad", code="import sys; sys.exit(3)\n")
    install(site, "absent", code="import no_such_module\n")
    registry = of_text(config_dir=tmp_path / "config", config={"one": {"words": ["code"]}})
    registry.save_plugin_config("one", {"model": "file", "api_key": "hush"})
    monkeypatch.setenv("CJM_WORKERS__ONE__BEAM", "9")
    resources = Resources()

    async def scenario() -> None:
        manager = JobManager("text", "text", plugins=registry.targets(), plugin_registry=registry, resource_manager=resources)
        listener = manager.events()
        async with manager:
            job = await manager.start_job("one")
            want = {"model": "file", "beam": 9, "decoder": {"a": 1, "b": 2}, "words": ["code"], "api_key": "hush"}
            assert await job == want
            for plugin, category in (("bad", "crash"), ("absent", "load")):
                failed = await manager.start_job(plugin)
                await failed.wait()
                assert failed.status == "failed" and failed.error and failed.error.category == category
            assert await (await manager.start_job("one")) == want
            assert await manager.reload_plugin("one", registry.load_plugin_config("one"))
            await manager.unload_plugin("absent")
            registry.disable("one")
            with pytest.raises(PluginNotConfiguredError, match="not configured"):
                await manager.start_job("one")
            registry.enable("one")
            registry.report_problem("bad", "it exits")
            with pytest.raises(PluginNotConfiguredError, match="'bad'.*it exits"):
                await manager.start_job("bad")
            monkeypatch.setenv("CJM_WORKERS__ONE__BEAM", "many")
            with pytest.raises(RegistryUnavailableError, match="plugin 'one', key 'beam': expected a value of type integer"):
                await manager.start_job("one")
        assert not {k: v for k, v in manager.integration_errors.items() if "resource_manager" in k}
        seen = [event async for event in listener]
        told = [event.data for event in seen if event.type != "job:completed"]  # what a plugin gives as its result is its own affair
        assert seen and "hush" not in json.dumps(told)

    run(scenario())
    assert not {"one", "bad", "absent"} & sys.modules.keys()  # they were imported in workers only
    configs = [state["config"] for state in resources.told if state["config"]]
    assert configs and all(config.get("api_key", "***") == "***" for config in configs)
    assert "hush" not in json.dumps(configs)


def test_a_loader_knows_what_was_installed_since(site: Path, tmp_path: Path) -> None:
    """In the worker it looks again, and adds the folder that a manifest names."""
    manifests = tmp_path / "manifests"
    (manifests / "code").mkdir(parents=True)
    install(site, "one")
    registry = of_text(manifests=manifests, plugins={"coded": "one:Plugin"})

    class Manager(BaseJobManager):
        def get_plugin_loader(self) -> Any:
            return registry.loader()

    async def scenario() -> None:
        async with Manager("text", "text", plugin_registry=registry) as manager:
            assert await (await manager.start_job("coded")) == {}
            install(site, "two")
            assert await (await manager.start_job("two")) == {}
            (manifests / "code/aside.py").write_text("def shout(text): return text.upper()\n")
            (manifests / "code/shout.schema.json").write_text('{"properties": {"n": {"default": 3}}}')
            (manifests / "shout.toml").write_text("[plugin]\ntarget = 'aside:shout'\npath = 'code'\n")
            assert await (await manager.start_job("shout", text="hi")) == "HI"
            assert registry.load_plugin_config("shout") == {"n": 3}

    run(scenario())


def test_it_conforms(site: Path, tmp_path: Path) -> None:
    """Every check of the kit passes, with plugins of every source, and configs with secrets."""
    install(site, "one", schema=SCHEMA)
    install(site, "garbage", f"[{TEXT}]\nno equals sign\n")
    install(site, "rival", f"[{TEXT}]\none = rival:Plugin\nother = rival:Plugin\n")
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "described.toml").write_text("[plugin]\ntarget = 'a:b'\n")

    def made() -> EntryPointRegistry:
        config = {"one@one": {"api_key": "hush", "words": ["a"]}, "coded": {"deep": {"list": [1]}}}
        return of_text(manifests=folder, plugins={"coded": "a:b"}, config=config, config_dir=tmp_path / "config")

    report = check(made, PluginRegistryProtocol, probe=lambda registry: ["text"], deep=True)
    assert not report.findings and report.counts["passed"] == len(report.outcomes) > 20, str(report)


def test_many_threads(site: Path) -> None:
    """While packages come and go, every look gives one state or the other, and never an error."""
    install(site, "always")
    registry, stop, odd = of_text(), threading.Event(), list[Any]()

    def look() -> None:
        while not stop.is_set():
            try:
                found = ids(registry)
                if found not in (["always"], ["always", "sometimes"]) or registry.get_plugin("always") is None:
                    odd.append(found)
            except BaseException as e:
                odd.append(e)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        info = install(site, "sometimes")
        time.sleep(0.005)
        info.rename(site / "~gone")
        shutil.rmtree(site / "~gone")
    stop.set()
    for thread in threads:
        thread.join(10)
    assert not odd and ids(registry) == ["always"]


# The command


@pytest.fixture
def shell(site: Path, tmp_path: Path) -> "Callable[..., subprocess.CompletedProcess[str]]":
    """The command, with an installed plugin and a configuration folder of its own."""
    points = f"[{GROUP}]\none = one:Plugin\nleaves = leaves:x\nkeyed = one:Plugin2\n"
    install(site, "one", points, schema=SCHEMA)
    (site / "leaves.py").write_text("import sys; sys.exit('not today')\n")
    (site / "one/__init__.py").write_text(CODE + "class Plugin2(Plugin): 'Needs a key.'\n")
    (site / "one/Plugin2.schema.json").write_text(json.dumps({**SCHEMA, "required": ["api_key"]}))
    home = tmp_path / "home"
    (home / "plugins").mkdir(parents=True)
    (home / "plugins/aside.py").write_text("def shout(text):\n    'Loud.'\n    return text.upper()\n")
    (home / "plugins/shout.toml").write_text("[plugin]\ntarget = 'aside:shout'\npath = '.'\n")
    (home / "plugins/broken.toml").write_text("[plugin")

    def call(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return cli(*args, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{site}", CJM_WORKERS_CONFIG=str(home), **env)

    return call


Shell = Callable[..., "subprocess.CompletedProcess[str]"]


def test_plugins_as_json(shell: Shell) -> None:
    """Packages, manifests, what a worker finds wrong with them, and what is wrong with their configs."""
    done = shell("plugins", "--json")
    found = {data["id"]: data for data in of("plugin", events(done))}
    assert done.returncode == 0, said(done)
    assert found["one"]["problem"] == "" and found["one"]["distribution"] == "one 1.0" and found["one"]["enabled"] is True
    assert (found["shout"]["about"], found["shout"]["parameters"]) == ("Loud.", ["text"])
    assert "not today" in found["leaves"]["problem"] and "TOMLDecodeError" in found["broken"]["problem"]
    assert "key 'api_key': expected a value, since it is required" in found["keyed"]["problem"]


@pytest.mark.slow
def test_config_get_set_unset(shell: Shell) -> None:
    """What is set is what is got and what a job is loaded with; exit codes are 0, 1 and 2."""
    assert json.loads(shell("config", "get", "one").stdout) == {"model": "base", "beam": 5, "decoder": {"a": 1, "b": 2}}
    for key, value in (("beam", "7"), ("model", "8"), ("words", '["a"]'), ("fast", "true")):
        done = shell("config", "set", "one", key, value)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), said(done)
    assert shell("config", "get", "one", "beam").stdout == "7\n" and shell("config", "get", "one", "model").stdout == "8\n"
    assert shell("config", "get", "one", "model", "--json").stdout == '"8"\n'
    assert shell("config", "get", "one", "beam", CJM_WORKERS__ONE__BEAM="11").stdout == "11\n"
    done = shell("run", "one", "--config", '{"beam": 3}', CJM_WORKERS__ONE__MODEL="env")
    result = of("job:completed", events(done))[0]["result"]
    assert result == {"model": "env", "beam": 3, "decoder": {"a": 1, "b": 2}, "words": ["a"], "fast": True}, said(done)
    assert shell("config", "unset", "one", "beam").returncode == 0 and shell("config", "get", "one", "beam").stdout == "5\n"
    failing = {
        ("unset", "one", "beam"): "beam is not set in",
        ("get", "one", "nope"): "plugin 'one' has no setting 'nope'",
        ("set", "one", "beam", "many"): "plugin 'one', key 'beam': expected a value of type integer (got 'many'",
        ("get", "keyed"): "key 'api_key': expected a value, since it is required",
    }
    for args, message in failing.items():
        done = shell("config", *args)
        assert (done.returncode, done.stdout) == (1, "") and message in done.stderr and "Traceback" not in done.stderr, said(done)
    done = shell("run", "one", "--config", '{"beam": "many"}')
    assert done.returncode == 1 and "key 'beam'" in done.stderr and "Traceback" not in done.stderr, said(done)
    usage = [("put", "one"), ("get", "nope"), ("set", "one"), ("unset", "one"), ("get", "one", "a", "b"), ("get", "broken"), ("get",)]
    for args in usage:
        done = shell("config", *args)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("usage: cjm-workers config"), said(done)


def test_a_secret_on_the_command_line(shell: Shell, tmp_path: Path, site: Path) -> None:
    """It can be given on stdin, and is never printed; the plugin gets it, the events of the resource manager do not."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{site}", "CJM_WORKERS_CONFIG": str(tmp_path / "home")}
    code = "import sys; from cjm_worker_protocols.cli import main; sys.exit(main())"
    args = [sys.executable, "-c", code, "config", "set", "keyed", "api_key"]
    for given, told in (("hush\n", ""), ("", "api_key: expected a value on stdin (got none")):  # the second leaves what the first has set
        done = subprocess.run(args, input=given, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2 if told else 0, "") and (told in done.stderr if told else not done.stderr), said(done)
    assert shell("config", "get", "keyed", "api_key").stdout == "***\n" and "hush" not in shell("config", "get", "keyed").stdout
    done = shell("run", "keyed")
    assert of("job:completed", events(done))[0]["result"]["api_key"] == "hush", said(done)
    assert "hush" not in json.dumps([e for e in events(done) if e["event"] != "job:completed"])


def test_a_manifest_can_be_run(shell: Shell) -> None:
    """From the folder that it names."""
    done = shell("run", "shout", "text=hi")
    assert of("job:completed", events(done))[0]["result"] == "HI", said(done)
