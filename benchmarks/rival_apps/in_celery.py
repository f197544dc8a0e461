"""Celery's app."""

import os

from celery import Celery

from .functions import FUNCTIONS

url = os.environ["RIVALS_REDIS"]
app = Celery("rivals", broker=url, backend=url)
app.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle"])
tasks = {function.__name__: app.task(name=function.__name__)(function) for function in FUNCTIONS}
