"""The `cjm-workers` command, run as a user runs it: in a pipe, in a terminal, and interrupted."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from harness import wait_until
from hypothesis import given, settings, strategies as st
from repo import ROOT, run, said

from cjm_worker_protocols.cli.screen import to_json
from cjm_worker_protocols.core.display import clean, columns
from cjm_worker_protocols.engines.connection import unread
from cjm_worker_protocols.plugins.speech import SPEECH, sample_recording

PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("CJM_WORKERS_TEST_PATH"))))  # With another fastcore, if one is named
MAIN = "import sys; from cjm_worker_protocols.cli import main; sys.exit(main())"
MISSING = SPEECH.problem()
speech = pytest.mark.skipif(bool(MISSING), reason=f"the plugin {MISSING}")
OFFLINE = re.compile(r"No matching distribution|Could not find a version|Failed to establish|Max retries|resolution")
TEXT = (
    "the model is loaded once and then it answers many questions "
    "if one of the workers dies the others go on with their work"
)
Event = dict[str, Any]

MINE = '''
import os, subprocess, sys, time

def shout(text, times=1):
    """Make it loud.

    More of the same."""
    print("printed in the worker")
    return text.upper() * times

def count(n):
    yield from range(n)
    return n

def fail(): raise ValueError("no \\x1b[31mgood")
def die(): os._exit(3)
def echo(**parameters): return parameters
def bytes_of(n): return b"x" * n
def letters(n): return "x" * n

def spin(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(path, "w") as file: file.write(f"{os.getpid()} {child.pid}")
    while True:
        yield "spinning"
        time.sleep(0.05)

class Loaded:
    def load(self, config): self.config = config
    def run(self): return self.config
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with a module of plugins."""
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def environment(**more: str) -> "dict[str, str]":
    """What the command is run with."""
    kept = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "NO_COLOR", "TERM")}
    return kept | {"PYTHONPATH": PATH, "TERM": "xterm"} | more


