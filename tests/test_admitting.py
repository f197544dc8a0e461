"""`AdmittingResourceManager`: room that is really measured, in workers that really take it."""

import asyncio
import os
import random
import signal
import subprocess
import threading
import types
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from harness import Gate, Seen, end, gate, manager, nothing_left, run, until  # noqa: F401
from nvml_double import GB, Card, Library

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.conformance import check
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.extensions.admission import AdmissionProtocol, EvictionProtocol
from cjm_worker_protocols.extensions.protocols import ResourceManagerProtocol
from cjm_worker_protocols.integrations import admission
from cjm_worker_protocols.integrations.admission import AdmittingResourceManager, rooms
from cjm_worker_protocols.integrations.resources import Nvml, memory_now, meter
from cjm_worker_protocols.managers.admission import RoomQuestions

MB = 1_000_000


class Takes:
    """A plugin that takes as much memory as its config says, and gives it back when it is unloaded."""

    def load(self, config: "dict[str, Any]") -> None:
        """Take it: memory that is written to is in use."""
        self.memory = bytearray(config["takes"])
        self.memory[::4096] = b"x" * len(self.memory[::4096])

    def run(self, gate: "str | None" = None) -> int:
        """Wait at the gate, if there is one."""
        if gate is not None:
            with open(gate, "rb", buffering=0) as file:
                file.read(1)
        return len(self.memory)

    def unload(self) -> None:
        """Give it back."""
        del self.memory


