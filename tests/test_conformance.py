"""The conformance kit: it finds every broken rule, and nothing else; and what it says of it."""

import asyncio
import contextlib
import functools
import gc
import html
import inspect
import json
import os
import re
import sqlite3
import sys
import threading
import time
import types
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List

import psutil
import pytest
from conformance_corpus import (
    MUTANTS,
    PROBES,
    RIGHT,
    Hub,
    JobStore,
    Page,
    Registry,
    Resources,
    connect,
    facts,
    snapshots,
    worker,
)
from conformance_zoo import ZOO
from contract_notebook import definitions, example_source
from repo import ROOT, python, said

from cjm_worker_protocols.conformance import (
    CHECKS,
    ConformanceError,
    FactoryError,
    Finding,
    ProbeError,
    ProtocolError,
    Report,
    check,
    check_async,
    kit,
    leaks,
    resources,
)
from cjm_worker_protocols.conformance.checks import Broken, Limits, NotObservable
from cjm_worker_protocols.conformance.hostile import HOSTILE, TRAVERSAL, opening
from cjm_worker_protocols.conformance.other_loop import watched
from cjm_worker_protocols.conformance.processes import Processes
from cjm_worker_protocols.conformance.run import AGAIN, DEEP, Run, checks_of
from cjm_worker_protocols.conformance.subject import Subject
from cjm_worker_protocols.conformance.threads import switching
from cjm_worker_protocols.integrations.resources import ClearingAdapter
from cjm_worker_protocols.managers.proxy import WorkerProxy
from cjm_worker_protocols.extensions.protocols import (
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)

each_protocol = pytest.mark.parametrize("protocol", RIGHT)
each_animal = pytest.mark.parametrize("name", ZOO)


def ended(report: Report, *how: str) -> "dict[str, str]":
    """The checks that ended in one of these ways, and the reasons."""
    return {o.id: o.reason for o in report.outcomes if o.outcome in how}


def broken(report: Report) -> "set[str]":
    """The rules that do not hold."""
    return set(ended(report, "failed", "warned"))


# The corpus


SLOW_MUTANTS = {
    "DeliversLater",
    "WaitsForTheSlowest",
    "WhatIsNotRunningIsKept",
    "TheSameAgainIsDropped",
    "TasksTryAgain",
    "WaitsASecondForEach",
}


@functools.cache
def report_of(name: str) -> Report:
    """What the kit says of a mutant."""
    return MUTANTS[name].check()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_MUTANTS)) for name in MUTANTS])
def test_a_mutant_breaks_exactly_its_rule(name: str) -> None:
    """Its rule is broken and no other; the finding says where, what was seen, after which calls, and what to do."""
    report, id = report_of(name), MUTANTS[name].id
    assert broken(report) == {id} and [f.id for f in report.findings] == [id], str(report)
    c = CHECKS[id] if id in CHECKS else {c.id: c for p in DEEP for c in kit.searches(p, None)}[id]
    assert report.ok == (c.level == "warning")
    for f in report.findings:
        assert f.actual and f.witness and f.fix.endswith((".", "`", ")")), f
        assert (f.expected, f.level) == (c.rule, c.level)
    assert [facts(finding) for finding in report.findings] == snapshots()[name], "python tests/conformance_corpus.py --write"


def test_every_mutant_has_a_snapshot() -> None:
    """And no other has one."""
    assert list(snapshots()) == list(MUTANTS)


def test_every_rule_has_a_mutant() -> None:
    """Each check is seen to find something."""
    assert {m.id for m in MUTANTS.values()} == {*CHECKS, *DEEP.values()}
    assert len(MUTANTS) >= 60


@each_protocol
def test_what_is_right_passes_every_check(protocol: str) -> None:
    """With its probe nothing is left that cannot be observed."""
    report = check(RIGHT[protocol], protocol, probe=PROBES[protocol])
    assert set(ended(report, "passed")) == set(checks_of(protocol)) and not report.findings, str(report)


# The zoo


