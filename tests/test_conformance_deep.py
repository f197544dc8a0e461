"""`check(…, deep=True)`: a random search finds the faults of resource managers and broadcasters on its own, and says them shortly."""

import asyncio
import copy
import json
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from repo import PACKAGE, ROOT, python, said

from cjm_worker_protocols.conformance import CHECKS, check, check_async
from cjm_worker_protocols.conformance.checks import Broken, FactoryError, Limits, NotObservable, ProbeError
from cjm_worker_protocols.conformance.run import DEEP
from cjm_worker_protocols.conformance.silence import muted
from cjm_worker_protocols.conformance.subject import Subject
from cjm_worker_protocols.extensions.protocols import UNSET

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -e '.[dev]'")
from cjm_worker_protocols.conformance.any_clients import any_clients  # noqa: E402
from cjm_worker_protocols.conformance.any_workers import any_workers  # noqa: E402
from cjm_worker_protocols.conformance.deep import deep_checks  # noqa: E402
from cjm_worker_protocols.conformance.search import Search, configuration, no_notes  # noqa: E402

FIELDS = ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config")


class Manager:
    """As it should be."""

    def __init__(self) -> None:
        self.workers: dict[int, dict[str, Any]] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.workers[pid] = {"worker_type": worker_type, "status": "starting", **dict.fromkeys(FIELDS[1:])}

    def unregister_worker(self, pid: int) -> None:
        self.workers.pop(pid, None)

    def update_worker_state(
        self, pid: int, status: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
        loaded_plugin_resource: Any = UNSET, config: Any = UNSET,
    ) -> None:  # fmt: skip
        values = dict(zip(FIELDS, (status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)))
        self.store(pid, {name: copy.deepcopy(value) for name, value in values.items() if value is not UNSET})

    def store(self, pid: int, given: "dict[str, Any]") -> None:
        if pid in self.workers:
            self.workers[pid].update(given)


def look(manager: Any, pid: int) -> Any:
    """The probe."""
    return manager.workers.get(pid)


class CannotClear(Manager):
    def store(self, pid: int, given: "dict[str, Any]") -> None:
        super().store(pid, {name: value for name, value in given.items() if value is not None})


class EmptyIsMissing(Manager):
    def store(self, pid: int, given: "dict[str, Any]") -> None:
        super().store(pid, {name: value for name, value in given.items() if value or value is None})


class OmittedIsCleared(Manager):
    def store(self, pid: int, given: "dict[str, Any]") -> None:
        super().store(pid, {**dict.fromkeys(FIELDS), **given})


class UnknownIsMade(Manager):
    def store(self, pid: int, given: "dict[str, Any]") -> None:
        self.workers.setdefault(pid, dict.fromkeys(FIELDS)).update(given)


class UnregisterRaises(Manager):
    def unregister_worker(self, pid: int) -> None:
        if pid not in self.workers and self.workers:
            raise KeyError(pid)
        self.workers.pop(pid, None)


class RegisterKeeps(Manager):
    def register_worker(self, pid: int, worker_type: str) -> None:
        if pid not in self.workers:
            super().register_worker(pid, worker_type)


