"""Who runs next, and where: the policy without processes, on a virtual clock, and a few facts with real ones."""

import asyncio
import pickle
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import pytest
from harness import end, first_chunk, manager, until
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_plugins import OneAtATime
from simulation.clock import VirtualLoop

from cjm_worker_protocols import BaseJobManager, JobManager, WorkerConfig
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.core.frames import Frame, Kind
from cjm_worker_protocols.managers.queue import JobQueue, Passes, position_of
from cjm_worker_protocols.managers.reports import Ticket

# A worker without a process


class Wire:
    """A worker that loads a plugin in `LOAD` seconds and runs a job for as many seconds as its parameters say."""

    LOAD, START = 0.001, 0.05
    host, facts = "here", {}

    def __init__(self, engine: "Wires", events: Any, pid: int) -> None:
        self.pid, self._engine, self._events = pid, engine, events
        self._loop, self._size, self.loaded = asyncio.get_running_loop(), 1, list[Any]()
        self._waiting, self._busy, self._gone = list[Any](), False, False

    def send(self, data: bytes) -> None:
        """INIT and STOP are heard."""
        kind, _, value = self._engine.read(data)
        if kind == Kind.INIT:
            self._size = value[3]
            self._loop.call_later(self.START, self._say, Kind.READY, 0, (self.pid, "here"))
        elif kind == Kind.STOP:
            self.terminate()

    def give(self, tag: int, data: bytes) -> None:
        """A job, to be begun after the present one."""
        self._waiting.append((tag, self._engine.read(data)[2]))
        if not self._busy:
            self._next()

    def withdraw(self) -> "frozenset[int]":
        """Take back what has not begun."""
        tags = frozenset(tag for tag, _ in self._waiting)
        self._waiting.clear()
        return tags

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if not self._busy:
            return
        tag, (plugin, name, _, _, params) = self._waiting.pop(0)
        self._engine.starts.append(Start(self._loop.time(), params["n"], self.pid, (plugin, name) not in self.loaded))
        self._engine.running.append(params["n"])
        self._engine.together.append(list(self._engine.running))
        delay = 0.0
        if (plugin, name) not in self.loaded:
            self.loaded = self.loaded[len(self.loaded) - self._size + 1 :] if self._size > 1 else []
            self._loop.call_soon(self._say, Kind.LOADING, tag, list(self.loaded))
            self._loop.call_later(delay := self.LOAD, self._say, Kind.LOADED, tag, None)
        else:
            self.loaded.remove((plugin, name))
        self.loaded.append((plugin, name))
        self._loop.call_later(delay + params["seconds"], self._finish, tag, params["n"])

    def _finish(self, tag: int, n: int) -> None:
        self._engine.running.remove(n)
        self._next()
        self._say(Kind.RESULT, tag, "done")

    def _say(self, kind: Kind, tag: int, value: Any) -> None:
        if not self._gone:
            self._events.on_frame(Frame(kind, tag, pickle.dumps(value)))

    def terminate(self) -> None:
        """It ends before long."""
        self._loop.call_soon(self._end)

    kill = terminate

    def _end(self) -> None:
        if not self._gone:
            self._gone = True
            self._events.on_exit(self._engine.Exit(0))

    def drain(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Start(NamedTuple):
    """A worker began a job."""

    at: float
    n: int  # The job's number
    pid: int
    loads: bool


class Wires:
    """An engine of such workers."""

    from cjm_worker_protocols.engines.base import Exit

    def __init__(self) -> None:
        self.starts: "list[Start]" = []
        self.running: "list[int]" = []  # The numbers of the jobs that run
        self.together: "list[list[int]]" = []  # The same at each start, with the one that starts
        self._count = 0

    @staticmethod
    def read(data: bytes) -> "tuple[Kind, int, Any]":
        """Read a frame."""
        from cjm_worker_protocols.core.frames import FrameReader

        reader, view = FrameReader(1 << 16), memoryview(bytes(data))
        space = reader.space()
        space[: len(view)] = view
        (frame,) = reader.received(len(view))
        return Kind(frame.kind), frame.tag, frame.value()

    def placement(self, config: Any, plugin_config: Any) -> Any:
        """All live in one place."""
        return None

    def start_worker(self, config: Any, events: Any, placement: Any = None) -> Any:
        """Start one."""
        self._count += 1
        return Wire(self, events, self._count)

    async def close(self) -> None: ...


class Asked(NamedTuple):
    """A job that a client starts."""

    plugin: str
    priority: int = 0
    owner: "str | None" = None
    seconds: float = 0.1
    pause: float = 0.0  # Before it is started


class Manager(BaseJobManager):
    """A manager of plugins that exist nowhere."""

    def get_plugin_loader(self) -> Any:
        return "nowhere:plugins"


def play(asked: "list[Asked]", **config: Any) -> "tuple[list[Start], list[float], Wires]":
    """Start all jobs, and wait for their ends; gives the starts in their order, and when each job was accepted."""

    async def run() -> "tuple[list[Start], list[float], Wires]":
        engine, accepted, jobs = Wires(), [], []
        m = Manager("test", "tests", worker_config=WorkerConfig(standby=False, **config), engine=engine)  # type: ignore[arg-type]
        for n, a in enumerate(asked):
            await asyncio.sleep(a.pause)
            job = await m.start_job(a.plugin, priority=a.priority, owner=a.owner, n=n, seconds=a.seconds)
            jobs.append(job)
            accepted.append(asyncio.get_running_loop().time())
        await asyncio.wait([asyncio.ensure_future(job.wait()) for job in jobs], timeout=10_000)
        assert all(job.status == "completed" for job in jobs), "a job starves"
        await m.shutdown()
        return engine.starts, accepted, engine

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def order(asked: "list[Asked]", **config: Any) -> str:
    """The plugins in the order of their starts."""
    return "".join(asked[start.n].plugin for start in play(asked, **config)[0])


def loads(asked: "list[Asked]", **config: Any) -> int:
    """How often a plugin is loaded."""
    return sum(start.loads for start in play(asked, **config)[0])


TURNS = [Asked(plugin) for plugin in "ABACABA"]


def test_jobs_of_the_loaded_plugin_pass() -> None:
    """A B A C A B A on one worker: three loads, and seven in strict order."""
    assert (order(TURNS), loads(TURNS)) == ("AAAABBC", 3)
    assert (order(TURNS, swap_patience=0), loads(TURNS, swap_patience=0)) == ("ABACABA", 7)


def test_they_pass_for_so_long_only() -> None:
    """A job that was passed for `swap_patience` seconds is next, and the one that was sent ahead goes back."""
    asked = [Asked("A", seconds=1.0), Asked("B")] + [Asked("A", seconds=1.0)] * 9
    starts = play(asked, swap_patience=3.0)[0]
    at = {start.n: start.at for start in starts}
    passers = [start.at for start in starts if start.n > 1 and start.at < at[1]]
    assert len(passers) == 3 and passers[-1] - passers[0] < 3.0


def test_no_more_than_one_job_waits_behind_a_slow_one_while_other_workers_go_on() -> None:
    """The others, which were prefetched because the jobs before were quick, go to the other worker before long."""
    asked = [*[Asked("A", seconds=0.0)] * 6, Asked("A", seconds=30.0, pause=1.0), *[Asked("A", seconds=0.1)] * 61]
    starts = play(asked, max_workers=2)[0]
    assert len([start.n for start in starts if 6 < start.n < 13 and start.at > 2.5]) <= 1


def test_patience_with_a_job_that_is_passed_behind_others_runs_out_in_time() -> None:
    """Ann's second job is passed by two younger ones of hers, whose plugin is loaded, for less than `swap_patience`."""
    asked = [Asked("A", 0, "ann", 0.1), Asked("B", 0, "bob", 3.0), Asked("B", 0, "ann", 3.0), Asked("A", 0, "ann", 0.1)]
    asked += [Asked("A", 0, "bob", 0.5), Asked("A", 0, "ann", 3.0), Asked("A", 0, "bob", 3.0)]
    at = {start.n: start.at for start in play(asked, swap_patience=1.0)[0]}
    passers = [at[n] for n in (3, 5) if at[n] < at[2]]
    assert not passers or max(passers) - min(passers) < 1.0


@pytest.mark.parametrize("seconds, most", [(0.0, 16), (0.004, 16), (0.006, 1)])
def test_quick_jobs_are_prefetched_in_numbers(seconds: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to sixteen of those that take less than 5 ms, and one of others."""
    waiting, give = list[int](), Wire.give

    def counted(wire: Wire, tag: int, data: bytes) -> None:
        give(wire, tag, data)
        waiting.append(len(wire._waiting))

    monkeypatch.setattr(Wire, "give", counted)
    starts = play([Asked("A", seconds=seconds)] * 40)[0]
    assert max(waiting) == most and [start.n for start in starts] == list(range(40))


def test_prefetched_jobs_that_may_no_longer_come_next_go_back() -> None:
    """All of them, when a job of a higher priority comes; they keep their order."""
    quick = Asked("A", seconds=0.0)
    starts = play([*[quick] * 20, Asked("A", seconds=1.0), *[quick] * 20, quick._replace(priority=1, pause=0.5)])[0]
    assert [start.n for start in starts] == [*range(21), 41, *range(21, 41)]


def test_another_worker_is_started_rather_than_a_plugin_unloaded() -> None:
    """Two plugins in turn, one job after the other, and room for two workers: two loads."""
    asked = [Asked(plugin, pause=1.0) for plugin in "ABABABAB"]
    assert loads(asked, max_workers=2) == 2
    assert loads(asked, max_workers=1) == 8
    assert loads(asked, max_workers=1, loaded_plugins=2) == 2


def test_the_plugin_used_longest_ago_is_unloaded() -> None:
    """Three plugins and two workers, or one with room for two."""
    asked = [Asked(plugin, pause=1.0) for plugin in "ABACAB"]
    for config in ({"max_workers": 2}, {"loaded_plugins": 2}):
        assert [start.loads for start in play(asked, **config)[0]] == [True, True, False, True, False, True]


def test_owners_take_turns() -> None:
    """With 1,000 jobs of one owner in line, the first of another one is next."""
    asked = [Asked("A", owner="ann")] * 1000 + [Asked("A", owner="bob", pause=1.0), Asked("A", owner="bob"), Asked("A")]
    starts, accepted, _ = play(asked)
    after = [asked[start.n].owner for start in starts if start.at > accepted[1000]]
    assert after[:5] in (["bob", None, "ann", "bob", "ann"], ["bob", "ann", None, "bob", "ann"])


def test_jobs_of_an_owner_that_were_prefetched_together_move_to_an_idle_worker() -> None:
    """Three of Bob wait behind a long one of Ann; his limit allows the first to begin where Carl's ends."""
    quick, bob = Asked("A", seconds=0.0), Asked("A", owner="bob")
    asked = [*[quick] * 6, Asked("A", owner="ann", seconds=3.0, pause=1.0), Asked("A", owner="carl"), bob, bob, bob]
    starts = {start.n: start.at for start in play(asked, max_workers=2, max_running_per_owner=1)[0]}
    assert starts[8] < starts[9] < starts[10] < starts[6] + 3.0


def test_a_job_sent_ahead_goes_back_when_one_of_its_owner_has_been_passed_for_long() -> None:
    """While a long job of Bob runs, patience with it ends, although another job of Bob is the first in line."""
    ann, bob = Asked("A", owner="ann"), Asked("A", owner="bob")
    asked = [ann, Asked("B", owner="ann"), bob, ann, bob._replace(seconds=3.0), ann, bob, ann]
    assert [start.n for start in play(asked, swap_patience=1.0)[0]] == [0, 2, 3, 4, 1, 6, 5, 7]


def test_a_turn_that_comes_back_counts_for_all_plugins_of_its_owner() -> None:
    """Ann's second job was sent ahead and is taken back: her first one, of another plugin, comes before it, and before Bob's."""
    queue, (first, second, other) = JobQueue(), (a_ticket(1, "C", 0, "ann"), a_ticket(2, "B", 0, "ann"), a_ticket(3, "C", 0, "bob"))
    for ticket in (first, second, other):
        queue.push(ticket)
    queue.take(second)
    turn = queue.next()
    assert turn is not None and turn.ticket is other
    queue.push(second)
    turn = queue.next()
    assert turn is not None and turn.ticket is first


def test_a_hundred_new_owners_do_not_make_a_hundred_loads() -> None:
    """The first job of a new owner may pass like any other."""
    asked = [Asked("AB"[n % 2], owner=str(n), seconds=0.01) for n in range(100)]
    assert loads(asked) == 2


# What holds whatever is asked


REQUESTS = st.lists(
    st.builds(
        Asked,
        plugin=st.sampled_from("ABC"),
        priority=st.sampled_from((0, 0, 0, 1, -1)),
        owner=st.sampled_from((None, None, "ann", "bob", "eve")),
        seconds=st.sampled_from((0.0, 0.05, 0.5, 3.0)),
        pause=st.sampled_from((0.0, 0.0, 0.0, 0.01, 0.3)),
    ),
    min_size=1,
    max_size=25,
)
CONFIGS = st.fixed_dictionaries(
    {
        "max_workers": st.sampled_from((1, 1, 2, 3)),
        "loaded_plugins": st.sampled_from((1, 1, 2)),
        "swap_patience": st.sampled_from((0.0, 0.2, 2.0)),
        "max_running_per_owner": st.sampled_from((None, None, 1, 2)),
    }
)
searched = settings(max_examples=50, deadline=None)


AT_ONCE, LONGER = Asked("A", 0, None, 0.0, 0.0), Asked("A", 0, None, 0.05, 0.0)
TWO = {"max_workers": 2, "loaded_plugins": 1, "swap_patience": 0.0, "max_running_per_owner": None}


@searched
@given(REQUESTS, CONFIGS)
@example([AT_ONCE] * 18 + [LONGER, AT_ONCE, AT_ONCE, LONGER._replace(priority=-1)], TWO)  # the last but one was sent ahead to a busy worker
def test_priorities_and_limits_hold_and_no_job_starves(asked: "list[Asked]", config: "dict[str, Any]") -> None:
    """No job begins while one of a higher priority waits that could, and no owner has more running than they may."""
    starts, accepted, engine = play(asked, **config)
    assert sorted(start.n for start in starts) == list(range(len(asked)))
    begun, most = {start.n: start.at for start in starts}, config["max_running_per_owner"]
    for (at, n, _, _), running in zip(starts, engine.together):
        owners = Counter(asked[m].owner for m in running)
        assert len(running) <= config["max_workers"]
        assert most is None or all(count <= most for owner, count in owners.items() if owner is not None)
        for m, other in enumerate(asked):
            held = most is not None and other.owner is not None and owners[other.owner] >= most
            if other.priority > asked[n].priority and accepted[m] < at < begun[m]:
                assert held, (n, m, starts)


SECONDS = st.builds(Asked, st.sampled_from("ABC"), st.just(0), st.none(), st.sampled_from((0.0, 0.05, 0.5, 3.0)), st.just(0.0))


@searched
@given(st.lists(SECONDS, max_size=30), st.sampled_from((0.0, 0.2, 1.0, 5.0)))
def test_no_job_is_passed_for_longer_than_that(asked: "list[Asked]", patience: float) -> None:
    """On one worker: from the first younger job that began before an older one, to the last such."""
    starts = play(asked, swap_patience=patience)[0] if asked else []
    for at, n in ((start.at, start.n) for start in starts):
        passers = [start.at for start in starts if start.n > n and start.at < at]
        assert not passers or max(passers) - min(passers) < patience + 1e-6, (n, starts)
    if not patience:
        assert [start.n for start in starts] == list(range(len(asked)))


SHORT = st.builds(Asked, st.sampled_from("ABCD"), st.sampled_from((0, 1)), st.none(), st.just(0.1), st.just(0.0))


@searched
@given(st.lists(SHORT, min_size=1, max_size=30), st.sampled_from((1, 2)))
def test_loads_are_at_most_those_of_the_greedy_bound(asked: "list[Asked]", slots: int) -> None:
    """All waiting, one worker, and patience enough: one load for each plugin of each priority, less what stays loaded."""
    strict = loads(asked, swap_patience=0, loaded_plugins=slots)
    patient = loads(asked, swap_patience=1000.0, loaded_plugins=slots)
    bound = len({(a.priority, a.plugin) for a in asked[1:]} | {(None, asked[0].plugin)})  # the first one begins at once
    assert patient <= min(strict, bound)


@searched
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(("ann", "bob", None)), st.sampled_from("AB")), max_size=60), st.data())
def test_the_queue_gives_each_job_once_in_order(pushed: "list[tuple[int, str | None, str]]", data: Any) -> None:
    """By priority, then by turns: between two jobs of an owner each other owner who waits has one, and owners keep their order."""
    queue, tickets = JobQueue(), []
    for place, (priority, owner, plugin) in enumerate(pushed, 1):
        tickets.append(a_ticket(place, plugin, priority, owner))
        queue.push(tickets[-1])
    for ticket in data.draw(st.lists(st.sampled_from(tickets), unique=True)) if tickets else ():
        assert queue.discard(ticket) and not queue.discard(ticket)
        tickets.remove(ticket)
    given = []
    places = {ticket.tag: position_of(ticket.place, queue.turns.shares, queue.tickets) for ticket in tickets}
    while (turn := queue.next()) is not None:
        given.append(turn.ticket)
        queue.began(queue.take(turn.ticket), float)
    assert not queue.tickets and sorted(t.tag for t in given) == sorted(t.tag for t in tickets)
    assert [t.job.priority for t in given] == sorted((t.job.priority for t in given), reverse=True)
    by_owner = defaultdict(list)
    for n, ticket in enumerate(given):
        by_owner[ticket.job.priority, ticket.job.owner].append(ticket.tag)
        assert abs(places[ticket.tag] - (n + 1)) <= 2, "a position is exact but for the order of owners within a turn"
    assert all(tags == sorted(tags) for tags in by_owner.values())