def assert_clean(report: Report) -> None:
    """Nothing is found, and something was looked at."""
    assert report.ok and not report.findings and not ended(report, "blocked"), str(report)
    assert report.counts["passed"] >= 4


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("Slow")) for name in ZOO])
def test_what_is_odd_but_right_is_clean(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit finds nothing in it."""
    if name.startswith("Slow"):
        monkeypatch.setattr(Limits, "MANY", 0.3)
    it = ZOO[name]
    monkeypatch.setattr(leaks, "WORKERS", 2_000)
    assert_clean(check(it.factory, it.protocol, probe=it.probe))


@pytest.mark.slow
@each_animal
def test_what_is_odd_but_right_is_clean_as_an_object_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And on a loop that runs."""
    if name.startswith("Slow"):
        monkeypatch.setattr(Limits, "MANY", 0.3)
    it = ZOO[name]

    async def on_loop(factory: bool) -> Report:
        return await check_async(it.factory if factory else it.factory(), it.protocol, probe=it.probe)

    assert_clean(check(it.factory(), it.protocol, probe=it.probe))
    if it.protocol == "events":
        for factory in (True, False):
            assert_clean(asyncio.run(on_loop(factory)))


@pytest.mark.slow
def test_late_is_not_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that writes to its clients every 0.7 s delivers everything; the time is too short to see whether a client can stall it."""
    monkeypatch.setattr(Limits, "MANY", 0.3)

    class Collects(ZOO["SlowHubThatCollects"].factory):  # type: ignore[misc]
        SECONDS = 0.7

    async def ends(check: Any) -> str:
        it = Subject(Collects(), connect)
        try:
            await check.run(it)
        except NotObservable:
            return "not_observable"
        except Broken as e:
            return f"{e.actual} {e.also}"
        finally:
            await it.afterwards.run()
        return "passed"

    async def all_at_once() -> "dict[str, str]":
        made = [CHECKS[id] for id in checks_of("events") if id.count(".") == 1]
        return dict(zip([c.id for c in made], await asyncio.gather(*map(ends, made))))

    seen = asyncio.run(all_at_once())
    assert {id: how for id, how in seen.items() if how != "passed"} == {"events.stuck_client": "not_observable"}


@pytest.mark.slow
def test_a_deep_queue_that_is_full_holds_up_a_broadcast_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only more events bring to light, though there is no time for all of them."""
    monkeypatch.setattr(Limits, "MANY", 1.0)

    class Deep(MUTANTS["WaitsAWhileForEach"].factory):  # type: ignore[misc]
        LIMIT = 1_500

    (finding,) = check(Deep, "events", probe=connect).findings
    assert finding.id == "events.stuck_client_is_bounded" and "until that client left" in finding.actual and "put_nowait" in finding.fix


def test_a_loop_is_watched_by_one_at_a_time() -> None:
    """And it is left as it was."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with watched(loop) as first, watched(loop) as second:
            for call, sleeps in ((loop.call_soon, True), (loop.call_soon_threadsafe, False)):
                thread = threading.Thread(target=call, args=(int,))
                thread.start()
                thread.join()
                assert first() == sleeps and not second()
        assert not [name for name in vars(loop) if name.startswith("call_")]

    asyncio.run(main())


KINDS = {
    "callable objects": ("registry_of_callable_objects", "HubThatIsCalled"),
    "partials": ("registry_of_partials", "HubOfAPartial"),
    "proxies": (
        "registry_behind_a_proxy",
        "resources_behind_a_proxy",
        "hub_behind_a_proxy",
        "registry_behind_a_remote_call",
        "hub_behind_a_remote_call",
    ),
    "positional-only names": ("RegistryWithMoreParameters", "ResourcesWithMoreParameters"),
    "**kwargs": ("ResourcesByKeyword", "HubThatTakesAnything"),
    "more optional parameters": ("RegistryWithMoreParameters", "ResourcesWithMoreParameters", "HubWithMoreParameters"),
    "callables written in C": ("RegistryWithACache", "registry_of_partials", "HubOfAPartial"),
    "Mock with spec": (
        "registry_that_is_a_mock",
        "resources_that_are_a_mock",
        "broadcaster_that_is_a_mock",
        "broadcaster_that_is_an_async_mock",
    ),
    "dataclass": ("RegistryThatIsADataclass", "ResourcesInRecords"),
    "subclass of the Protocol": ("RegistryThatInherits", "ResourcesThatInherit", "HubThatInherits"),
    "singleton factory": ("registry_that_is_one_for_all", "hub_that_is_one_for_all"),
    "slow": ("SlowRegistry", "SlowResources", "SlowHub", "SlowHubForEachClient", "SlowHubThatCollects"),
    "awaitables of every sort": ("HubThatGivesACoroutine", "HubThatGivesATask", "HubThatGivesAnAwaitableObject", "HubOfOldCoroutines"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_zoo_has_every_kind(kind: str) -> None:
    """Of each there is at least one."""
    assert KINDS[kind] and set(KINDS[kind]) <= set(ZOO)


def test_the_zoo_is_large() -> None:
    """Of each protocol there are many shapes."""
    assert len(ZOO) >= 20
    assert {it.protocol for it in ZOO.values()} == set(RIGHT)


def test_one_object_is_left_as_it_was() -> None:
    """No worker and no client of the kit stays in an object that was checked."""
    manager, hub = Resources(), Hub()
    manager.register_worker(1, "mine")
    assert check(manager, "resources", probe=worker).ok and check(hub, "events", probe=connect).ok
    assert list(manager.workers) == [1] and not hub.clients


# Fields, ids and adapters


def test_a_field_that_is_never_stored_is_a_finding_and_one_that_is_not_there_is_none() -> None:
    """Whether the record has a field is seen in the record."""

    class Drops(MUTANTS["ConfigIsDropped"].factory):  # type: ignore[misc]
        def register_worker(self, pid: int, worker_type: str) -> None:
            Resources.register_worker(self, pid, worker_type)

    (finding,) = report_of("ConfigIsDropped").findings
    assert finding.id == "resources.snapshot" and "config is None" in finding.actual
    report = check(Drops, "resources", probe=worker)
    assert not report.findings and {"resources.clear.config", "resources.config_is_copied"} <= set(ended(report, "not_observable"))


class ConfigFiles(Registry):
    """It reads a file for each plugin, whatever its id."""

    def __init__(self, folder: "Path | None" = None) -> None:
        super().__init__()
        self.folder = folder or Path(__file__).parent / "no_such_folder"

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        try:
            return dict(json.loads((self.folder / f"{plugin_id}.json").read_text()))
        except FileNotFoundError:
            return super().load_plugin_config(plugin_id)


def test_every_kind_of_bad_id_is_in_the_finding_traversal_first() -> None:
    """Though ids that are too long, or have a NUL in them, raise; and the finding points at the method that failed."""
    (finding,) = check(ConfigFiles, "registry").findings
    kinds = [text.partition(":")[0] for text in finding.actual.split("; ")]
    assert kinds[0] == TRAVERSAL and kinds == [kind for kind in HOSTILE if kind in kinds] and len(kinds) >= 4
    assert {"an id with a control character", "an id of 10,000 characters", "an id that cannot be encoded"} < set(kinds)
    assert (finding.id, finding.member) == ("registry.hostile_ids", "load_plugin_config")
    assert (finding.file, finding.line) == (__file__, inspect.getsourcelines(ConfigFiles.load_plugin_config)[1])
    assert finding.witness.startswith("load_plugin_config(") and "get_plugin(" not in finding.witness


def test_a_hole_does_not_hide_behind_an_exception() -> None:
    """An id of the same kind may raise before another reaches a file."""

    class Picky(ConfigFiles):
        def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
            if plugin_id.startswith("../"):
                raise ValueError("not below the folder")
            return super().load_plugin_config(plugin_id)

    (finding,) = check(Picky, "registry").findings
    assert finding.actual.startswith(f"{TRAVERSAL}: it opened ") and finding.fix == CHECKS["registry.hostile_ids"].fix


def test_a_kind_of_bad_id_that_only_raises_is_mended_otherwise() -> None:
    """It reaches nothing, so there is no hole to close."""
    (long,), (path,) = report_of("LongIdsRaise").findings, report_of("IdsFromTheRootAreRead").findings
    assert long.fix != CHECKS["registry.hostile_ids"].fix == path.fix
    assert (long.member, path.member) == ("load_plugin_config", "load_plugin_config")
    assert report_of("IdsAreModules").findings[0].member == "get_plugin"


def test_a_finding_about_a_wrapped_object_points_at_that_object() -> None:
    """And not into the adapter's file."""

    class Inner(Resources):
        def unregister_worker(self, pid: int) -> None:
            del self.workers[pid]

    report = check(lambda: ClearingAdapter(Inner()), "resources", probe=lambda adapter, pid: adapter.inner.workers.get(pid))
    finding = next(f for f in report.findings if f.id == "resources.unregister_idempotent")
    assert (finding.file, finding.line) == (__file__, inspect.getsourcelines(Inner.unregister_worker)[1])
    places = {(f.file, f.line) for f in check(ClearingAdapter(ClearingAdapter(Inner())), "resources").findings}
    assert {file for file, _ in places} <= {__file__, inspect.getsourcefile(Resources)}


def test_annotations_that_only_type_checkers_can_evaluate() -> None:
    """The kit reads such a signature. From Python 3.14 on they need no quotes, and fail when they are asked for."""
    unknown, found = "Unknown" if sys.version_info >= (3, 14) else "'Unknown'", {"Registry": Registry}
    exec(f"class Mine(Registry):\n    def get_plugin(self, key: {unknown}) -> {unknown}: return super().get_plugin(key)", found)
    fixes = " ".join(finding.fix for finding in check(found["Mine"], "registry").findings)
    assert "`key` looks like a rename of `plugin_id`" in fixes, fixes


# Real implementations


@functools.cache
def examples() -> types.ModuleType:
    """The implementations that the notebook of the contract shows."""
    module = types.ModuleType("examples")
    sys.modules["examples"] = module  # dataclasses look there
    exec(compile(example_source(), "examples", "exec"), vars(module))
    return module


class Kept:
    """A client of the notebook's broadcaster, which keeps the events."""

    def __init__(self, broadcaster: Any) -> None:
        self.broadcaster, self.first, self.last = broadcaster, len(broadcaster.events), None

    def received(self) -> "list[tuple[str, Any]]":
        return [(event["type"], event["data"]) for event in self.broadcaster.events[self.first : self.last]]

    def close(self) -> None:
        self.last = len(self.broadcaster.events)


def test_the_registry_of_the_contract_passes() -> None:
    """Text processors and image analyzers."""
    report = check(examples().SimplePluginRegistry, PluginRegistryProtocol, probe=lambda registry: ["processing", "vision"])
    assert not report.findings and len(ended(report, "passed")) == len(report.outcomes), str(report)


@pytest.mark.parametrize("name", ["MyResourceManager", "SimpleResourceManager"])
def test_the_resource_managers_of_the_contract_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the simple one does not keep is not held against it; that the other keeps a live config is."""
    report = check(getattr(examples(), name), ResourceManagerProtocol, probe=worker)
    assert report.ok and not ended(report, "blocked"), str(report)
    if name == "SimpleResourceManager":
        assert not report.findings
        unseen = {f"resources.{rest}" for rest in ("clear.plugin_id", "clear.config", "config_is_copied")}
        assert set(ended(report, "not_observable")) == unseen
    else:
        assert broken(report) == {"resources.config_is_copied"}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_broadcaster_of_the_contract_passes() -> None:
    """It keeps all events, with and without clients; no client is stuck."""
    report = check(examples().SimpleEventBroadcaster, EventBroadcasterProtocol, probe=Kept)
    assert report.ok and not ended(report, "blocked"), str(report)
    assert not report.findings


@functools.cache
def field() -> types.ModuleType:
    """Implementations in the manner of cjm-fasthtml-workers' companion packages, as the tutorial shows them."""
    module = types.ModuleType("field")
    exec(compile(definitions("tutorials/what_you_have.ipynb"), "field", "exec"), vars(module))
    return module


class QueueHub:
    """A broadcaster as tutorials of server-sent events write it: a set of queues, written to the page by a generator."""

    def __init__(self) -> None:
        self.queues: "set[asyncio.Queue[Any]]" = set()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        for queue in list(self.queues):
            await queue.put({"event": event_type, "data": data})

    async def stream(self) -> Any:
        queue: "asyncio.Queue[Any]" = asyncio.Queue()
        self.queues.add(queue)
        try:
            while True:
                message = await queue.get()
                yield f"event: {message['event']}\ndata: {json.dumps(message['data'])}\n\n"
        finally:
            self.queues.discard(queue)


class StreamClient:
    """A page that reads such a stream for as long as somebody asks it."""

    def __init__(self, hub: QueueHub) -> None:
        self.stream = hub.stream()
        self.page = Page(None, deque())
        self.next: Any = asyncio.ensure_future(anext(self.stream))

    async def received(self) -> "list[tuple[str, Any]]":
        while (await asyncio.wait({self.next}, timeout=0.005))[0]:
            if self.next.cancelled() or self.next.exception():
                break
            self.page.queue.append(self.next.result())
            self.next = asyncio.ensure_future(anext(self.stream))
        return self.page.received()

    async def close(self) -> None:
        self.next.cancel()
        await asyncio.wait({self.next})
        await self.stream.aclose()


async def stream_connect(hub: Any) -> StreamClient:
    """The probe of it."""
    client = StreamClient(hub)
    await asyncio.sleep(0)
    return client


REAL: "dict[str, tuple[Any, str, Any, set[str]]]" = {
    "the registry": (
        field().UnifiedPluginRegistry,
        "registry",
        field().some_categories,
        {"registry.get_plugin.every_call", "registry.load_plugin_config.every_call", "registry.hostile_ids"},
    ),
    "the registry, mended": (
        field().Mended,
        "registry",
        field().some_categories,
        {"registry.get_plugin.every_call", "registry.load_plugin_config.every_call"},
    ),
    "the resource manager": (
        field().ResourceManager,
        "resources",
        field().read_worker,
        {f"resources.clear.{name}" for name in ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config")}
        | {"resources.update_worker_state.every_call", "resources.config_is_copied"},
    ),
    "the broadcaster": (field().SSEBroadcastManager, "events", field().connect, {"events.data_not_kept"}),
    "the hub of a tutorial, which is slow": (
        QueueHub,
        "events",
        stream_connect,
        {"events.stuck_client_is_bounded", "events.forged", "events.unsendable", "events.other_loop"},
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("slow")) for name in REAL])
def test_real_implementations_get_their_findings(name: str) -> None:
    """Those that people have already work with the manager; the kit says where they would not with others."""
    factory, protocol, probe, want = REAL[name]
    report = check(factory, protocol, probe=probe)
    assert broken(report) == want, str(report)


def test_the_words_for_real_implementations_name_the_cause() -> None:
    """A rename, another order, and `is not None`."""
    registry, manager = (check(*REAL[name][:2], probe=REAL[name][2]) for name in ("the registry", "the resource manager"))
    assert "`unique_id` looks like a rename of `plugin_id`" in str(registry)
    by_id = {f.id: f for f in manager.findings}
    order = "pid, job_id, plugin_id, plugin_name, loaded_plugin_resource, config, status"
    assert f"The order differs: {order}" in by_id["resources.update_worker_state.every_call"].fix
    assert "`if job_id is not None`" in by_id["resources.clear.job_id"].fix
    assert by_id["resources.clear.job_id"].actual == "job_id is 'job-1'"


# Waivers


def waived(name: str, **reasons: str) -> Report:
    """A mutant under waivers."""
    m = MUTANTS[name]
    return check(m.factory, m.protocol, probe=m.probe, waive={id.replace("__", "."): reason for id, reason in reasons.items()})


def test_a_rule_that_is_waived_is_skipped_with_its_reason() -> None:
    """It is no finding, and what needs it is blocked all the same."""
    report = waived("UnknownIdRaises", registry__unknown_id="old clients expect it")
    assert ended(report, "skipped") == {"registry.unknown_id": "waived: old clients expect it"}
    assert not report.findings and report.ok
    assert "skipped: unknown_id: waived: old clients expect it" in str(report)
    assert ended(report, "blocked")["registry.hostile_ids"] == "by registry.unknown_id"


def test_a_waiver_for_what_passes_is_a_failure() -> None:
    """It would hide what breaks later."""
    report = waived("UnknownIdRaises", registry__unknown_id="r", registry__known_id="r")
    assert [(f.id, f.actual) for f in report.findings] == [("registry.known_id", "the check passes")]
    assert not report.ok


@pytest.mark.parametrize("name", ["TheTableIsWrittenAnew", "WhoIsMeantIsKept"])
def test_a_race_is_found_again_and_again(name: str) -> None:
    """With and without a waiver; no thread switches sooner than before when that is over."""
    m, interval = MUTANTS[name], sys.getswitchinterval()
    for _ in range(5):
        assert [f.id for f in m.check().findings] == [m.id]
    report = waived(name, **{m.id.replace(".", "__"): "one thread calls it"})
    assert not report.findings and set(ended(report, "skipped")) == {m.id}
    assert sys.getswitchinterval() == interval


def test_what_an_implementation_writes_into_its_data_reaches_no_other_check() -> None:
    """A kit that shared its dicts would show the next implementation's call with them."""

    class Stamps(Hub):
        async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
            data["stamp"] = event_type

    def says() -> List[Any]:
        return [(f.actual, f.witness) for f in MUTANTS["BroadcastIsSynchronous"].check().findings]

    before = says()
    assert not check(Stamps, "events").ok and says() == before


def test_a_waiver_for_threads_is_useless_only_after_several_times() -> None:
    """Since passing once says little."""
    report = check(Resources, "resources", probe=worker, waive={"resources.threads": "r"})
    assert [(f.id, f.actual) for f in report.findings] == [("resources.threads", f"the check passes: {AGAIN} times in a row")]


def test_a_waiver_for_a_race_that_is_seldom_seen_is_none_for_nothing() -> None:
    """It is looked for in fresh ones."""
    made: List[Any] = []

    class SeldomWrong(Registry):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)
            self.wrong, self.thread = len(made) % 10 == 0, threading.get_ident()

        def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
            if self.wrong and threading.get_ident() != self.thread:
                raise RuntimeError("a race")
            return super().load_plugin_config(plugin_id)

    for _ in range(5):
        report = check(SeldomWrong, "registry", waive={"registry.threads": "one thread calls it"})
        assert set(ended(report, "skipped")) == {"registry.threads"} and report.ok, str(report)


