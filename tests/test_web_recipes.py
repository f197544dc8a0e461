"""The apps of the how-to run as they stand there: a real plugin, started from a request, streamed to the client, cancelled."""

import json
import re
from typing import Any

import pytest
from repo import NBS
from web_kit import serving

pytest.importorskip("pocketsphinx")
pytest.importorskip("soundfile")


def recipe(title: str) -> "dict[str, Any]":
    """The names of the program under a heading."""
    cells = json.loads((NBS / "howto/web_apps.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    section = text.partition(f"\n## {title}")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: "dict[str, Any]" = {"__name__": "recipe"}
    exec(compile(code, title, "exec"), names)
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
