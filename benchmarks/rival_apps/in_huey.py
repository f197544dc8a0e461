"""Huey's app."""

import os

from huey import SqliteHuey

from .functions import FUNCTIONS

app = SqliteHuey("rivals", filename=os.path.join(os.environ["RIVALS_BASE"], "huey.db"), store_none=True)
tasks = {function.__name__: app.task(name=function.__name__)(function) for function in FUNCTIONS}
