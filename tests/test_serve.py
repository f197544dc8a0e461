"""`cjm-workers serve`: a store that outlives it, a port that is in use, a browser that it opens."""

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from harness import until
from web_kit import Client, served

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.core.errors import ConfigError
from cjm_worker_protocols.web.serve import NotAManagerError, made

SAME = {"sec-fetch-site": "same-origin"}


def client_of(url: str) -> Client:
    """A client with the token of a server."""
    base, _, token = url.partition("#token=")
    return Client(base_url=base, headers={"authorization": f"Bearer {token}"} if token else None, timeout=30)


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_a_new_server_on_the_same_store_finds_the_jobs(tmp_path: Path) -> None:
    """With all installed plugins: the job ends quickly, since its upload is not a recording; both are found again."""
    pytest.importorskip("pocketsphinx")
    files: "list[Any]" = [("audio", ("talk.wav", b"this is no recording"))]
    store = ("--store", str(tmp_path / "jobs.db"))
    async with served(tmp_path, *store, target="") as (process, url), client_of(url) as client:
        job = (await client.post("api/jobs?wait=true", data={"plugin_id": "pocketsphinx"}, files=files, headers=SAME)).json()
        assert job["status"] == "failed", job
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 128 + signal.SIGTERM
    async with served(tmp_path, *store, target="") as (_, url), client_of(url) as client:
        listed = (await client.get("api/jobs")).json()
        assert [found["id"] for found in listed["jobs"]] == [job["id"]] and listed["counts"]["failed"] == 1
        found = (await client.get(f"api/jobs/{job['id']}")).json()
        assert found["error"]["message"] == job["error"]["message"] and Path(found["params"]["audio"]).read_bytes() == files[0][1][1]


async def test_a_store_belongs_to_no_target(tmp_path: Path) -> None:
    """A target brings its own: exit 2, and no file is made."""
    async with served(tmp_path, "--store", "jobs.db") as (process, url):
        assert not url and await asyncio.wait_for(process.wait(), 20) == 2
    assert not (tmp_path / "jobs.db").exists()


async def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    """One line says so at once, and not a problem for each job."""
    async with served(tmp_path, "--store", str(tmp_path), target="") as (process, url):
        assert not url and await asyncio.wait_for(process.wait(), 20) == 1
        said = (await process.stderr.read()).decode().splitlines()
    assert len(said) == 1 and str(tmp_path) in said[0]


def no_config() -> Any:
    """A function that makes no manager."""
    raise RuntimeError("no config file")


async def leaves() -> Any:
    """Likewise."""
    sys.exit("bye")


@pytest.mark.parametrize("make, reason", [(lambda text: None, "TypeError: "), (no_config, "no config file"), (leaves, "SystemExit: bye")])
async def test_a_function_that_raises(make: Any, reason: str) -> None:
    """What it raised is the reason; an error of this package stays what it is."""
    with pytest.raises(NotAManagerError, match=reason):
        await made(make)
    with pytest.raises(ConfigError):
        await made(lambda: JobManager("mine", "tests", plugins=[]))  # type: ignore[arg-type]


async def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    """One line says so, and no worker is left."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        async with served(tmp_path, "--port", port) as (process, url):
            assert not url and await asyncio.wait_for(process.wait(), 20) == 1
            said = (await process.stderr.read()).decode().splitlines()
    assert len(said) == 1 and port in said[0]


async def test_without_a_token_this_machine_alone_is_served(tmp_path: Path) -> None:
    """Nothing has to be sent; what came through a proxy is refused."""
    async with served(tmp_path, "--no-token") as (_, url), client_of(url) as client:
        assert "#" not in url and (await client.get("api")).json()["token"] is False
        assert (await client.get("api", headers={"x-forwarded-for": "10.0.0.7"})).status_code == 403


async def test_the_browser_gets_the_token_from_a_file_of_this_user(tmp_path: Path) -> None:
    """Its command line, which others can read, names the file alone; the file is gone at the end."""
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" >"$SAID.new"\ncat "${1#file://}" >>"$SAID.new"\nmv "$SAID.new" "$SAID"\n')
    browser.chmod(0o700)
    said = tmp_path / "said"
    async with served(tmp_path, "--open", BROWSER=f"{browser} %s", SAID=str(said)) as (process, url):
        await until(said.exists)
        where, _, page = said.read_text().partition("\n")
        token = url.partition("#token=")[2]
        assert where.startswith("file:///") and token not in where and url in page
        path = Path(where.removeprefix("file://"))
        assert path.parent.stat().st_mode & 0o077 == 0
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 128 + signal.SIGINT
    assert not path.exists()


async def test_the_token_is_no_argument_of_any_process(tmp_path: Path) -> None:
    """Neither of the server nor of what it starts, whose environment does not have it either: other users read these."""
    async with served(tmp_path) as (process, url), client_of(url) as client:
        await client.start("shout", "?wait=true", text="hi")
        token = url.partition("#token=")[2]
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(token) > 16 and len(family) > 1
        assert not [found for found in family if token in str(found.cmdline()) or token in str(found.environ())]


async def test_another_host_with_a_token_of_ones_own(tmp_path: Path) -> None:
    """It is served under the names of this machine, and asks everyone for the token."""
    token = "a-token-of-my-own-1234"
    async with served(tmp_path, "--host", "0.0.0.0", "--token", token) as (_, url), client_of(url) as client:
        assert url.endswith(f"#token={token}") and (await client.get("api")).status_code == 200
        port = url.partition("#")[0].rstrip("/").rpartition(":")[2]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/") as stranger:
            assert (await stranger.get("api")).status_code == 401
            assert (await stranger.get("api", headers={"host": "evil.example"})).status_code == 421
