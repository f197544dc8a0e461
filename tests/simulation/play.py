"""How a scenario is played: what its clients do with a manager, and what has to be true of that."""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict, deque
from random import Random
from typing import Any

from cjm_worker_protocols import BaseJobManager, Job, JobError, RestartPolicy, WorkerConfig, watch
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.core.events import Event, EventStream
from cjm_worker_protocols.core.jobs import ENDS

from .clock import Happening, VirtualLoop
from .engine import Faults, SimulatedEngine, Steps
from .executor import Habits
from .growth import Growth
from .integrations import CONCURRENCY, PLACES, Admission, Broadcaster, Mind, Moods, Registry
from .invariants import Book, Fate
from .scenario import Op, Scenario
from .store import MemoryStore

NOWHERE = io.StringIO()  # Closed: nothing is shown there
NOWHERE.close()
PATIENCE = 50_000.0  # Simulated seconds after which a job that has not ended never will


class AppDied(SystemExit):
    """Raised in the middle of whatever the loop does: nothing of the app runs any more."""


class Manager(BaseJobManager):
    """A manager whose jobs are noted."""

    book: Book
    next_fate: Fate

    def get_plugin_loader(self) -> Any:
        """Nobody loads it."""
        return "simulated:plugins"

    def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
        """Note the job that is being made."""
        job = Job(plugin_id, parameters)
        fate = self.book.fates[parameters["n"]]
        self.book.new_job(fate, job)
        if parameters.get("taken"):
            fate.job = fate.id = None  # what happens to that id happens to the other one
            job.id = parameters["taken"]
        return job

    def prepare_execute_request(self, job: Job) -> dict[str, Any]:
        """Send the number, which says what to do."""
        return {"n": job.params["n"], **({"cannot": Unsendable()} if job.params.get("cannot") else {})}


