"""The conformance kit as people meet it: one line in a test file, and a command."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from repo import ROOT, run, said

from cjm_worker_protocols.conformance import CHECKS
from cjm_worker_protocols.conformance.run import DEEP
from cjm_worker_protocols.extensions.protocols import ResourceManagerProtocol

MAIN = "import sys; from cjm_worker_protocols.cli import main; sys.exit(main())"
APP = '''
from copy import deepcopy
from cjm_worker_protocols.extensions.protocols import UNSET

class Right:
    """A resource manager as it should be."""

    def __init__(self):
        self.workers = {}

    def register_worker(self, pid, worker_type):
        self.workers[pid] = {}

    def unregister_worker(self, pid):
        self.workers.pop(pid, None)

    def update_worker_state(self, pid, status=UNSET, job_id=UNSET, plugin_name=UNSET, plugin_id=UNSET,
                            loaded_plugin_resource=UNSET, config=UNSET):
        given = dict(status=status, job_id=job_id, plugin_name=plugin_name, plugin_id=plugin_id,
                     loaded_plugin_resource=loaded_plugin_resource, config=deepcopy(config))
        if pid in self.workers:
            self.workers[pid].update({k: v for k, v in given.items() if v is not UNSET})

class Forgetful(Right):
    def unregister_worker(self, pid):
        del self.workers[pid]

class Sharing(Right):
    def update_worker_state(self, pid, status=UNSET, job_id=UNSET, plugin_name=UNSET, plugin_id=UNSET,
                            loaded_plugin_resource=UNSET, config=UNSET):
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource)
        if pid in self.workers and config is not UNSET:
            self.workers[pid]["config"] = config

class Both(Sharing, Forgetful):
    pass

class Needy(Right):
    def __init__(self, size):
        raise AssertionError

def fixture():
    yield Right()

def probe(manager, pid):
    return manager.workers.get(pid)

def wrong_probe(manager, pid):
    return 42

async def slow_probe(manager, pid):
    return manager.workers.get(pid)

print("the app is imported")
right, nothing = Right(), 42
'''
IDS = [id for id, c in CHECKS.items() if c.protocol is ResourceManagerProtocol]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with a user's module."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


# One line in a test file


def ended(app: Path, line: str, *args: str) -> "tuple[dict[str, tuple[str, str]], str]":
    """How each test of a file with one line ended, by the check's id, and all that pytest said."""
    (app / "test_app.py").write_text(
        "from app import *\nfrom cjm_worker_protocols.conformance.pytest import conformance_tests\n" + line + "\n"
    )
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml", "-q", *args, "test_app.py")
    done = run(*command, cwd=app, PYTHONPATH=str(ROOT))
    found = {}
    for case in ElementTree.parse(app / "report.xml").iter("testcase"):
        kind = next((child for child in case if child.tag in ("failure", "skipped", "error")), None)
        text = "" if kind is None else (kind.get("message") or "") + (kind.text or "")
        name = re.fullmatch(r"test_it\[(.*)\]", case.get("name", ""))
        assert name, case.get("name")
        found[name[1]] = ("passed" if kind is None else kind.tag, text)
    return found, done.stdout + done.stderr


def test_one_line_makes_one_test_for_each_check(app: Path) -> None:
    """Ids of tests are those of checks; a right implementation passes all of them, without a warning."""
    found, text = ended(app, "test_it = conformance_tests(Right, 'resources', probe=probe)", "-W", "error")
    assert list(found) == [*IDS, "kit"], text
    assert {how for how, _ in found.values()} == {"passed"}, text


