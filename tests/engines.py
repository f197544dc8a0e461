"""Some tests of the worker system run on Ray too; what differs there is on a page of the docs and in a table here."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

ON_RAY = (  # What runs on Ray too, since it says something about Ray; a name with an id is one of several parameters
    # test_jobs
    "test_managers_have_the_engine_of_the_run",
    "test_a_job_has_a_timeout_of_its_own",
    "test_a_loader_may_be_defined_anywhere",
    "test_a_plugin_that_asks_is_cancelled_in_peace",
    "test_finally_runs_in_a_plugin_that_does_not_ask[tidy]",
    "test_what_a_plugin_says_reaches_the_managers_log",
    # test_faults
    "test_a_plugin_that_ends_its_worker[segfault]",
    "test_what_a_crash_leaves_on_stderr_is_shown",
    "test_a_worker_killed_from_outside_is_noticed_at_once",
    "test_a_hundred_megabytes_there_and_back",
    "test_no_child_of_a_plugin_survives[cancel-children deaf to SIGTERM]",
    "test_shutdown_ends_what_runs_and_what_waits",
    "test_a_slow_reader_loses_nothing[20000-10]",
    # test_exactly_once
    "test_nothing_runs_twice[2]",
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


def both(test: str) -> bool:
    """Whether a test, or one of its parameters, runs on Ray too."""
    return any(name.partition("[")[0] == test for name in ON_RAY)


def listed(test: str, case: str) -> bool:
    """Whether the test runs on Ray with the parameters of this id, which begins with the engine."""
    return test in ON_RAY or f"{test}[{case.partition('-')[2]}]" in ON_RAY


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