class Remembers(Manager):
    """The config outlives the worker."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: dict[int, Any] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.workers[pid]["config"] = self.configs.get(pid)

    def store(self, pid: int, given: "dict[str, Any]") -> None:
        super().store(pid, given)
        if pid in self.workers:
            self.configs[pid] = self.workers[pid]["config"]


class OneForAll(Manager):
    """The last status is that of all workers."""

    def store(self, pid: int, given: "dict[str, Any]") -> None:
        super().store(pid, given)
        if pid in self.workers and "status" in given:
            for worker in self.workers.values():
                worker["status"] = given["status"]


class ForgetsAll(Manager):
    def unregister_worker(self, pid: int) -> None:
        if pid in self.workers:
            self.workers.clear()


class NeverForgets(Manager):
    def unregister_worker(self, pid: int) -> None:
        pass


class Aliased(Manager):
    def update_worker_state(self, pid: int, **given: Any) -> None:  # type: ignore[override]
        self.store(pid, given)


class Swapped(Manager):
    def store(self, pid: int, given: "dict[str, Any]") -> None:
        if "plugin_name" in given and "plugin_id" in given:
            given = {**given, "plugin_name": given["plugin_id"], "plugin_id": given["plugin_name"]}
        super().store(pid, given)


class Feed:
    """A client."""

    def __init__(self, broadcaster: "Broadcaster") -> None:
        self.broadcaster, self.events = broadcaster, list[Any]()

    def received(self) -> "list[Any]":
        return copy.deepcopy(self.events)

    def close(self) -> None:
        if self in self.broadcaster.clients:
            self.broadcaster.clients.remove(self)


class Broadcaster:
    """As it should be."""

    def __init__(self) -> None:
        self.clients: list[Feed] = []

    def connect(self) -> Feed:
        self.clients.append(client := Feed(self))
        return client

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients:
            client.events.append((event_type, copy.deepcopy(data)))


def connect(broadcaster: Any) -> Any:
    """The probe."""
    return broadcaster.connect()


class LosesAtOnce(Broadcaster):
    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in list(self.clients):
            before = list(client.events)
            await asyncio.sleep(0)
            client.events = [*before, (event_type, copy.deepcopy(data))]


class Twice(Broadcaster):
    """What comes at the same time as another is sent again."""

    busy = 0

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        self.busy += 1
        await asyncio.sleep(0)
        for _ in range(min(self.busy, 2)):
            await super().broadcast(event_type, data)
        self.busy -= 1


class FirstOnly(Broadcaster):
    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients[:1]:
            client.events.append((event_type, copy.deepcopy(data)))


class Locked(Broadcaster):
    """A broadcast that is cancelled never gives its lock back."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        await self.lock.acquire()
        await asyncio.sleep(0)
        await super().broadcast(event_type, data)
        self.lock.release()