def test_the_kit_neither_traces_nor_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger, a profiler or a coverage tool sees all that they would see without it."""
    for module, name in ((sys, "settrace"), (sys, "setprofile"), (threading, "settrace"), (threading, "setprofile")):
        monkeypatch.setattr(module, name, raises)
    for name, right in RIGHT.items():
        assert check(right, name, probe=PROBES[name]).ok


@pytest.mark.parametrize(
    "name",
    ["KnownCategoryIsLeftToACoroutine", "KnownConfigIsLeftToACoroutine", "KnownIdIsLeftToACoroutine", "ListingIsACoroutine"],
)
def test_no_coroutine_is_left_behind(name: str, recwarn: pytest.WarningsRecorder) -> None:
    """Coroutines that are never awaited are closed."""
    MUTANTS[name].check()
    gc.collect()
    assert not recwarn.list


def test_nothing_of_the_hostile_ids_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are gone; and where none can be made, ids are checked all the same."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert MUTANTS["IdsFromTheRootAreRead"].check().counts["failed"] == 1 and check(Registry, "registry").ok
    assert not list(tmp_path.iterdir())

    def refuse(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "makedirs", refuse)
    assert check(Registry, "registry").ok and MUTANTS["IdsArePaths"].check().counts["failed"] == 1


def test_a_waiver_for_no_check_is_a_failure() -> None:
    """With the name that may be meant."""
    report = check(Registry, "registry", waive={"registry.unknown_idd": "r", "events.order": "r"})
    unknown = ("events.order", "registry.unknown_idd")
    assert [(f.id, f.actual) for f in report.findings] == [(id, "there is no such check") for id in unknown]
    assert "'registry.unknown_id'" in report.findings[1].fix and not report.ok


def test_a_waiver_for_what_cannot_be_seen_is_a_failure() -> None:
    """It may not be needed."""
    report = check(Registry, "registry", waive={"registry.known_id": "r"})
    assert [f.actual.partition(":")[0] for f in report.findings] == ["the check is not observable"]


# What is not seen is not passed


def test_that_nothing_was_checked_is_a_failure() -> None:
    """An empty report is not a good one."""
    report = Run(Registry, "registry").report()
    assert [f.id for f in report.findings] == ["kit.nothing_checked"] and not report.ok
    with pytest.raises(ConformanceError, match="no checks"):
        report.raise_for_findings()


@each_protocol
def test_what_needs_a_probe_is_not_observable_without_one(protocol: str) -> None:
    """The reason says which probe would help; nothing is claimed without one."""
    report = check(RIGHT[protocol], protocol)
    unseen = ended(report, "not_observable")
    assert unseen and report.ok and not report.findings
    assert all("probe" in reason for reason in unseen.values())
    assert report.counts["passed"] + len(unseen) == len(report.outcomes)
    assert f"{len(unseen)} not observable" in report.headline


def test_what_cannot_be_looked_at_is_blocked() -> None:
    """One finding for one mistake; the rest waits for it to be mended."""
    report = report_of("BroadcastIsSynchronous")
    blocked = ended(report, "blocked")
    assert set(blocked.values()) == {"by events.broadcast.async"}
    assert report.counts == {"passed": 2, "failed": 1, "warned": 0, "skipped": 0, "blocked": len(blocked), "not_observable": 0}


# When the implementation, the factory or the probe does something else


def test_a_method_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, and so are the checks after it."""
    end = threading.Event()

    class Hangs(Registry):
        def get_plugin(self, plugin_id: str) -> Any:
            end.wait(30)

    monkeypatch.setattr(Limits, "CHECK", 0.2)
    monkeypatch.setattr(Limits, "CALL", 0.2)
    report = check(Hangs, "registry", waive={"registry.get_plugin.manager_call": "it cannot be waived"})
    end.set()
    assert broken(report) == {"registry.get_plugin.manager_call"}
    assert "integration_timeout" in report.findings[0].fix
    assert set(ended(report, "blocked").values()) == {"by registry.get_plugin.manager_call"}
    assert len(report.outcomes) == len(checks_of("registry"))


