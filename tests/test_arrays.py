"""Large values: they arrive whole by whichever way, their memory goes with the last reference, and limits change nothing but the way."""

import asyncio
import fcntl
import gc
import os
import pickle
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from harness import end, finish, first_chunk, gone, manager, said_json, script, until

from cjm_worker_protocols import JobError
from cjm_worker_protocols.core import segments
from cjm_worker_protocols.core.frames import LARGE, Frame, Kind, outgoing
from cjm_worker_protocols.core.segments import (
    LEAST,
    LostSegmentError,
    Segment,
    SegmentSocket,
    UnsealedSegmentError,
    write_segment,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

SIZES = [1000, LARGE, 1_000_000, LEAST + 5]


def array(size: int) -> Any:
    """Bytes that differ."""
    return np.arange(size, dtype=np.uint8)


def segments_of(pid: "int | str" = "self") -> "tuple[int, int]":
    """How many segments a process has mapped, and how many descriptors of segments it has open."""
    maps = Path(f"/proc/{pid}/maps").read_text().count("memfd:cjm-worker-protocols")
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return maps, sum("memfd:cjm-worker-protocols" in link for link in links)


@pytest.fixture(autouse=True)
def tidy() -> None:
    """Nothing of an earlier test waits for the garbage collector."""
    gc.collect()


def echo(value: Any) -> Any:
    """Return it."""
    return value


def twice(value: Any) -> "Iterator[Any]":
    """Stream it, and return it too."""
    yield value
    yield value
    return value


# What arrives


@pytest.mark.parametrize("size", SIZES)
async def test_arrays_arrive_whole_and_can_be_written_to(size: int) -> None:
    """As parameter, as chunks and as result; what a plugin writes into its parameter stays in the worker."""

    def fill(value: Any) -> "Iterator[Any]":
        copy = value.copy()
        value[:] = 7
        yield copy
        yield value
        return value

    sent = array(size)
    async with manager(fill, supports_streaming=True) as m:
        job = await m.start_job("fill", value=sent)
        chunks = [chunk async for chunk in job.stream()]
        result = await job
    assert np.array_equal(chunks[0], array(size)) and np.array_equal(sent, array(size))
    assert (chunks[1] == 7).all() and (result == 7).all() and result.nbytes == size
    for came in (*chunks, result):
        came[0] = 9
    assert chunks[0][1] == 1 and result[1] == 7


@pytest.mark.parametrize("size", SIZES)
async def test_what_the_app_changes_after_start_job_reaches_no_worker(size: int) -> None:
    """A job's parameters are those at the time of the call, however long it waits."""
    sent, more = array(size), bytearray(array(size))
    async with manager(echo) as m:
        job = await m.start_job("echo", value=[sent, more])
        sent[:], more[:] = 0, bytes(size)
        came, other = await job
    assert np.array_equal(came, array(size)) and other == bytes(array(size))


def values(size: int) -> "dict[str, Any]":
    """What people pass."""
    import pandas
    import pyarrow

    frame = pandas.DataFrame({"a": np.arange(size // 16), "b": np.arange(size // 16) / 2})
    read_only = array(size)
    read_only.setflags(write=False)
    return {
        "bytes": bytes(size),
        "bytearray": bytearray(array(size)),
        "nested": {"images": [array(size), (array(size // 2), "label")], "raw": [bytes(size), "x" * size]},
        "strided": array(2 * size)[::2],
        "fortran": np.asfortranarray(array(size // 8 * 8).reshape(8, -1)),
        "read only": read_only,
        "object array": np.array([array(size), None], dtype=object),
        "pandas": frame,
        "arrow": pyarrow.table(frame),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, arrays in them too."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) or isinstance(one, np.ndarray) and one.dtype.hasobject:
        return len(one) == len(other) and all(map(same, one, other))
    return (
        bool(np.array_equal(one, other))
        if isinstance(one, np.ndarray)
        else bool(getattr(one, "equals", one.__eq__)(other))
    )


@pytest.mark.parametrize("size", [LARGE, LEAST])
async def test_each_type_arrives_as_what_it_was(size: int) -> None:
    """Both ways."""
    async with manager(echo) as m:
        for name, value in values(size).items():
            came = await (await m.start_job("echo", value=value))
            assert type(came) is type(value) and same(came, value), name
            assert name != "read only" or not came.flags.writeable
            assert name != "fortran" or came.flags.f_contiguous


@pytest.mark.parametrize(
    "size, kinds", [(1000, ["bytearray", "bytes"]), (LARGE, ["memoryview"] * 2), (LEAST, ["memoryview"] * 2)]
)
async def test_a_buffer_arrives_as_bytes_or_as_a_view(size: int, kinds: "list[str]") -> None:
    """Out of band it is a view of what came; small ones are pickled with the rest."""

    def look(*, value: Any, other: Any) -> Any:
        import pickle

        return [type(v).__name__ for v in (value, other)], bytes(other), pickle.PickleBuffer(bytearray(value))

    async with manager(look) as m:
        found, other, back = await (
            await m.start_job(
                "look", value=pickle.PickleBuffer(bytearray(array(size))), other=pickle.PickleBuffer(bytes(size))
            )
        )
    assert (
        found == kinds
        and other == bytes(size)
        and bytes(back) == bytes(array(size))
        and type(back).__name__ == kinds[0]
    )


async def test_classes_of_a_script_travel_with_large_arrays() -> None:
    """What has to be pickled by value is, and its arrays are still not copied into the pickle."""

    class Picture:
        def __init__(self, pixels: Any) -> None:
            self.pixels = pixels

    frame = outgoing(Kind.RUN, 1, Picture(array(LARGE)), lasting=True)
    assert len(frame.pieces) > 2
    async with manager(echo) as m:
        came = await (await m.start_job("echo", value=Picture(array(LEAST))))
    assert np.array_equal(came.pixels, array(LEAST))


@pytest.mark.parametrize("size, mapped", [(LEAST - 10_000, 0), (LEAST, 1)])
async def test_memory_is_shared_from_a_size_on_and_goes_with_the_last_reference(size: int, mapped: int) -> None:
    """The worker sees a mapped parameter while its job runs; the app keeps a result for as long as it likes; then nothing is left."""

    def look(value: Any) -> "tuple[int, Any]":
        return open("/proc/self/maps").read().count("memfd:cjm-worker-protocols"), value

    async with manager(look) as m:
        job = await m.start_job("look", value=array(size))
        in_worker, result = await job
        assert in_worker == mapped and segments_of() == (mapped, 0)
        part = result[100:200]
        del result
        pid = job.worker_pid
        m.clear_completed_jobs()
        del job
        assert segments_of() == (mapped, 0) and np.array_equal(part, array(200)[100:])
        del part
        assert segments_of() == (0, 0)
        await until(lambda: segments_of(pid) == (0, 0))


def lies_in_segment(memory: Any) -> bool:
    """Whether an array's or another buffer's memory lies in a mapped segment."""
    at = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if "memfd:cjm-worker-protocols" in line]
    return any(int(first, 16) <= at < int(last, 16) for first, last in spans)


def parts_of(value: Any) -> "list[Any]":
    """The memory of what people pass."""
    if hasattr(value, "itercolumns"):  # Arrow
        buffers = (buffer for column in value.itercolumns() for chunk in column.chunks for buffer in chunk.buffers())
        return [buffer for buffer in buffers if buffer is not None]
    if hasattr(value, "items") and not isinstance(value, dict):  # pandas
        return [column.to_numpy() for _, column in value.items()]
    return [value]


async def test_arrays_tables_and_buffers_are_mapped_both_ways_and_as_chunks() -> None:
    """Their memory is the segment itself, in the worker and here; that of `bytes` is a copy."""
    import pandas
    import pyarrow

    def look(value: Any) -> "Iterator[Any]":
        from test_arrays import lies_in_segment, parts_of

        found = [lies_in_segment(part) for part in parts_of(value)]
        back = pickle.PickleBuffer(value) if isinstance(value, memoryview) else value
        yield back
        return found, back

    frame = pandas.DataFrame({"a": np.arange(LEAST // 8), "b": np.arange(LEAST // 8) / 2})
    table = pyarrow.table({"a": np.arange(LEAST // 8), "b": np.arange(LEAST // 8) / 2})
    sent = {"numpy": array(LEAST), "pandas": frame, "arrow": table, "buffer": pickle.PickleBuffer(bytearray(LEAST)), "bytes": bytes(LEAST)}
    async with manager(look, supports_streaming=True) as m:
        for name, value in sent.items():
            job = await m.start_job("look", value=value)
            (chunk,) = [chunk async for chunk in job.stream()]
            found, result = await job
            here = [lies_in_segment(part) for came in (chunk, result) for part in parts_of(came)]
            assert {*found, *here} == {name != "bytes"}, (name, found, here)


async def test_no_child_of_either_process_gets_a_segment() -> None:
    """Descriptors close on exec, those that were made and those that came."""

    def look(value: Any) -> "tuple[bool, Any]":
        return all(not os.get_inheritable(fd) for fd in fds_of_segments()), value

    def fds_of_segments() -> "list[int]":
        return [int(fd) for fd in os.listdir("/proc/self/fd") if "memfd:cjm" in _link(fd)]

    def _link(fd: str) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return ""

    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = write_segment([bytes(LEAST)], LEAST)
        assert made is not None and SegmentSocket(ours).send(made)
        came = SegmentSocket(theirs).receive(LEAST)
        assert not os.get_inheritable(made.fd) and not os.get_inheritable(came.fd)
        del made, came
    async with manager(look) as m:
        jobs = [await m.start_job("look", value=array(LEAST)) for _ in range(4)]
        assert fds_of_segments() and not any(map(os.get_inheritable, fds_of_segments()))
        assert [(await job)[0] for job in jobs] == [True] * 4


async def test_a_segment_is_never_used_again() -> None:
    """Each value has memory of its own, also when the one before is gone."""

    def look(value: Any) -> Any:
        return value

    async with manager(look) as m:
        kept = []
        for n in range(5):
            kept.append(await (await m.start_job("look", value=np.full(LEAST, n, np.uint8))))
            m.clear_completed_jobs()
        files = [line.split()[4] for line in open("/proc/self/maps") if "memfd:cjm-worker-protocols" in line]
        assert len(set(files)) == 5 and [int(came[-1]) for came in kept] == list(range(5))


@pytest.mark.parametrize("how", ["absent", "refused"])
async def test_without_shared_memory_values_take_the_socket(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memfd, as on macOS, or where a sandbox refuses it: in this process and in the worker."""

    class Without:
        def load(self, config: Any) -> None:
            import os

            def refuse(*_: Any) -> int:
                raise OSError(38, "Function not implemented")

            if config["how"] == "absent":
                del os.memfd_create
            else:
                os.memfd_create = refuse

        def run(self, value: Any) -> "Iterator[Any]":
            yield value
            return open("/proc/self/maps").read().count("memfd:cjm-worker-protocols"), value

    def refuse(*_: Any) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.delattr(os, "memfd_create") if how == "absent" else monkeypatch.setattr(os, "memfd_create", refuse)
    async with manager(Without, supports_streaming=True) as m:
        await m.reload_plugin("Without", {"how": how})
        job = await m.start_job("Without", value=array(3 * LEAST))
        (chunk,) = [chunk async for chunk in job.stream()]
        mapped, result = await job
        assert mapped == 0 and segments_of() == (0, 0)
        assert np.array_equal(chunk, array(3 * LEAST)) and np.array_equal(result, array(3 * LEAST))


KILLED = """
import asyncio, json
import numpy as np
from harness import manager

def frames(value):
    while True: yield value

async def main():
    async with manager(frames, supports_streaming=True, max_workers=2) as m:
        jobs = [await m.start_job("frames", value=np.ones(20_000_000, np.uint8)) for _ in range(6)]
        streams = [job.stream() for job in jobs[:2]]
        kept = [await stream.__anext__() for stream in streams]
        print(json.dumps([job.worker_pid for job in jobs[:2]]), flush=True)
        for stream in streams:
            async for chunk in stream: kept.append(chunk)

asyncio.run(main())
"""


def names_of_memory(pid: int) -> "set[str]":
    """The files of memory that a process has mapped or open: anonymous ones are deleted from the start."""
    maps = [line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return {name.strip() for name in (*maps, *links) if "/dev/shm" in name or "memfd" in name}


def test_an_app_that_is_killed_leaves_no_shared_memory(tmp_path: Path) -> None:
    """With parameters that wait, chunks on their way and chunks that it keeps: no memory has a name, and all who have it end."""
    with script(tmp_path / "killed.py", KILLED) as process:
        pids = said_json(process, 30)
        assert segments_of(process.pid)[1] and segments_of(pids[0])[0]
        for pid in (process.pid, *pids):
            assert names_of_memory(pid) == {"/memfd:cjm-worker-protocols (deleted)"}
        process.kill()
        assert gone([process.pid, *pids], 10)


async def test_a_job_that_runs_again_gets_its_arrays_again() -> None:
    """A worker that dies takes nothing with it that the next one needs."""

    def dies_once(value: Any, mark: str) -> int:
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), 9)
        return int(value[-1])

    mark = f"/tmp/{os.urandom(8).hex()}"
    try:
        async with manager(dies_once, backoff_base=0.01) as m:
            job = await m.start_job("dies_once", value=array(LEAST), mark=mark, retries=1)
            assert await job == array(LEAST)[-1] and job.attempts == 2
    finally:
        os.unlink(mark)


async def test_another_interpreter_takes_and_gives_segments(tmp_path: Path) -> None:
    """A worker in an environment of its own, without numpy and cloudpickle."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    (tmp_path / "plugs.py").write_text("import sys\ndef swap(value): return sys.prefix, bytes(value)[::-1]\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import plugs

        async with manager(plugs.swap, python=str(tmp_path / "bin/python"), env={"PYTHONPATH": str(tmp_path)}) as m:
            prefix, swapped = await (await m.start_job("swap", value=pickle.PickleBuffer(array(LEAST))))
    finally:
        sys.path.remove(str(tmp_path))
    assert prefix == str(tmp_path) and swapped == bytes(array(LEAST))[::-1]


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", [1000, LARGE, LEAST])
async def test_tensors_arrive_whole(size: int) -> None:
    """CPU tensors of every kind keep their type, their values and their flags; large ones are mapped."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

    def look(value: Any) -> "tuple[int, Any]":
        return open("/proc/self/maps").read().count("memfd:cjm-worker-protocols"), value

    sent = [torch.arange(size // 2, dtype=kind) for kind in (torch.uint8, torch.bfloat16, torch.int64)]
    sent += [
        torch.ones(size // 4, requires_grad=True),
        torch.nn.Parameter(torch.zeros(size // 4)),
        torch.arange(size)[::2],
    ]
    async with manager(look) as m:
        mapped, came = await (await m.start_job("look", value=sent))
    assert mapped == (size == LEAST)
    for one, other in zip(sent, came):
        assert type(one) is type(other) and one.dtype == other.dtype and one.requires_grad == other.requires_grad
        assert torch.equal(one, other)


@pytest.mark.needs_torch
async def test_tensors_of_other_shapes_and_kinds_arrive_whole() -> None:
    """What is more than its memory, as an attribute or another layout, arrives too."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    named, size = torch.arange(LARGE), LARGE // 8
    named.of = "a picture"
    sent = [named, torch.tensor(1.5), torch.zeros(0, 3), torch.ones(2, 3, dtype=torch.float8_e4m3fn), torch.arange(size).reshape(2, -1).T]
    sent += [torch.ones(size, dtype=torch.complex64).conj(), torch.eye(9).to_sparse(), torch.arange(3.0).expand(size, 3)]
    async with manager(echo) as m:
        came = await (await m.start_job("echo", value=sent))
    for one, other in zip(sent, came):
        assert (one.dtype, one.shape, one.layout, vars(one)) == (other.dtype, other.shape, other.layout, vars(other))
        assert torch.equal(one.to_dense(), other.to_dense())


# What is refused


def memory(size: int = LEAST, seals: int = segments.SEALS) -> int:
    """A descriptor of memory with these seals."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL])
def test_memory_that_can_still_change_is_not_mapped(missing: int) -> None:
    """Each seal counts: a sender that truncates the memory would kill the reader."""
    with pytest.raises(UnsealedSegmentError, match="can still change"):
        Segment(memory(seals=segments.SEALS & ~missing), LEAST).map()


def test_memory_of_another_size_or_kind_is_not_mapped(tmp_path: Path) -> None:
    """What the header announces is what has to come, and files and pipes are no memory."""
    with pytest.raises(UnsealedSegmentError, match=f"got {LEAST - 1} bytes"):
        Segment(memory(LEAST - 1), LEAST).map()
    (tmp_path / "file").write_bytes(bytes(LEAST))
    read, write = os.pipe()
    os.close(write)
    for fd in (os.open(tmp_path / "file", os.O_RDONLY), os.open("/dev/null", os.O_RDWR), read):
        with pytest.raises(UnsealedSegmentError):
            Segment(fd, LEAST).map()


def test_an_interpreter_without_ctypes_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written stays here, and nothing is left when the memory goes."""
    monkeypatch.setitem(sys.modules, "ctypes", None)
    segment = write_segment([bytes(LEAST)], LEAST)
    assert segment is not None
    memory = segment.map()
    memory[0] = 1
    assert os.pread(segment.fd, 2, 0) == b"\0\0" and memory[:2] == b"\1\0"
    del memory, segment
    assert segments_of() == (0, 0)


@pytest.mark.parametrize("tamper", ["nothing", "unsealed", "two"])
def test_a_lost_or_strange_descriptor_fails_one_frame_and_spoils_none(tamper: str) -> None:
    """The next segment belongs to the next frame."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, receiver = SegmentSocket(ours), SegmentSocket(theirs)
        fds = {"nothing": [], "unsealed": [memory(seals=0)], "two": [memory(), memory()]}[tamper]
        socket.send_fds(ours, [b"\0"], fds)
        good = write_segment([bytes(LEAST)], LEAST)
        assert good is not None and sender.send(good)
        before = segments_of()
        first = Frame(Kind.RESULT, 1, receiver.receive(LEAST))
        if tamper != "two":
            with pytest.raises((LostSegmentError, UnsealedSegmentError)):
                first.value()
        assert receiver.receive(LEAST).map() == bytes(LEAST)
        for fd in fds:
            os.close(fd)
        assert segments_of() == before


async def test_a_worker_that_sends_unsealed_memory_fails_its_job_alone() -> None:
    """The manager does not map what its worker can still change."""

    def unsealed() -> Any:
        import numpy

        from cjm_worker_protocols.core import segments as of_worker

        of_worker.SEALS = 0
        return numpy.zeros(of_worker.LEAST, numpy.uint8)

    async with manager(unsealed, echo) as m:
        job = await end(await m.start_job("unsealed"))
        assert job.error.category == "serialization" and "sealed shared memory" in job.error.message
        assert await (await m.start_job("echo", value=1)) == 1


# Limits


async def test_a_worker_without_free_descriptors_says_so_and_goes_on() -> None:
    """A parameter that cannot be taken fails its job; a result goes through the socket; nothing hangs."""

    class Hoarder:
        kept: "list[Any]" = []

        def run(self, value: Any = None, hoard: bool = False) -> Any:
            while hoard:
                try:
                    self.kept.append(open("/dev/null"))
                except OSError:
                    break
            import numpy

            return numpy.ones(9 << 20, numpy.uint8)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    async with manager(Hoarder) as m:
        warm = await m.start_job("Hoarder")
        assert (await warm).sum() == 9 << 20
        assert warm.worker_pid is not None
        resource.prlimit(warm.worker_pid, resource.RLIMIT_NOFILE, (100, hard))
        assert (await (await m.start_job("Hoarder", hoard=True))).sum() == 9 << 20
        job = await end(await m.start_job("Hoarder", value=array(LEAST)))
        assert (
            job.error is not None
            and job.error.category == "serialization"
            and "Too many open files" in job.error.message
        )
        assert (await (await m.start_job("Hoarder", value=array(1000)))).sum() == 9 << 20
        assert job.worker_pid == warm.worker_pid


LIMITED = """
import asyncio, json, os, resource, sys
import numpy as np
from harness import manager
from test_arrays import segments_of
from cjm_worker_protocols.core import segments

def echo(value): return value

async def main():
    limit, value = sys.argv[1:]
    segments.LEAST = 1 << 18
    async with manager(echo, max_workers=1) as m:
        await (await m.start_job("echo", value=1))
        resource.setrlimit(getattr(resource, limit), (int(value), resource.getrlimit(getattr(resource, limit))[1]))
        jobs = [await m.start_job("echo", value=np.full(300_000, n % 256, np.uint8)) for n in range(200)]
        held = segments_of()[1]
        sums = [int((await job).astype(int).sum()) for job in jobs]
    print(json.dumps([held, sums == [300_000 * (n % 256) for n in range(200)]]), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("limit, value", [("RLIMIT_NOFILE", 100), ("RLIMIT_FSIZE", 100_000)])
def test_many_jobs_that_wait_with_segments_end_under_every_limit(tmp_path: Path, limit: str, value: int) -> None:
    """200 of them; at most half of the descriptors are taken, and with a limit for files no segment is made."""
    with script(tmp_path / "limited.py", LIMITED, limit, str(value)) as process:
        held, right = said_json(process, 30)
        assert right and {"RLIMIT_NOFILE": 0 < held <= 50, "RLIMIT_FSIZE": held == 0}[limit], held
        assert finish(process)[0] == 0


async def test_a_worker_with_a_limit_for_files_uses_the_socket() -> None:
    """Also one that has made SIGXFSZ deadly."""

    def limited() -> Any:
        import resource
        import signal

        import numpy

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, -1))
        return numpy.ones(9 << 20, numpy.uint8)

    async with manager(limited) as m:
        assert (await (await m.start_job("limited"))).sum() == 9 << 20
        assert segments_of() == (0, 0)


async def test_a_result_that_cannot_be_mapped_fails_its_job_alone() -> None:
    """For want of address space in this process."""

    def large(size: int) -> bytes:
        return bytes(size)

    async with manager(large) as m:
        await (await m.start_job("large", size=1))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 100_000_000, hard))
        try:
            job = await end(await m.start_job("large", size=400_000_000))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert job.error.category == "serialization" and "MemoryError" in job.error.message
        assert await (await m.start_job("large", size=1)) == b"\0"


TOO_MANY = """
import asyncio, json, os, resource, socket
from cjm_worker_protocols.core.frames import FrameReader, Kind, outgoing
from cjm_worker_protocols.core.segments import SegmentSocket
from cjm_worker_protocols.engines.connection import FrameSender

async def main():
    if os.getuid() == 0: os.setuid(65534) # the limit is not root's
    frame = outgoing(Kind.RUN, 7, [bytes(9 << 20)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
    full, reader_of_full = socket.socketpair()
    full.setblocking(False)
    sent = 0
    try:
        while True:
            socket.send_fds(full, [b"x"], [0] * 10)
            sent += 10
    except OSError as e: why = e.errno
    ours, theirs = socket.socketpair()
    near, far = socket.socketpair()
    for s in (ours, theirs): s.setblocking(False)
    sender = FrameSender(asyncio.get_running_loop(), ours, SegmentSocket(near))
    sender.send(frame, 7)
    reader, frames = FrameReader(take_segment=SegmentSocket(far).receive), []
    while not frames:
        await asyncio.sleep(0)
        try: frames = reader.received(theirs.recv_into(reader.space()))
        except BlockingIOError: pass
    print(json.dumps([why, type(frames[0].body).__name__, frames[0].value() == [bytes(9 << 20)]]), flush=True)

asyncio.run(main())
"""


def test_with_too_many_descriptors_on_their_way_the_bytes_cross_the_socket(tmp_path: Path) -> None:
    """The kernel limits them for each user (ETOOMANYREFS)."""
    import errno

    with script(tmp_path / "too_many.py", TOO_MANY) as process:
        assert said_json(process, 30) == [errno.ETOOMANYREFS, "bytearray", True]


CGROUP = Path("/sys/fs/cgroup/memory") if Path("/sys/fs/cgroup/memory").is_dir() else Path("/sys/fs/cgroup")

IN_CGROUP = """
import asyncio, json, os, sys
import numpy as np
from harness import manager

def echo(value):
    value[::4096] = 1
    return value

async def main():
    with open(sys.argv[1], "w") as procs: procs.write(str(os.getpid()))
    value = np.zeros(30_000_000, np.uint8)
    async with manager(echo) as m:
        for _ in range(30):
            assert (await (await m.start_job("echo", value=value)))[0] == 1
            m.clear_completed_jobs()
    print(json.dumps("done"), flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.needs_cgroup
def test_segments_do_not_add_up_under_a_memory_limit(tmp_path: Path) -> None:
    """30 jobs of 30 MB each way in a group that may have 400 MB, this process and its worker included."""
    group = CGROUP / f"cjm-workers-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"no memory cgroup can be made here: {e}")
    try:
        limit = group / ("memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes")
        if not limit.exists():
            pytest.skip("cgroups have no memory controller here")
        limit.write_text(str(400 << 20))
        with script(tmp_path / "in_cgroup.py", IN_CGROUP, str(group / "cgroup.procs")) as process:
            assert said_json(process, 60) == "done"
            assert finish(process)[0] == 0
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


# In the middle


async def test_a_stream_runs_at_most_two_segments_ahead(tmp_path: Path) -> None:
    """What is on its way belongs to neither process, so the plugin waits while the app's loop is blocked."""

    def frames(path: str) -> "Iterator[Any]":
        import numpy

        for n in range(20):
            yield numpy.full(9 << 20, n, numpy.uint8)
            with open(path, "a") as log:
                log.write("x")

    log = tmp_path / "log"
    async with manager(frames, supports_streaming=True, stream_buffer_bytes=1 << 30) as m:
        job = await m.start_job("frames", path=str(log))
        await first_chunk(job)
        before = log.stat().st_size if log.exists() else 0
        time.sleep(0.5)  # blocks the loop
        assert log.stat().st_size - before <= 4  # two on their way, what came meanwhile, and one that was being written
        assert [int(chunk[-1]) for chunk in await collect(job)] == list(range(20))


async def collect(job: Any) -> "list[Any]":
    """All chunks of a job."""
    return [chunk async for chunk in job.stream()]


@pytest.mark.parametrize("ends", ["cancelled", "failed"])
async def test_an_end_in_the_middle_of_a_stream_leaves_nothing(ends: str) -> None:
    """A cancel or a SIGKILL, while the plugin waits for the app or writes; the next job runs, and no memory is left anywhere."""

    def endless() -> "Iterator[Any]":
        import numpy

        while True:
            yield numpy.zeros(9 << 20, numpy.uint8)

    async with manager(endless, echo, supports_streaming=True, stream_buffer=4) as m:
        for wait in (0.0, 0.05, 0.3):
            job = await m.start_job("endless")
            stream = job.stream()
            await stream.__anext__()
            await asyncio.sleep(wait)
            if ends == "cancelled":
                await m.cancel_job(job.id)
            else:
                assert job.worker_pid is not None
                os.kill(job.worker_pid, 9)
            assert (await end(job)).status == ends
            assert await (await m.start_job("echo", value=wait)) == wait
            await stream.aclose()
            m.clear_completed_jobs()
            del job, stream
            assert segments_of() == (0, 0)


async def test_prefetched_and_revoked_jobs_get_their_own_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 jobs every third is cancelled, and late ones pass early ones; each of the others gets its own array back."""
    monkeypatch.setattr(segments, "LEAST", 1 << 17)
    async with manager(echo, max_workers=2) as m:
        jobs = [await m.start_job("echo", value=np.full(200_000, n, np.uint8), priority=n % 4) for n in range(200)]
        await jobs[3]
        for n in range(0, 200, 3):
            if not jobs[n].done:
                await m.cancel_job(jobs[n].id)
        for n, job in enumerate(jobs):
            await end(job)
            assert job.status == "cancelled" or (job.result == n).all() and job.result.nbytes == 200_000
        pids = {job.worker_pid for job in jobs if job.worker_pid}
        m.clear_completed_jobs()
        jobs.clear()
        del job
        assert segments_of()[1] == 0
        for pid in filter(psutil.pid_exists, pids):
            await until(lambda: segments_of(pid) == (0, 0))


@pytest.mark.slow
@pytest.mark.limit(300)
async def test_memory_stays_flat_over_ten_thousand_large_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and results in segments: neither process keeps memory, mappings or descriptors."""

    class Small:
        def load(self, config: Any) -> None:
            from cjm_worker_protocols.core import segments as of_worker

            of_worker.LEAST = 1 << 18

        def run(self, value: Any) -> Any:
            return value

    monkeypatch.setattr(segments, "LEAST", 1 << 18)
    value, sizes = array(300_000), []
    async with manager(Small) as m:
        for n in range(10_000):
            job = await m.start_job("Small", value=value)
            assert (await job).nbytes == 300_000
            if n % 100 == 0:
                m.clear_completed_jobs()
            if n in (1000, 9999):
                here, there = psutil.Process(), psutil.Process(job.worker_pid)
                m.clear_completed_jobs()
                sizes.append([p.memory_full_info().uss for p in (here, there)] + [here.num_fds(), there.num_fds()])
    assert all(last <= first + 4_000_000 for first, last in zip(*[size[:2] for size in sizes])), sizes
    assert sizes[0][2:] == sizes[1][2:], sizes


async def test_errors_of_segments_travel() -> None:
    """They pickle as other facts do."""
    for error in (LostSegmentError(5, "no room"), UnsealedSegmentError(5, "4 bytes")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
    with pytest.raises(JobError):
        raise JobError("serialization", str(error))