def cli(*args: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end, in a pipe."""
    return run(sys.executable, "-c", MAIN, *args, cwd=cwd, timeout=120, **{"PYTHONPATH": PATH} | env)


def events(done: "subprocess.CompletedProcess[str]") -> "list[Event]":
    """What it printed: JSON objects, one a line, and nothing else."""
    lines = [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]
    for line in lines:
        assert list(line) == ["event", "data"] and isinstance(line["data"], dict), line
    return lines


def of(event: str, found: "list[Event]") -> "list[dict[str, Any]]":
    """The data of all events of one kind."""
    return [line["data"] for line in found if line["event"] == event]


# A pipe


@speech
def test_demo_in_a_pipe_prints_json_and_nothing_else(tmp_path: Path) -> None:
    """The recording is transcribed, streamed, and all three integrations have seen it."""
    done = cli("demo", cwd=tmp_path)
    found = events(done)
    assert (done.returncode, done.stderr) == (0, ""), said(done)
    (completed,) = of("job:completed", found)
    assert completed["result"]["text"] == TEXT and len(completed["result"]["segments"]) == 2
    assert completed["params"] == {"audio": str(sample_recording())}
    names = [line["event"] for line in found]
    end = names.index("job:completed")
    assert names[:end].count("job:chunk") > 30 and names[:end].count("job:progress") > 20
    (queued,), (started,) = of("job:queued", found), of("job:started", found)
    assert queued["job_id"] == started["job_id"] == completed["job_id"]
    looks = [look["workers"] for look in of("resources:workers", found)]
    assert {worker["pid"] for look in looks for worker in look} == {started["pid"]}
    seen = (worker for look in looks for worker in look)
    busy = [worker for worker in seen if worker["status"] == "running"]
    assert busy and {(w["job_id"], w["plugin_id"]) for w in busy} == {(queued["job_id"], "pocketsphinx")}
    assert found[-1]["event"] == "summary" and len(of("summary", found)) == 1
    summary = found[-1]["data"]
    assert summary["exit_code"] == 0 and summary["integration_errors"] == {} and summary["registry"]["id"] == "pocketsphinx"
    (worker,), (peak,) = summary["workers"], summary["peaks"]
    assert worker["rss"] > 10_000_000 and worker["processes"] == 1 and worker["cpu_seconds"] > 0
    assert peak["plugin_id"] == "pocketsphinx" and peak["rss"] >= worker["rss"]
    assert summary["events"] == {n: names.count(n) for n in names if n.startswith(("job:", "worker:"))}
    assert summary["broadcaster"] == {"sent": sum(summary["events"].values()), "dropped": 0}


@pytest.mark.slow
@speech
def test_demo_plugs_in_the_ready_integrations_without_their_extras(tmp_path: Path) -> None:
    """The very classes of `integrations`; nothing that only another extra brings is imported, or missed."""
    extras = ("starlette", "uvicorn", "jsonschema", "referencing", "tomli", "pynvml", "redis")
    spy = f"""
import sys
for name in {extras}: sys.modules[name] = None
from cjm_worker_protocols import cli
from cjm_worker_protocols.cli import session
plugged, make = [], session.JobManager
def manager(*args, **kwargs):
    plugged.extend(kwargs[name] for name in ("plugin_registry", "resource_manager", "event_broadcaster"))
    return make(*args, **kwargs)
session.JobManager = manager
code = cli.main(["demo"])
print(*(f"{{type(thing).__module__}}:{{type(thing).__name__}}" for thing in plugged), file=sys.stderr)
sys.exit(code)
"""
    done = run(sys.executable, "-c", spy, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and of("job:completed", events(done))[0]["result"]["text"] == TEXT, said(done)
    assert all(name.startswith("cjm_worker_protocols.integrations.") for name in done.stderr.split()), said(done)
    names = [name.partition(":")[2] for name in done.stderr.split()]
    assert names == ["EntryPointRegistry", "ProcessResourceManager", "SSEBroadcaster"]


@speech
@pytest.mark.slow
def test_events_come_while_it_happens(tmp_path: Path) -> None:
    """A program that reads the pipe sees the first words long before the result."""
    came = []
    with started("demo", cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            came.append((time.monotonic(), json.loads(line)["event"]))
    first = next(at for at, event in came if event == "job:chunk")
    last = next(at for at, event in came if event == "job:completed")
    assert process.returncode == 0 and last - first > 0.3


@speech
@pytest.mark.slow
def test_demo_takes_files_and_goes_on_after_a_bad_one(tmp_path: Path) -> None:
    """Several files on two workers: those that are no good are named, the rest is done, and the exit code is 1."""
    (tmp_path / "a.wav").write_bytes(sample_recording().read_bytes())
    (tmp_path / "a b.wav").write_bytes(sample_recording().read_bytes())
    (tmp_path / "bad.wav").write_text("no recording")
    done = cli("demo", "a.wav", "bad.wav", "missing.wav", "a b.wav", "--workers", "2", cwd=tmp_path)
    found = events(done)
    assert done.returncode == 1, said(done)
    assert {c["params"]["audio"]: c["result"]["text"] for c in of("job:completed", found)} == {"a.wav": TEXT, "a b.wav": TEXT}
    errors = {f["params"]["audio"]: f["error"]["message"] for f in of("job:failed", found)}
    assert set(errors) == {"bad.wav", "missing.wav"} and all(name in message for name, message in errors.items())
    assert len({s["pid"] for s in of("job:started", found)}) == 2
    assert len(found[-1]["data"]["workers"]) == len(of("worker:exited", found)) == 2


def test_without_the_extra_demo_says_how_to_get_it(tmp_path: Path) -> None:
    """Exit code 2, nothing on stdout, and the command that mends it."""
    for package in SPEECH.packages:
        hide = "import sys; sys.meta_path.insert(0, type('Hide', (), {'find_spec': staticmethod(lambda n, *a: None)}))\n"
        hide += "import importlib.util as u; real = u.find_spec\n"
        hide += f"u.find_spec = lambda name, *a: None if name == {package!r} else real(name, *a)\n"
        done = run(sys.executable, "-c", hide + MAIN, "demo", cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == 2 and done.stdout == "" and package in done.stderr, said(done)
        assert "pip install 'cjm-worker-protocols[speech]'" in done.stderr
        if MISSING:
            break


# Any plugin


def test_run_runs_what_is_in_this_folder(mine: Path) -> None:
    """Parameters are JSON or text; what the plugin prints goes to stderr."""
    done = cli("run", "mine:shout", "text=hi", "times=2", cwd=mine)
    assert done.returncode == 0 and of("job:completed", events(done))[0]["result"] == "HIHI", said(done)
    assert done.stderr == "mine:shout: printed in the worker\n"


def test_run_streams(mine: Path) -> None:
    """What a generator yields comes chunk by chunk."""
    done = cli("run", "mine:count", "n=3", "--json", cwd=mine)
    assert [chunk["chunk"] for chunk in of("job:chunk", events(done))] == [0, 1, 2]


def test_run_passes_any_parameter_name(mine: Path) -> None:
    """Names that start_job has for itself are just parameters, and options may stand among them."""
    given = ("priority=1", "timeout=null", "params=[2]", "plugin_id=x", "job_id=naïve", "type=a=b", "empty=")
    done = cli("run", "mine:echo", *given[:3], "--timeout", "30", *given[3:], cwd=mine)
    want = {"priority": 1, "timeout": None, "params": [2], "plugin_id": "x", "job_id": "naïve", "type": "a=b", "empty": ""}
    assert of("job:completed", events(done))[0]["result"] == want, said(done)


def test_run_loads_with_a_config(mine: Path) -> None:
    """A class is loaded with what --config says; the resource manager sees it."""
    done = cli("run", "mine:Loaded", "--config", '{"model": "tiny"}', cwd=mine)
    assert of("job:completed", events(done))[0]["result"] == {"model": "tiny"}, said(done)
    assert of("summary", events(done))[0]["workers"][0]["loaded_plugin_resource"] == "tiny"


def test_run_prints_results_whole(mine: Path) -> None:
    """A result is not cut, however long; what is no JSON is described."""
    done = cli("run", "mine:letters", "n=300000", cwd=mine)
    assert len(of("job:completed", events(done))[0]["result"]) == 300_000
    done = cli("run", "mine:bytes_of", "n=10", cwd=mine)
    assert done.returncode == 0 and "10 bytes" in of("job:completed", events(done))[0]["result"]


@pytest.mark.parametrize(
    "plugin, category, message",
    [
        ("mine:fail", "exception", "ValueError: no"),
        ("mine:die", "crash", "exited with code 3"),
        ("mine:nothing", "load", "'nothing'"),
        ("no_such_module:x", "load", "No module named 'no_such_module'"),
    ],
)
def test_a_job_that_fails_makes_exit_code_1(plugin: str, category: str, message: str, mine: Path) -> None:
    """The event tells why."""
    done = cli("run", plugin, cwd=mine)
    (failed,) = of("job:failed", events(done))
    assert done.returncode == 1 and failed["error"]["category"] == category, said(done)
    assert message in failed["error"]["message"]


def test_run_has_a_timeout(mine: Path) -> None:
    """A job that takes too long is stopped, with its children."""
    done = cli("run", "mine:spin", "path=pids", "--timeout", "1", cwd=mine)
    assert done.returncode == 1 and of("job:failed", events(done))[0]["error"]["category"] == "timeout", said(done)
    assert gone([int(pid) for pid in (mine / "pids").read_text().split()])


@pytest.mark.parametrize(
    "args, message",
    [
        ((), "COMMAND"),
        (("nope",), "nope"),
        (("demo", "--workers", "0"), "--workers: expected at least 1 (got 0)"),
        (("demo", "--workers", "many"), "many"),
        (("demo", "--nope"), "unrecognized arguments: --nope"),
        (("plugins", "extra"), "unrecognized arguments: extra"),
        (("run",), "required: PLUGIN\n"),
        (("config", "get"), "required: PLUGIN\n"),
        (("run", "nope"), "no plugin 'nope' in the installed packages"),
        (("run", "mine:echo", "text"), "expected key=value (got 'text')"),
        (("run", "mine:echo", "a b=1"), "expected key=value (got 'a b=1')"),
        (("run", "mine:echo", "x=1", "y=2", "x=3"), "x: expected one value (got two)"),
        (("run", "mine:echo", "--config", "[1]"), "--config: expected a JSON object (got '[1]')"),
        (("run", "mine:echo", "--timeout", "-1"), "timeout: expected a number above 0"),
        (("run", "not-a-module:x"), "import string 'package.module:name'"),
        (("serve", "--port", "65536"), "--port: expected a number from 0 to 65535 (got 65536)"),
        (("serve", "mine:shout"), "mine:shout: expected a job manager, or a function that returns one (got <function shout at "),
        (("serve", "mine:shout"), " that raised TypeError: "),
        (("serve", "--host", ""), "--host: expected a name or an address of this machine (got '')"),
    ],
)
def test_a_wrong_command_line_makes_exit_code_2(args: "tuple[str, ...]", message: str, mine: Path) -> None:
    """The usage and what is wrong with it go to stderr, nothing to stdout."""
    done = cli(*args, cwd=mine)
    assert done.returncode == 2 and done.stdout == "" and message in done.stderr, said(done)
    assert done.stderr.startswith("usage: cjm-workers") and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """And so is what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("serve", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("cjm-workers: cannot listen: Address already in use"), said(done)
    assert f"('127.0.0.1', {port})" in done.stderr and "port 0 is any free one" in done.stderr


@pytest.mark.parametrize("args", [("--help",), ("demo", "--help"), ("run", "--help"), ("plugins", "--help"), ("--version",)])
def test_help_needs_nothing(args: "tuple[str, ...]", tmp_path: Path) -> None:
    """Every command and every argument is described."""
    done = cli(*args, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", said(done)
    assert "None" not in done.stdout and ("usage: cjm-workers" in done.stdout or args == ("--version",))


# What is installed


def offer(site: Path, name: str, points: str, code: "str | None" = None, metadata: bool = True) -> None:
    """An installed package that offers a plugin."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(points if points.startswith("[") else f"[cjm_worker_protocols.plugins]\n{points}\n")
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if code is not None:
        (site / f"{name}_plugin.py").write_text(code)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Packages with plugins, most of them broken."""
    site = tmp_path / "site"
    offer(site, "good", "good = good_plugin:run", 'def run(text: str, times=2):\n    "Says it again."\n    return text * times\n')
    lacking = "class Lacking:\n    problem = staticmethod(lambda: 'needs a falcon: run pip install falcons')\n    def run(self): pass\n"
    offer(site, "lacking", "lacking = lacking_plugin:Lacking", lacking)
    offer(site, "absent", "absent = absent_plugin:run")
    offer(site, "broken", "broken = broken_plugin:run", "import no_such_module\n")
    offer(site, "syntax", "syntax = syntax_plugin:run", "def run(:\n")
    offer(site, "leaves", "leaves = leaves_plugin:run", 'import sys; sys.exit("not today")\n')
    offer(site, "crash", "crash = crash_plugin:run", "import ctypes; ctypes.string_at(0)\n")
    offer(site, "hang", "hang = hang_plugin:run", "import time; time.sleep(600)\n")
    offer(site, "deaf", "deaf = deaf_plugin:run", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)\n")
    offer(site, "shy", "shy = good_plugin:nothing")
    offer(site, "odd", "odd = not a: target!")
    offer(site, "bare", "bare = good_plugin")
    offer(site, "twice", "good = good_plugin:run")
    offer(site, "nameless", "nameless = good_plugin:run [extra]", metadata=False)
    offer(site, "garbage", "[cjm_worker_protocols.plugins]\nno equals sign\n")
    offer(site, "other", "[console_scripts]\nother = other:main\n")
    return site


def test_plugins_lists_what_is_installed_and_what_is_wrong_with_it(site: Path, tmp_path: Path) -> None:
    """One that cannot be imported, ends its process, or hangs, is listed with its reason, and hurts no other."""
    done = cli("plugins", "--timeout", "3", cwd=tmp_path, PYTHONPATH=f"{PATH}:{site}")
    found = {data["id"]: data for data in of("plugin", events(done))}
    assert done.returncode == 0 and done.stderr == "", said(done)
    problems = {name: data["problem"] for name, data in found.items()}
    good = found["good"]
    assert (good["target"], good["distribution"], good["about"]) == ("good_plugin:run", "good 1.0", "Says it again.")
    assert good["parameters"] == ["text", "times=2"] and good["problem"] == ""
    assert found["nameless"]["problem"] == found["good@twice"]["problem"] == ""
    for name, reason in {
        "lacking": "needs a falcon: run pip install falcons",
        "absent": "No module named 'absent_plugin'",
        "broken": "No module named 'no_such_module'",
        "syntax": "SyntaxError",
        "leaves": "exited with code 1 while importing it: SystemExit: not today",
        "crash": "SIGSEGV",
        "hang": "importing it takes longer than 3 s",
        "deaf": "importing it takes longer than 3 s",
        "shy": "cannot import 'nothing' from <module",
        "odd": "import string 'package.module:name'",
        "bare": "import string 'package.module:name'",
        "garbage": "entry_points.txt",
    }.items():
        assert reason in problems[name], problems
    assert "other" not in found


def test_plugins_lists_our_own(tmp_path: Path) -> None:
    """The speech plugin is there as soon as the package is installed; its extra need not be."""
    done = cli("plugins", "--json", cwd=tmp_path)
    (ours,) = [data for data in of("plugin", events(done)) if data["target"] == "cjm_worker_protocols.plugins.speech:PocketSphinx"]
    assert ours["parameters"] == ["audio"] and ours["about"] and not ours["problem"], said(done)


def test_plugins_are_enabled_and_disabled(site: Path, tmp_path: Path) -> None:
    """From then on, in every process: a job of a disabled plugin is refused. Only those named are listed."""
    env = {"PYTHONPATH": f"{PATH}:{site}", "CJM_WORKERS_CONFIG": str(tmp_path / "config")}

    def listed(*args: str) -> "dict[str, bool]":
        done = cli("plugins", *args, cwd=tmp_path, **env)
        assert done.returncode == 0 and done.stderr == "", said(done)
        return {data["id"]: data["enabled"] for data in of("plugin", events(done))}

    assert listed("--disable", "good", "--disable", "shy") == {"good": False, "shy": False}
    done = cli("run", "good", "text=ha", cwd=tmp_path, **env)
    assert (done.returncode, events(done)) == (1, []) and "is disabled: run cjm-workers plugins --enable good" in done.stderr, said(done)
    assert listed("--enable", "good", "--disable", "bare") == {"bare": False, "good": True}
    assert of("job:completed", events(cli("run", "good", "text=ha", cwd=tmp_path, **env)))[0]["result"] == "haha"
    wrong = {
        ("--enable", "good", "--disable", "nope"): "no plugin 'nope' in the installed packages",
        ("--enable", "shy", "--disable", "shy"): "expected --enable or --disable (got both for 'shy')",
    }
    for args, message in wrong.items():
        done = cli("plugins", *args, cwd=tmp_path, **env)
        assert done.returncode == 2 and done.stdout == "" and message in done.stderr, said(done)
    assert listed("--enable", "bare") == {"bare": True} and not listed("--disable", "shy")["shy"]
    (tmp_path / "file").write_text("")
    done = cli("plugins", "--disable", "good", cwd=tmp_path, **{**env, "CJM_WORKERS_CONFIG": str(tmp_path / "file")})
    assert (done.returncode, done.stdout) == (1, "") and "expected a folder that configs can be written in" in done.stderr, said(done)
    assert "Traceback" not in done.stderr


def test_run_runs_what_is_installed(site: Path, tmp_path: Path) -> None:
    """By the name of its entry point; a broken one says why, as a failed job."""
    path = f"{PATH}:{site}"
    done = cli("run", "good", "text=ha", cwd=tmp_path, PYTHONPATH=path)
    assert of("job:completed", events(done))[0]["result"] == "haha", said(done)
    assert events(done)[-1]["data"]["registry"]["distribution"] == "good 1.0"
    done = cli("run", "broken", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 1 and "no_such_module" in of("job:failed", events(done))[0]["error"]["message"], said(done)
    done = cli("run", "odd", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2 and "package.module:name" in done.stderr, said(done)


# What is behind stdin, stdout and stderr


COMMANDS = ["--help", "--version", "run --help", "plugins", "config get letters"]
COMMANDS += ["run mine:letters n=300000", "check mine:Registry --as registry"]
OFTEN = ("--help", "plugins", "run mine:letters n=300000")  # Those of the plain run
each_command = pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * (c not in OFTEN)) for c in COMMANDS])


@pytest.fixture
def shell(mine: Path) -> "Callable[..., subprocess.CompletedProcess[str]]":
    """Runs a bash command in which `cjm` is ours; the plugin `letters` has a config of 200 KB."""
    registry = "\nclass Registry:\n    def get_plugins_by_category(self, category): return []\n"
    registry += "    def get_plugin(self, plugin_id): return None\n    def load_plugin_config(self, plugin_id): return {}\n"
    (mine / "mine.py").write_text(MINE + registry)
    home = mine / "home"
    for folder in ("plugins", "config"):
        (home / folder).mkdir(parents=True, mode=0o700)
    (home / "plugins/letters.toml").write_text('[plugin]\ntarget = "mine:letters"\n')
    (home / "config/letters.json").write_text(json.dumps({"x": "x" * 200_000}))
    (home / "config/letters.json").chmod(0o600)

    def shell(command: str, **env: str) -> "subprocess.CompletedProcess[str]":
        function = f"cjm() {{ '{sys.executable}' -c '{MAIN}' \"$@\"; }}\n"
        ours = {"PYTHONPATH": PATH, "CJM_WORKERS_CONFIG": str(home)}
        return run("bash", "-c", function + command, cwd=mine, timeout=60, **ours | env)

    return shell


@each_command
def test_a_full_disk_is_one_line_and_exit_code_1(command: str, shell: Any) -> None:
    """Whatever was to be written, no traceback and no success."""
    done = shell(f"cjm {command} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "cjm-workers: cannot write to stdout: No space left on device\n"), said(done)


@each_command
def test_a_closed_pipe_is_silent(command: str, shell: Any) -> None:
    """As of any program before `| head`: the status is that of SIGPIPE."""
    done = shell(f"cjm {command} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (141, ""), said(done)


CLOSED = [">&-", "<&-", "2>&-", "<&- >&- 2>&-"]  # The plain run has all three with some commands, and each with one


@pytest.mark.parametrize(
    "command, closed",
    [
        pytest.param(command, closed, marks=[] if command == "plugins" or (closed == CLOSED[-1] and command in OFTEN) else pytest.mark.slow)
        for command in COMMANDS
        for closed in CLOSED
    ],
)
def test_a_missing_descriptor_is_dev_null(command: str, closed: str, shell: Any) -> None:
    """The command works, and what it would have written is gone."""
    done = shell(f"cjm {command} {closed}")
    assert (done.returncode, done.stderr) == (0, ""), said(done)
    assert bool(done.stdout) == (">&- 2" not in closed and closed != ">&-"), said(done)


@each_command
@pytest.mark.skipif(sys.version_info[:3] == (3, 13, 0), reason="CPython 3.13.0 cannot import socket there")
def test_the_working_directory_may_have_been_removed(command: str, shell: Any, mine: Path) -> None:
    """What is installed, or on the import path, is found, and each command does what it does elsewhere."""
    path = f"{PATH}:{mine}"
    gone = shell(f"mkdir gone && cd gone && rmdir ../gone && cjm {command}", PYTHONPATH=path)
    there = shell(f"cjm {command}", PYTHONPATH=path)
    assert gone.returncode == there.returncode == 0 and gone.stderr == there.stderr == "", said(gone)
    if not command.startswith("run mine"):
        assert gone.stdout == there.stdout


def test_a_commits_hash_is_a_text(shell: Any) -> None:
    """Digits, an `e` and digits are a number only where a schema asks for one."""
    shell("cjm config set letters build 12e05; cjm config set letters rate 1e-3")
    done = shell("cjm config get letters build; cjm config get letters rate")
    assert done.stdout.split() == ["12e05", "0.001"], said(done)


def test_nothing_is_written_into_another_file(shell: Any, mine: Path) -> None:
    """With stdout closed, the next file that is opened would get descriptor 1; with all three, a plugin's would."""
    code = "import os\ndef names(): return [os.readlink(f'/proc/{os.getppid()}/fd/{fd}') for fd in range(3)]\n"
    (mine / "who.py").write_text(code)
    done = shell("cjm run who:names 0<&- 2>&-")
    names = of("job:completed", events(done))[0]["result"]
    assert names[0] == names[2] == "/dev/null" and names[1].startswith("pipe:"), said(done)
    done = shell("cjm config set letters y 1 <&- >&- 2>&-; cat home/config/letters.json")
    assert json.loads(done.stdout) == {"x": "x" * 200_000, "y": 1}, said(done)


def test_a_job_is_ended_when_the_disk_is_full(mine: Path) -> None:
    """There is no sense in going on; the workers are gone, and the reason is said once."""
    arguments = ("run", "mine:spin", "path=pids")
    with open("/dev/full", "wb") as full, started(*arguments, cwd=mine, stdout=full, stderr=subprocess.PIPE) as process:
        assert process.stderr and process.wait(20) == 1
        assert process.stderr.read() == b"cjm-workers: cannot write to stdout: No space left on device\n"
    assert not (mine / "pids").exists() or gone([int(pid) for pid in (mine / "pids").read_text().split()])


@each_command
def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything(command: str, shell: Any, mine: Path) -> None:
    """As when another program has made the pipe non-blocking: the reader waits, and gets what a file gets."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    env = environment(CJM_WORKERS_CONFIG=str(mine / "home"))
    arguments = [sys.executable, "-c", MAIN, *command.split()]
    with subprocess.Popen(arguments, cwd=mine, env=env, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        wait_until(lambda: process.poll() is not None or unread(read) > 60_000)
        with os.fdopen(read, "rb") as reader:
            got = reader.read()
        assert process.stderr and (process.wait(20), process.stderr.read()) == (0, b"")
    if command.startswith("run mine"):
        (end,) = of("job:completed", [json.loads(line) for line in got.splitlines()])
        assert end["result"] == "x" * 300_000
    elif command == "plugins":
        assert {json.loads(line)["data"]["id"] for line in got.splitlines()} >= {"letters"}
    else:
        assert got.decode() == shell(f"cjm {command}").stdout


@pytest.mark.parametrize(
    "stdin, value, code",
    [
        (r"printf 'tok\r\n' |", "tok", 0),
        (r"printf 'tok\n' |", "tok", 0),
        (r"printf 'two\nlines\n' |", "two\nlines", 0),
        (r"printf '\r\n' |", None, 2),
        (r"printf '\377' |", None, 2),
        ("", None, 2),
    ],
)
def test_a_secret_is_read_from_stdin(stdin: str, value: "str | None", code: int, shell: Any) -> None:
    """Without the end of its line, also that of Windows; nothing, and no text, is refused with the usage."""
    done = shell(f"{stdin} cjm config set letters token")
    assert done.returncode == code and "Traceback" not in done.stderr and ("usage:" in done.stderr) == bool(code), said(done)
    done = shell("cjm config get letters")
    assert json.loads(done.stdout).get("token") == value, said(done)


def test_a_stdin_that_cannot_be_read_is_one_line(shell: Any) -> None:
    """One that is open for writing only, for instance."""
    done = shell("cjm config set letters token 0> out")
    assert done.returncode == 1 and done.stderr.startswith("cjm-workers: ") and len(done.stderr.splitlines()) == 1, said(done)


def test_a_secret_comes_late_through_a_non_blocking_pipe(mine: Path) -> None:
    """It is waited for."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    (mine / "home/plugins").mkdir(parents=True)
    (mine / "home/plugins/p.toml").write_text('[plugin]\ntarget = "mine:shout"\n')
    env = environment(CJM_WORKERS_CONFIG=str(mine / "home"))
    with subprocess.Popen([sys.executable, "-c", MAIN, "config", "set", "p", "token"], cwd=mine, env=env, stdin=read) as process:
        os.close(read)
        time.sleep(0.5)  # it waits by then
        os.write(write, b"tok\n")
        os.close(write)
        assert process.wait(20) == 0
    assert json.loads((mine / "home/config/p.json").read_text()) == {"token": "tok"}


# The home folder


def test_a_tilde_is_the_home_folder(shell: Any, mine: Path) -> None:
    """In CJM_WORKERS_CONFIG; and a relative XDG_CONFIG_HOME is ignored, as its specification asks."""
    (mine / "home").rename(mine / "cfg")
    done = shell("cjm config set letters y 1", HOME=str(mine), CJM_WORKERS_CONFIG="~/cfg")
    assert done.returncode == 0 and json.loads((mine / "cfg/config/letters.json").read_text())["y"] == 1, said(done)
    (mine / ".config").mkdir()
    (mine / "cfg").rename(mine / ".config/cjm-workers")
    done = shell("cjm config get letters y", HOME=str(mine), CJM_WORKERS_CONFIG="", XDG_CONFIG_HOME="relative")
    assert done.stdout == "1\n" and not (mine / "~").exists() and not (mine / "relative").exists(), said(done)


def test_without_a_home_folder_everything_works_but_writing(shell: Any) -> None:
    """As for an unknown uid in a container: what to set is said in one line."""
    env = {"HOME": "", "CJM_WORKERS_CONFIG": "~no-such-user/x"}
    done = shell("cjm run mine:shout text=hi; cjm plugins", **env)
    assert of("job:completed", events(done))[0]["result"] == "HI", said(done)
    for command in ("config set letters y 1", "config unset letters y", "plugins --disable letters"):
        done = shell(f"cjm {command}", **env)
        assert (done.returncode, done.stdout) == (1, "") and "set CJM_WORKERS_CONFIG" in done.stderr, said(done)
        assert len(done.stderr.splitlines()) == 1, said(done)


# Text that plugins make


@settings(deadline=None)
@given(st.text(), st.integers(1, 40))
def test_clean_text_is_one_printable_line(text: str, width: int) -> None:
    """Of any text whatsoever, and no wider than asked."""
    line = clean(text, width)
    assert (line.isprintable() or not line) and sum(map(columns, line)) <= width
    assert clean(clean(text)) == clean(text)


@settings(deadline=None)
@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner), max_leaves=5))
def test_json_loses_nothing_and_shows_nothing_odd(value: Any) -> None:
    """What cannot be printed is escaped."""
    line = to_json(value)
    assert line.isprintable() and json.loads(line) == value


EVIL = "\x1b]0;TITLE\x07\x1b[2J\x9b31m\nforged: line"


@pytest.mark.slow
def test_no_escape_of_a_plugin_reaches_a_terminal(tmp_path: Path) -> None:
    """Not from names, ids, versions, signatures, docstrings, schemas, results, errors, logs, prints, or the command line."""
    code = f"EVIL = {EVIL!r}\n" + (
        "class Default:\n    def __repr__(self): return EVIL\n"
        "def f(x=Default()):\n    import logging; logging.getLogger('x').warning(EVIL); print(EVIL)\n    return EVIL\n"
        "f.__doc__ = EVIL\n"
        "def g(): raise ValueError(EVIL)\n"
    )
    offer(tmp_path / "site", "evil", "evil = evil_plugin:f\nbad = evil_plugin:g\n", code)
    info = tmp_path / "site/evil-1.0.dist-info"
    info.rename(info.with_name("evil\x1b]0;TITLE\x07-1.0.dist-info"))
    env = {"PYTHONPATH": f"{PATH}:{tmp_path / 'site'}", "CJM_WORKERS_CONFIG": str(tmp_path / "home"), "NO_COLOR": "1"}
    (tmp_path / "home/plugins").mkdir(parents=True)
    (tmp_path / "home/plugins/bad\x1b]0;TITLE\x07.toml").write_text("no toml")
    done = run(sys.executable, "-c", MAIN, "config", "set", "evil", "key", EVIL, cwd=tmp_path, **env)
    assert done.returncode == 0, said(done)
    for args in (
        ["plugins"],
        ["run", "evil"],
        ["run", "bad"],
        ["run", "evil", "--json"],
        ["run", EVIL],
        ["run", "evil", EVIL],
        ["config", "get", "evil"],
        ["config", "get", "evil", "key"],
        ["config", "get", "evil", EVIL],
        ["config", EVIL, "evil"],
        ["check", f"evil_plugin:{EVIL}", "--as", "registry"],
        [EVIL],
    ):
        everything = "".join(Pty(*args, cwd=tmp_path, columns=200, **env).frames())
        ours = re.sub(r"\x1b\[\d+A\r\x1b\[J", "", everything)
        assert not re.search(r"[^\r\n]", "".join(c for c in ours if not c.isprintable())), (args, everything)
        assert args == ["config", "get", "evil", "key"] or not re.search(r"^forged: line", ours, re.MULTILINE), (args, ours)


def test_a_log_record_is_one_line(mine: Path) -> None:
    """In a pipe too: what follows a newline cannot pass for a line of the manager's."""
    (mine / "forge.py").write_text("import logging\ndef f(): logging.getLogger('x').warning('first\\nmanager: forged')\n")
    done = cli("run", "forge:f", cwd=mine)
    assert done.returncode == 0 and done.stderr.splitlines() == ["forge:f: first manager: forged"], said(done)


@pytest.mark.parametrize("value, colored", [(None, True), ("", True), ("1", False), ("0", False)])
def test_no_color_is_set_and_not_empty(value: "str | None", colored: bool, mine: Path) -> None:
    """As no-color.org has it."""
    env = {} if value is None else {"NO_COLOR": value}
    everything = "".join(Pty("run", "mine:shout", "text=hi", cwd=mine, **env).frames())
    assert "✓" in everything and bool(re.search(r"\x1b\[\d+m", everything)) == colored, everything


# What is imported


def test_python_dash_m_is_the_command(tmp_path: Path) -> None:
    """`python -m cjm_worker_protocols`."""
    done = run(sys.executable, "-m", "cjm_worker_protocols", "--version", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and done.stdout.startswith("cjm-worker-protocols"), said(done)
    done = run(sys.executable, "-m", "cjm_worker_protocols", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "usage: cjm-workers" in done.stderr and "transcribe" in done.stderr.lower(), said(done)


def test_the_list_of_plugins_imports_what_it_needs(tmp_path: Path) -> None:
    """No broadcaster, no resource manager, nothing for help; and a worker that describes a plugin imports no manager."""
    code = "import sys; from cjm_worker_protocols.cli import main; code = main(['plugins'])\n"
    code += "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    tops = {name.split(".")[0] for name in done.stderr.split()}
    parts = {".".join(name.split(".")[1:3]) for name in done.stderr.split() if name.startswith("cjm_worker_protocols.")}
    assert done.returncode == 0 and not tops & {"fastcore", "starlette", "psutil", "jsonschema"}, said(done)
    assert not parts & {"integrations.sse", "integrations.resources", "integrations.admission", "conformance.kit"}, parts
    code = "import sys, cjm_worker_protocols.worker.describe; print(*sys.modules)"
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    ours = {".".join(name.split(".")[1:2]) for name in done.stdout.split() if name.startswith("cjm_worker_protocols.")}
    assert ours == {"core", "worker"} and "asyncio" not in done.stdout.split(), said(done)


@pytest.mark.slow
@pytest.mark.parametrize("wanted, major", [("fastcore==1.14.*", 1), ("fastcore>=2", 2)])
def test_with_another_fastcore(wanted: str, major: int, tmp_path: Path) -> None:
    """The oldest that the command line is made for, and the newest: what installs today must work."""
    done = run(sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path / "other"), wanted, cwd=tmp_path)
    if done.returncode and OFFLINE.search(done.stdout + done.stderr):
        pytest.skip("installing another fastcore needs a package index")
    assert done.returncode == 0, said(done)
    there = {"PYTHONPATH": str(tmp_path / "other")}
    done = run(sys.executable, "-c", "import fastcore; print(fastcore.__version__)", cwd=tmp_path, **there)
    assert done.stdout.startswith(f"{major}."), said(done)
    tests = [str(ROOT / "tests/test_cli.py"), "-q", "-p", "no:cacheprovider", "-n", "0", "-m", "slow or not slow"]
    tests += ["-k", "help or wrong_command_line or full_disk"]
    done = run(sys.executable, "-m", "pytest", *tests, cwd=ROOT, CJM_WORKERS_TEST_PATH=there["PYTHONPATH"])
    assert done.returncode == 0 and int(re.findall(r"(\d+) passed", done.stdout)[0]) > 20, said(done)


# Signals


@pytest.mark.parametrize("moment", ["cli.entry", "cli.commands", "core.jobs", "cli.session", "engines.local", "integrations.sse"])
def test_ctrl_c_while_it_starts_is_quiet(moment: str, mine: Path) -> None:
    """At whatever import it comes: no traceback, and the status that a shell expects."""
    code = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nclass Spy:\n    def find_spec(name, *_):\n"
    code += f"        if name == 'cjm_worker_protocols.{moment}': os.kill(os.getpid(), signal.SIGINT)\nsys.meta_path.insert(0, Spy)\n"
    done = run(sys.executable, "-c", code + MAIN, "run", "mine:spin", "path=pids", cwd=mine, PYTHONPATH=str(ROOT))
    assert done.returncode in (-signal.SIGINT, 130) and done.stderr == "", said(done)
    assert not (mine / "pids").exists() or gone([int(pid) for pid in (mine / "pids").read_text().split()])


def test_ctrl_c_in_the_installed_script_is_quiet(tmp_path: Path) -> None:
    """The script that an installer makes does things before it calls the command. An app that imports the command keeps its Ctrl-C."""
    code = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsys.argv[0] = {!r}\n"
    code += "from cjm_worker_protocols.cli import main\nos.kill(os.getpid(), signal.SIGINT)\n"
    done = run(sys.executable, "-c", code.format("/usr/bin/cjm-workers"), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, ""), said(done)
    done = run(sys.executable, "-c", code.format("app.py"), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "KeyboardInterrupt" in done.stderr, said(done)


def started(*args: str, cwd: Path, stdout: Any = subprocess.DEVNULL, stderr: Any = None) -> "subprocess.Popen[bytes]":
    """The command, running."""
    command, null = [sys.executable, "-c", MAIN, *args], subprocess.DEVNULL
    return subprocess.Popen(command, cwd=cwd, env=environment(), stdin=null, stdout=stdout, stderr=stderr, start_new_session=True)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(pids: "list[int]", seconds: float = 3) -> bool:
    """Whether all have ended, or do so soon."""
    wait_until(lambda: not any(map(alive, pids)), seconds)
    return True


def family(process: "subprocess.Popen[bytes]", pids: Path) -> "list[int]":
    """All processes of a running command: workers, their children, the guardian."""
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    return [p.pid for p in psutil.Process(process.pid).children(recursive=True)] + list(map(int, pids.read_text().split()))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_no_process_behind(number: signal.Signals, code: int, mine: Path) -> None:
    """In the middle of a job: its end is told, all processes are gone, and the exit code is the shell's for that signal."""
    with (mine / "out").open("wb") as out, started("run", "mine:spin", "path=pids", cwd=mine, stdout=out) as process:
        pids = family(process, mine / "pids")
        assert len(pids) >= 4
        os.kill(process.pid, number)
        assert process.wait(10) == code
    assert gone(pids)
    found = [json.loads(line) for line in (mine / "out").read_text().splitlines()]
    assert len(of("job:cancelled", found)) == 1
    assert found[-1]["event"] == "summary" and found[-1]["data"]["exit_code"] == code


@speech
@pytest.mark.slow
def test_ctrl_c_during_the_demo(tmp_path: Path) -> None:
    """Many files, two workers, a queue: Ctrl-C ends them all."""
    files = [str(sample_recording())] * 20
    with started("demo", *files, "--workers", "2", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if b"job:chunk" in line:
                break
        pids = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
        assert len(pids) >= 2
        os.kill(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert (process.wait(10), process.stderr.read()) == (130, b"")
    assert gone(pids) and rest.count(b"job:cancelled") >= 18


def test_a_second_ctrl_c_does_not_wait(mine: Path) -> None:
    """For a plugin that will not stop: the command ends at once, and the guardian ends the rest."""
    code = "import os, signal, time\ndef deaf(path):\n    signal.signal(15, signal.SIG_IGN)\n"
    code += "    open(path, 'w').write(f'{os.getpid()} {os.getpid()}')\n    while True: time.sleep(1)\n"
    (mine / "rude.py").write_text(code)
    with started("run", "rude:deaf", "path=pids", cwd=mine) as process:
        pids = family(process, mine / "pids")
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)  # a command that does not wait has ended by then
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(1.5) == 130
    assert gone(pids)


def test_killed_it_leaves_no_process_behind(mine: Path) -> None:
    """Even by SIGKILL, which it cannot notice."""
    with started("run", "mine:spin", "path=pids", cwd=mine) as process:
        pids = family(process, mine / "pids")
        process.kill()
        process.wait(5)
    assert gone(pids)


def test_a_reader_that_leaves_ends_it_quietly(mine: Path) -> None:
    """`cjm-workers run … | head -1` ends with the status of a broken pipe, and says nothing."""
    with started("run", "mine:spin", "path=pids", cwd=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        pids = family(process, mine / "pids")
        process.stdout.close()
        assert process.wait(10) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
    assert gone(pids)


def test_a_reader_that_stops_reading_does_not_stop_ctrl_c(mine: Path) -> None:
    """A pager that shows the first page keeps the pipe full; Ctrl-C works all the same."""
    code = MINE + "\ndef flood(path):\n    open(path, 'w').write(f'{os.getpid()} {os.getpid()}')\n    while True: yield 'x' * 1000\n"
    (mine / "mine.py").write_text(code)
    with started("run", "mine:flood", "path=pids", cwd=mine, stdout=subprocess.PIPE) as process:
        pids = family(process, mine / "pids")
        wait_until(lambda: unread(process.stdout) > 60_000)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
    assert gone(pids)


# A terminal


class Pty:
    """A command in a terminal of its own."""

    def __init__(self, *args: str, cwd: Path, columns: int = 100, **env: str) -> None:
        self.fd, theirs = pty.openpty()
        environ = environment(COLUMNS=str(columns), LINES="40", **env)
        command = [sys.executable, "-c", MAIN, *args]
        self.process = subprocess.Popen(command, cwd=cwd, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def frames(self, seconds: float = 60) -> "Iterator[str]":
        """What it writes, as it comes, until it ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            if not data:
                self.process.wait(10)
                os.close(self.fd)
                return
            yield data.decode(errors="replace")
        self.process.kill()
        pytest.fail("it took too long")


def shown(frames: str) -> str:
    """What is on the screen in the end, of a program that only ever goes up and wipes what is below."""
    lines: "list[str]" = [""]
    row = 0
    for part in re.split(r"(\x1b\[\d*[A-Za-z]|\r?\n|\r)", frames):
        if part in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
            row -= int(up[1])
        elif part == "\x1b[J":
            lines[row:] = [""]
        elif part != "\r" and not part.startswith("\x1b["):
            lines[row] += part
    return "\n".join(lines)


@speech
def test_a_terminal_shows_it_live(tmp_path: Path) -> None:
    """The partial text and the progress bar come while it works; in the end stay the result and what the integrations saw."""
    terminal = Pty("demo", cwd=tmp_path)
    frames = list(terminal.frames())
    everything, last = "".join(frames), shown("".join(frames))
    assert terminal.process.returncode == 0, everything
    percents = [int(p) for p in re.findall(r"(\d+)%  [\d.]+ of 7\.6 s", everything)]
    assert len(set(percents)) > 10 and percents == sorted(percents)
    assert "━" in everything and re.search(r"worker \d+, \d+ MB", everything)
    live = [text for text in re.findall(r"    ([a-z ]+)\x1b", everything)]
    assert "the model is loaded once and then it answers many questions" in live and len(set(live)) > 10
    assert "✓ workers.wav" in last and "━" not in last
    for sentence in ("the model is loaded once and then it answers many questions", "if one of the workers dies the others"):
        assert last.count(sentence) == 1
    assert re.search(r"registry +pocketsphinx is cjm_worker_protocols.plugins.speech:PocketSphinx", last)
    assert re.search(r"resource manager +worker \d+ had 1 process, \d+ threads?, \d+ MB, [\d.]+ s of CPU time", last)
    assert re.search(r"with pocketsphinx loaded it was \d+ MB at most", last)
    assert re.search(r"broadcaster +1 job:queued, .*\d+ job:chunk, 1 job:completed", last)
    assert re.search(r"\d+ events sent, 0 dropped", last)


def test_a_terminal_shows_failures_and_what_is_printed(mine: Path) -> None:
    """A traceback, and no escape sequence that a plugin made."""
    terminal = Pty("run", "mine:fail", cwd=mine, NO_COLOR="1")
    everything = "".join(terminal.frames())
    assert terminal.process.returncode == 1 and "✕ mine:fail" in everything and "ValueError: no" in everything
    assert "in fail" in everything and "\x1b[31m" not in everything
    terminal = Pty("run", "mine:shout", "text=hi", cwd=mine)
    last = shown("".join(terminal.frames()))
    assert "mine:shout: printed in the worker" in last and "    HI" in last


def test_a_narrow_terminal_is_enough(mine: Path) -> None:
    """No live line is wider than the screen."""
    terminal = Pty("run", "mine:count", "n=3000", cwd=mine, columns=30, NO_COLOR="1")
    everything = "".join(terminal.frames())
    assert terminal.process.returncode == 0
    live = [line for line in re.split(r"\x1b\[\d*[AJ]|\r?\n|\r", everything) if "─" in line or "worker " in line]
    assert live and all(len(line) < 30 for line in live if " had " not in line and "1 worker" not in line), live


def test_ctrl_c_in_a_terminal(mine: Path) -> None:
    """The key, as the terminal sends it."""
    terminal = Pty("run", "mine:spin", "path=pids", cwd=mine)
    pids = family(terminal.process, mine / "pids")
    os.kill(terminal.process.pid, signal.SIGINT)
    last = shown("".join(terminal.frames()))
    assert terminal.process.returncode == 130 and "⊘ mine:spin" in last and "cancelled" in last
    assert gone(pids)


def test_plugins_in_a_terminal(site: Path, tmp_path: Path) -> None:
    """A list for people."""
    terminal = Pty("plugins", "--timeout", "2", cwd=tmp_path, columns=200, PYTHONPATH=f"{PATH}:{site}")
    last = shown("".join(terminal.frames()))
    assert terminal.process.returncode == 0
    assert "good(text, times=2)\n    Says it again.\n    good_plugin:run, from good 1.0" in last
    assert "broken cannot be used\n    ModuleNotFoundError: No module named 'no_such_module'" in last
    assert "hang cannot be used\n    importing it takes longer than 2 s" in last


def test_a_dumb_terminal_gets_lines(mine: Path) -> None:
    """Where the cursor cannot move, there are JSON lines."""
    terminal = Pty("run", "mine:shout", "text=hi", cwd=mine, TERM="dumb")
    lines = [line for line in "".join(terminal.frames()).splitlines() if line.startswith("{")]
    assert of("job:completed", [json.loads(line) for line in lines])[0]["result"] == "HI"
