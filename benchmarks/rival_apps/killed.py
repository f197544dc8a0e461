"""An app that asks for a job of one second and four after it, and is killed.

    python -m rival_apps.killed ours|celery|huey|dbos    print the ids of the jobs, and die
    python -m rival_apps.killed finish IDS…              start DBOS again, and print how many of these jobs ended well
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any


async def ask_ours() -> "list[str]":
    """The ids of five jobs of ours, of which one runs; this does not return."""
    from pathlib import Path

    from cjm_worker_protocols import JobManager
    from cjm_worker_protocols.integrations.store import SQLiteJobStore

    from .functions import nap, pid

    base = Path(os.environ["RIVALS_BASE"])
    async with JobManager("rivals", "kept", plugins={"nap": nap, "pid": pid}, job_store=SQLiteJobStore(base / "ours.db")) as manager:
        jobs = [await manager.start_job("nap", mark=str(base / "ours.pending"), seconds=1.0, restartable=True)]
        jobs += [await manager.start_job("pid", restartable=True) for _ in range(4)]
        print(json.dumps([job.id for job in jobs]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def ask(name: str) -> "list[str]":
    """The ids of five jobs."""
    if name == "ours":
        return asyncio.run(ask_ours())
    mark = os.path.join(os.environ["RIVALS_BASE"], f"{name}.pending")
    calls: "list[tuple[str, tuple[Any, ...]]]" = [("nap", (mark, 1.0)), *[("pid", ())] * 4]
    if name == "celery":
        from . import in_celery

        return [in_celery.tasks[call].delay(*arguments).id for call, arguments in calls]
    if name == "huey":
        from . import in_huey

        return [in_huey.tasks[call](*arguments).id for call, arguments in calls]
    from dbos import DBOS

    from .in_dbos import start

    workflows = start("killed")
    return [DBOS.start_workflow(workflows[call], *arguments).workflow_id for call, arguments in calls]


def finish(ids: "list[str]") -> int:
    """How many of these workflows of DBOS have ended well."""
    from dbos import DBOS

    from .in_dbos import start

    start("killed")
    return sum(DBOS.retrieve_workflow(workflow_id).get_result() is not Ellipsis for workflow_id in ids)


if __name__ == "__main__":
    if sys.argv[1] == "finish":
        print(finish(sys.argv[2:]), flush=True)
        os._exit(0)
    print(json.dumps(ask(sys.argv[1])), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