class Registry:
    """Plugins by the megabytes that they take; an estimate in their configuration is optional."""

    def __init__(self, says: bool = True) -> None:
        self.says = says

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        return {"id": plugin_id, "name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        size = int(plugin_id) * MB
        return {"takes": size, "model": f"{plugin_id} MB", **({"estimate": {"memory": size}} if self.says else {})}


def taking(resources: Any, says: bool = True, plugin: Any = Takes, **settings: Any) -> Any:
    """A manager of plugins that take 1, 100, 200 and so on MB."""
    plugins = {str(size): plugin for size in (1, 100, 200, 295, 300, 100_000_000)}

    def made(*args: Any, **given: Any) -> Any:
        return JobManager(*args, plugins=plugins, **given)

    return manager(cls=made, resource_manager=resources, plugin_registry=Registry(says), **settings)


@pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_keeps_the_contract(deep: bool) -> None:
    """It is a resource manager like its base, and implements both optional protocols."""
    report = check(AdmittingResourceManager, ResourceManagerProtocol, probe=_probe, deep=deep)
    assert report.ok and report.counts["passed"] == len(report.outcomes), report
    made = AdmittingResourceManager()
    assert isinstance(made, AdmissionProtocol) and isinstance(made, EvictionProtocol)


def _probe(resources: AdmittingResourceManager, pid: int) -> "dict[str, Any] | None":
    worker = resources.worker(pid)
    names = ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config")
    return None if worker is None else {name: getattr(worker, name) for name in names}


@pytest.mark.parametrize(
    "wrong",
    [{"headroom": 1.0}, {"headroom": -0.1}, {"headroom": "much"}, {"limit": 0}, {"limit": 1.5}, {"history": 0}],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: "dict[str, Any]") -> None:
    """With a named error."""
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
        AdmittingResourceManager(**wrong)


@pytest.mark.parametrize("size", ["5GB", "5", None, True, -5, float("nan"), float("inf"), [1]], ids=str)
async def test_an_estimate_that_is_no_size_is_named(size: Any) -> None:
    """The job is refused, with the plugin, the kind of memory and what was given."""
    with pytest.raises(errors.ConfigError, match="memory.*'it'") as raised:
        AdmittingResourceManager().estimate("it", {}, {"memory": size})
    assert raised.value.got is size

    class Estimates(JobManager):
        def estimate_resources(self, plugin_id: str, config: "dict[str, Any]") -> Any:
            return {"memory": size}

    async with Estimates("test", "sizes", plugins={"it": "os:getpid"}, resource_manager=AdmittingResourceManager()) as m:
        with pytest.raises(errors.ResourceValidationError, match="memory.*'it'"):
            await m.start_job("it")
        assert not m.integration_errors


async def test_what_can_never_fit_is_refused_at_once() -> None:
    """More than the machine has, or than the limit: no job exists, and no worker."""
    async with taking(AdmittingResourceManager()) as m:
        with pytest.raises(errors.ResourceValidationError, match="needs 100000.0 GB of memory, and there is no more than"):
            await m.start_job("100000000")
        assert m.jobs == {} and m.workers == []
    async with taking(AdmittingResourceManager(limit=150 * MB)) as m:
        with pytest.raises(errors.ResourceValidationError, match="200 needs 200 MB of memory, and there is no more than 150 MB"):
            await m.start_job("200")


async def test_a_job_waits_until_there_is_room(gate: Gate) -> None:
    """While a plugin runs it is not unloaded; when it has ended it makes room, and the memory is seen to be back."""
    resources = AdmittingResourceManager(limit=450 * MB)
    async with taking(resources, max_workers=2) as m:
        seen = Seen(m)
        first = await m.start_job("300", gate=gate.path)
        await seen.until("job:started", job_id=first.id)
        await until(lambda: _used(resources) > 300 * MB)
        second = await m.start_job("200")
        await seen.when(lambda e: e.data.get("job_id") == second.id and "waiting_for" in e.data)
        assert second.status == "pending" and second.waiting_for.startswith("200 needs 200 MB of memory, and ")
        gate.open()
        assert await first == 300 * MB and await second == 200 * MB
        assert _used(resources) < 450 * MB
        assert [w.plugin_id for w in m.workers if w.plugin_id] == ["200"]
    assert m.integration_errors == {}


def _used(resources: AdmittingResourceManager) -> int:
    return sum(worker.usage.rss or 0 for worker in resources.snapshot().workers)


class Leaks(Takes):
    """A plugin that leaves what it took in its process, as those that use a GPU do."""

    left: "list[bytearray]" = []

    def unload(self) -> None:
        """Give nothing back."""
        type(self).left.append(self.memory)


async def test_of_several_plugins_in_one_worker_no_more_are_unloaded_than_room_needs() -> None:
    """The one used longest ago goes first; what fits beside the others is loaded beside them."""
    resources = AdmittingResourceManager(limit=460 * MB, headroom=0.0)
    async with taking(resources, loaded_plugins=3) as m:
        loaded = []
        for plugin in ("100", "200", "1", "300", "100"):
            job = await end(await m.start_job(plugin))
            assert job.status == "completed" and _used(resources) < 460 * MB
            loaded.append(m.workers[0].loaded)
        assert loaded[:3] == [("100",), ("100", "200"), ("100", "200", "1")]  # one more would be unloaded for want of a slot
        assert loaded[3] == ("1", "300") and loaded[4] == ("1", "300", "100") and len(m.workers) == 1


@pytest.mark.slow
async def test_memory_that_a_plugin_left_behind_comes_back_with_its_worker() -> None:
    """When there is nothing to unload any more, the worker is replaced, and the job that waits is not kept waiting for ever."""
    resources = AdmittingResourceManager(limit=450 * MB)
    async with taking(resources, plugin=Leaks, max_workers=1, standby=False) as m:
        first = await m.start_job("300")
        assert await first == 300 * MB
        second = await m.start_job("200")
        assert await asyncio.wait_for(second, 20) == 200 * MB
        assert second.worker_pid != first.worker_pid and [w.pid for w in m.workers] == [second.worker_pid]
    assert m.integration_errors == {}


@pytest.mark.slow
async def test_a_worker_is_replaced_only_when_nothing_else_helps() -> None:
    """Where unloading gives the memory back, the worker stays."""
    resources = AdmittingResourceManager(limit=450 * MB)
    async with taking(resources, max_workers=1, standby=False) as m:
        jobs = [await m.start_job(size) for size in ("300", "200", "300")]
        assert [await job for job in jobs] == [300 * MB, 200 * MB, 300 * MB]
        assert len({job.worker_pid for job in jobs}) == 1
    assert m.integration_errors == {}


async def test_what_fits_nowhere_with_the_workers_that_there_are_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers need memory themselves: before there were any the job seemed to fit. When that is said for long enough, it fails."""
    monkeypatch.setattr(RoomQuestions, "NEVER", 0.5)
    resources = AdmittingResourceManager(limit=300 * MB)
    async with taking(resources, max_workers=1) as m:
        job = await end(await m.start_job("295"))
        assert job.status == "failed" and job.error and job.error.category == "load" and job.worker_pid is None
        assert "295 needs 295 MB of memory, and there is no more than 2" in job.error.message
        with pytest.raises(errors.ResourceValidationError, match="295 needs 295 MB"):
            await m.start_job("295")
        assert await (await m.start_job("100")) == 100 * MB
    assert m.integration_errors == {}


async def test_a_job_that_is_cancelled_while_it_is_asked_about_holds_nothing_for_long() -> None:
    """What was promised to it is over soon, and the next job begins."""

    class Slow(AdmittingResourceManager):
        PROMISE = 0.5

        def can_start(self, *args: Any) -> "str | None":
            answer = super().can_start(*args)
            asked.set()
            later.wait(5)
            return answer

    asked, later, resources = threading.Event(), threading.Event(), Slow(limit=450 * MB)
    async with taking(resources, max_workers=1) as m:
        first = await m.start_job("300")
        await asyncio.to_thread(asked.wait, 10)
        assert await m.cancel_job(first.id)
        later.set()
        assert await asyncio.wait_for(await m.start_job("200"), 10) == 200 * MB
    assert m.integration_errors == {}


@pytest.mark.parametrize(
    "after", [0.0, 0.05, *(pytest.param(seconds, marks=pytest.mark.slow) for seconds in (0.002, 0.01, 0.3, 1.05, 1.1))]
)
async def test_shutdown_while_it_is_asked(after: float) -> None:
    """A shutdown ends the manager and its job at once.

    Also while the job is asked about, while room is made, and while a worker is replaced.
    """
    async with taking(AdmittingResourceManager(limit=450 * MB), plugin=Leaks, max_workers=1) as m:
        await (await m.start_job("300"))
        job = await m.start_job("200")
        await asyncio.sleep(after)  # where the shutdown comes
        began = asyncio.get_running_loop().time()
    assert job.done and asyncio.get_running_loop().time() - began < 3
    assert m.integration_errors == {}


async def test_what_was_promised_is_set_aside(gate: Gate) -> None:
    """Two that fit alone, asked for at the same time, do not both get the same room."""
    resources = AdmittingResourceManager(limit=450 * MB)
    async with taking(resources, max_workers=2) as m:
        jobs = [await m.start_job("200", gate=gate.path), await m.start_job("300", gate=gate.path)]
        await until(lambda: any(job.status == "running" for job in jobs) and any(job.waiting_for for job in jobs))
        assert sorted(job.status for job in jobs) == ["pending", "running"]
        gate.open(2)
        assert [(await end(job)).status for job in jobs] == ["completed", "completed"]
    assert m.integration_errors == {}


async def test_it_learns_what_a_plugin_needs(gate: Gate) -> None:
    """A plugin that says nothing is let in once; from then on it needs what was measured."""
    resources = AdmittingResourceManager(limit=450 * MB, interval=0.02)
    async with taking(resources, says=False) as m:
        first = await m.start_job("300", gate=gate.path)
        await until(lambda: resources.estimate("300", {"model": "300 MB"}).get("memory", 0) >= 300 * MB)
        gate.open()
        await first
    assert 300 * MB <= resources.estimate("300", {"model": "300 MB"})["memory"] < 350 * MB
    assert resources.estimate("300", {"model": "another"}) == {} == resources.estimate("200", {"model": "300 MB"})
    assert resources.estimate("300", {"model": "300 MB"}, {"memory": 5}) == {"memory": 5}
    resources.limit = 299 * MB
    async with taking(resources, says=False) as m:
        with pytest.raises(errors.ResourceValidationError, match="300 needs 3.. MB of memory, and there is no more than 299 MB"):
            await m.start_job("300")
    resources.close()


def admits(resources: AdmittingResourceManager, plugin_id: str = "other", size: int = 80) -> bool:
    """Ask, with a plugin that is not loaded."""
    return resources.can_start(plugin_id, {}, {"memory": size * MB}) is None


FIRST, SECOND = 4_194_400, 4_194_401  # workers without a process here


def reserved(config: "dict[str, Any] | None" = None) -> AdmittingResourceManager:
    """100 MB, of which 80 are reserved for a worker that is to load plugin p; the second of two idle workers has p already."""
    resources = AdmittingResourceManager(limit=100 * MB)
    for pid in (FIRST, SECOND):
        resources.register_worker(pid, "test")
        resources.update_worker_state(pid, status="idle")
    report(resources, SECOND, "running", config)
    report(resources, SECOND, "idle", config)
    assert resources.can_start("p", dict(config or {}), {"memory": 80 * MB}) is None
    assert not admits(resources)
    return resources


def report(
    resources: AdmittingResourceManager,
    pid: int,
    status: str,
    config: "dict[str, Any] | None" = None,
    plugin: "str | None" = "p",
) -> None:
    """All six fields, as a job manager of this package reports."""
    held: "dict[str, Any]" = {
        "plugin_name": plugin,
        "plugin_id": plugin,
        "loaded_plugin_resource": None,
        "config": dict(config or {}) if plugin else None,
    }
    resources.update_worker_state(pid, status=status, job_id="j" if status == "running" else None, **held)


def test_a_reservation_ends_with_its_worker() -> None:
    """When that is idle again, when it is gone, or when it loads another plugin."""
    for end_it in (
        lambda r: report(r, FIRST, "idle"),
        lambda r: r.unregister_worker(FIRST),
        lambda r: r.update_worker_state(FIRST, status="idle"),
        lambda r: report(r, FIRST, "running", plugin="q"),
    ):
        resources = reserved()
        report(resources, FIRST, "running")
        assert not admits(resources)
        end_it(resources)
        assert admits(resources)


def test_a_reservation_that_no_worker_takes_up_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and not before; one that was taken up stays for as long as its worker loads."""
    now = [0.0]
    monkeypatch.setattr(admission, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    open_one, taken = reserved(), reserved()
    report(taken, FIRST, "running")
    now[0] = AdmittingResourceManager.PROMISE - 0.1
    assert not admits(open_one)
    now[0] += 0.2
    assert admits(open_one) and not admits(taken)


@pytest.mark.parametrize("config", [{}, {"model": "xl"}, {"model": "xl", "options": {"beam": 5}}], ids=str)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("fields", ["all", "only what changes"])
def test_a_worker_that_loads_nothing_takes_no_reservation(config: "dict[str, Any]", times: int, fields: str) -> None:
    """The room stays reserved for a worker that has not begun to load.

    Another worker that has the plugin, with the same configuration, may run jobs before.
    """
    resources = reserved(config)
    for _ in range(times):
        if fields == "all":
            report(resources, SECOND, "running", config)
            report(resources, SECOND, "idle", config)
        else:
            resources.update_worker_state(SECOND, status="running", job_id="j")
            resources.update_worker_state(SECOND, status="idle")
    assert not admits(resources)
    report(resources, FIRST, "running", config)
    report(resources, SECOND, "running", config)
    report(resources, SECOND, "idle", config)
    assert not admits(resources)
    report(resources, FIRST, "idle", config)
    assert admits(resources)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_worker_takes_up_the_reservation_of_its_configuration(order: "tuple[int, int]") -> None:
    """Two that load the same plugin with different configurations, which need different amounts, in either order."""
    resources = AdmittingResourceManager(limit=100 * MB)
    small, large = (FIRST, {"model": "s"}, 10), (SECOND, {"model": "l"}, 70)
    for pid, config, size in (small, large):
        resources.register_worker(pid, "test")
        assert resources.can_start("p", config, {"memory": size * MB}) is None
    for number in order:
        pid, config, _ = (small, large)[number]
        report(resources, pid, "running", config)
    report(resources, FIRST, "idle", small[1])
    assert not admits(resources, size=35) and admits(resources, size=25)


class Odd:
    """A value that cannot be compared, like an array."""

    def __eq__(self, other: object) -> bool:
        raise ValueError

    def __deepcopy__(self, memo: Any) -> "Odd":
        return Odd()


def test_a_configuration_that_cannot_be_compared_counts_as_another() -> None:
    """It is loaded, and takes up what is reserved for its plugin; nothing raises."""
    resources = AdmittingResourceManager(limit=100 * MB)
    resources.register_worker(FIRST, "test")
    assert resources.can_start("p", {"weights": Odd()}, {"memory": 80 * MB}) is None
    report(resources, FIRST, "running", {"weights": Odd()})
    assert not admits(resources)
    report(resources, FIRST, "idle", {"weights": Odd()})
    assert admits(resources)


def test_whichever_way_workers_interleave_no_more_is_admitted_than_there_is() -> None:
    """Short jobs on loaded workers, loads, ends and deaths in random order: what is admitted and not yet loaded never exceeds the room."""
    for seed in range(30):
        choose, resources, size = random.Random(seed), AdmittingResourceManager(limit=100 * MB), 30
        workers: "dict[int, str]" = {}  # what each does: idle (empty), asked, loading, or loaded
        names = iter(range(FIRST, FIRST + 1000))
        for _ in range(80):
            free = [pid for pid, doing in workers.items() if doing == "empty"]
            loaded = [pid for pid, doing in workers.items() if doing == "loaded"]
            asked = [pid for pid, doing in workers.items() if doing == "asked"]
            loading = [pid for pid, doing in workers.items() if doing == "loading"]
            step = choose.choice(["start", "ask", "load", "end", "short", "short", "die"])
            if step == "start" and len(workers) < 6:
                workers[pid := next(names)] = "empty"
                resources.register_worker(pid, "test")
                report(resources, pid, "idle", plugin=None)
            elif step == "ask" and free:
                fits = admits(resources, "p", size)
                assert fits == ((len(asked) + len(loading) + 1) * size <= 100), seed
                if fits:
                    workers[free[0]] = "asked"
            elif step == "load" and asked:
                workers[asked[0]] = "loading"
                report(resources, asked[0], "running")
            elif step == "end" and loading:
                workers[pid := choose.choice(loading)] = "loaded"
                report(resources, pid, "idle")
            elif step == "short" and loaded:
                report(resources, pid := choose.choice(loaded), "running")
                report(resources, pid, "idle")
            elif step == "die" and loading + loaded:
                del workers[pid := choose.choice(loading + loaded)]
                resources.unregister_worker(pid)


def test_what_a_new_worker_needs_for_itself_is_no_part_of_its_promise() -> None:
    """One that was never measured had as much as when it was registered, and not nothing."""
    worker = os.getpid()
    limit = psutil.Process(worker).memory_info().rss + 80 * MB
    resources = AdmittingResourceManager(headroom=0, limit=limit)
    assert resources.can_start("a", {}, {"memory": 50 * MB}) is None
    resources.register_worker(worker, "test")
    resources.update_worker_state(worker, status="running", plugin_id="a")
    assert "is free" in (resources.can_start("b", {}, {"memory": 50 * MB}) or "")


def on_gpus(*cards: Card, **settings: Any) -> AdmittingResourceManager:
    """A manager on a machine with these GPUs."""
    fails = settings.pop("fails", {})
    return AdmittingResourceManager(headroom=0.0, gpus=Nvml(Library(*cards, **fails)), **settings)


def test_gpu_memory_that_a_config_declares_is_looked_for_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that was never measured either makes room on the GPU, not in the least recently used worker.

    A GPU that does not answer changes nothing.
    """
    monkeypatch.setattr(meter, "sees_all_pids", lambda: True)
    with ExitStack() as stack:
        idle = [stack.enter_context(subprocess.Popen(["sleep", "100"])).pid for _ in range(3)]
        stack.callback(lambda: [os.kill(pid, signal.SIGKILL) for pid in idle])
        resources = on_gpus(Card(processes={"Compute": [(idle[2], 5 * GB), (idle[1], 0)]}), Card(fails={"HandleByIndex": "GpuIsLost"}))
        for pid in idle:
            resources.register_worker(pid, "test")
            resources.update_worker_state(pid, status="idle", plugin_id="p")
        resources.sample()
        assert resources.choose_victim("new", {"estimate": {"gpu_memory": 5}}, idle) == idle[2]
        for config in ({}, {"estimate": {"memory": 5}}, {"estimate": "gpu_memory"}):
            assert resources.choose_victim("new", config, idle) == idle[0]
        assert resources.choose_victim("new", {}, []) is None


def test_several_threads_never_get_more_than_there_is() -> None:
    """Eight threads ask for a third each; three get it."""
    resources, got = AdmittingResourceManager(limit=300 * MB), list[Any]()

    def ask() -> None:
        got.append(resources.can_start("p", {}, {"memory": 100 * MB}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(None) == 3 and len(got) == 8


SMALL, LARGE = Card(8 * GB, 6 * GB, "GPU-5a11", "small"), Card(24 * GB, 4 * GB, "GPU-1a46", "large")
LOST = Card(fails={"HandleByIndex": "GpuIsLost"})


def reason(resources: AdmittingResourceManager, device: Any, size: float) -> "str | None":
    """Ask for some GB on a GPU."""
    return resources.can_start("p", {} if device is None else {"device": device}, {"gpu_memory": int(size * GB)})


@pytest.mark.parametrize(
    "visible, device, size, room",
    [
        (None, None, 15, ""),
        (None, None, 21, "GPU 1"),
        (None, "cuda", 1, ""),
        (None, "cuda", 3, "GPU 0"),
        (None, "cuda:0", 1, ""),
        (None, "cuda:0", 3, "GPU 0"),
        (None, 1, 20, ""),
        (None, "cuda:7", 1, "cuda:7"),
        (None, "cpu", 99, ""),
        ("1", "cuda:0", 20, ""),
        ("1", "cuda", 20, ""),
        ("1", None, 20, ""),
        ("1", None, 21, "GPU 1"),
        ("1", "cuda:1", 1, "cuda:1"),
        ("0", None, 3, "GPU 0"),
        ("1,0", "cuda:1", 3, "GPU 0"),
        ("1,0", "cuda:0", 20, ""),
        ("GPU-1a", "cuda:0", 20, ""),
        ("GPU-1a46,GPU-5a11", 1, 3, "GPU 0"),
        ("", None, 99, ""),  # no GPU can be used, so none runs out of memory
        ("", "cuda:0", 1, "cuda:0"),
        ("9", "cuda", 1, "cuda:0"),
    ],
)
def test_the_gpu_that_a_plugin_will_use_is_asked(
    monkeypatch: pytest.MonkeyPatch, visible: "str | None", device: Any, size: int, room: str
) -> None:
    """The one that the configuration names, by CUDA's number, or else the visible one with the most room."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    refused = reason(on_gpus(SMALL, LARGE), device, size)
    assert (room in refused) if room and refused else not (room or refused)


@pytest.mark.parametrize(
    "fails",
    [
        {"HandleByIndex": "GpuIsLost"},
        {"HandleByIndex": "NoPermission"},
        {"MemoryInfo": "NoPermission"},
        {"MemoryInfo": "Unknown"},
    ],
    ids=str,
)
def test_a_gpu_that_does_not_answer_admits_nothing_and_hides_no_other(monkeypatch: pytest.MonkeyPatch, fails: "dict[str, str]") -> None:
    """Where it is the only one in question, a plugin waits, and the reason says why, not that it never fits.

    The other GPU admits as before.
    """
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cards, silent in (((Card(fails=fails), LARGE), 0), ((LARGE, Card(fails=fails)), 1)):
        resources = on_gpus(*cards)
        name = next(iter(fails.values()))
        assert reason(resources, f"cuda:{1 - silent}", 15) is None
        assert (refused := reason(resources, f"cuda:{silent}", 1)) and f"GPU {silent}" in refused and name in refused
        assert reason(resources, None, 4) is None
        assert (refused := reason(resources, None, 10)) and f"GPU {1 - silent}" in refused
        ever = [resources.can_ever_start("p", {"device": f"cuda:{number}"}, {"gpu_memory": 99 * GB}) for number in (silent, 1 - silent)]
        assert ever[0] is None and ever[1] is not None
        assert resources.can_ever_start("p", {}, {"gpu_memory": 99 * GB}) is None  # the silent one may be as large
        assert resources.can_start("p", {"device": f"cuda:{silent}"}, {"memory": MB}) is None


def test_a_gpu_that_may_be_the_named_one_admits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its UUID cannot be read, so that it may be the visible one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ffff")
    assert (refused := reason(on_gpus(SMALL, LOST), None, 1)) and "GPU 1" in refused
    assert (refused := reason(on_gpus(SMALL, LARGE), "cuda:0", 1)) and "cuda:0" in refused
    assert reason(on_gpus(SMALL, LARGE), None, 1) is None


@pytest.mark.parametrize("fails", [{"Count": "Unknown"}, {"Init": "LibRmVersionMismatch"}, {"Init": "NoPermission"}], ids=str)
def test_a_driver_that_cannot_list_its_gpus_admits_nothing(fails: "dict[str, str]") -> None:
    """A job that needs GPU memory waits with the reason; one that needs none, or runs on the CPU, is admitted."""
    resources = on_gpus(SMALL, fails=fails)
    assert (refused := reason(resources, None, 1)) and next(iter(fails.values())) in refused
    assert resources.can_ever_start("p", {}, {"gpu_memory": GB}) is None is reason(resources, "cpu", 1)
    assert resources.can_start("p", {}, {"memory": MB}) is None


@pytest.mark.parametrize("absent", ["LibraryNotFound", "DriverNotLoaded"])
def test_without_a_driver_no_gpu_memory_is_a_reason(absent: str) -> None:
    """No GPU can be used there, so none runs out of memory."""
    resources = on_gpus(SMALL, fails={"Init": absent})
    assert resources.can_ever_start("p", {}, {"gpu_memory": 10**15}) is None is reason(resources, "cuda:0", 10**6)


def test_an_instance_of_a_gpu_is_a_room_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting CUDA shows the first; a UUID names another."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    without_size = Card(fails={"MemoryInfo": "NotSupported"}, uuid="MIG-c")
    instances = [Card(10 * GB, 0, "MIG-a"), Card(20 * GB, 0, "MIG-b"), without_size]
    split = Card(instances=instances, fails={"MemoryInfo": "NoPermission"})
    assert reason(on_gpus(split), "cuda:0", 10) is None and "GPU 0 MIG 0" in str(reason(on_gpus(split), "cuda:0", 11))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-b")
    assert reason(on_gpus(split), "cuda:0", 20) is None and "GPU 0 MIG 1" in str(reason(on_gpus(split), None, 21))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c")
    assert "GPU 0 MIG 2" in str(reason(on_gpus(split), None, 1))


def test_a_gpu_without_memory_of_its_own_takes_the_machines() -> None:
    """Both needs together must fit there, also when they are reserved."""
    resources = on_gpus(Card(fails={"MemoryInfo": "NotSupported"}), limit=100 * MB)
    ask = {"memory": 30 * MB, "gpu_memory": 30 * MB}
    assert resources.can_start("p", {"device": "cuda:0"}, ask) is None
    assert (refused := resources.can_start("p", {}, ask)) and "memory" in refused and "60 MB" in refused
    assert resources.can_ever_start("p", {}, {"memory": 60 * MB, "gpu_memory": 60 * MB})
    assert resources.can_ever_start("p", {"device": "cpu"}, {"memory": 60 * MB, "gpu_memory": 60 * MB}) is None


def test_what_is_reserved_on_a_gpu_is_counted_there() -> None:
    """And on no other."""
    resources = on_gpus(Card(10 * GB), Card(10 * GB))
    assert [reason(resources, "cuda:0", 6) is None for _ in range(2)] == [True, False]
    assert reason(resources, "cuda:1", 6) is None and reason(resources, None, 5) is not None


def test_headroom_is_left_alone() -> None:
    """A part of each memory stays free."""
    snapshot = on_gpus(SMALL, LARGE).snapshot()
    whole, half = rooms(snapshot, 0.0), rooms(snapshot, 0.5)
    assert half["GPU 1"].size == 12 * GB and half["GPU 1"].free == 8 * GB
    assert half["memory"].size == int(whole["memory"].size * 0.5) <= memory_now().total // 2