def test_a_deadlock_is_an_error_whatever_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen in a check that else only warns, and hides all that come after it."""

    class Deadlocks(Resources):
        def register_worker(self, pid: int, worker_type: str) -> None:
            if pid not in self.workers:
                super().register_worker(pid, worker_type)
            elif not self.lock.acquire(timeout=5) or True:
                time.sleep(2)

    monkeypatch.setattr(Limits, "CHECK", 0.3)
    report = check(Deadlocks, "resources", probe=worker)
    (finding,) = report.findings
    assert (finding.id, finding.level) == ("resources.register_worker.every_call", "error") and not report.ok


def test_a_broadcast_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the loop of the caller as well."""

    class Hangs(Hub):
        async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
            await asyncio.sleep(30)

    monkeypatch.setattr(Limits, "CALL", 0.1)
    for report in (check(Hangs, "events", probe=connect), asyncio.run(check_async(Hangs(), "events", probe=connect))):
        assert broken(report) == {"events.broadcast.async"}
        assert "put_nowait" in report.findings[0].fix


def test_a_probe_that_hangs_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is given up, and what was found before is kept."""

    async def probe(hub: Any) -> Any:
        await asyncio.sleep(30)

    monkeypatch.setattr(Limits, "CHECK", 0.2)
    report = asyncio.run(check_async(Hub, "events", probe=probe))
    assert broken(report) == {"events.delivered"} and set(ended(report, "blocked").values()) == {"by events.delivered"}
    assert report.counts["passed"] == 5


@pytest.mark.parametrize("protocol", RIGHT)
def test_a_factory_that_raises_is_named(protocol: str) -> None:
    """That is no finding: there is nothing to check."""

    def no_factory() -> Any:
        raise LookupError("no database")

    with pytest.raises(FactoryError, match="no_factory.*made nothing to check: LookupError: no database") as caught:
        check(no_factory, protocol)
    assert isinstance(caught.value.reason, LookupError) and caught.value.factory is no_factory
    with pytest.raises(FactoryError):
        asyncio.run(check_async(no_factory, protocol))


def test_a_class_that_needs_arguments_is_no_factory() -> None:
    """The message says what would be one."""

    class Needy(Registry):
        def __init__(self, path: str) -> None: ...

    with pytest.raises(FactoryError, match="Give a factory that needs no argument and returns an implementation, or an object"):
        check(Needy, "registry")


def raises(*args: Any) -> Any:
    """A probe that is wrong."""
    raise KeyError("wrong")


WRONG_PROBES: "dict[str, tuple[str, Any, str]]" = {
    "a registry's that raises": ("registry", raises, "the categories of a registry.*KeyError: 'wrong'"),
    "a registry's that gives a number": ("registry", lambda registry: 5, "expected an iterable"),
    "a resource manager's that raises": ("resources", raises, "a worker.*KeyError: 'wrong'"),
    "a resource manager's that gives a list": ("resources", lambda manager, pid: [pid], r"expected a mapping.*got \[\d+\], a list"),
    "a resource manager's with one parameter": ("resources", lambda manager: {}, "a worker.*TypeError"),
    "a broadcaster's that raises": ("events", raises, "a client.*KeyError: 'wrong'"),
    "a broadcaster's that gives no client": ("events", lambda hub: 5, r"5, which has no received\(\)"),
    "a broadcaster's that gives no pairs": (
        "events",
        lambda hub: types.SimpleNamespace(received=lambda: [1, 2], close=lambda: None),
        r"client.received\(\): expected a list of \(event_type, data\) pairs",
    ),
}


@pytest.mark.parametrize("name", WRONG_PROBES)
def test_a_probe_that_is_wrong_is_named(name: str) -> None:
    """What it was asked for, what would have been right, and what it gave."""
    protocol, probe, message = WRONG_PROBES[name]
    with pytest.raises(ProbeError, match=message):
        check(RIGHT[protocol], protocol, probe=probe)


@pytest.mark.parametrize("wrong", ["registries", int, None, Registry])
def test_a_protocol_that_is_none_is_named(wrong: Any) -> None:
    """With those that there are."""
    with pytest.raises(ProtocolError, match="expected PluginRegistryProtocol, .* or 'registry', 'resources', 'events' or 'store'"):
        check(Registry, wrong)
    with pytest.raises(ProtocolError):
        asyncio.run(check_async(Registry, wrong))


def test_it_works_inside_a_running_loop() -> None:
    """In a notebook and in an asynchronous test there is one."""

    async def main() -> "list[Report]":
        made = [check(factory, name, probe=PROBES[name]) for name, factory in RIGHT.items()]
        return made + [await check_async(factory, name, probe=PROBES[name]) for name, factory in RIGHT.items()]

    for report in asyncio.run(main()):
        assert len(ended(report, "passed")) == len(report.outcomes), str(report)


def test_the_loop_goes_on_meanwhile() -> None:
    """`check_async` does not hold up what else runs there."""

    async def main() -> int:
        turns, end = 0, False

        async def tick() -> None:
            nonlocal turns
            while not end:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        await check_async(Resources, "resources", probe=worker)
        end = True
        await ticking
        return turns

    assert asyncio.run(main()) > 1


def test_a_factory_may_be_asynchronous() -> None:
    """As a pool of connections is."""

    async def hub() -> Hub:
        await asyncio.sleep(0)
        return Hub()

    async def registry() -> Registry:
        return Registry()

    assert check(hub, "events", probe=connect).counts["passed"] == len(checks_of("events"))
    assert check(registry, "registry").ok and asyncio.run(check_async(hub, "events", probe=connect)).ok


class Loud:
    """Says something whenever it is made, called or looked into."""

    def __init__(self, *args: Any) -> None:
        print("loud")
        super().__init__(*args)

    def __getattribute__(self, name: str) -> Any:
        print("loud")
        return super().__getattribute__(name)


class LoudRegistry(Loud, Registry): ...


class LoudResources(Loud, Resources): ...


class LoudHub(Loud, Hub): ...


class LoudStore(Loud, JobStore): ...


LOUD: "dict[str, Any]" = {"registry": LoudRegistry, "resources": LoudResources, "events": LoudHub, "store": LoudStore}


@each_protocol
def test_prints_of_the_implementation_are_silent_and_others_are_not(
    protocol: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread or task prints meanwhile is heard.

    What the probe, the factory or a search of random calls makes it print is not.
    """
    pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -e '.[dev]'")
    from cjm_worker_protocols.conformance.search import Search

    monkeypatch.setattr(Search, "RUNS", 30)
    monkeypatch.setattr(leaks, "WORKERS", 400)
    made, probe, end = LOUD[protocol], PROBES[protocol], threading.Event()

    def talk() -> None:
        while not end.wait(0.001):
            sys.stdout.write("thread\n")

    async def on_loop() -> Report:
        async def talks() -> None:
            while True:
                sys.stdout.write("task\n")
                await asyncio.sleep(0.001)

        talking = asyncio.ensure_future(talks())
        await asyncio.sleep(0)
        report = await check_async(made, protocol, probe=probe)
        sys.stdout.write("after\n")
        talking.cancel()
        return report

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        reports = [check(made, protocol, probe=probe, deep=protocol == "resources"), asyncio.run(on_loop())]
    finally:
        end.set()
        talking.join()
    assert all(report.ok and not report.findings for report in reports), reports
    assert set(capsys.readouterr().out.split()) == {"thread", "task", "after"}