class Unforgetting(Broadcaster):
    """A client that has left gets events all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: list[Feed] = []

    def connect(self) -> Feed:
        self.ever.append(client := super().connect())
        return client

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.ever:
            client.events.append((event_type, copy.deepcopy(data)))


class Merged(Broadcaster):
    """The same event again is not sent."""

    last: Any = None

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        if self.last != (event_type, data):
            await super().broadcast(event_type, data)
        self.last = (event_type, copy.deepcopy(data))


class Stamps(Broadcaster):
    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        data["type"] = event_type
        await super().broadcast(event_type, data)


class StampsLate(Broadcaster):
    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        await super().broadcast(event_type, data)
        data["type"] = event_type


class NewestFirst(Broadcaster):
    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients:
            client.events.insert(0, (event_type, copy.deepcopy(data)))


class Keeps(Broadcaster):
    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients:
            client.events.append((event_type, data))


class Backwards(Broadcaster):
    """What comes at the same time makes what came before it wait."""

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients:
            client.events.insert(max(0, len(client.events) - (event_type == "kit:a")), (event_type, copy.deepcopy(data)))


class Blocks(Broadcaster):
    """It waits for a client that has much to read."""

    def connect(self) -> Feed:
        self.clients.append(client := Slow(self))
        return client

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients:
            assert isinstance(client, Slow)
            while client.unread >= 4:
                await asyncio.sleep(0.001)
            client.unread += 1
            client.events.append((event_type, copy.deepcopy(data)))


class Slow(Feed):
    """A client that has not read all."""

    unread = 0

    def received(self) -> "list[Any]":
        self.unread = 0
        return super().received()


class SkipsAfterLeave(Broadcaster):
    """When a client has left, another misses the next event."""

    skips = False

    def connect(self) -> Feed:
        client = super().connect()
        close = client.close

        def leave() -> None:
            close()
            self.skips = bool(self.clients)

        client.close = leave  # type: ignore[method-assign]
        return client

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        for client in self.clients[self.skips :]:
            client.events.append((event_type, copy.deepcopy(data)))
        self.skips = False


def alone(target: Callable[[], Any], *excused: str) -> "tuple[str, str] | None":
    """What the search finds without any other check: the witness, and what was seen."""
    with muted():
        if issubclass(target, Manager):  # type: ignore[arg-type]
            it = Subject(target(), look, excused=frozenset(excused))
            try:
                any_workers(it, target)
            except Broken as e:
                return it.trail.witness, e.actual
            return None
        it = Subject(target(), connect, excused=frozenset(excused))
        try:
            asyncio.run(any_clients(it, target))
        except Broken as e:
            return it.trail.witness, e.actual
        return None


REGISTER = "register_worker(pid=PID_1, worker_type='transcription')"


def most_slow(quick: "set[type]", *cases: Any) -> "list[Any]":
    """Cases of which a plain run makes only some."""
    return [pytest.param(*case, id=case[0].__name__, marks=[] if case[0] in quick else [pytest.mark.slow]) for case in cases]


@pytest.mark.parametrize(
    ("mutant", "calls", "essential", "seen"),
    most_slow(
        {CannotClear, EmptyIsMissing, UnknownIsMade, NeverForgets, Swapped},
        (CannotClear, 3, "=None", "by the contract it is None"),
        (EmptyIsMissing, 2, "job_id='')", "job_id of worker PID_1 is None, and by the contract it is ''"),
        (OmittedIsCleared, 2, "update_worker_state(pid=PID_1)", "status of worker PID_1 is None, and by the contract it is 'starting'"),
        (UnknownIsMade, 1, "update_worker_state(pid=PID_1)", "by the contract there is none"),
        (UnregisterRaises, 2, "unregister_worker(", "it raised KeyError"),
        (RegisterKeeps, 3, REGISTER, "by the contract it is"),
        (Remembers, 3, "config=", "config of worker PID_1 is"),
        (OneForAll, 3, "register_worker(pid=PID_2, worker_type='transcription'); update_worker_state(", "status of worker"),
        (ForgetsAll, 3, "unregister_worker(", "is not there, and by the contract it is"),
        (NeverForgets, 2, f"{REGISTER}; unregister_worker(PID_1)", "by the contract there is none"),
        (Aliased, 3, "the caller changes its config", "'changed': True"),
        (Swapped, 2, "plugin_name=", "plugin_name of worker PID_1 is"),
    ),
)
def test_finds_the_fault_of_a_resource_manager(mutant: type, calls: int, essential: str, seen: str) -> None:
    """The shortest sequence has few calls, and the one that matters among them."""
    found = alone(mutant)
    assert found, "nothing was found"
    witness, actual = found
    assert len(witness.split("; ")) <= calls and essential in witness and seen in actual, found


@pytest.mark.parametrize(
    ("mutant", "calls", "essential", "seen"),
    most_slow(
        {Stamps, Unforgetting},
        (LosesAtOnce, 2, "gather(broadcast('kit:a', {}), broadcast('kit:a', {}))", "client 1 has ['kit:a'], and by the contract"),
        (Twice, 2, "gather(", "['kit:a', 'kit:a', 'kit:a'"),
        (FirstOnly, 3, "client 2 joins; broadcast('kit:a', {})", "client 2 has [], and by the contract ['kit:a']"),
        (Locked, 3, ".cancel() after ", "it does not return"),
        (Unforgetting, 3, "client 1 leaves", "client 1 has left, and got ('kit:a', {})"),
        (Merged, 3, "broadcast('kit:a', {})", "and by the contract ['kit:a', 'kit:a']"),
        (Stamps, 1, "broadcast('kit:a', {})", "the caller's data are now {'type': 'kit:a'} (before: {})"),
        (Keeps, 3, "the caller changes its data", "client 1 has ('kit:a', {'changed': True}), and by the contract ('kit:a', {})"),
        (Backwards, 3, "broadcast('kit:a', ", "client 1 has "),
        (Blocks, 7, "read", "it does not return"),
        (SkipsAfterLeave, 4, "leaves", "has [], and by the contract ['kit:a']"),
    ),
)
def test_finds_the_fault_of_a_broadcaster(mutant: type, calls: int, essential: str, seen: str) -> None:
    """The shortest sequence has few steps, and the one that matters among them."""
    found = alone(mutant)
    assert found, "nothing was found"
    witness, actual = found
    assert len(witness.split("; ")) <= calls and essential in witness and seen in actual, found


def outcomes(report: Any) -> "dict[str, tuple[str, str]]":
    """How each search ended, and why."""
    return {o.id: (o.outcome, o.reason) for o in report.outcomes if o.id in DEEP.values()}


@pytest.mark.parametrize(
    ("target", "protocol", "probe"),
    [
        (Manager, "resources", look),
        (Manager(), "resources", look),
        (Broadcaster, "events", connect),
        (Broadcaster(), "events", connect),
    ],
    ids=["manager factory", "manager", "broadcaster factory", "broadcaster"],
)
@pytest.mark.slow
def test_what_is_right_passes(target: Any, protocol: str, probe: Any) -> None:
    """An implementation as it should be passes, as a factory and as an object.

    Without the search nothing of it is made.
    """
    report = check(target, protocol, probe=probe, deep=True)
    assert report.ok, str(report)
    assert outcomes(report) == {f"{protocol}.any_sequence": ("passed", "")}
    assert not outcomes(check(target, protocol, probe=probe))


def test_a_registry_has_no_search() -> None:
    """`deep=True` adds nothing for a registry."""

    class Registry:
        def get_plugins_by_category(self, category: Any) -> "list[Any]":
            return []

        def get_plugin(self, plugin_id: str) -> Any:
            return None

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {}

    assert check(Registry, "registry", deep=True).counts == check(Registry, "registry").counts


def test_the_finding_is_in_the_report() -> None:
    """The report has the search beside the other checks, though those have failed, and the whole of its witness."""
    report = check(CannotClear, "resources", probe=look, deep=True)
    (finding,) = [f for f in report.findings if f.id == "resources.any_sequence"]
    assert finding.level == "error" and "…" not in finding.witness and finding.witness.startswith(REGISTER)
    assert {"resources.clear.status", "resources.any_sequence"} <= {f.id for f in report.findings}
    assert json.loads(report.to_json())["ok"] is False


@pytest.mark.parametrize("mutant", most_slow({OneForAll}, (Remembers,), (OneForAll,), (LosesAtOnce,)))
def test_twice_the_same(mutant: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Two searches find the same; they print nothing, and leave no file behind."""
    monkeypatch.chdir(tmp_path)
    assert alone(mutant) == alone(mutant) != None  # noqa: E711
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_fresh_process_leaves_no_folder(tmp_path: Path) -> None:
    """Where hypothesis has not run before it keeps no notes either, and the kit imports it only when it is asked to."""
    code = f"""
import sys
from {PACKAGE}.conformance import check
assert not {{"hypothesis", "pytest"}} & {{name.split(".")[0] for name in sys.modules}}
class Manager:
    def __init__(self): self.workers = {{}}
    def register_worker(self, pid, worker_type): self.workers[pid] = {{}}
    def unregister_worker(self, pid): self.workers.pop(pid, None)
    def update_worker_state(self, pid, **given): self.workers[pid].update(given)
before = set(__import__(f"{PACKAGE}.conformance", fromlist=["CHECKS"]).CHECKS)
report = check(Manager, "resources", probe=lambda m, pid: m.workers.get(pid), deep=True)
assert "resources.any_sequence" not in __import__(f"{PACKAGE}.conformance", fromlist=["CHECKS"]).CHECKS
print("hypothesis" in sys.modules, len(report.findings))
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("True ") and not done.stderr, said(done)
    assert not list(tmp_path.iterdir())


def test_without_hypothesis(tmp_path: Path) -> None:
    """Where it is not installed, `deep=True` says how to get it; all else works."""
    code = f"""