def test_a_broken_rule_fails_its_test_with_the_finding(app: Path) -> None:
    """The failure is the finding: rule, what was seen, after which calls, where, and what to do; and nothing of the kit's own code."""
    found, text = ended(app, "test_it = conformance_tests(Forgetful, 'resources', probe=probe)")
    failed = {id: said for id, (how, said) in found.items() if how == "failure"}
    assert list(failed) == ["resources.unregister_idempotent"], text
    said = failed["resources.unregister_idempotent"]
    line = APP.splitlines().index("class Forgetful(Right):") + 2
    for part in ("KeyError", "unregister_worker(", "pop(pid, None)", f"app.py:{line}"):
        assert part in said
    assert "conformance/" not in said and "assert" not in said


def test_a_warning_warns(app: Path) -> None:
    """A rule that will bite later passes its test, with a warning; `-W error` makes it fail."""
    line = "test_it = conformance_tests(Sharing, 'resources', probe=probe)"
    found, text = ended(app, line)
    assert {how for how, _ in found.values()} == {"passed"}
    assert "ConformanceWarning: warning: resources.config_is_copied" in text
    strict, _ = ended(app, line, "-W", "error::cjm_worker_protocols.conformance.pytest.ConformanceWarning")
    assert [id for id, (how, _) in strict.items() if how != "passed"] == ["resources.config_is_copied"]


@pytest.mark.slow
def test_what_cannot_be_seen_is_skipped_with_the_reason(app: Path) -> None:
    """Without a probe nothing is claimed."""
    found, _ = ended(app, "test_it = conformance_tests(right, 'resources')")
    assert found["resources.snapshot"][0] == "skipped" and "needs a probe" in found["resources.snapshot"][1]
    assert found["resources.unregister_idempotent"][0] == "passed"