def test_two_checks_at_once_leave_stdout_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever ends first."""
    before, reports = sys.stdout, list[Report]()
    threads = [threading.Thread(target=lambda: reports.append(check(Hub, "events", probe=connect))) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)  # each is at another place than the others
    for thread in threads:
        thread.join()
    assert sys.stdout is before and len(reports) == 3 and all(report.ok for report in reports)


def test_importing_the_kit_is_cheap(tmp_path: Path) -> None:
    """It needs neither a test runner nor the manager nor anything that is not in the standard library."""
    code = """
import sys
before = set(sys.modules)
import cjm_worker_protocols.conformance
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(name for name in new if name not in sys.stdlib_module_names))
print(sorted(name for name in sys.modules if name.startswith("cjm_worker_protocols.") and ".conformance" not in name))
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, said(done)
    assert done.stdout.splitlines() == [
        "['cjm_worker_protocols']",
        "['cjm_worker_protocols.extensions', 'cjm_worker_protocols.extensions.protocols', 'cjm_worker_protocols.extensions.store']",
    ]


# Reports


def test_file_and_line_point_to_the_method() -> None:
    """Also through decorators, partials and callable objects; a method that is not there is nowhere."""
    for name in ("UnknownIdRaises", "UnregisterDeletes", "BroadcastIsSynchronous", "GetPluginNeedsAVersion"):
        (finding,), method = report_of(name).findings, getattr(MUTANTS[name].factory, report_of(name).findings[0].member)
        assert (finding.file, finding.line) == (inspect.getsourcefile(method), inspect.getsourcelines(method)[1]), finding
    (finding,) = report_of("BroadcastHasAnotherName").findings
    assert (finding.file, finding.line) == (None, None)

    class Cut:
        def __call__(self, event_type: str, data: Dict[str, Any]) -> None: ...

    hub = types.SimpleNamespace(broadcast=Cut())
    (finding,) = check(hub, "events").findings
    assert (finding.file, finding.line) == (__file__, inspect.getsourcelines(Cut.__call__)[1])
    hub = types.SimpleNamespace(broadcast=functools.partial(Resources.unregister_worker, Resources()))
    (finding,) = check(hub, "events").findings
    assert finding.line == inspect.getsourcelines(Resources.unregister_worker)[1]