import sys
sys.modules["hypothesis"] = None
from {PACKAGE}.conformance import HypothesisMissing, check
class Manager:
    def register_worker(self, pid, worker_type): ...
    def unregister_worker(self, pid): ...
    def update_worker_state(self, pid, status=None, job_id=None, plugin_name=None, plugin_id=None,
                            loaded_plugin_resource=None, config=None): ...
check(Manager, "resources")
check(Manager, "registry", deep=True)
try: check(Manager, "resources", deep=True)
except ImportError as e: print(type(e).__name__, e.name, e, isinstance(e, HypothesisMissing))
"""
    done = python(code, cwd=tmp_path)
    want = "HypothesisMissing hypothesis deep=True needs hypothesis: pip install 'cjm-worker-protocols[dev]' or pip install hypothesis True"
    assert done.stdout.strip() == want, said(done)


@pytest.mark.parametrize(("target", "protocol"), [(Manager, "resources"), (Broadcaster, "events")])
def test_without_a_probe(target: type, protocol: str) -> None:
    """Without a probe nothing can be compared."""
    ((outcome, reason),) = outcomes(check(target, protocol, deep=True)).values()
    assert outcome == "not_observable" and "needs a probe" in reason


def test_a_broken_shape_blocks_the_search() -> None:
    """What cannot be called is not searched; what behaves wrongly is."""

    class Renamed(Manager):
        def unregister_worker(self) -> None:  # type: ignore[override]
            pass

    class Plain(Broadcaster):
        def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:  # type: ignore[override]
            pass

    assert outcomes(check(Renamed, "resources", probe=look, deep=True))["resources.any_sequence"][0] == "blocked"
    assert outcomes(check(Plain, "events", probe=connect, deep=True))["events.any_sequence"] == ("blocked", "by events.broadcast.async")


def test_waivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search can be waived like any check; the waiver is an error only when the search passes."""
    monkeypatch.setattr(Search, "RUNS", 60)
    waive = {"resources.any_sequence": "we never clear"}
    assert outcomes(check(NeverForgets, "resources", probe=look, deep=True, waive=waive))["resources.any_sequence"][0] == "skipped"
    assert check(Manager, "resources", probe=look, waive=waive).ok
    (finding,) = check(Manager, "resources", probe=look, waive=waive, deep=True).findings
    assert (finding.actual, finding.member) == ("the check passes", "update_worker_state")
    (finding,) = check(Manager, "resources", probe=look, waive={"events.any_sequence": "of another"}).findings
    assert finding.actual == "there is no such check"