def a_ticket(place: int, plugin: str, priority: int = 0, owner: "str | None" = None) -> Ticket:
    """A job that could be in line."""
    from cjm_worker_protocols.core.jobs import Job, attach

    job = Job(plugin, priority=priority, owner=owner)
    return Ticket(job, attach(job), place, plugin, {})


@given(st.lists(st.integers(1, 40), max_size=40, unique=True))
def test_passes_know_the_first_of_each(passing: "list[int]") -> None:
    """The list of rising places says the same as looking at all that ever passed."""
    passes = Passes()
    for now, place in enumerate(passing):
        passes.note(place, 0, float(now))
    for place in range(1, 41):
        assert passes.since(place) == min((float(now) for now, other in enumerate(passing) if other > place), default=float("inf"))


# With real processes


async def test_as_many_jobs_of_a_plugin_run_as_its_class_says() -> None:
    """`concurrency` of the class holds over all workers."""
    async with JobManager("test", "tests", plugins={"large": OneAtATime}, worker_config=WorkerConfig(max_workers=3)) as m:
        found = sorted([await job for job in [await m.start_job("large", seconds=0.05) for _ in range(6)]])
    assert all(ended <= began for (_, ended), (began, _) in zip(found, found[1:]))


async def test_a_config_limits_a_plugin_too_and_is_checked() -> None:
    """`concurrency` in a plugin's config, from a registry or from `reload_plugin`."""
    async with manager("echo") as m:
        await m.reload_plugin("echo", {"concurrency": 0})
        with pytest.raises(errors.ConfigError, match="concurrency of plugin 'echo'"):
            await m.start_job("echo", x=1)
        await m.reload_plugin("echo", {"concurrency": 1})
        assert await (await m.start_job("echo", x=1)) == 1


