"""What the tests of events over Redis share: a real redis-server that can be killed, stopped, and started again."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from sse_kit import free_port

REDIS = shutil.which("redis-server")


class RedisServer:
    """A redis-server on a free port of loopback, with a folder of its own; only with `appendonly` a restart keeps the data."""

    def __init__(
        self, folder: Path, *, appendonly: bool = False, password: str = "", tls: bool = False, lines: "tuple[str, ...]" = ()
    ) -> None:
        self.folder, self.port, self.tls, self.password = folder, free_port(), tls, password
        folder.mkdir(parents=True, exist_ok=True)
        settings = ["bind 127.0.0.1", "protected-mode no", f"dir {folder}", 'save ""', "loglevel warning", *lines]
        settings += [f"appendonly {'yes' if appendonly else 'no'}", "appendfsync always"]
        settings += [f"port 0\ntls-port {self.port}\ntls-auth-clients no"] if tls else [f"port {self.port}"]
        if tls:
            make_certificate(folder)
            settings += [f"tls-cert-file {folder}/cert.pem", f"tls-key-file {folder}/key.pem", f"tls-ca-cert-file {folder}/cert.pem"]
        if password:
            settings.append(f"requirepass {password}")
        (folder / "redis.conf").write_text("\n".join(settings))
        self._process: "subprocess.Popen[bytes] | None" = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where it is, with all that a client needs."""
        user = f":{self.password}@" if self.password else ""
        if self.tls:
            return f"rediss://{user}127.0.0.1:{self.port}?ssl_ca_certs={self.folder}/cert.pem"
        return f"redis://{user}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert REDIS is not None and self._process is None
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen([REDIS, str(self.folder / "redis.conf")], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Kill it and start it again on the same port."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Let it hang: it takes connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on where it was."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def client(self) -> Any:
        """A client of its own for a test, which looks at what there is."""
        import redis

        return redis.Redis.from_url(self.url, decode_responses=True)

    def ask(self, *command: Any) -> Any:
        """One command."""
        with self.client() as client:
            return client.execute_command(*command)

    def events(self, stream: str = "cjm-workers:events") -> "list[tuple[str, dict[str, str]]]":
        """All entries of a stream that are events."""
        with self.client() as client:
            return [(event_id, fields) for event_id, fields in client.xrange(stream) if "type" in fields]


def make_certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")], check=True, capture_output=True)
