"""The servers that `over_http.py` compares: `python over_http_servers.py NAME PORT` serves on loopback until it is killed."""

import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

try:
    import litserve as ls
except ImportError:
    ls = None


def noop(text: str) -> str:
    """A plugin that does nothing."""
    return text


def pieces(count: int) -> Any:
    """A plugin that streams."""
    for number in range(count):
        yield {"number": number, "text": "a word or two"}


def ours() -> Any:
    """The HTTP API, and beside it a broadcaster that sends as many events as it is asked for."""
    from cjm_worker_protocols import JobManager, WorkerConfig
    from cjm_worker_protocols.integrations.sse import SSEBroadcaster
    from cjm_worker_protocols.web import WorkersApp

    config = WorkerConfig(stream_buffer=100_000)
    broadcaster = SSEBroadcaster(history=65_536)
    manager = JobManager("bench", "http", worker_config=config, plugins={"noop": noop, "pieces": pieces})

    async def burst(request: Request) -> JSONResponse:
        for number in range(int(request.query_params["count"])):
            await broadcaster.broadcast("chunk", {"number": number, "text": "a word or two"})
        return JSONResponse({})

    async def bare(request: Request) -> JSONResponse:
        return JSONResponse({"output": await (await manager.start_job("noop", text=(await request.json())["params"]["text"]))})

    posts = [Route("/burst", burst, methods=["POST"]), Route("/bare", bare, methods=["POST"])]
    workers, others = WorkersApp(manager), Starlette(routes=[Mount("/events", broadcaster), *posts])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (others if scope.get("path", "").startswith(("/events", "/burst", "/bare")) else workers)(scope, receive, send)

    return app


def echo() -> Starlette:
    """Starlette alone: what comes in as JSON goes out as JSON."""

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"output": (await request.json())["params"]["text"]})

    return Starlette(routes=[Route("/predict", answer, methods=["POST"])])


class Echo(ls.LitAPI if ls else object):  # type: ignore[misc]
    """LitServe's API that does nothing; its worker imports this module."""

    def setup(self, device: str) -> None:
        """Nothing is loaded."""

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """What comes in; an annotation would make it a parameter of the query."""
        return request["params"]["text"]

    def predict(self, x: Any) -> Any:
        """The same."""
        return x

    def encode_response(self, output: Any) -> Any:
        """What goes out."""
        return {"output": output}


def litserve(port: int) -> None:
    """LitServe, on one CPU worker."""
    ls.LitServer(Echo(), accelerator="cpu").run(port=port, host="127.0.0.1", generate_client_file=False, log_level="error")


if __name__ == "__main__":
    name, number = sys.argv[1], int(sys.argv[2])
    if name == "litserve":
        litserve(number)
    else:
        app = {"ours": ours, "echo": echo}[name]()
        uvicorn.run(app, port=number, loop="asyncio", log_level="error", access_log=False)  # the loop that measures the round trip
