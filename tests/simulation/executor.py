"""A stand-in for `SerialExecutor`: the same methods, but its calls happen at virtual times, on the loop."""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from cjm_worker_protocols.core.errors import ManagerClosedError
from cjm_worker_protocols.managers import serial

from .clock import VirtualLoop


@dataclass(frozen=True)
class Habits:
    """How long the calls of integrations take."""

    slow: float = 0.0  # Probability that a call takes up to a second
    hangs: float = 0.0  # Probability that a call never comes back


class SimulatedQuestion:
    """A call whose outcome is heard: what it returns or raises, or that it is late."""

    call: serial.Call

    def __init__(self, executor: SimulatedExecutor, label: str, timeout: float, limit: float, then: serial.Outcome) -> None:
        self._executor, self._label, self._timeout, self._limit, self._then = executor, label, timeout, limit, then
        self._loop, self._over = asyncio.get_running_loop(), False
        self._asked = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Pass the outcome on, once."""
        if self._over:
            return
        self.drop()
        if error is not None and (isinstance(error, StopIteration) or not isinstance(error, Exception)):
            error = RuntimeError(repr(error))
        self._then(result, error)

    def look(self) -> None:
        """Give the question up, or look again when it will be late."""
        busy, since = self._executor.busy_since()
        left = min(max(self._asked, since) + self._timeout, self._asked + self._limit) - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self.look)
        else:
            self.settle(None, serial.ExecutorTimeout(self._label, self._timeout, busy))

    def drop(self) -> None:
        """Hear no more of it."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._executor.take_back(self.call)


class SimulatedExecutor:
    """Makes one call after the other, as the real one does on its thread."""

    def __init__(self, rng: Random, habits: Habits, name: str, limit: int, errors: Counter[str], timeout: float) -> None:
        self.name, self._rng, self._habits, self._errors, self.timeout = name, rng, habits, errors, timeout
        self._calls = serial.CallQueue(limit)
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

    def _start(self) -> None:
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
        self.at(call.label)
        self._after(before, self._make, call, after)

    def _after(self, delay: float, step: Callable[..., None], *arguments: Any) -> None:
        if delay == 0.0:
            step(*arguments)
        elif delay < math.inf:
            self._timer = self._loop.call_later(delay, step, *arguments)

    def _make(self, call: serial.Call, after: float) -> None:
        """The call itself happens."""
        result, error = None, None
        try:
            result = serial.require_sync(call.function())
        except BaseException as e:
            error = e
        self._after(after, self._answer, call, result, error)

    def _answer(self, call: serial.Call, result: Any, error: BaseException | None) -> None:
        if call.done is not None:
            call.done(result, error)
        elif error is not None:
            self.failed(call.label, error)
        self._next()

    def at(self, label: str) -> None:
        """Note that a call begins, or one of several that a question takes."""
        self._busy, self._since = label, self._loop.time()

    def failed(self, label: str, reason: object) -> None:
        """Count a failure."""
        self._errors[f"{self.name}.{label}"] += 1

    def post(self, label: str, function: Callable[[], Any], needed: bool = False) -> None:
        """Make a call whose result is not needed."""
        self.post_state(None, partial(serial.Call, label, function, needed=needed))

    def post_state(self, key: Hashable, make: Callable[[], serial.Call]) -> None:
        """Report a state; of those with one key, only the newest wait."""
        call = make()
        if self._calls.put(call):
            self._start()
        else:
            self.failed(f"{call.label}.dropped", f"{self._calls.limit} calls are waiting")

    def call(
        self, label: str, function: Callable[[], Any], then: serial.Outcome, limit: float = math.inf, patience: float = 0.0
    ) -> SimulatedQuestion:
        """Make a call, with the errors of the real one."""
        if self._closed:
            raise ManagerClosedError(label)
        if self._calls.full:
            raise serial.ExecutorFullError(label, self._calls.limit, self._busy)
        question = SimulatedQuestion(self, label, self.timeout, limit, then)
        question.call = serial.Call(label, function, question.settle)
        if patience and not self._working and self._rng.random() < 0.5:  # the loop waits for the answer
            self._working = True
            self._make(question.call, 0.0)
            return question
        self._calls.append(question.call)
        self._start()
        question.look()
        return question

    def busy_since(self) -> tuple[str, float]:
        """Which call is being made, and since when."""
        return self._busy, self._since

    def take_back(self, call: serial.Call) -> None:
        """Do not make a call that still waits."""
        self._calls.take_back(call)

    async def ask(self, label: str, function: Callable[[], Any], limit: float = math.inf, patience: float = 0.0) -> Any:
        """Make a call and wait for its answer, with the errors of the real one."""
        answer = self._loop.create_future()
        question = self.call(label, function, serial.outcome_for(answer), limit)
        try:
            return await answer
        finally:
            question.drop()

    def ask_blocking(self, label: str, function: Callable[[], Any]) -> Any:
        """The same for a synchronous caller: the loop is blocked meanwhile."""
        if self._closed:
            raise ManagerClosedError(label)
        takes = sum(self._takes()) + (math.inf if self._busy else 0.0)
        self._loop.clock.block(min(takes, self.timeout))
        if takes > self.timeout:
            raise serial.ExecutorTimeout(label, self.timeout, self._busy)
        return function()

    def abandon(self) -> None:
        """Make no further call, and wait for nothing."""
        self._closed = True

    async def close(self) -> None:
        """Finish what waits, for a limited time; needed calls also after that, if the one that hangs comes back."""
        self._closed = True
        if self._working:
            self._idle = self._loop.create_future()
            await asyncio.wait({self._idle}, timeout=self.timeout)
            if not self._idle.done():
                self._calls.drop_optional()
                self.failed("close", "it hangs")
                self._habits = Habits()  # thousands of needed calls may wait, and be made before long if it comes back


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