class Registry:
    """Plugins with a config."""

    def __init__(self, **config: Any) -> None:
        self.config = config

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        return {"id": plugin_id, "name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        return dict(self.config)


def spans(seconds: float) -> "tuple[float, float]":
    """Say when it began and when it ended."""
    import time

    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


class Elsewhere(BaseJobManager):
    """A manager that does not have its plugins' classes: only its workers import them."""

    def get_plugin_loader(self) -> Any:
        return "sample_plugins:one_at_a_time"


@pytest.mark.parametrize("where", ["config", "config over class", "class that only workers have"])
async def test_concurrency_holds_over_all_workers(where: str) -> None:
    """In the config, which counts more than the class; and of a class that the manager never sees, from the first load on."""
    given: "dict[str, Any]" = {"worker_config": WorkerConfig(max_workers=3, standby=False)}
    if where == "class that only workers have":
        m = Elsewhere("test", "tests", **given)
    else:
        plugin: Any = spans if where == "config" else type("Wide", (), {"concurrency": 3, "run": staticmethod(spans)})
        m = JobManager("test", "tests", plugins={"large": plugin}, plugin_registry=Registry(concurrency=1), **given)
    async with m:
        if where == "class that only workers have":
            await (await m.start_job("large", seconds=0))  # from now on it is known
        found = sorted([await job for job in [await m.start_job("large", seconds=0.05) for _ in range(6)]])
    assert all(ended <= began for (_, ended), (began, _) in zip(found, found[1:])), found


async def test_two_plugins_in_turn_are_loaded_once_each() -> None:
    """Eight jobs one after the other, with room for two workers, and the standby that a manager has by default."""
    async with JobManager("test", "tests", plugins=dict.fromkeys("ab", spans), worker_config=WorkerConfig(max_workers=2)) as m:
        jobs = [await end(await m.start_job(plugin, seconds=0)) for plugin in "abababab"]
        assert [job.loading_at is not None for job in jobs] == [True, True] + [False] * 6
        assert len({job.worker_pid for job in jobs}) == 2


async def test_an_owner_may_have_so_many_running() -> None:
    """Over all workers, of which the other owner's jobs may have the second one."""
    config = WorkerConfig(max_workers=2, max_running_per_owner=1, standby=False)
    async with JobManager("test", "tests", plugins={"spans": spans}, worker_config=config) as m:
        jobs = [await m.start_job("spans", seconds=0.05, owner=owner) for owner in ("ann", "bob") * 4]
        found = [await job for job in jobs]
    assert all(ended <= began for of in (found[::2], found[1::2]) for (_, ended), (began, _) in zip(of, of[1:]))


class Counted(dict[int, Any]):
    """Counts how often it is asked."""

    asked = 0

    def get(self, *args: Any) -> Any:
        self.asked += 1
        return super().get(*args)


def test_a_position_is_cheap_to_find() -> None:
    """Of the last of 100,000 jobs of three owners, it takes some hundred looks, and not 100,000."""
    queue, count = JobQueue(), 100_000
    for place in range(1, count + 1):
        queue.push(a_ticket(place, "A", owner="abc"[place % 3]))
    tickets = Counted(queue.tickets)
    assert position_of(count, queue.turns.shares, tickets) in range(count - 2, count + 1)
    assert tickets.asked < 300 and sum(len(share.blocks) for share in queue.turns.shares.values()) < 1300


async def test_an_owner_may_have_so_many_pending() -> None:
    """One more raises a named error, and no job exists; another owner's is accepted."""
    async with manager("stuck", "echo", max_pending_per_owner=2) as m:
        stuck = await m.start_job("stuck", owner="ann")
        await first_chunk(stuck)
        waiting = [await m.start_job("echo", owner="ann", x=x) for x in range(2)]
        with pytest.raises(errors.OwnerQueueFullError) as caught:
            await m.start_job("echo", owner="ann", x=3)
        assert isinstance(caught.value, errors.QueueFullError) and (caught.value.owner, caught.value.limit) == ("ann", 2)
        waiting.append(await m.start_job("echo", owner="bob", x=4))
        assert [job.position for job in (stuck, *waiting)] == [None, 2, 3, 1]
        await m.cancel_job(stuck.id)
        assert [await job for job in waiting] == [0, 1, 4] and waiting[0].position is None


class States:
    """A resource manager that keeps every state it gets."""

    def __init__(self) -> None:
        self.plugins: "list[str | None]" = []

    def register_worker(self, pid: int, worker_type: str) -> None: ...
    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, **state: Any) -> None:
        self.plugins.append(state["plugin_id"])