def test_a_report_as_text_has_all_findings() -> None:
    """The headline, and for each finding what should be, what was, after which calls, and what to do."""
    report = report_of("StatusIsRenamed")
    text = str(report).splitlines()
    assert text[0] == report.headline and report.headline.endswith("9 passed, 1 failed, 23 blocked")
    assert "conformance_corpus:StatusIsRenamed" in report.headline and "ResourceManagerProtocol" in report.headline
    assert text[1].startswith("error: resources.update_worker_state.manager_call  (") and text[1].endswith(")")
    assert [line.split()[0] for line in text[2:6]] == ["expected", "got", "after", "mend"]
    assert "`state` looks like a rename of `status`" in text[5]
    assert repr(report) == f"<Report: {report.headline}>"
    with pytest.raises(ConformanceError, match="looks like a rename") as caught:
        report.raise_for_findings()
    assert caught.value.report is report


def test_a_report_in_a_notebook_escapes_what_it_shows() -> None:
    """What an implementation raises may look like HTML."""

    class Evil(Registry):
        def get_plugin(self, plugin_id: str) -> Any:
            raise LookupError("<script>alert('&')</script>")

    report = check(Evil, "registry")
    page = report._repr_html_()
    assert "<script>" not in page and html.escape("<script>alert('&')</script>") in page
    assert set(re.findall(r"</?(\w+)", page)) == {"p", "table", "tr", "th", "td"}
    assert "<table>" not in check(Registry, "registry")._repr_html_()


def test_a_report_for_programs_has_exactly_its_keys() -> None:
    """Tools may rely on them."""
    for report in (report_of("UnknownIdRaises"), check(Registry, "registry")):
        found = json.loads(report.to_json())
        assert list(found) == ["target", "protocol", "ok", "counts", "findings"]
        assert list(found["counts"]) == ["passed", "failed", "warned", "skipped", "blocked", "not_observable"]
        assert sum(found["counts"].values()) == len(report.outcomes)
        for finding in found["findings"]:
            assert list(finding) == ["id", "level", "member", "expected", "actual", "witness", "fix", "file", "line"]
    assert json.loads(report_of("UnknownIdRaises").to_json())["findings"][0]["line"] > 0
    assert (found["target"], found["protocol"], found["ok"]) == ("conformance_corpus:Registry", "PluginRegistryProtocol", True)


def test_what_cannot_be_written_in_utf_8_can_be_reported() -> None:
    """Hostile ids have surrogates in them."""
    for report in (report_of("IdsMustBeText"), report_of("OddTypesSilenceIt")):
        assert (report.to_json() + str(report) + report._repr_html_()).encode()


def test_a_warning_does_not_fail() -> None:
    """It is there all the same."""
    report = report_of("PidsAreLogged")
    report.raise_for_findings()
    assert report.ok and report.counts["warned"] == 1 and "conforms" in report.headline
    assert str(report).splitlines()[1].startswith("warning: ")


def test_targets_are_named_so_that_they_can_be_found() -> None:
    """A class, a function, an object, a module, and what has every attribute."""
    animals = {name: ZOO[name] for name in ("registry_that_is_a_module", "registry_behind_a_remote_call")}
    names = {name: check(it.factory(), it.protocol, probe=it.probe).target for name, it in animals.items()}
    assert names == {"registry_that_is_a_module": "plugins_of_my_app", "registry_behind_a_remote_call": "conformance_zoo:Remote"}
    assert check(Registry(), "registry").target == check(Registry, "registry").target == "conformance_corpus:Registry"


def test_every_check_says_why_and_how() -> None:
    """In sentences; and it needs only checks that come before it."""
    seen: "list[str]" = []
    for id, c in CHECKS.items():
        assert all(text[0].isupper() and text.rstrip("`)").endswith(".") or text.endswith("`.") for text in (c.why, c.fix)), id
        assert c.rule.endswith(".") and c.level in ("error", "warning")
        assert set(c.requires) <= set(seen), id
        seen.append(id)


def findings_of(*names: str) -> "Iterator[Finding]":
    """Of mutants."""
    for name in names:
        yield from report_of(name).findings