class Unsendable:
    """A parameter that cannot be sent."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot be sent")


EXPECTED = (
    *(errors.QueueFullError, errors.ManagerClosedError, errors.WorkersUnavailableError, errors.ResourceValidationError),
    errors.JobStoreError,
)
REGISTRY = (errors.RegistryUnavailableError, errors.UnknownPluginError, errors.PluginNotConfiguredError)


class Play:
    """One run of a scenario: an app, or with a job store several, one after the other."""

    manager: Manager
    tasks: set[asyncio.Task[None]]

    def __init__(self, scenario: Scenario, loop: VirtualLoop, traced: bool) -> None:
        self.scenario = scenario
        config = WorkerConfig(**scenario.config)
        self.book = Book(lambda: loop.clock.moment, config.max_workers, traced)
        self.book.limits = (config.job_timeout, config.load_timeout)
        self.book.most_per_owner = config.max_running_per_owner
        self.book.concurrency = CONCURRENCY if scenario.registry else {}
        self.book.never_replaced = config.restart is RestartPolicy.NEVER
        self.book.admission = scenario.resources is Admission
        self.store = self.book.store = MemoryStore(Random(scenario.seed + 4), scenario.moods, self.book) if scenario.store else None
        self.faults, self.moods = scenario.faults, scenario.moods
        self.rounds = deque[dict[int, deque[Op]]]()  # What each client still does before everything rests, and after that
        most = scenario.rest_every or max(1, len(scenario.ops))
        for n, op in enumerate(scenario.ops):
            if n % most == 0:
                self.rounds.append(defaultdict(deque))
            self.rounds[-1][op.client].append(op)
        self.growth, self.look_every = Growth(), 20 if scenario.rest_every else 3
        self._begin(loop, config)

    def _begin(self, loop: VirtualLoop, config: WorkerConfig) -> None:
        """Begin an app."""
        scenario, moods, book, self.loop = self.scenario, self.moods, self.book, loop
        seed = scenario.seed + 10 * (book.lives - 1)
        self.engine, rng = SimulatedEngine(Random(seed + 1), self.faults, book, loop.clock), Random(seed + 2)
        self.registry = Registry(rng, moods, book) if scenario.registry else None
        self.resources: Any = scenario.resources(rng, moods, book) if scenario.resources else None
        self.broadcaster = Broadcaster(rng, moods, book) if scenario.broadcaster else None
        lent: Any = (self.registry, self.resources, self.broadcaster)
        self.manager = Manager("simulated", "simulated", False, config, *lent, engine=self.engine, job_store=self.store)
        self.manager.book = book
        self.listener = self.manager.events() if scenario.listens else None
        self.heard: list[Event] = []
        self.tasks = set()
        self.listening: asyncio.Task[None] | None = None
        self.closed = False
        self.before = book.counts.copy()
        self.death: Happening | None = None

    def next_app(self, died: bool) -> bool:
        """Begin another app, if this one has died, or has left jobs in the store."""
        if self.death is not None:
            self.death.cancel()
        if self.store is not None:
            self.store.managers.clear()  # they live no longer than their app, also when the call that says so was given up
            if died:
                self.engine.app_died()
        if self.store is None or self.book.violations or not (died or self.store.has_open()):
            return False
        self.book.app_gone()
        self.book.note("app", self.book.lives)
        self._begin(VirtualLoop(self.loop.clock), self.manager.worker_config)
        return True

    async def play(self) -> None:
        """Let all clients do what they do; then wait for the end of everything."""
        if self.listener is not None:
            self.listening = self._spawn(self._listen(self.listener))
        if self.book.lives > 1:
            await self._enter()
        while self.rounds:
            await asyncio.gather(*(self._client(ops) for ops in self.rounds[0].values()))
            self.rounds.popleft()
            if self.rounds and not self.closed:
                await self._rest()
        self._calm()
        await self._quiet()
        await self._shutdown()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=PATIENCE)
        self.book.check("all calls return", not [task for task in self.tasks if not task.done()])
        await self._over()
        if self.death is not None:
            self.death.cancel()

    async def _enter(self) -> None:
        """Begin as an app does that is started again until it succeeds."""
        while True:
            try:
                await self.manager.__aenter__()
                return
            except errors.JobStoreError:
                await asyncio.sleep(0.1)

    async def _client(self, ops: deque[Op]) -> None:
        late = 0  # Calls after the shutdown: a few are enough
        while ops:
            late += self.closed
            if late > 5:
                return
            op = ops.popleft()
            if op.pause:
                await asyncio.sleep(op.pause)
            await self._wait_for_backlog()
            if self.book.violations:
                return
            if op.do != "start":
                self.book.note(op.client, op.do, *op.arguments)
            try:
                await getattr(self, "_" + op.do)(*op.arguments)
            except errors.ManagerClosedError:
                self.book.check("closed only after shutdown", self.closed, op)
            if self.book.counts["jobs"] % self.look_every == 0:
                self.book.look(self.manager, self.engine.workers)

    async def _wait_for_backlog(self) -> None:
        """Wait a few seconds until fewer jobs wait, if the scenario has it: some may hang until this client cancels them."""
        most = self.scenario.backlog
        for _ in range(60):
            if most is None or len(self.book.pending) <= most:
                return
            await asyncio.sleep(0.05)

    async def _listen(self, listener: EventStream) -> None:
        """Take each event as it comes. In a stream that is read only at the end, the oldest would be dropped."""
        async for event in listener:
            self.heard.append(event)

    def _spawn(self, call: Any) -> asyncio.Task[None]:
        task = self.loop.create_task(call)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _calm(self) -> None:
        """No more faults: what can end ends."""
        self.book.note("calm")
        self.engine.faults = self.faults = Faults()
        self.moods = Moods()
        for mind in (self.registry, self.resources, self.broadcaster, self.store):
            if isinstance(mind, Mind):
                mind.moods = Moods()

    async def _rest(self) -> None:
        """Between two rounds: every job has ended, what was seen of them is right, and nothing has grown."""
        self.book.note("rest")
        await self._quiet()
        reading = [task for task in self.tasks if task is not self.listening]
        if reading:
            await asyncio.wait(reading, timeout=PATIENCE)
        self._check_heard()
        self.manager.clear_completed_jobs()
        self.book.drop_ended()
        self.engine.drop_ended()
        if self.store is not None:
            self.store.drop_ended()
        self.growth.check(self.book, self.manager, self.loop)

    async def _quiet(self) -> None:
        """Wait until every job has ended; those that never would are cancelled."""
        hopeless = self.manager.worker_config.restart in (RestartPolicy.NEVER, RestartPolicy.ON_CANCELLATION)
        for _ in range(60):
            if self.book.left and not self.closed:
                await asyncio.sleep(1)
        self.book.check("all that was left is taken over", self.closed or hopeless or not self.book.left, *self.book.left.values())
        if self.book.violations:
            return
        for fate in list(self.book.fates.values()):
            job = fate.job
            if fate.accepted and job is not None and not job.done and ("hangs",) in fate.plan and fate.timeout is None:
                self._spawn(self._cancelled(fate))
        for fate in reversed(list(self.book.fates.values())):  # when the last one has ended, most of the others have
            job = fate.job
            if fate.accepted and job is not None and not job.done:
                await asyncio.wait({waiting := asyncio.ensure_future(job.wait())}, timeout=PATIENCE)
                waiting.cancel()
                if not job.done:
                    break
        self.book.quiet()
        await asyncio.sleep(30)
        if self.resources is not None and not self.closed and not self.resources.failed and self.scenario.habits == Habits():
            workers = [worker for worker in self.engine.workers if worker.ready]
            undead = {worker.pid for worker in workers if worker.undead}
            self.resources.at_rest({worker.pid: next(reversed(worker.loaded), None) for worker in workers if not worker.undead}, undead)

    async def _over(self) -> None:
        """Look at what is left."""
        await asyncio.sleep(30)
        self.book.quiet()
        self._check_heard()
        if self.resources is not None and not self.resources.failed and self.scenario.habits == Habits():
            self.resources.over()

    def _check_heard(self) -> None:
        """Check the events of jobs that have ended."""
        self.book.events(self.heard, complete=self.listener is not None)
        self.book.check("a listener that reads misses nothing", self.listener is None or not self.listener.dropped)
        self.heard.clear()
        if self.broadcaster is not None:
            self.book.events(self.broadcaster.events, complete=False)  # type: ignore[arg-type]
            self.broadcaster.events.clear()
        if self.store is not None:
            self.store.over(list(self.book.fates.values()))

    # What clients do

    def _job(self, which: int) -> Fate | None:
        accepted = [fate for fate in self.book.recent if fate.accepted and fate.job is not None]
        return accepted[which % len(accepted)] if accepted else None

    async def _start(self, plugin: str, plan: Steps, priority: int, timeout: float | None, retries: int,
                     waiting: dict[str, Any] | None = None, **bad: Any) -> None:
        book, manager = self.book, self.manager
        place = PLACES.get(plugin) if self.registry is not None else None
        fate = book.expect(plan, plugin, place, priority, timeout, retries)
        waits = waiting or {}
        fate.expires, fate.owner = waits.get("expires"), waits.get("owner")
        fate.restartable = waits.get("restartable", False)
        try:
            given: dict[str, Any] = {"priority": priority, "timeout": timeout, "retries": retries, **waits}
            job = await manager.start_job(plugin, params={"n": fate.number, **bad}, **given)
        except (*EXPECTED, *REGISTRY, errors.ParametersNotSendableError, errors.DuplicateJobError) as e:
            book.note("refused", fate, type(e).__name__)
            self._refused(fate, e, bad)
            return
        book.accept(fate)
        book.check("the job that was made", job is fate.job, fate)
        book.check("bad parameters are refused", not bad, fate, bad)

    def _refused(self, fate: Fate, error: Exception, bad: dict[str, Any]) -> None:
        """No job was refused without a reason, and none that was refused exists."""
        book, config = self.book, self.manager.worker_config
        reasons = {
            errors.QueueFullError: len(book.pending) >= config.max_pending or self.store is not None,  # those that are being written count
            errors.OwnerQueueFullError: fate.owner is not None and len(book.waiting_of(fate.owner)) >= (config.max_pending_per_owner or 0),
            errors.JobStoreError: self.store is not None,
            errors.ManagerClosedError: self.closed,
            errors.WorkersUnavailableError: config.restart in (RestartPolicy.NEVER, RestartPolicy.ON_CANCELLATION),
            errors.ResourceValidationError: self.resources is not None,
            errors.ParametersNotSendableError: "cannot" in bad,
            errors.DuplicateJobError: "taken" in bad,
            **dict.fromkeys(REGISTRY, self.registry is not None),
        }
        book.check("refused for a reason", reasons[type(error)], fate, error)
        unknown = fate.job is None or self.manager.jobs.get(fate.job.id) is not fate.job
        book.check("refused jobs do not exist", not fate.accepted and unknown, fate)
        book.counts["refused"] += 1

    async def _bad(self, what: str) -> None:
        arguments: dict[str, Any] = {"plugin": "one", "plan": (), "priority": 0, "timeout": None, "retries": 0}
        if what == "parameter":
            return await self._start(**arguments, cannot=True)
        if what == "taken":
            if self.registry is not None or self.scenario.resources is Admission:
                return  # the other one may be forgotten while they are asked
            fate = self._job(0)
            return await self._start(**arguments, taken=fate.job.id) if fate and fate.job and fate.job.id in self.manager.jobs else None
        refused = self.book.counts["refused"]
        try:
            await self._start(**{**arguments, what: "nonsense" if what != "plugin" else None})
        except (errors.ConfigError, TypeError):
            return
        other = self.closed or self.book.counts["refused"] > refused  # a store that cannot be opened is noticed first
        self.book.check("bad arguments are refused", other, what)

    async def _cancel(self, which: int, wait: bool) -> None:
        fate = self._job(which)
        if fate is None:
            return
        if wait:
            await self._cancelled(fate)
        else:
            self._spawn(self._cancelled(fate))

    async def _cancelled(self, fate: Fate) -> None:
        """Cancel a job: it has ended when the call returns, and before long."""
        job, config, clock = fate.job, self.manager.worker_config, self.loop.clock
        assert job is not None
        kept, done, began, blocked = job.id in self.manager.jobs, job.done, clock.now, clock.blocked
        fate.asked_to_cancel = not done
        try:
            said = await self.manager.cancel_job(job.id)
        except errors.ManagerClosedError:
            return self.book.check("closed only after shutdown", self.closed)
        except errors.JobStoreError:
            return self.book.check("refused for a reason", self.store is not None)
        took = clock.now - began - (clock.blocked - blocked)
        limit = 2 * config.grace_timeout + max(1.0, config.grace_timeout) + 2.5
        limit += 4 * config.integration_timeout + 5 if self.store is not None else 0
        self.book.check("cancel ends a job", job.done and took < limit, fate, job.status, took)
        stored = self.store is not None and not kept  # found in the store all the same
        right = stored or said == (job.status == "cancelled" and kept and not done)
        self.book.check("cancel says what it did", right, fate, said, job.status)

    async def _read(self, which: int, pace: float, leave: int | None) -> None:
        if fate := self._job(which):
            self._spawn(self._reads(fate, pace, leave))

    async def _reads(self, fate: Fate, pace: float, leave: int | None) -> None:
        """Read a stream: every chunk in order, or an error that says how many are lost."""
        job, index = fate.job, 0
        assert job is not None
        stream = job.stream()
        while True:
            try:
                chunk = await stream.__anext__()
            except errors.StreamOverflowError as e:
                self.book.check("lost chunks are counted", e.next_index == index + e.dropped, fate, e)
                index = e.next_index
                continue
            except StopAsyncIteration:
                break
            except errors.ManagerClosedError:
                return self.book.check("closed only after shutdown", self.closed)
            except JobError as e:
                same = job.error is not None and (e.category, e.message) == (job.error.category, job.error.message)
                self.book.check("a stream ends with its job's error", same, fate, e)
                break
            self.book.check("chunks in order", chunk == index == fate.chunks[index], fate, chunk, index)
            index += 1
            if leave is not None and index >= leave:
                return await stream.aclose()
            if pace:
                await asyncio.sleep(pace)
        self.book.check("a stream ends with its job", job.done, fate)
        self.book.check("no chunk is lost", job.status != "completed" or index == len(fate.chunks), fate, index, len(fate.chunks))

    async def _wait(self, which: int, patience: float) -> None:
        """Watch a job, without a display, and lose patience."""
        if fate := self._job(which):
            assert fate.job is not None
            try:
                await asyncio.wait_for(watch(fate.job, file=NOWHERE), patience)
            except errors.ManagerClosedError:
                self.book.check("closed only after shutdown", self.closed)
            except (asyncio.TimeoutError, JobError) as e:
                self.book.check("a watch ends with its job", isinstance(e, asyncio.TimeoutError) or fate.job.done, fate)

    async def _look(self) -> None:
        for job in self.manager.get_all_jobs():
            result = self.manager.get_job_result(job.id)
            self.book.check("results of ended jobs", (result is not None) == job.done, job)
        here = self.book.counts - self.before
        self.book.check("totals", all(self.manager.totals[end] == here[end] for end in ENDS), self.manager.totals)
        ended = sum(job.done for job in self.manager.get_all_jobs())
        self.book.check("limit of finished jobs", ended <= self.manager.worker_config.keep_finished, ended)

    async def _reload(self, plugin: str, version: int) -> None:
        self._spawn(self._reloads(plugin, version))

    async def _reloads(self, plugin: str, version: int) -> None:
        if self.registry is not None:
            self.registry.versions[plugin] = version
        try:
            await self.manager.reload_plugin(plugin, {"place": PLACES.get(plugin) if self.registry else None, "version": version})
        except errors.ManagerClosedError:
            self.book.check("closed only after shutdown", self.closed)
        except REGISTRY:
            self.book.check("refused for a reason", self.registry is not None)

    async def _unload(self, plugin: str) -> None:
        self._spawn(self._unloads(plugin))

    async def _unloads(self, plugin: str) -> None:
        try:
            await self.manager.unload_plugin(plugin)
        except errors.ManagerClosedError:
            self.book.check("closed only after shutdown", self.closed)

    async def _say(self) -> None:
        await self.manager.broadcast_event("custom", {"n": 1})

    async def _forget(self) -> None:
        self.manager.clear_completed_jobs()

    async def _block(self, seconds: float) -> None:
        self.loop.clock.block(seconds)

    async def _kill(self, which: int, signal: int) -> None:
        self.engine.kill_one(which, signal)

    async def _die(self, delay: float | None) -> None:
        """The app dies, here or between two callbacks of the loop."""
        if self.store is None:
            return
        if delay is None:
            raise AppDied
        if self.death is None:
            self.death = self.loop.clock.after(delay, self.loop.clock.arrive, self._died)

    def _died(self) -> None:
        raise AppDied

    async def _shutdown(self) -> None:
        self.closed = self.book.closing = True
        await self.manager.shutdown()
        self.book.quiet()
