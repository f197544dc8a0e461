"""The tests of the worker system run once for each engine; what differs all the same is on a page of the docs and in a table here."""

import importlib.util
import os
import types
from collections.abc import Callable
from typing import Any

MODULES = ("test_jobs", "test_faults", "test_exactly_once")

OWN = (  # Not run on Ray: they bring an engine of their own, or are about what only the local one has: a guardian in this process, starts that take no time, this process's variables
    "test_an_engine_that_recovers",
    "test_a_guardian_that_is_killed_disturbs_no_job",
    "test_backoff_has_a_longest_delay",
    "test_env_is_laid_over_the_managers_own",
    "test_restart_with_backoff",
)

DIFFERENT: "dict[str, str]" = {  # What the page "Where workers live" says that differs on Ray, and the test that proves it
    "Process ids": "test_a_resource_manager_is_told_where_workers_live",
    "Environment": "test_the_environment_is_that_of_the_node",
    "No start": "test_an_interpreter_that_is_not_there_is_noticed_on_the_node",
    "Import path": "test_the_import_path_is_the_managers_then_the_nodes",
    "Lost nodes": "test_a_node_that_dies_amid_a_stream",
    "Waiting for room": "test_a_job_waits_for_room_and_says_so",
    "One job at a time": "test_the_second_job_is_sent_when_the_first_has_ended",
    "Killed managers": "test_nothing_stays_when_the_managers_process_is_killed",
    "Memory": "test_a_keeper_that_rays_memory_monitor_ends",
    "One connection": "test_another_cluster_is_refused",
    "One loop": "test_an_engine_works_on_one_loop_at_a_time",
}

make: "Callable[[], Any] | None" = None  # Makes the engine of a manager; None leaves a manager its own
started = False  # Whether this session has a Ray
used = False  # Whether it has had one: Ray leaves sockets open


def patience() -> float:
    """How many times as long a test may take: on Ray a worker starts in seconds."""
    return 1.0 if make is None else 5.0


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

    from cjm_worker_protocols.engines.ray import start_ray

    os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
    start_ray(ray, None, num_cpus=8, num_gpus=2, object_store_memory=200_000_000, resources={"thing": 2}, **settings)
    started = used = True


def stop_ray() -> None:
    """End it."""
    global started
    if started:
        import ray

        ray.shutdown()
    started = False