def test_the_words_name_the_likely_cause() -> None:
    """What a person would have said after reading the signature."""
    causes = {
        "StatusIsRenamed": "`state` looks like a rename of `status`",
        "RegisterHasAnotherOrder": "The order differs: worker_type, pid",
        "UpdateIsByKeywordOnly": "can be given by keyword only",
        "StatusHasNoDefault": "`status` has no default",
        "BroadcastNeedsAChannel": "`channel` is required",
        "UpdateHasALyingSignature": "is that of what it wraps; the wrapper takes `(pid: int, **fields)",
        "DataAreByPositionOnly": "can be given by position only",
        "ConfigIsMissing": "`config` is missing",
        "ListingHasAnotherName": "Rename `list_plugins_by_category` to `get_plugins_by_category`",
        "BroadcastIsSynchronous": "Write `async` before its `def`",
        "BroadcastIsAnAsyncGenerator": "Remove the `yield`",
    }
    for name, words in causes.items():
        (finding,) = findings_of(name)
        assert words in finding.fix, finding
    (finding,) = findings_of("UpdateIsInherited")
    assert "inherited from ResourceManagerProtocol" in finding.actual


def test_the_corpus_can_be_written_down_anew() -> None:
    """The file is as the command writes it."""
    text = (ROOT / "tests/conformance_snapshots.json").read_text(encoding="utf-8")
    assert text == json.dumps(snapshots(), indent=1, ensure_ascii=False) + "\n"


# What the kit itself must not do


def test_two_checks_at_once_leave_nothing_behind() -> None:
    """The functions of the interpreter that tests watch with are as they were, whichever ends first."""
    before = sys.getswitchinterval(), sys.getprofile(), sys.gettrace()

    async def two() -> "list[Report]":
        return list(await asyncio.gather(*(check_async(Hub, "events", probe=connect) for _ in range(2))))

    assert all(report.ok for report in asyncio.run(two()))
    started, ended = threading.Event(), threading.Event()

    def first() -> None:
        with switching.set(1e-6):
            started.set()
            ended.wait()

    thread = threading.Thread(target=first)
    thread.start()
    started.wait()
    with switching.set(1e-6), opening() as mine:
        ended.set()
        thread.join()
        with opening() as other:
            pass
        open(__file__).close()
    assert __file__ in mine and __file__ not in other
    assert (sys.getswitchinterval(), sys.getprofile(), sys.gettrace()) == before


def test_an_object_in_use_is_not_spoiled() -> None:
    """The kit changes what it got, as a caller may; what turns out to be the registry's own is as it was."""

    class Live(Registry):
        def __init__(self) -> None:
            super().__init__()
            self.lists: Dict[Any, List[Any]] = {}

        def get_plugins_by_category(self, category: Any) -> List[Any]:
            return self.lists.setdefault(category, super().get_plugins_by_category(category))

        def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
            return self.configs.setdefault(plugin_id, {})

    live = Live()
    report = check(live, "registry", probe=PROBES["registry"])
    assert {"registry.list_is_the_callers", "registry.config_is_the_callers"} <= broken(report)
    assert "caller" not in repr((live.lists, live.configs))


def test_a_slow_registry_is_not_taken_for_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call after the other, and more plugins than can be asked for ten times within the limit."""
    monkeypatch.setattr(Limits, "CALL", 0.5)

    class Slow(Registry):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
            with self.lock:
                time.sleep(0.02)
            return super().load_plugin_config(plugin_id)

    report = check(Slow, "registry", probe=PROBES["registry"])
    assert not report.findings, str(report)


@pytest.mark.parametrize("error", [ConnectionError("no server"), SystemExit("no GPU")])
@each_protocol
def test_a_factory_that_fails_is_no_finding(protocol: str, error: BaseException) -> None:
    """Neither one that fails at once, nor one that fails when it is awaited."""

    def fails() -> Any:
        raise error

    async def fails_later() -> Any:
        raise error

    for factory in (fails, fails_later):
        with pytest.raises(FactoryError, match=str(error)):
            check(factory, protocol)


class ExitsForUnknownPids(Resources):
    def unregister_worker(self, pid: int) -> None:
        if pid not in self.workers: sys.exit("no such worker")
        super().unregister_worker(pid)


class ExitsForUnknownJobs(JobStore):
    def forget(self, job_ids: List[str]) -> None:
        if not self.records.keys() >= {*job_ids}: sys.exit("no such job")
        super().forget(job_ids)


@pytest.mark.parametrize(
    "made, protocol, rule",
    [(ExitsForUnknownPids, "resources", "resources.unregister_idempotent"), (ExitsForUnknownJobs, "store", "store.forget")],
)
def test_what_ends_the_program_before_or_after_a_check_ends_no_check(made: Any, protocol: str, rule: str) -> None:
    """The kit cleans up with calls that such an implementation answers with `SystemExit`."""
    assert rule in {found.id for found in check(made, protocol, probe=PROBES[protocol]).findings}


def test_one_category_is_no_list_of_categories() -> None:
    """Its letters are none either."""
    with pytest.raises(ProbeError, match="'speech', which is one"):
        check(Registry, "registry", probe=lambda _: "speech")


# What the kit advises


class Threaded(Resources):
    """Its connection is opened where it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:")

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.connection.execute("select 1")
        super().register_worker(pid, worker_type)


class ThreadedRegistry(Registry):
    """Likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:")

    def get_plugin(self, plugin_id: str) -> Any:
        self.connection.execute("select 1")
        return super().get_plugin(plugin_id)


@pytest.mark.parametrize("made, member", [(Threaded, "resources.register_worker"), (ThreadedRegistry, "registry.get_plugin")])
def test_what_belongs_to_another_thread_says_so(made: Any, member: str) -> None:
    """The manager would have the same trouble; it is one finding, and not one for every rule."""
    (finding,) = check(made(), member.partition(".")[0]).findings
    assert finding.id == f"{member}.manager_call" and "check_same_thread=False" in finding.fix and "same thread" in finding.actual
    protocol = member.partition(".")[0]
    assert {f.id for f in check(made, protocol, probe=PROBES[protocol]).findings} == {f"{protocol}.threads"}


class LoopHub(Hub):
    """It belongs to the loop on which it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("broadcast was called on a different event loop")
        await super().broadcast(event_type, data)


