"""A registry, a resource manager and a broadcaster that forget, raise and change their mind, as a seed says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from .invariants import Book

PLACES = {"far": "far", "near": "near"}  # Plugins that only live in one place, and where that is
CONCURRENCY = {"two": 1}  # How many jobs of a plugin may run at the same time, as the registry says


@dataclass(frozen=True)
class Moods:
    """Probabilities of what integrations do."""

    raises: float = 0.0  # A call raises
    forgets: float = 0.0  # The registry does not know a plugin that it knew
    odd: float = 0.0  # A call gives what no such call should
    full: float = 0.0  # There is no room for a plugin, though nothing is loaded
    never: float = 0.0  # It is said that there can never be
    slow: float = 0.0  # A broadcast takes up to a second
    hangs: float = 0.0  # A broadcast never ends


class Trouble(RuntimeError):
    """What integrations raise."""


class Mind:
    """What the three have in common: whether they fail now."""

    def __init__(self, rng: Random, moods: Moods, book: Book) -> None:
        self.rng, self.moods, self.book = rng, moods, book

    def likely(self, mood: str) -> bool:
        """Decide."""
        odds: float = getattr(self.moods, mood)
        return odds > 0 and self.rng.random() < odds

    def may_raise(self) -> None:
        """Fail now and then."""
        if self.likely("raises"):
            raise self.rng.choice([Trouble("an integration failed"), SystemExit(3), KeyError("x")])


class Registry(Mind):
    """Knows every plugin, mostly."""

    def __init__(self, rng: Random, moods: Moods, book: Book) -> None:
        super().__init__(rng, moods, book)
        self.versions: dict[str, int] = {}

    def get_plugins_by_category(self, category: Any) -> Any:
        """Those that were asked for so far."""
        self.may_raise()
        return 5 if self.likely("odd") else [{"id": plugin_id, "name": plugin_id} for plugin_id in self.versions]

    def get_plugin(self, plugin_id: str) -> Any:
        """Metadata."""
        self.may_raise()
        if plugin_id == "unknown" or self.likely("forgets"):
            return None
        return {"id": plugin_id, "name": plugin_id, "is_configured": not self.likely("odd")}

    def load_plugin_config(self, plugin_id: str) -> Any:
        """Its place, and a version that changes."""
        self.may_raise()
        config = {"place": PLACES.get(plugin_id), "version": self.versions.setdefault(plugin_id, 0)}
        limit = {"concurrency": CONCURRENCY[plugin_id]} if plugin_id in CONCURRENCY else {}
        return None if self.likely("odd") else {**config, **limit}


class Resources(Mind):
    """Notes what it hears, and checks its order."""

    def __init__(self, rng: Random, moods: Moods, book: Book) -> None:
        super().__init__(rng, moods, book)
        self.calls: defaultdict[int, list[str]] = defaultdict(list)
        self.states: dict[int, dict[str, Any]] = {}
        self.failed = False  # Whether it raised, so that it need not know everything

    def _called(self, pid: int, call: str) -> None:
        before = self.calls[pid][-1:] or ["unregister"]
        legal = {"register": before == ["unregister"], "unregister": before != ["unregister"], "update": before != ["unregister"]}
        self.book.check("registered once", legal[call], pid, self.calls[pid], call)
        self.calls[pid].append(call)

    def register_worker(self, pid: int, worker_type: str) -> None:
        """A worker is there."""
        self._called(pid, "register")
        self.states[pid] = {}
        self._may_fail()

    def unregister_worker(self, pid: int) -> None:
        """A worker is gone."""
        self._called(pid, "unregister")
        self.states.pop(pid, None)
        self._may_fail()

    def update_worker_state(self, pid: int, **state: Any) -> None:
        """What a worker does has changed."""
        self._called(pid, "update")
        self.book.check("all six fields", len(state) == 6, *state)
        self.states[pid] = state
        self._may_fail()

    def _may_fail(self) -> None:
        if self.likely("raises"):
            self.failed = True
            raise Trouble("a resource manager failed")

    def at_rest(self, workers: dict[int, Any], undead: set[int]) -> None:
        """Nothing runs: what it last heard is true. `workers` gives what each has loaded."""
        self.book.check("all are registered", self.states.keys() - undead == workers.keys(), self.states, workers)
        for pid, loaded in workers.items():
            state = self.states.get(pid, {})
            told = state.get("plugin_id"), state.get("job_id")
            self.book.check("its last state is true", told == (loaded and loaded[0], None), pid, state, loaded)
            self.book.check("its last state is idle", state.get("status") in ("idle", "standby"), pid, state)

    def over(self) -> None:
        """All workers are gone."""
        for pid, calls in self.calls.items():
            self.book.check("unregistered in the end", calls[-1] == "unregister", pid, calls)


class Admission(Resources):
    """Has room for so many loaded plugins, and may change its mind about that."""

    ROOM = 2

    def _loaded(self) -> int:
        return sum(state.get("plugin_id") is not None for state in self.states.values())

    def can_ever_start(self, plugin_id: str, config: dict[str, Any], estimate: Any = None) -> str | None:
        """Mostly."""
        self.may_raise()
        return "it can never fit" if self.likely("never") else None

    def can_start(self, plugin_id: str, config: dict[str, Any], estimate: Any = None) -> str | None:
        """If there is room."""
        self.may_raise()
        return "there is no room" if self._loaded() >= self.ROOM or self.likely("full") else None

    def choose_victim(self, plugin_id: str, config: dict[str, Any], idle: list[int]) -> Any:
        """One that is idle, or nonsense."""
        self.may_raise()
        return self.rng.choice(["x", None, 10**9]) if self.likely("odd") else self.rng.choice(idle)


class Broadcaster(Mind):
    """Notes what it is given."""

    def __init__(self, rng: Random, moods: Moods, book: Book) -> None:
        super().__init__(rng, moods, book)
        self.events: list[tuple[str, dict[str, Any]]] = []

    async def broadcast(self, event_type: str, data: dict[str, Any]) -> None:
        """Take an event."""
        self.events.append((event_type, data))
        if self.likely("slow"):
            await asyncio.sleep(self.rng.random())
        if self.likely("hangs"):
            await asyncio.get_running_loop().create_future()
        if self.likely("raises"):
            raise self.rng.choice([Trouble("a broadcaster failed"), SystemExit(3), asyncio.CancelledError()])


Side = Callable[[Random, Moods, Book], Any]
