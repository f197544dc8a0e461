"""LitServe's server.

    python -m rival_apps.in_litserve PORT [stream]
"""

import base64
import sys
from typing import Any

import litserve

from .functions import FUNCTIONS, look, stream


class Api(litserve.LitAPI):
    """The functions."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def predict(self, request: Any) -> Any:
        """Call one."""
        if request["call"] == "look":
            import numpy

            return look(numpy.frombuffer(base64.b64decode(request["data"]), numpy.uint8))
        call = next(function for function in FUNCTIONS if function.__name__ == request["call"])
        return call(*request.get("arguments", ()))


class Streaming(Api):
    """The stream."""

    def predict(self, request: Any) -> Any:
        """Yield its chunks."""
        yield from stream()

    def encode_response(self, output: Any) -> Any:
        """Each as JSON."""
        for chunk in output:
            yield {"chunk": chunk}


if __name__ == "__main__":
    api: Any = Streaming(stream=True) if "stream" in sys.argv else Api()
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
