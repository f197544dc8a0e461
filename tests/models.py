"""The models that notebooks and tests run: what is missing here, and how to get it."""

from pathlib import Path

import pytest

from cjm_worker_protocols.plugins.extras import Extra
from cjm_worker_protocols.plugins.image import OCR
from cjm_worker_protocols.plugins.speech import SPEECH
from cjm_worker_protocols.plugins.text import LLM, small_model

NOTEBOOKS = {  # What notebooks need
    "plugins/text.ipynb": (LLM,),
    "plugins/image.ipynb": (OCR,),
    "tutorials/live_events.ipynb": (SPEECH,),
    "tutorials/more_models_than_memory.ipynb": (SPEECH, LLM),
    "tutorials/what_workers_use.ipynb": (LLM,),
    "tutorials/three_models.ipynb": (SPEECH, LLM, OCR),
}


def problem(*extras: Extra) -> str:
    """Why the plugins of these extras cannot run here; empty if they can."""
    missing = [f"a plugin {problem}" for extra in extras if (problem := extra.problem())]
    if LLM in extras and not Path(small_model()).exists():
        missing.append(f"{small_model()} is missing: run python tools/get_model.py")
    return "; ".join(missing)


def need(*extras: Extra) -> None:
    """Skip the test, with the reason, if plugins of these extras cannot run here."""
    if reason := problem(*extras):
        pytest.skip(reason)