class HandingHub(LoopHub):
    """It hands events over to its loop, which never gets to them while it waits."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = json.dumps(data)
        self.loop.call_soon_threadsafe(lambda: [c.queue.append(f"event: {event_type}\ndata: {text}\n\n") for c in self.clients])


@pytest.mark.parametrize("made", [LoopHub, HandingHub])
def test_a_broadcaster_of_the_loop_that_runs_says_so(made: Any) -> None:
    """`check` holds up that loop; the twin does not."""

    async def main() -> "tuple[Report, Report]":
        return check(made(), "events", probe=connect), await check_async(made(), "events", probe=connect)

    wrong, right = asyncio.run(main())
    assert not wrong.ok and all("await check_async(…)" in f.fix and "give a factory" in f.fix for f in wrong.findings), str(wrong)
    assert not broken(right) - {"events.unsendable", "events.forged"} and check(made, "events", probe=connect).counts["passed"] >= 15


def test_one_that_is_made_for_no_loop_says_nothing_of_it() -> None:
    """The advice is for those whom it may help."""
    text = str(check(Hub, "events", probe=connect)) + str(check(MUTANTS["NewestFirst"].factory(), "events", probe=connect))
    assert "newest" in text.lower() and "check_async" not in text


class NeedsALoop(Resources):
    """It hands its news to a loop, and thinks that there is one."""

    def register_worker(self, pid: int, worker_type: str) -> None:
        asyncio.get_running_loop().call_soon(print, pid)


class RunsALoop(Hub):
    """It has a loop run where one runs."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        never = asyncio.sleep(0)
        try:
            asyncio.run(never)
        finally:
            never.close()  # else Python warns of it when it is collected, in some later test


def test_common_errors_explain_themselves() -> None:
    """Not by the rule that was looked at, but by what was raised."""
    (finding,) = check(NeedsALoop, "resources").findings
    assert "`loop.call_soon_threadsafe`" in finding.fix and "no running event loop" in finding.actual
    assert "`asyncio.run`" in check(RunsALoop, "events").findings[0].fix

    class NoServer(Hub):
        async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

    assert "server cannot be reached" in check(NoServer, "events").findings[0].fix


def yields() -> "Iterator[Registry]":
    """A fixture, and no factory."""
    yield Registry()


async def yields_later() -> Any:
    """Likewise."""
    yield Registry()


@contextlib.contextmanager
def entered() -> "Iterator[Registry]":
    """Likewise."""
    yield Registry()


NO_FACTORIES: "dict[str, tuple[Any, str]]" = {
    "a generator function": (yields, "`return` the implementation, and do not `yield` it"),
    "an async generator function": (yields_later, "`return` the implementation, and do not `yield` it"),
    "a context manager": (entered, "which has to be entered"),
    "nothing": (lambda: None, "None: `return` the implementation"),
}


@pytest.mark.parametrize("name", NO_FACTORIES)
def test_what_is_no_factory_says_why(name: str) -> None:
    """It says what to give instead, and no address in memory."""
    factory, why = NO_FACTORIES[name]
    with pytest.raises(FactoryError, match=re.escape(why)) as caught:
        check(factory, "registry")
    assert "0x" not in str(caught.value)
    with pytest.raises(FactoryError, match=re.escape(why)):
        asyncio.run(check_async(factory, "events"))


def test_a_class_that_is_given_for_an_instance_says_so() -> None:
    """By a factory that forgot to call it."""
    for finding in check(lambda: Registry, "registry").findings:
        assert "`Registry()`" in finding.fix


# Waivers without a reason, and reports without a check


@pytest.mark.parametrize("empty", ["", "  "])
def test_a_waiver_needs_a_reason(empty: str) -> None:
    """Without one it waives nothing, and is a failure of its own, whatever the level of the rule."""
    for name in ("UnknownIdRaises", "ListingIsATuple"):
        m = MUTANTS[name]
        report = check(m.factory, m.protocol, probe=m.probe, waive={m.id: empty})
        assert [(f.id, f.actual) for f in report.findings][-1] == (m.id, "it gives no reason") and not report.ok
        assert broken(report) == {m.id} and not ended(report, "skipped")
    assert [f.actual for f in check(Registry, "registry", waive={"registry.nope": empty}).findings] == ["it gives no reason"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"registry.unknown_id"},
        ["registry.unknown_id"],
        {"registry.unknown_id": None},
        {1: "why"},
        "registry.unknown_id=why",
    ],
)
def test_waivers_are_reasons_by_id(wrong: Any) -> None:
    """Anything else is refused before anything is checked."""
    with pytest.raises(TypeError, match="waive: expected a mapping of ids of checks to reasons"):
        check(Registry, "registry", waive=wrong)


def test_that_all_was_waived_is_a_failure() -> None:
    """Nothing has been seen to hold."""
    report = check(types.SimpleNamespace, "events", waive={"events.broadcast.present": "later"})
    assert [f.id for f in report.findings] == ["kit.nothing_checked"] and not report.ok


def test_a_factory_makes_one_for_each_check() -> None:
    """Checks that are blocked or cannot be seen need none."""
    for name, right in RIGHT.items():
        made: "list[Any]" = []

        def factory(right: Any = right, made: "list[Any]" = made) -> Any:
            made.append(right())
            return made[-1]

        report = check(factory, name, probe=PROBES[name])
        assert len({id(one) for one in made}) == len(made) == len(report.outcomes)


# Processes


def children() -> "list[int]":
    """The processes that this one has started and that have not ended."""
    return [p.pid for p in psutil.Process().children(recursive=True)]


def test_the_kit_ends_the_processes_that_it_starts() -> None:
    """And leaves no thread, no file and no task, whatever was found."""
    before = children(), {*threading.enumerate()}, len(os.listdir("/proc/self/fd"))
    for name, right in RIGHT.items():
        check(right, name, probe=PROBES[name])
    for wrong in (lambda manager, pid: 5, raises):
        with suppress(ProbeError):
            check(Resources, "resources", probe=wrong)

    async def main() -> "set[Any]":
        for name, right in RIGHT.items():
            await check_async(right, name, probe=PROBES[name])
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert not asyncio.run(main())
    assert (children(), {*threading.enumerate()}, len(os.listdir("/proc/self/fd"))) == before


def test_pids_are_of_living_processes_and_not_of_others() -> None:
    """A resource manager may look at them, and may even end them."""
    seen: "set[int]" = set()

    class Looks(Resources):
        def register_worker(self, pid: int, worker_type: str) -> None:
            if psutil.pid_exists(pid):
                seen.add(pid)
                assert psutil.Process(pid).ppid() == os.getpid() and pid != os.getpid()
            super().register_worker(pid, worker_type)

    assert check(Looks, "resources", probe=worker).ok and len(seen) >= 3


def test_without_a_way_to_start_processes_pids_are_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("no processes here")

    monkeypatch.setattr(Processes, "start", fails)
    report = check(Resources, "resources", probe=worker)
    assert report.counts["passed"] == len(report.outcomes), str(report)


def test_the_kit_sends_of_workers_what_the_manager_sends() -> None:
    """The same fields, and every status that a worker can have."""
    sent = {snapshot["status"] for snapshot in resources.LIFE}
    source = inspect.getsource(WorkerProxy)
    assert sent == set(re.findall(r"`(\w+)`", source[source.index("def status") :].partition("\n")[0]))
    assert all(set(snapshot) == set(resources.FIELDS) for snapshot in resources.LIFE)