@pytest.mark.parametrize("as_object", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_a_running_loop(as_object: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search calls a broadcaster, and its probe, on the loop that runs; a factory and a probe may be asynchronous."""

    class Bound(LosesAtOnce):
        def __init__(self) -> None:
            super().__init__()
            self.loop = asyncio.get_running_loop()

        async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            assert asyncio.get_running_loop() is self.loop
            await super().broadcast(event_type, data)

    async def made() -> Bound:
        return Bound()

    async def joined(broadcaster: Any) -> Any:
        assert asyncio.get_running_loop() is broadcaster.loop
        return broadcaster.connect()

    monkeypatch.setattr(Search, "SECONDS", 2.0)
    monkeypatch.setattr(Limits, "EVENT", 0.5)

    async def main() -> Any:
        target = await made() if as_object else made
        return await check_async(target, "events", probe=joined, deep=True)

    (finding,) = [f for f in asyncio.run(main()).findings if f.id == "events.any_sequence"]
    assert "gather(broadcast(" in finding.witness
    assert ("give a factory" in finding.fix) is as_object


def test_a_resource_manager_in_a_running_loop() -> None:
    """It is called from a thread, and the loop goes on."""

    async def main() -> Any:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        task = asyncio.ensure_future(tick())
        report = await check_async(NeverForgets(), "resources", probe=look, deep=True)
        task.cancel()
        return report, ticks

    report, ticks = asyncio.run(main())
    assert outcomes(report)["resources.any_sequence"][0] == "failed" and ticks > 1
    assert "give a factory" in next(f.fix for f in report.findings if f.id == "resources.any_sequence")


def test_a_slow_one_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends after some seconds, with what it has; where it could make no run it says so."""

    class Slow(Manager):
        def register_worker(self, pid: int, worker_type: str) -> None:
            time.sleep(0.02)
            super().register_worker(pid, worker_type)

        def store(self, pid: int, given: "dict[str, Any]") -> None:
            time.sleep(0.02)
            super().store(pid, given)

    class Wrong(Slow):
        def unregister_worker(self, pid: int) -> None:
            pass

    began = time.monotonic()
    monkeypatch.setattr(Search, "SECONDS", 0.5)
    with muted():
        any_workers(Subject(Slow(), look), Slow)
        monkeypatch.setattr(Search, "SECONDS", 1.5)
        with pytest.raises(Broken, match="there is none"):
            any_workers(Subject(Wrong(), look), Wrong)
        monkeypatch.setattr(Search, "SECONDS", 0.0)
        with pytest.raises(NotObservable, match="too slow"):
            any_workers(Subject(Slow(), look), Slow)
    assert time.monotonic() - began < 15


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux with scheduler statistics")
def test_a_busy_machine_takes_no_time_from_a_search() -> None:
    """The clock of a search leaves out what its thread waits for a processor, and counts its work and its sleep."""
    code = f"""
import os, subprocess, sys, time
from {PACKAGE}.conformance.search import Clock
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
try:
    clock, began, worked = Clock(), time.monotonic(), time.thread_time()
    while time.thread_time() - worked < 0.2: pass
    time.sleep(0.3)
    print(time.monotonic() - began, clock.seconds())
finally:
    for process in busy: process.kill()
"""
    wall, counted = map(float, python(code, cwd=ROOT).stdout.split())
    assert 0.5 <= counted < 0.8 * wall


def test_a_probe_or_a_factory_that_fails_later() -> None:
    """Their errors end the search at once, as themselves."""
    made, looks = [], []

    def factory() -> Manager:
        made.append(1)
        if len(made) > 5:
            raise FactoryError(factory, ValueError("no more"))
        return Manager()

    def tired(manager: Any, pid: int) -> Any:
        looks.append(1)
        return look(manager, pid) if len(looks) < 100 else 1

    with pytest.raises(FactoryError, match="no more"), muted():
        any_workers(Subject(Manager(), look), factory)
    with pytest.raises(ProbeError, match="a mapping"), muted():
        any_workers(Subject(Manager(), tired), Manager)
    assert len(made) == 6


def test_the_catalogue_stays_as_it_is() -> None:
    """The searches stand in no catalogue, and have the ids that the kit knows."""
    assert not set(DEEP.values()) & set(CHECKS)
    assert [check.id for protocol in DEEP for check in deep_checks(protocol)] == list(DEEP.values())


def test_two_searches_at_once_leave_the_folder_of_hypothesis_as_it_was() -> None:
    """Whichever of them ends first."""
    before = getattr(configuration, "__hypothesis_home_directory", None)
    first, second = no_notes(), no_notes()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert getattr(configuration, "__hypothesis_home_directory", None) == before


# Waivers and warnings

CLEAR = [f"resources.clear.{name}" for name in FIELDS]
IN_THE_REPORT = {
    CannotClear: CLEAR, EmptyIsMissing: ["resources.empty_values"],
    OmittedIsCleared: ["resources.partial"], UnknownIsMade: ["resources.unknown_pid"],
    UnregisterRaises: ["resources.unregister_idempotent"], RegisterKeeps: ["resources.register_replaces"],
    NeverForgets: ["resources.unregister_forgets"],
    OneForAll: ["resources.workers_are_apart"], ForgetsAll: ["resources.workers_are_apart"], Aliased: ["resources.config_is_copied"],
    LosesAtOnce: ["events.concurrent"], FirstOnly: ["events.every_client"],
    Locked: ["events.cancelled"], Unforgetting: ["events.client_leaves"],
    StampsLate: ["events.data_unchanged"], Keeps: ["events.data_not_kept"],
}  # fmt: skip


@pytest.mark.parametrize("mutant", most_slow({NeverForgets, StampsLate}, *((mutant,) for mutant in IN_THE_REPORT)))
def test_a_search_passes_over_a_rule_that_is_in_the_report(mutant: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is waived, or that has warned, is not found again by random calls."""
    monkeypatch.setattr(Search, "RUNS", 100)
    assert alone(mutant) and not alone(mutant, *IN_THE_REPORT[mutant])


def test_waivers_reach_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot clear conforms when that is waived, field by field."""
    monkeypatch.setattr(Search, "RUNS", 60)
    waive = dict.fromkeys(CLEAR, "it is never read")
    report = check(CannotClear, "resources", probe=look, deep=True, waive=waive)
    assert report.ok and not report.findings, str(report)
    assert outcomes(report) == {"resources.any_sequence": ("passed", "")}


@pytest.mark.parametrize("mutant", most_slow({Aliased}, (Aliased,), (EmptyIsMissing,), (OmittedIsCleared,)))
def test_a_warning_is_no_error_of_the_search(mutant: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search makes no error of a rule that only warns."""
    monkeypatch.setattr(Search, "RUNS", 60)
    report = check(mutant, "resources", probe=look, deep=True)
    assert report.ok and {f.level for f in report.findings} == {"warning"}, str(report)
    assert outcomes(report) == {"resources.any_sequence": ("passed", "")}


def test_a_search_that_rests_on_a_waived_rule_is_not_made() -> None:
    """Without snapshots, or events that arrive in order, nothing can be compared."""
    swapped, newest_first = (Swapped, "resources", look), (NewestFirst, "events", connect)
    for (target, protocol, probe), id in ((swapped, "resources.snapshot"), (newest_first, "events.order")):
        outcome, reason = outcomes(check(target, protocol, probe=probe, deep=True, waive={id: "so it is"}))[f"{protocol}.any_sequence"]
        assert outcome == "not_observable" and id in reason
