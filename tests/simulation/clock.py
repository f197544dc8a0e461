"""An event loop whose time jumps to the next timer, so that a simulated hour takes no time at all."""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Callable
from typing import Any


EPOCH = 1e9  # When simulations begin, in seconds since the epoch


class Stuck(AssertionError):
    """The loop can never finish: nothing is left that could happen, or it turns without time passing."""


class Happening:
    """Something that will happen outside the loop."""

    __slots__ = ("call", "arguments")

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.call: Callable[..., Any] | None = call
        self.arguments = arguments

    def cancel(self) -> None:
        """It does not happen."""
        self.call = None


class Clock(selectors.BaseSelector):
    """The time, and what happens in it outside the loop: in other processes, which go on while the app blocks its loop.

    For the loop it is a selector without files: where another one would sleep, it moves the time forward.
    """

    LONGEST = 1e6  # Seconds that a simulation may last
    TURNS = 200_000  # How often the loop may turn at one moment

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = 0.0  # Seconds since the simulation began, as the loop sees them
        self.time = 0.0  # The same outside the loop: less, where something happened while the loop was blocked
        self.loop: asyncio.AbstractEventLoop = loop
        self.over = False  # Whether no time may pass any more
        self.on_turn: Callable[[], None] = lambda: None  # Called after every turn of the loop
        self.blocked = 0.0  # Seconds for which the app has blocked the loop
        self._keys: dict[Any, selectors.SelectorKey] = {}
        self._turns = 0
        self._events: list[tuple[float, int, Happening]] = []
        self._count, self._before = 0, 0.0
        self._seen = self._outside = False

    def after(self, delay: float, call: Callable[..., Any], *arguments: Any) -> Happening:
        """Have something happen outside the loop."""
        event = Happening(call, arguments)
        self._count += 1
        heapq.heappush(self._events, (self.time + delay, self._count, event))
        return event

    def arrive(self, call: Callable[..., None], *arguments: Any) -> None:
        """Something outside the loop is seen by the loop, as its next callback."""
        self._seen = True
        self.loop.call_soon(call, *arguments)

    def catch_up(self) -> None:
        """Let everything outside the loop happen that happened up to now."""
        while self._events and self._events[0][0] <= self.now:
            self._happen()
        self.time = self.now

    def tidy(self) -> None:
        """Forget what was to happen and was cancelled."""
        self._events = [entry for entry in self._events if entry[2].call is not None]
        heapq.heapify(self._events)

    def end(self) -> None:
        """Let nothing happen any more: what was still to come holds the worlds of apps that have died."""
        self._events.clear()

    def _happen(self) -> None:
        self.time, _, event = heapq.heappop(self._events)
        if event.call is not None:
            self._outside = True
            event.call(*event.arguments)
            self._outside = False

    @property
    def moment(self) -> float:
        """The time of what happens just now, in the loop or outside it."""
        return self.time if self._outside else self.now

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Jump to the next timer. Raises `Stuck` when there is none, or when time stands still."""
        self.on_turn()
        if self.over and timeout:
            raise Stuck(f"a timer is left that runs for another {timeout:g} s")
        until = self.now + timeout if timeout is not None else self.LONGEST
        self._seen, events = False, self._events
        while events and (at := events[0][0]) <= until and not (self._seen and at > self.now):
            self._happen()
            if self.time > self.now:
                self.now = self.time
        if self._seen:
            until = self.now
        elif timeout is None:
            raise Stuck("everything waits, and nothing is left to happen")
        self._turns = 0 if until > self._before else self._turns + 1
        if self._turns > self.TURNS:
            raise Stuck(f"the loop turned {self.TURNS} times without time passing")
        self.now = self.time = self._before = until if until > self.now else self.now
        if self.now > self.LONGEST:
            raise Stuck(f"it goes on after {self.LONGEST:g} s")
        return []

    def block(self, seconds: float) -> None:
        """Let time pass in the middle of a callback, as an app does that blocks its loop."""
        self.now += seconds
        self.blocked += seconds

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Remember a file, which is never ready. The loop's own pipe is the only one."""
        return self._keys.setdefault(fileobj, selectors.SelectorKey(fileobj, fileobj, events, data))

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Forget a file."""
        return self._keys.pop(fileobj)

    def get_map(self) -> Any:
        """The files that are registered."""
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that runs on a `Clock`: its own, or that of a loop that runs no more."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = Clock(self) if clock is None else clock
        self.clock.loop = self
        super().__init__(self.clock)

    def time(self) -> float:
        """Simulated seconds."""
        return self.clock.now

    def rest(self) -> str:
        """Run what is ready; gives what else is left, which is nothing if all is well."""
        self.clock.over = True
        try:
            self.run_forever()
            self.run_forever()  # what had just completed when the simulation was broken off stops the loop once
        except Stuck as e:
            return "" if str(e).startswith("everything waits") else str(e)
        finally:
            self.clock.over = False
        raise AssertionError("the loop was stopped")
