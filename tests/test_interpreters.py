"""An interpreter for each plugin: which workers run it, how they are counted, and what a broken one takes along."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from harness import end, manager, until
from repo import ROOT

from cjm_worker_protocols.core.frames import Kind, check_python, dumps, outgoing
from cjm_worker_protocols.integrations.registry import EntryPointRegistry

GROUP = "cjm_worker_protocols.plugins"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Path]":
    """A virtual environment with a package that is installed nowhere else."""
    home = tmp_path_factory.mktemp("other")
    venv.create(home, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "only_there.py").write_text("import sys\ndef where(x=None):\n    return sys.prefix\n")
    info = site / "only_there-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: only-there\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nwhere = only_there:where\n")
    yield home


def test_a_schema_lies_beside_a_module_of_another_interpreter(tmp_path: Path) -> None:
    """Its defaults and its secrets hold as in an environment of the app's."""
    venv.create(tmp_path / "env", symlinks=True)
    site = next(tmp_path.glob("env/lib/python*/site-packages"))
    schema = '{"properties": {"beam": {"default": 5}, "token": {"writeOnly": true}}}'
    (site / "only_whisper").mkdir()
    (site / "only_whisper/__init__.py").touch()
    (site / "only_whisper/Whisper.schema.json").write_text(schema)
    registry = EntryPointRegistry(config={"whisper": {"token": "hush"}})
    registry.register("whisper", "only_whisper:Whisper", python=str(tmp_path / "env/bin/python"))
    config = registry.load_plugin_config("whisper")
    assert config["beam"] == 5 and "hush" not in repr(config)
    registry.register("gone", "only_whisper:Whisper", python=str(tmp_path / "env/bin/no-python"))
    assert registry.load_plugin_config("gone") == {}


def prefix() -> str:
    """Where a worker's interpreter lives."""
    return sys.prefix


async def test_entry_points_of_another_interpreter(home: Path) -> None:
    """They are listed with it, and run there; those of the app run as before; `max_workers` counts both."""
    python = str(home / "bin/python")
    registry = EntryPointRegistry({"here": "test_interpreters:prefix"}, pythons=[python])
    assert registry.plugins["where"].python == python and registry.plugins["here"].python == ""
    given: "dict[str, Any]" = {"plugins": registry.targets(), "plugin_registry": registry, "category": GROUP}
    async with manager(**given, max_workers=1, standby=True) as m:
        jobs = [await m.start_job(name) for name in ("here", "where", "where", "here")]
        found = await asyncio.gather(*jobs)
        assert found == [sys.prefix, str(home), str(home), sys.prefix]
        assert len([w for w in m.workers if w.status in ("idle", "running")]) <= 1
        await until(lambda: sum(w.status == "standby" for w in m.workers) == 2)
    assert not m.workers


async def test_the_config_and_a_manifest_name_one(home: Path, tmp_path: Path) -> None:
    """A manifest's `python`, that of `register`, and `worker_python` of a config, which goes first."""
    python = str(home / "bin/python")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/there.toml").write_text(f'[plugin]\ntarget = "only_there:where"\npython = "{python}"\n')
    registry = EntryPointRegistry(manifests=tmp_path / "manifests", config={"back": {"worker_python": sys.executable}})
    registry.register("there_too", "only_there:where", python=python)
    registry.register("back", "test_interpreters:prefix", python=python)
    plugins = {"there": "only_there:where", "there_too": "only_there:where", "back": "test_interpreters:prefix"}
    async with manager(plugins=plugins, plugin_registry=registry, category=GROUP, env={"PYTHONPATH": str(ROOT / "tests")}) as m:
        assert [await (await m.start_job(name)) for name in ("there", "there_too", "back")] == [str(home), str(home), sys.prefix]
        await (await m.start_job("there"))
        assert await m.reload_plugin("there", {"a": 1}) and await (await m.start_job("there")) == str(home)


