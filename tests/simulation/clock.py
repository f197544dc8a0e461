"""An event loop whose time jumps to the next timer, so that a simulated hour takes no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class Stuck(AssertionError):
    """The loop can never finish: nothing is left that could happen, or it turns without time passing."""


class Clock(selectors.BaseSelector):
    """A selector without files: where another one would sleep, it moves the time forward."""

    LONGEST = 1e6  # Seconds that a simulation may last
    TURNS = 200_000  # How often the loop may turn at one moment

    def __init__(self) -> None:
        self.now = 0.0  # Seconds since the simulation began
        self.over = False  # Whether no time may pass any more
        self.on_turn: Callable[[], None] = lambda: None  # Called after every turn of the loop
        self.blocked = 0.0  # Seconds for which the app has blocked the loop
        self._keys: dict[Any, selectors.SelectorKey] = {}
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Jump to the next timer. Raises `Stuck` when there is none, or when time stands still."""
        self.on_turn()
        if timeout is None:
            raise Stuck("everything waits, and nothing is left to happen")
        if self.over and timeout > 0:
            raise Stuck(f"a timer is left that runs for another {timeout:g} s")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > self.TURNS:
            raise Stuck(f"the loop turned {self.TURNS} times without time passing")
        self.now += max(0.0, timeout)
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
    """An event loop that runs on a `Clock`."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        """Simulated seconds."""
        return self.clock.now

    def rest(self) -> str:
        """Run what is ready; gives what else is left, which is nothing if all is well."""
        self.clock.over = True
        try:
            self.run_forever()
        except Stuck as e:
            return "" if str(e).startswith("everything waits") else str(e)
        raise AssertionError("the loop was stopped")
