"""The tests of the worker system run once for each engine; where the engines truly differ, this table says why."""

import importlib.util
import os
import types
from collections.abc import Callable
from typing import Any

MODULES = ("test_jobs", "test_faults", "test_exactly_once")

DIFFERENT: "dict[str, str]" = {
    "test_an_engine_that_recovers": "it brings an engine of its own",
}

make: "Callable[[], Any] | None" = None  # Makes the engine of a manager; None leaves a manager its own
started = False  # Whether this session has a Ray
used = False  # Whether it has had one: Ray leaves sockets open


def uses_the_managers_of_the_harness(test: Any) -> bool:
    """Whether a test, or a function within it, calls `harness.manager`: only then does the engine matter to it."""

    def names(code: types.CodeType) -> "set[str]":
        found = set(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                found |= names(constant)
        return found

    called = names(test.__code__)
    helpers = [f for f in (test.__globals__.get(name) for name in called) if isinstance(f, types.FunctionType) and f.__module__ == test.__module__]
    return "manager" in called or any("manager" in names(helper.__code__) for helper in helpers)


def installed() -> bool:
    """Whether Ray is."""
    return importlib.util.find_spec("ray") is not None


def start_ray(**settings: Any) -> None:
    """One Ray for all tests of this process, which its engines find and leave alone."""
    global started, used
    if started:
        return
    import ray

    from cjm_worker_protocols.integrations.ray import start_ray

    os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
    start_ray(ray, None, num_cpus=8, object_store_memory=200_000_000, resources={"thing": 2}, **settings)
    started = used = True


def stop_ray() -> None:
    """End it."""
    global started
    if started:
        import ray

        ray.shutdown()
    started = False
