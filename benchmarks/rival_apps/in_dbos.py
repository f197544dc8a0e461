"""DBOS's app, which runs in the process that starts it."""

import os
from typing import Any

from dbos import DBOS

from .functions import FUNCTIONS, stream


def start(name: str = "dbos") -> "dict[str, Any]":
    """Start DBOS on a file of this name; its workflows, by name."""
    url = f"sqlite:///{os.path.join(os.environ['RIVALS_BASE'], name)}.db"
    DBOS(config={"name": "rivals", "system_database_url": url, "log_level": "CRITICAL", "run_admin_server": False})
    found = {function.__name__: DBOS.workflow(name=function.__name__)(function) for function in FUNCTIONS}

    @DBOS.workflow(name="stream")
    def streamed() -> None:
        for chunk in stream():
            DBOS.write_stream("chunks", chunk)
        DBOS.close_stream("chunks")

    DBOS.launch()
    return {**found, "stream": streamed}