async def test_the_resource_manager_is_told_the_plugin_used_last() -> None:
    """Of several that are loaded; one that is unloaded leaves the other."""
    states = States()
    async with manager("echo", "fail", resource_manager=states, loaded_plugins=2) as m:
        for plugin, given in (("echo", {"x": 1}), ("fail", {}), ("echo", {"x": 1})):
            await end(await m.start_job(plugin, **given))
            await until(lambda: states.plugins[-1:] == [plugin])
        assert await m.unload_plugin("echo")
        await until(lambda: states.plugins[-1] == "fail")
        assert [(view.plugin_id, view.loaded) for view in m.workers] == [("fail", ("fail",))]


async def test_a_worker_keeps_several_plugins_loaded() -> None:
    """Both are in `WorkerView.loaded`, the one used last comes last, and a third takes the place of the other."""
    async with manager("echo", "fail", "progress", loaded_plugins=2) as m:
        first = await end(await m.start_job("echo", x=1))
        assert first.started_at <= first.loading_at <= first.loaded_at <= first.completed_at
        await end(await m.start_job("fail"))
        again = await end(await m.start_job("echo", x=1))
        assert again.loading_at is None and [view.loaded for view in m.workers] == [("fail", "echo")]
        await end(await m.start_job("progress"))
        assert [(view.plugin_id, view.loaded) for view in m.workers] == [("progress", ("echo", "progress"))]
        assert await m.unload_plugin("echo") and [view.loaded for view in m.workers] == [("progress",)]
