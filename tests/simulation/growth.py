"""Whether anything grows while a manager lives: how many objects there are, and what containers hold, whenever all jobs have ended."""

from __future__ import annotations

import asyncio
import gc
import sys
import types
import weakref
from collections import Counter, deque
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from typing import Any

from .clock import VirtualLoop
from .invariants import Book

PACKAGE = "cjm_worker_protocols"
NAMES = (PACKAGE, "asyncio", "_asyncio", "collections", "weakref", "functools", "builtins", "heapq", "_contextvars")
SEQUENCES = (list, tuple, set, frozenset, deque, weakref.WeakSet)
MAPPINGS = (dict, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, types.MappingProxyType)
LEAVES = (type, types.ModuleType, types.CodeType, types.FrameType, types.BuiltinFunctionType, weakref.ref, str, bytes, int, float)

KNOWN: dict[type, bool] = {}  # Whether a type is the package's


def _owned(kind: type) -> bool:
    """Whether a type is the package's, Python's own, or one of the loop's."""
    return kind.__module__.partition(".")[0] in NAMES


def alive() -> "Counter[str]":
    """How many objects the collector knows, by type."""
    kinds = Counter(map(type, gc.get_objects()))
    return Counter({f"{kind.__module__}.{kind.__qualname__}": count for kind, count in kinds.items()})


def held(roots: Iterable[tuple[str, Any]]) -> "Counter[str]":
    """How many entries the containers have that can be reached from some objects, by the attribute in which they are found."""
    found: Counter[str] = Counter()
    seen = set[int]()
    todo = deque(roots)
    while todo:
        label, value = todo.popleft()
        kind = type(value)
        if kind in LEAVES or id(value) in seen or isinstance(value, LEAVES):
            continue
        seen.add(id(value))
        if isinstance(value, MAPPINGS):
            found[label] += len(value)
            todo += [(label, part) for pair in list(value.items()) for part in pair]
        elif isinstance(value, SEQUENCES):
            found[label] += len(value)
            todo += [(label, part) for part in list(value)]
        elif isinstance(value, types.FunctionType):
            todo += [(label, cell.cell_contents) for cell in value.__closure__ or () if cell != types.CellType()]
        elif isinstance(value, types.MethodType):
            todo.append((label, value.__self__))
        elif _of_package(kind) or isinstance(value, asyncio.BaseEventLoop):
            todo += [(f"{kind.__qualname__}.{name}", part) for name, part in _attributes(value)]
        elif _owned(kind):
            todo += [(label, part) for part in gc.get_referents(value)]
    return found


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    """The attributes of an object, in its slots too."""
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield name, getattr(value, name)


@lru_cache
def package() -> list[tuple[str, Any]]:
    """What the package's modules and classes hold that can grow."""
    found = []
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGE):
            found += [(f"{name}.{what}", value) for what, value in vars(module).items()]
            mine = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == name]
            found += [(f"{cls.__qualname__}.{what}", value) for cls in mine for what, value in vars(cls).items()]
    grows = (*SEQUENCES, *MAPPINGS)
    return [(label, value) for label, value in found if isinstance(value, grows) or _of_package(type(value))]


def _of_package(kind: type) -> bool:
    """Whether a type is the package's, or derived from one that is."""
    if kind not in KNOWN:
        KNOWN[kind] = not issubclass(kind, (type, Enum)) and any(cls.__module__.startswith(PACKAGE) for cls in kind.__mro__)
    return KNOWN[kind]


class Growth:
    """Compares what there is at each rest with what there was at the first ones."""

    FIRST = 6  # Rests after which all that a manager makes once is there, and as many workers as there may be
    ROOM = 100  # How many more there may be than at any of those
    BUILTIN = 1000  # The same of tuples, functions and the like, which every module brings that is imported only when it is needed

    def __init__(self) -> None:
        self.rests = 0
        self.most: Counter[str] = Counter()

    def check(self, book: Book, manager: Any, loop: VirtualLoop) -> None:
        """Check that nothing has grown since the first rests."""
        loop.clock.tidy()
        gc.collect()
        now = alive() + held([("manager", manager), ("loop", loop), *package()])
        self.rests += 1
        if self.rests > self.FIRST:
            more = {what: count - self.most[what] for what, count in now.items() if count > self.most[what] + self.ROOM}
            grown = {what: (now[what], by) for what, by in more.items() if by > self.BUILTIN or not what.startswith("builtins.")}
            book.check("nothing grows", not grown, grown)
        else:
            self.most |= now
