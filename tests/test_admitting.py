"""`AdmittingResourceManager`: room that is really measured, in workers that really take it."""

import asyncio
import os
import threading
from typing import Any

import psutil
import pytest
from harness import Gate, Seen, end, gate, manager, nothing_left, run  # noqa: F401

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.conformance import check
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.extensions.admission import AdmissionProtocol, EvictionProtocol
from cjm_worker_protocols.extensions.protocols import ResourceManagerProtocol
from cjm_worker_protocols.managers.admission import AdmissionGate as Door
from cjm_worker_protocols.integrations.admission import AdmittingResourceManager, rooms
from cjm_worker_protocols.integrations.resources import Gpu, SettingError, Usage, memory_now

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
    """Plugins by the megabytes that they take; what they say that they need is optional."""

    def __init__(self, says: bool = True) -> None:
        self.says = says

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        return {"id": plugin_id, "name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        size = int(plugin_id) * MB
        return {"takes": size, "model": f"{plugin_id} MB", **({"needs": {"memory": size}} if self.says else {})}


def taking(resources: Any, says: bool = True, plugin: Any = Takes, **settings: Any) -> Any:
    """A manager of plugins that take 1, 100, 200 and so on MB."""
    plugins = {str(size): plugin for size in (1, 100, 200, 295, 300, 100_000_000)}

    def made(*args: Any, **given: Any) -> Any:
        return JobManager(*args, plugins=plugins, **given)

    return manager(cls=made, resource_manager=resources, plugin_registry=Registry(says), **settings)


def test_it_keeps_the_contract() -> None:
    """It is a resource manager like its base, and implements both optional protocols."""
    report = check(AdmittingResourceManager, ResourceManagerProtocol, probe=_probe, deep=True)
    assert report.ok and report.counts["passed"] == len(report.outcomes), report
    made = AdmittingResourceManager()
    assert isinstance(made, AdmissionProtocol) and isinstance(made, EvictionProtocol)


def _probe(resources: AdmittingResourceManager, pid: int) -> "dict[str, Any] | None":
    worker = resources.worker(pid)
    names = ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config")
    return None if worker is None else {name: getattr(worker, name) for name in names}


@pytest.mark.parametrize("wrong", [{"headroom": 1.0}, {"headroom": -0.1}, {"headroom": "much"}, {"limit": 0}, {"limit": 1.5}, {"history": 0}], ids=str)
def test_wrong_settings_are_refused(wrong: "dict[str, Any]") -> None:
    """With a named error."""
    with pytest.raises(SettingError, match=next(iter(wrong))):
        AdmittingResourceManager(**wrong)


@pytest.mark.parametrize("size", ["5GB", "5", None, True, -5, float("nan"), float("inf"), [1]], ids=str)
def test_a_need_that_is_no_size_is_told(size: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which plugin needs what that cannot be; its job is let in, as after any failure of a resource manager."""
    with pytest.raises(SettingError, match=r"needs\['memory'\] of plugin 'it': expected a number of bytes \(got "):
        AdmittingResourceManager().needs("it", {}, {"memory": size})

    class Needs(JobManager):
        def estimate_resources(self, plugin_id: str, config: "dict[str, Any]") -> Any:
            return {"memory": size}

    async def scenario() -> None:
        async with Needs("test", "sizes", plugins={"it": "os:getpid"}, resource_manager=AdmittingResourceManager()) as m:
            job = await end(await m.start_job("it"))
            assert job.status == "completed" and m.integration_errors["resource_manager.can_start"] == 1

    run(scenario())
    assert "needs['memory'] of plugin 'it': expected a number of bytes" in caplog.text


def test_what_can_never_fit_is_refused_at_once() -> None:
    """More than the machine has, or than the limit: no job exists, and no worker."""

    async def scenario() -> None:
        async with taking(AdmittingResourceManager()) as m:
            with pytest.raises(errors.ResourceValidationError, match="needs 100000.0 GB of memory, and there is no more than"):
                await m.start_job("100000000")
            assert m.jobs == {} and m.workers == []
        async with taking(AdmittingResourceManager(limit=150 * MB)) as m:
            with pytest.raises(errors.ResourceValidationError, match="200 needs 200 MB of memory, and there is no more than 150 MB"):
                await m.start_job("200")

    run(scenario())


def test_a_job_waits_until_there_is_room(gate: Gate) -> None:
    """While a plugin runs it is not unloaded; when it has ended it makes room, and the memory is seen to be back."""
    resources = AdmittingResourceManager(limit=450 * MB)

    async def scenario() -> None:
        async with taking(resources, max_workers=2) as m:
            seen = Seen(m)
            first = await m.start_job("300", gate=gate.path)
            await seen.until("job:started", job_id=first.id)
            await _until(lambda: _used(resources) > 300 * MB)
            second = await m.start_job("200")
            await seen.when(lambda e: e.data.get("job_id") == second.id and "waiting_for" in e.data)
            assert second.status == "pending" and second.waiting_for.startswith("200 needs 200 MB of memory, and ")
            gate.open()
            assert await first == 300 * MB and await second == 200 * MB
            assert _used(resources) < 450 * MB
            assert [w.plugin_id for w in m.workers if w.plugin_id] == ["200"]
        assert m.integration_errors == {}

    run(scenario())


def _used(resources: AdmittingResourceManager) -> int:
    return sum(worker.usage.rss or 0 for worker in resources.snapshot().workers)


async def _until(holds: Any, limit: float = 10.0) -> None:
    end = asyncio.get_running_loop().time() + limit
    while not holds():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)


class Leaks(Takes):
    """A plugin that leaves what it took in its process, as those that use a GPU do."""

    left: "list[bytearray]" = []

    def unload(self) -> None:
        """Give nothing back."""
        type(self).left.append(self.memory)


def test_memory_that_a_plugin_left_behind_comes_back_with_its_worker() -> None:
    """When there is nothing to unload any more, the worker is replaced, and the job that waits is not kept waiting for ever."""
    resources = AdmittingResourceManager(limit=450 * MB)

    async def scenario() -> None:
        async with taking(resources, plugin=Leaks, max_workers=1, standby=False) as m:
            first = await m.start_job("300")
            assert await first == 300 * MB
            second = await m.start_job("200")
            assert await asyncio.wait_for(second, 20) == 200 * MB
            assert second.worker_pid != first.worker_pid and [w.pid for w in m.workers] == [second.worker_pid]
        assert m.integration_errors == {}

    run(scenario())


def test_a_worker_is_replaced_only_when_nothing_else_helps() -> None:
    """Where unloading gives the memory back, the worker stays."""
    resources = AdmittingResourceManager(limit=450 * MB)

    async def scenario() -> None:
        async with taking(resources, max_workers=1, standby=False) as m:
            jobs = [await m.start_job(size) for size in ("300", "200", "300")]
            assert [await job for job in jobs] == [300 * MB, 200 * MB, 300 * MB]
            assert len({job.worker_pid for job in jobs}) == 1
        assert m.integration_errors == {}

    run(scenario())


def test_what_fits_nowhere_with_the_workers_that_there_are_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers need memory themselves: before there were any the job seemed to fit. When that is said for long enough, it fails."""
    monkeypatch.setattr(Door, "NEVER", 0.5)
    resources = AdmittingResourceManager(limit=300 * MB)

    async def scenario() -> None:
        async with taking(resources, max_workers=1) as m:
            job = await end(await m.start_job("295"))
            assert job.status == "failed" and job.error and job.error.category == "load" and job.worker_pid is None
            assert "295 needs 295 MB of memory, and there is no more than 2" in job.error.message
            with pytest.raises(errors.ResourceValidationError, match="295 needs 295 MB"):
                await m.start_job("295")
            assert await (await m.start_job("100")) == 100 * MB
        assert m.integration_errors == {}

    run(scenario())


def test_a_job_that_is_cancelled_while_it_is_asked_about_holds_nothing_for_long() -> None:
    """What was promised to it is over soon, and the next job begins."""

    class Slow(AdmittingResourceManager):
        def can_start(self, *args: Any) -> "str | None":
            answer = super().can_start(*args)
            asked.set()
            later.wait(5)
            return answer

    asked, later, resources = threading.Event(), threading.Event(), Slow(limit=450 * MB)

    async def scenario() -> None:
        async with taking(resources, max_workers=1) as m:
            first = await m.start_job("300")
            await asyncio.to_thread(asked.wait, 10)
            assert await m.cancel_job(first.id)
            later.set()
            assert await asyncio.wait_for(await m.start_job("200"), 3 * resources.PROMISE) == 200 * MB
        assert m.integration_errors == {}

    run(scenario())


def test_shutdown_while_it_is_asked() -> None:
    """A manager that is shut down while its job is asked about, while room is made, or while a worker is replaced, ends at once, and so does the job."""

    async def scenario(after: float) -> None:
        async with taking(AdmittingResourceManager(limit=450 * MB), plugin=Leaks, max_workers=1) as m:
            await (await m.start_job("300"))
            job = await m.start_job("200")
            await asyncio.sleep(after)
            began = asyncio.get_running_loop().time()
        assert job.done and asyncio.get_running_loop().time() - began < 3
        assert m.integration_errors == {}

    for after in (0.0, 0.002, 0.01, 0.05, 0.3, 1.05, 1.1):
        run(scenario(after))


def test_what_was_promised_is_set_aside(gate: Gate) -> None:
    """Two that fit alone, asked for at the same time, do not both get the same room."""
    resources = AdmittingResourceManager(limit=450 * MB)

    async def scenario() -> None:
        async with taking(resources, max_workers=2) as m:
            jobs = [await m.start_job("200", gate=gate.path), await m.start_job("300", gate=gate.path)]
            await _until(lambda: any(job.status == "running" for job in jobs) and any(job.waiting_for for job in jobs))
            assert sorted(job.status for job in jobs) == ["pending", "running"]
            gate.open(2)
            assert [(await end(job)).status for job in jobs] == ["completed", "completed"]
        assert m.integration_errors == {}

    run(scenario())


def test_it_learns_what_a_plugin_needs(gate: Gate) -> None:
    """A plugin that says nothing is let in once; from then on it needs what was measured."""
    resources = AdmittingResourceManager(limit=450 * MB, interval=0.02)

    async def scenario() -> None:
        async with taking(resources, says=False) as m:
            first = await m.start_job("300", gate=gate.path)
            await _until(lambda: resources.needs("300", {"model": "300 MB"}).get("memory", 0) >= 300 * MB)
            gate.open()
            await first
        assert 300 * MB <= resources.needs("300", {"model": "300 MB"})["memory"] < 350 * MB
        assert resources.needs("300", {"model": "another"}) == {} == resources.needs("200", {"model": "300 MB"})
        assert resources.needs("300", {"model": "300 MB"}, {"memory": 5}) == {"memory": 5}
        resources.limit = 299 * MB
        async with taking(resources, says=False) as m:
            with pytest.raises(errors.ResourceValidationError, match="300 needs 3.. MB of memory, and there is no more than 299 MB"):
                await m.start_job("300")
        resources.close()

    run(scenario())


def test_a_promise_ends() -> None:
    """When nobody takes it up, when its worker is idle, when its worker is gone."""
    resources = AdmittingResourceManager(limit=100 * MB)
    ask = {"plugin_id": "p", "config": {}, "estimate": {"memory": 80 * MB}}
    resources.register_worker(4_194_400, "test")
    assert resources.can_start(**ask) is None
    assert resources.can_start(**ask) == "p needs 80 MB of memory, and 20 MB is free"
    resources.update_worker_state(4_194_400, status="running", plugin_id="p")
    assert resources.can_start(**ask) is not None
    resources.update_worker_state(4_194_400, status="idle")
    assert resources.can_start(**ask) is None
    resources.update_worker_state(4_194_400, status="running", plugin_id="p")
    resources.unregister_worker(4_194_400)
    assert resources.can_start(**ask) is None
    resources.PROMISE = 0.0  # type: ignore[misc]
    resources._promises.clear()
    assert resources.can_start(**ask) is None is resources.can_start(**ask)


def test_what_a_new_worker_needs_for_itself_is_no_part_of_its_promise() -> None:
    """One that was never measured had as much as when it was registered, and not nothing."""
    worker = os.getpid()
    limit = psutil.Process(worker).memory_info().rss + 80 * MB
    resources = AdmittingResourceManager(headroom=0, limit=limit)
    assert resources.can_start("a", {}, {"memory": 50 * MB}) is None
    resources.register_worker(worker, "test")
    resources.update_worker_state(worker, status="running", plugin_id="a")
    assert "is free" in (resources.can_start("b", {}, {"memory": 50 * MB}) or "")


def test_gpu_memory_that_a_config_declares_is_looked_for_where_it_is() -> None:
    """A plugin that was never measured either makes room on the GPU, not in the least recently used worker."""
    resources = AdmittingResourceManager()
    for pid, held in ((2**22 + 1, None), (2**22 + 2, 0), (2**22 + 3, 5)):
        resources.register_worker(pid, "test")
        resources.update_worker_state(pid, status="idle", plugin_id="p")
        resources._records[pid].usage = Usage(gpu_memory=held)
    idle = [2**22 + 1, 2**22 + 2, 2**22 + 3]
    assert resources.choose_victim("new", {"needs": {"gpu_memory": 5}}, idle) == 2**22 + 3
    for config in ({}, {"needs": {"memory": 5}}, {"needs": "gpu_memory"}):
        assert resources.choose_victim("new", config, idle) == 2**22 + 1


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


class TwoGpus:
    """Stands for a driver: no GPU is needed to see how needs are matched with GPUs."""

    problem = None

    def used(self) -> "dict[int, int | None] | None":
        return {}

    def gpus(self) -> "tuple[Gpu, ...]":
        return Gpu(0, "small", 8000 * MB, 6000 * MB), Gpu(1, "large", 24000 * MB, 4000 * MB)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "device, needs, reason",
    [
        (None, 15000, None),
        (None, 21000, "p needs 21.0 GB of GPU 1, and 20.0 GB is free"),
        ("cuda:0", 1000, None),
        ("cuda:0", 3000, "p needs 3.0 GB of GPU 0, and 2.0 GB is free"),
        (1, 20000, None),
        ("cuda:7", 99000, None),  # nobody knows anything of that one
    ],
)
def test_each_gpu_is_a_room_of_its_own(device: Any, needs: int, reason: "str | None") -> None:
    """The one that the configuration names, or else the one with the most room."""
    resources = AdmittingResourceManager(headroom=0.0, gpus=TwoGpus())  # type: ignore[arg-type]
    config = {} if device is None else {"device": device}
    assert resources.can_start("p", config, {"gpu_memory": needs * MB}) == reason
    assert resources.can_ever_start("p", {"device": "cuda:0"}, {"gpu_memory": 8001 * MB}) is not None


def test_without_a_driver_no_gpu_memory_is_a_reason() -> None:
    """Unknown is not none."""
    resources = AdmittingResourceManager()
    if resources.snapshot().gpus:
        pytest.skip("there is a GPU here")
    assert resources.can_ever_start("p", {}, {"gpu_memory": 10**15}) is None is resources.can_start("p", {}, {"gpu_memory": 10**15})


def test_headroom_is_left_alone() -> None:
    """The part of each memory that is nobody's."""
    snapshot = AdmittingResourceManager(gpus=TwoGpus()).snapshot()  # type: ignore[arg-type]
    whole, half = rooms(snapshot, 0.0), rooms(snapshot, 0.5)
    assert half["GPU 1"].size == 12000 * MB and half["GPU 1"].free == 8000 * MB
    assert half["memory"].size == int(whole["memory"].size * 0.5) <= memory_now().total // 2