def test_waivers_in_a_test_file(app: Path) -> None:
    """A waived rule is skipped with its reason; a waiver for a rule that holds, or for none, fails."""
    waive = "{'resources.unregister_idempotent': 'we never do', 'resources.snapshot': 'why not', 'resources.snapshots': 'what'}"
    found, _ = ended(app, f"test_it = conformance_tests(Forgetful, 'resources', probe=probe, waive={waive})")
    assert found["resources.unregister_idempotent"][0] == "skipped" and "waived: we never do" in found["resources.unregister_idempotent"][1]
    assert found["resources.snapshot"][0] == "failure" and "Remove the waiver" in found["resources.snapshot"][1]
    assert found["kit"][0] == "failure" and "'resources.snapshot'" in found["kit"][1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("Needy, 'resources'", "FactoryError: <class 'app.Needy'> made nothing to check: TypeError: Needy.__init__() missing 1"),
        pytest.param(
            "Right, 'resources', probe=wrong_probe",
            "ProbeError: the probe, asked for a worker: expected a mapping",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_checked_fails_every_test_in_a_line(app: Path, arguments: str, message: str) -> None:
    """One that is chosen with `-k` too; nothing of the kit's own code is shown."""
    found, text = ended(app, f"test_it = conformance_tests({arguments})")
    assert list(found) == [*IDS, "kit"] and {how for how, _ in found.values()} == {"failure"}
    assert all(message in said for _, said in found.values()), text
    assert "conformance/" not in text and "Traceback" not in text


@pytest.mark.slow
def test_a_waiver_without_a_reason_fails_in_a_test_file(app: Path) -> None:
    """As it fails elsewhere."""
    waived = "test_it = conformance_tests(Sharing, 'resources', probe=probe, waive={'resources.config_is_copied': ''})"
    found, _ = ended(app, waived, "-k", "config_is_copied")
    assert found["resources.config_is_copied"][0] == "failure" and "it gives no reason" in found["resources.config_is_copied"][1]


@pytest.mark.slow
def test_one_check_can_be_chosen(app: Path) -> None:
    """`-k` takes ids."""
    found, _ = ended(app, "test_it = conformance_tests(Right, 'resources', probe=probe)", "-k", "resources.clear")
    assert list(found) == [id for id in IDS if id.startswith("resources.clear")]


@pytest.mark.slow
def test_the_search_is_one_more_test(app: Path) -> None:
    """`deep=True` adds the check that searches, and its finding is a sequence of calls."""
    found, _ = ended(app, "test_it = conformance_tests(Forgetful, 'resources', probe=probe, deep=True)", "-k", "any_sequence or kit")
    assert list(found) == ["resources.any_sequence", "kit"]
    assert found["resources.any_sequence"][0] == "failure" and "unregister_worker(" in found["resources.any_sequence"][1]


# The command


def cli(app: Path, *args: str) -> Any:
    """Run `cjm-workers check` in the user's folder."""
    return run(sys.executable, "-c", MAIN, "check", *args, cwd=app, timeout=60, PYTHONPATH=str(ROOT))


def test_check_says_that_all_is_well(app: Path) -> None:
    """Exit code 0, and the counts; what the user's module prints goes elsewhere."""
    done = cli(app, "app:Right", "--as", "resources", "--probe", "app:probe")
    assert (done.returncode, done.stdout) == (0, f"app:Right conforms to ResourceManagerProtocol: {len(IDS)} passed\n"), said(done)
    assert done.stderr == "the app is imported\n"


@pytest.mark.parametrize("target", ["app:right", pytest.param("app:Right", marks=pytest.mark.slow)])
def test_check_takes_factories_and_objects(app: Path, target: str) -> None:
    """And probes of either kind."""
    assert cli(app, target, "--as", "resources", "--probe", "app:slow_probe").returncode == 0


def test_check_says_what_to_mend(app: Path) -> None:
    """Exit code 1, and findings as text."""
    done = cli(app, "app:Forgetful", "--as", "resources", "--probe", "app:probe")
    assert done.returncode == 1 and "error: resources.unregister_idempotent" in done.stdout and "    mend      " in done.stdout, said(done)


@pytest.mark.slow
def test_check_says_what_will_bite_later(app: Path) -> None:
    """A warning is printed, and is no failure; the help says so."""
    done = cli(app, "app:Sharing", "--as", "resources", "--probe", "app:probe")
    assert done.returncode == 0 and "warning: resources.config_is_copied" in done.stdout and "1 warned" in done.stdout, said(done)
    assert "warnings" in cli(app, "--help").stdout


def test_check_in_json(app: Path) -> None:
    """One JSON object, whatever was found, with the fields that are promised."""
    done = cli(app, "app:Forgetful", "--as", "resources", "--probe", "app:probe", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and list(found) == ["target", "protocol", "ok", "counts", "findings"]
    assert list(found["counts"]) == ["passed", "failed", "warned", "skipped", "blocked", "not_observable"]
    assert sum(found["counts"].values()) == len(IDS)
    assert (found["target"], found["protocol"], found["ok"]) == ("app:Forgetful", "ResourceManagerProtocol", False)
    (finding,) = found["findings"]
    assert list(finding) == ["id", "level", "member", "expected", "actual", "witness", "fix", "file", "line"]
    assert (finding["id"], finding["level"], finding["member"]) == ("resources.unregister_idempotent", "error", "unregister_worker")
    assert Path(finding["file"]) == app / "app.py" and all(finding.values())
    assert json.loads(cli(app, "app:Right", "--as", "resources", "--json").stdout)["ok"] is True


@pytest.mark.slow
def test_check_deep(app: Path) -> None:
    """`--deep` makes one check more."""
    done = cli(app, "app:Right", "--as", "resources", "--probe", "app:probe", "--deep")
    assert done.returncode == 0 and f"{len(IDS) + 1} passed" in done.stdout, said(done)


@pytest.mark.slow
def test_waivers_and_warnings_reach_the_search(app: Path) -> None:
    """With `--deep`, what is waived, and what only warns, is no error."""
    waiver = ("--waive", "resources.unregister_idempotent=we never do")
    done = cli(app, "app:Both", "--as", "resources", "--probe", "app:probe", "--deep", *waiver)
    assert done.returncode == 0 and "any_sequence" not in done.stdout, said(done)


def test_check_with_waivers(app: Path) -> None:
    """`--waive` may be given more than once."""
    waivers = ("--waive", "resources.unregister_idempotent=we never do", "--waive", "resources.config_is_copied=a=b")
    done = cli(app, "app:Forgetful", "--as", "resources", "--probe", "app:probe", *waivers)
    assert done.returncode == 1 and "Remove the waiver." in done.stdout
    assert "skipped: unregister_idempotent: waived: we never do" in done.stdout
    assert cli(app, "app:Forgetful", "--as", "resources", "--probe", "app:probe", *waivers[:2]).returncode == 0


@pytest.mark.parametrize(
    "args, message",
    [
        pytest.param(["app"], "the following arguments are required: --as", marks=pytest.mark.slow),
        pytest.param(["app", "--as", "resources"], "expected module:name (got 'app')", marks=pytest.mark.slow),
        (["nope:Right", "--as", "resources"], "nope:Right cannot be imported: ModuleNotFoundError: No module named 'nope'"),
        pytest.param(["app:Wrong", "--as", "resources"], "app:Wrong cannot be imported: AttributeError", marks=pytest.mark.slow),
        pytest.param(["app:Right", "--as", "resource"], "got 'resource'", marks=pytest.mark.slow),
        (["app:nothing", "--as", "resources"], "app:nothing: expected a factory, or an object with register_worker"),
        pytest.param(["app:Needy", "--as", "resources"], "made nothing to check: TypeError", marks=pytest.mark.slow),
        pytest.param(
            ["app:Right", "--as", "resources", "--probe", "app:wrong_probe"],
            "expected a mapping, or None",
            marks=pytest.mark.slow,
        ),
        (["app:Right", "--as", "resources", "--probe", "app:nope"], "app:nope cannot be imported"),
        pytest.param(
            ["app:Right", "--as", "resources", "--waive", "resources.snapshot"],
            "--waive: expected ID=reason (got 'resources.snapshot')",
            marks=pytest.mark.slow,
        ),
        (["app:Right", "--as", "resources", "--waive", "resources.snapshot= "], "--waive: expected ID=reason (got 'resources.snapshot= ')"),
        pytest.param(["app:fixture", "--as", "resources"], "do not `yield` it", marks=pytest.mark.slow),
    ],
)
def test_check_used_wrongly(app: Path, args: "list[str]", message: str) -> None:
    """Exit code 2 and one clear line."""
    done = cli(app, *args)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, said(done)
    assert last.startswith("cjm-workers check: error: ") and message in last, said(done)


# The pages of all checks


def test_the_catalogue_has_every_check() -> None:
    """With its level, its rule, why it is one, and an example of what the kit says; and the overview counts them."""
    made = runpy.run_path(str(ROOT / "tools/catalogue.py"))
    entries = {text.partition('"')[0]: text for text in made["written"]().split('<details id="')[1:]}
    checks = made["checks"]()
    assert sorted(entries) == sorted(check.id for check in checks)
    for check in checks:
        text = '<details id="' + entries[check.id]
        assert text.startswith(f"{made['head'](check)}\n\n{check.why}\n") and "\ngot " in text, f"{check.id}: run python tools/catalogue.py"
    overview = made["PAGES"].with_suffix(".ipynb").read_text(encoding="utf-8")
    for name, (_, what) in made["TITLES"].items():
        errors, warnings = (sum(c.id.startswith(name) and c.level == level for c in checks) for level in ("error", "warning"))
        assert f"| {what} | {errors} | {warnings} |" in overview


@pytest.mark.slow
def test_the_catalogue_is_fresh() -> None:
    """Its examples are what the kit says of mutants now."""
    made = runpy.run_path(str(ROOT / "tools/catalogue.py"))
    found = made["examples"]()
    for name in made["TITLES"]:
        assert made["notebook"](name, found) == made["page"](name).read_text(encoding="utf-8"), "run python tools/catalogue.py"
    assert made["written"]().count("\ngot ") == len(CHECKS) + len(DEEP)
