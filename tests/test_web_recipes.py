"""The apps of the how-to run as they stand there: a real plugin, started from a request, streamed to the client, cancelled.

Those of Gradio and Streamlit run where these are installed: `pip install gradio streamlit`."""

import gc
import json
import re
from typing import Any

import pytest
from repo import NBS
from web_kit import serving

from cjm_worker_protocols import SyncJobManager

pytest.importorskip("pocketsphinx")
pytest.importorskip("soundfile")


def program(title: str) -> str:
    """The program under a heading."""
    cells = json.loads((NBS / "howto/web_apps.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    section = text.partition(f"\n## {title}")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(code)


def recipe(title: str) -> "dict[str, Any]":
    """The names of the program under a heading."""
    names: "dict[str, Any]" = {"__name__": "recipe"}
    exec(compile(program(title), title, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_starlette() -> None:
    """A recording that is uploaded to the mounted app is transcribed, its words come as a stream, and a job is cancelled."""
    from cjm_worker_protocols.plugins.speech import sample_recording

    names = recipe("Starlette")
    async with serving(names["app"], "/workers/") as client:
        files: "list[Any]" = [("audio", ("talk.wav", sample_recording().read_bytes()))]
        same = {"sec-fetch-site": "same-origin"}
        job = (await client.post("api/jobs", data={"plugin_id": "pocketsphinx"}, files=files, headers=same)).json()
        async with client.events(f"api/jobs/{job['id']}/stream") as events:
            seen = [event async for event in events]
        assert len(seen) > 2 and "worker" in seen[-1].data["result"]["text"]
        again = (await client.post(f"api/jobs/{job['id']}/retry", json={})).json()
        assert (await client.post(f"api/jobs/{again['id']}/cancel", json={})).json()["status"] == "cancelled"


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_fastapi() -> None:
    """Endpoints of one's own start, stream and cancel."""
    names = recipe("FastAPI")
    async with serving(names["app"]) as client:
        job = (await client.post("transcripts")).json()
        assert "worker" in (await client.get(f"transcripts/{job['id']}", timeout=60)).text
        again = (await client.post("transcripts")).json()
        assert (await client.delete(f"transcripts/{again['id']}")).json() == {"cancelled": True}
        assert (await client.delete("transcripts/unknown")).status_code == 404


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_fasthtml_with_htmx() -> None:
    """The answer to the button connects a stream, whose messages are HTML, and which ends by an event."""
    names = recipe("FastHTML")
    async with serving(names["app"]) as client:
        assert 'hx-post="/start"' in (await client.get("")).text
        started = (await client.post("start")).text
        (path,) = re.findall(r'sse-connect="/(words/[^"]+)"', started)
        stream = (await client.get(path, timeout=60)).text
        assert "event: message" in stream and "<p>" in stream and stream.rstrip().endswith("event: end\ndata:")
        again = re.findall(r'hx-post="/(cancel/[^"]+)"', (await client.post("start")).text)[0]
        await client.post(again)
        assert names["manager"].get_job(again.partition("/")[2]).status == "cancelled"


@pytest.mark.slow
@pytest.mark.needs_gradio
def test_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client uploads a recording, and gets the words as they come; a job is cancelled. Not part of the extra `dev`: it is large."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    client = pytest.importorskip("gradio_client")
    pytest.importorskip("gradio")
    from cjm_worker_protocols.plugins.speech import sample_recording

    names = recipe("Gradio")
    with names["manager"]:
        _, url, _ = names["demo"].launch(prevent_thread_lock=True, quiet=True)
        try:
            running = client.Client(url, verbose=False).submit(client.handle_file(str(sample_recording())), api_name="/start")
            assert "worker" in running.result(timeout=60) and len(running.outputs()) > 2
        finally:
            names["demo"].close()
        seen = names["start"](str(sample_recording()))
        job_id, _ = next(seen)
        names["cancel"](job_id)
        assert list(seen)[-1][1].endswith("cancelled]")


@pytest.mark.slow
@pytest.mark.needs_streamlit
def test_streamlit() -> None:
    """Its own test bench clicks the buttons. Not part of the extra `dev`: it is large."""
    testing = pytest.importorskip("streamlit.testing.v1")
    app = testing.AppTest.from_string(program("Streamlit"), default_timeout=60).run()
    try:
        app.button[0].click().run()
        assert not app.exception and "worker" in app.markdown[-1].value
        app.button[1].click().run()
        assert not app.exception and app.session_state.job.status == "completed"
    finally:
        for found in gc.get_objects():
            if isinstance(found, SyncJobManager):
                found.shutdown()