@pytest.mark.parametrize("how", ["config", "plugin"])
async def test_a_relative_path_is_meant_from_where_it_is_given(how: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app may change its folder before a worker starts."""

    class Registry:
        def get_plugins_by_category(self, category: Any) -> "list[Any]":
            return []

        def get_plugin(self, plugin_id: str) -> "dict[str, str]":
            return {"name": plugin_id}

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {"worker_python": "bin/python"}

    monkeypatch.chdir(home)
    given: "dict[str, Any]" = {"python": "bin/python"} if how == "config" else {"plugin_registry": Registry()}
    async with manager(plugins={"there": "only_there:where"}, **given) as m:
        if how == "config":
            os.chdir("/")
        first = await m.start_job("there")
        os.chdir("/")
        assert await first == str(home)


@pytest.mark.parametrize("broken", ["missing", "not a python"])
async def test_a_broken_interpreter_takes_no_other_along(broken: str, tmp_path: Path) -> None:
    """Its jobs fail with `start`, and those of other plugins run, before, meanwhile and after."""
    python = tmp_path / "python"
    if broken != "missing":
        python.write_text("#!/bin/sh\nexit 3\n")
        python.chmod(0o755)
    registry = EntryPointRegistry({"good": "sample_plugins:echo"})
    registry.register("bad", "sample_plugins:echo", python=str(python))
    plugins = {"good": "sample_plugins:echo", "bad": "sample_plugins:echo"}
    async with manager(plugins=plugins, plugin_registry=registry, category=GROUP, max_workers=2, max_restarts=1, backoff_base=0.01) as m:
        assert await (await m.start_job("good", x=0)) == 0
        bad = [await m.start_job("bad") for _ in range(3)]
        good = [await m.start_job("good", x=n) for n in range(5)]
        assert await asyncio.gather(*good) == list(range(5))
        for job in bad:
            await end(job)
        assert {job.error.category for job in bad} == {"start"}
        assert await (await m.start_job("good", x=1)) == 1


def test_the_command_line(home: Path, tmp_path: Path) -> None:
    """`cjm-workers run --python` finds what is installed there, and runs it there."""
    command = [sys.executable, "-m", "cjm_worker_protocols", "run", "where", "--python", str(home / "bin/python"), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert str(home) in json.dumps(ends)


def by_value() -> Any:
    """A plugin that is sent by value."""

    def shout(text: str) -> "list[str]":
        import re

        return [word.upper() for word in re.split(" ", text)]

    return shout


class Foreign:
    """What begins like a pickle that another minor version made by value."""

    def __reduce__(self) -> Any:
        return check_python, (3, 1)

    def __call__(self, text: str) -> None:
        """Be a plugin."""


def foreign(part: str, value: Any = None) -> Any:
    """Send one from the worker."""
    if part == "chunk":
        yield Foreign()
    return Foreign() if part == "result" else 1


@pytest.mark.parametrize("part", ["plugin", "nested", "result", *(pytest.param(p, marks=pytest.mark.slow) for p in ("parameter", "chunk"))])
async def test_code_of_another_minor_version_is_refused(part: str) -> None:
    """Wherever it stands, before it is unpickled, with the remedy; the worker lives on."""
    given = {"parameter": Foreign(), "nested": {"model": [Foreign()]}}.get(part)
    plugins = {"foreign": "test_interpreters:foreign", "shout": Foreign()}
    async with manager(plugins=plugins, supports_streaming=True) as m:
        if part == "plugin":
            m.get_plugin_loader().sources["shout"] = dumps(Foreign())
        job = await (m.start_job("shout", text="") if part == "plugin" else m.start_job("foreign", part=part, value=given))
        error = (await end(job)).error
        assert error is not None and error.category == ("load" if part == "plugin" else "serialization")
        assert "Python 3.1:" in error.message and "define it in a module" in error.message
        assert await (await m.start_job("foreign", part="nothing")) == 1 and len({w.pid for w in m.workers}) == 1


def test_only_what_holds_code_says_from_which_python() -> None:
    """Data that names `__main__` does not, so it can be sent to any interpreter."""
    assert all(b"check_python" in bytes(pickled) for pickled in (dumps(by_value()), outgoing(Kind.RESULT, 1, [by_value()])))
    text = "see __main__ and cloudpickle.cloudpickle"
    for data in ("__main__", {"text": text, "bytes": text.encode() * 10_000}, [cloudpickle.dumps(by_value()), b"__main__"]):
        assert b"check_python" not in dumps(data) and b"check_python" not in bytes(outgoing(Kind.RESULT, 1, data))


@pytest.fixture
def other_python() -> str:
    """An interpreter of another minor version on this machine."""
    minors = [minor for minor in range(10, 15) if minor != sys.version_info.minor]
    homes = [*os.environ["PATH"].split(os.pathsep), *map(str, (Path.home() / ".pyenv/versions").glob("*/bin"))]
    found = [shutil.which(f"python3.{minor}", path=home) for minor in minors for home in homes]
    working = (path for path in found if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0)
    return next(working, None) or pytest.skip("needs an interpreter of another minor version")


async def test_another_minor_version_in_truth(other_python: str) -> None:
    """Plain data goes there and back; functions do not, neither as plugin nor as parameter."""
    of_script = by_value()
    of_script.__module__ = "__main__"
    plugins = {"shout": of_script, "echo": "sample_plugins:echo"}
    async with manager(plugins=plugins, python=other_python, env={"PYTHONPATH": str(ROOT / "tests")}) as m:
        for name, given, category in (("shout", {"text": "a"}, "load"), ("echo", {"x": by_value()}, "serialization")):
            error = (await end(await m.start_job(name, **given))).error
            assert error is not None and error.category == category and "by value" in error.message
        for data in ({"x": [1.5, "two", b"three"]}, "see __main__ and cloudpickle.cloudpickle"):
            assert await (await m.start_job("echo", x=data)) == data
