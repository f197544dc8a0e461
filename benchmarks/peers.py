"""The least that any worker system must do: pickles over a socketpair to one other process.

Both ends block, or this one is on asyncio's loop.

Run as a program, this is that other process."""

import asyncio
import pickle
import socket
import struct
import sys
from typing import Any, BinaryIO, Optional

HEADER = struct.Struct(">Q")


def send(sock: socket.socket, value: Any) -> None:
    """Send one length-prefixed pickle."""
    body = pickle.dumps(value, 5)
    sock.sendall(HEADER.pack(len(body)) + body)


def receive(file: BinaryIO) -> Any:
    """Receive one. Raises `EOFError` when the other end is gone."""
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise EOFError
    return pickle.loads(file.read(HEADER.unpack(head)[0]))


def serve(sock: socket.socket) -> None:
    """Answer requests: a function of `workloads` and its arguments."""
    import workloads

    file = sock.makefile("rb")
    while True:
        name, arguments = receive(file)
        if name == "noop":
            workloads.noop()
            send(sock, None)
        elif name == "stream":
            for piece in workloads.stream(**arguments):
                send(sock, piece)
            send(sock, None)
        elif name == "large":
            sock.sendall(workloads.large())


class Bare:
    """This end: a process of its own, started in the same way as a worker, and a socket to it."""

    def __enter__(self) -> "Bare":
        import subprocess

        self._sock, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._file = self._sock.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)  # its reading ends, and so does it
        self._file.close()
        self._sock.close()
        self._process.wait(10)

    def ping(self) -> Any:
        """One request and its answer."""
        send(self._sock, ("noop", {}))
        return receive(self._file)

    def stream(self, count: int) -> int:
        """How many pieces came."""
        send(self._sock, ("stream", {"count": count}))
        came = 0
        while receive(self._file) is not None:
            came += 1
        return came

    def large(self, size: int) -> bytearray:
        """The large result, without pickle."""
        send(self._sock, ("large", {}))
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            filled += self._sock.recv_into(view[filled:])
        return data


class BareOnLoop(Bare):
    """The same with this end on a loop, as everything is that is awaited."""

    def __enter__(self) -> "BareOnLoop":
        super().__enter__()
        self._answer: "Optional[asyncio.Future[Any]]" = None
        asyncio.get_running_loop().add_reader(self._sock, self._came)
        return self

    def __exit__(self, *details: object) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        super().__exit__(*details)

    def _came(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.set_result(receive(self._file))

    async def ask(self) -> Any:
        """One request and its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        send(self._sock, ("noop", {}))
        return await self._answer


if __name__ == "__main__":
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except (EOFError, ConnectionError):
        pass
