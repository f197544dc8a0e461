"""A stand-in for `SerialExecutor`: the same methods, but its calls happen at virtual times, on the loop."""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from cjm_worker_protocols.core.errors import ManagerClosedError
from cjm_worker_protocols.managers import serial

from .clock import VirtualLoop

Done = Callable[[Any, "BaseException | None"], None]
Call = tuple[str, Callable[[], Any], "Done | None"]


@dataclass(frozen=True)
class Habits:
    """How long the calls of integrations take."""

    slow: float = 0.0  # Probability that a call takes up to a second
    hangs: float = 0.0  # Probability that a call never comes back


class SimulatedExecutor:
    """Makes one call after the other, as the real one does on its thread."""

    def __init__(self, rng: Random, habits: Habits, name: str, limit: int, errors: Counter[str]) -> None:
        self.name, self._rng, self._habits, self._limit, self._errors = name, rng, habits, limit, errors
        self._calls: deque[Call] = deque()
        self._busy, self._since, self._working, self._closed = "", 0.0, False, False
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _loop(self) -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop

    def _takes(self) -> tuple[float, float]:
        """Seconds from a call's begin to its effect, and from there to its answer."""
        drawn = self._rng.random()
        if drawn < self._habits.hangs:
            return self._rng.choice([(0.0, math.inf), (math.inf, 0.0)])
        if drawn < self._habits.hangs + self._habits.slow:
            return self._rng.random() / 2, self._rng.random() / 2
        return 0.0, 0.0001

    def _put(self, label: str, call: Callable[[], Any], done: Done | None) -> None:
        if self._closed:
            if done is not None:
                done(None, ManagerClosedError(label))
            return
        self._calls.append((label, call, done))
        if not self._working:
            self._working = True
            self._timer = self._loop.call_later(0.0002, self._next)

    def _next(self) -> None:
        """Begin the next call, if there is one."""
        self._busy = ""
        if not self._calls:
            self._working = False
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
            return
        call, (before, after) = self._calls.popleft(), self._takes()
        self.at(call[0])
        self._after(before, self._make, call, after)

    def _after(self, delay: float, step: Callable[..., None], *arguments: Any) -> None:
        if delay == 0.0:
            step(*arguments)
        elif delay < math.inf:
            self._timer = self._loop.call_later(delay, step, *arguments)

    def _make(self, call: Call, after: float) -> None:
        """The call itself happens."""
        result, error = None, None
        try:
            result = call[1]()
        except BaseException as e:
            error = e
        self._after(after, self._answer, call, result, error)

    def _answer(self, call: Call, result: Any, error: BaseException | None) -> None:
        label, _, done = call
        if error is not None and done is None:
            self.failed(label, error)
        if done is not None:
            done(result, error)
        self._next()

    def at(self, label: str) -> float:
        """A call begins, or one of several that a question takes; gives the time."""
        self._busy, self._since = label, self._loop.time()
        return self._since

    def failed(self, label: str, reason: object) -> None:
        """Count a failure."""
        self._errors[f"{self.name}.{label}"] += 1

    def post(self, label: str, call: Callable[[], Any], needed: bool = False) -> None:
        """Make a call whose result nobody waits for."""
        if len(self._calls) >= self._limit and not needed:
            return self.failed(f"{label}.dropped", f"{self._limit} calls are waiting")
        self._put(label, call, None)

    async def ask(self, label: str, call: Callable[[], Any], timeout: float, limit: float = math.inf) -> Any:
        """Make a call and wait for its answer, with the errors of the real one."""
        loop, asked, given_up = self._loop, self._loop.time(), False
        answer: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if not answer.done():
                answer.set_result((result, error))

        if len(self._calls) >= self._limit:
            raise serial.ExecutorFullError(label, self._limit, self._busy)
        self._put(label, lambda: None if given_up else call(), done)
        try:
            while not answer.done() and (left := min(max(asked, self._since) + timeout, asked + limit) - loop.time()) > 0:
                await asyncio.wait({answer}, timeout=left)
        finally:
            given_up = not answer.done()
        if given_up:
            answer.cancel()
            raise serial.ExecutorTimeout(label, timeout, self._busy)
        result, error = answer.result()
        if error is None:
            return result
        raise error if isinstance(error, Exception) and not isinstance(error, StopIteration) else RuntimeError(repr(error))

    def ask_blocking(self, label: str, call: Callable[[], Any], timeout: float) -> Any:
        """The same for a synchronous caller: the loop is blocked meanwhile."""
        if self._closed:
            raise ManagerClosedError(label)
        takes = sum(self._takes()) + (math.inf if self._busy else 0.0)
        self._loop.clock.block(min(takes, timeout))
        if takes > timeout:
            raise serial.ExecutorTimeout(label, timeout, self._busy)
        return call()

    async def close(self, timeout: float) -> None:
        """Finish what waits, for a limited time."""
        self._closed = True
        if self._working:
            self._idle = self._loop.create_future()
            await asyncio.wait({self._idle}, timeout=timeout)
            if not self._idle.done():
                self._idle.cancel()
                self.failed("close", f"{len(self._calls)} calls are dropped")
        self._calls.clear()
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def simulated_executors(rng: Random, habits: Habits) -> Iterator[None]:
    """Have the managers use simulated executors meanwhile, wherever they name the real one."""
    real, stand_in = serial.SerialExecutor, partial(SimulatedExecutor, rng, habits)
    ours = [module for name, module in sys.modules.items() if name.startswith("cjm_worker_protocols.")]
    places = [module for module in ours if getattr(module, "SerialExecutor", None) is real]
    try:
        for module in places:
            setattr(module, "SerialExecutor", stand_in)
        yield
    finally:
        for module in places:
            setattr(module, "SerialExecutor", real)
