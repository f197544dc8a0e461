"""A real language model really answers, by the plugin alone and in worker processes."""

import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from repo import python, said

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.worker.describe import describe
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
from cjm_worker_protocols.plugins.extras import ExtraNotInstalledError, ParameterError
from cjm_worker_protocols.plugins.text import (
    BATCH,
    LLM,
    LlamaCpp,
    ModelFileError,
    PromptTooLongError,
    model_file,
    small_model,
)
from cjm_worker_protocols.worker import context
from cjm_worker_protocols.worker.context import CancelRequested
from cjm_worker_protocols.worker.plugins import drive

TARGET = "cjm_worker_protocols.plugins.text:LlamaCpp"
SKY = {"prompt": "What color is the sky?", "temperature": 0}
MESSAGES = [{"role": "system", "content": "Hi."}, {"role": "user", "content": "Tell me a story."}]
STORY = {"messages": MESSAGES, "temperature": 1.5, "max_tokens": 4}


@pytest.fixture(scope="module")
def llm() -> Iterator[LlamaCpp]:
    """The plugin, loaded."""
    models.need(LLM)
    plugin = LlamaCpp()
    plugin.load({"context": 512, "threads": 1})
    yield plugin
    plugin.unload()


@pytest.fixture(scope="module")
def sky(llm: LlamaCpp) -> "dict[str, Any]":
    """The answer to `SKY`, and its pieces."""
    result, pieces = ask(llm, **SKY)
    return {"result": result, "pieces": pieces}


def ask(plugin: LlamaCpp, **parameters: Any) -> "tuple[dict[str, Any], list[str]]":
    """The result, and all that was yielded on the way."""
    pieces: "list[str]" = []
    return drive(plugin.run(**{"max_tokens": 8, **parameters}), pieces.append), pieces


class Job:
    """Takes what a plugin reports, and cancels it at a time."""

    def __init__(self, checks: int = sys.maxsize) -> None:
        self.seen: "list[tuple[float, str]]" = []
        self.checks = checks

    def progress(self, fraction: float, message: str) -> None:
        """Keep it."""
        self.seen.append((fraction, message))

    def check(self) -> None:
        """It is cancelled after so many questions."""
        self.checks -= 1
        if self.checks < 0:
            raise CancelRequested()

    def end(self) -> None:
        """It has ended."""

    def run(self, plugin: LlamaCpp, **parameters: Any) -> "tuple[dict[str, Any], list[str]]":
        """Ask as this job."""
        context.enter(self)
        try:
            return ask(plugin, **parameters)
        finally:
            context.leave()


# Answers


def test_the_pieces_are_the_answer(sky: "dict[str, Any]") -> None:
    """It streams more than one piece; the result has the whole text and the numbers."""
    result, pieces = sky["result"], sky["pieces"]
    assert "".join(pieces) == result["text"] and result["text"].lower().startswith("the sky is") and len(pieces) > 5
    assert (result["stopped"], result["tokens"]) == ("max_tokens", 8)
    assert 20 < result["prompt_tokens"] < 60 and result["tokens_per_second"] > 0


def test_a_prompt_is_the_users_message(llm: LlamaCpp, sky: "dict[str, Any]") -> None:
    """`prompt` is short for a conversation of one message; a system message makes another one of it."""
    conversation = [{"role": "user", "content": SKY["prompt"]}]
    same, _ = ask(llm, messages=conversation, temperature=0, max_tokens=3)
    assert sky["result"]["text"].startswith(same["text"]) and same["prompt_tokens"] == sky["result"]["prompt_tokens"]
    other, _ = ask(llm, messages=[{"role": "system", "content": "Hi."}, *conversation], max_tokens=1)
    assert other["prompt_tokens"] < same["prompt_tokens"]


def test_a_seed_decides(llm: LlamaCpp) -> None:
    """The same seed gives the same answer, whatever was asked in between, and another one another."""
    one, other, again = (ask(llm, **STORY, seed=seed)[0] for seed in (1, 2, 1))
    assert one["text"] == again["text"] != other["text"] and one["seed"] == again["seed"] == 1


@pytest.mark.slow
def test_the_seed_that_was_taken_is_known(llm: LlamaCpp) -> None:
    """Without one, it is random, and a part of the result."""
    one, other = (ask(llm, **STORY)[0] for _ in range(2))
    assert one["seed"] != other["seed"] and ask(llm, **STORY, seed=one["seed"])[0]["text"] == one["text"]


def test_it_ends_before_a_text_in_stop(llm: LlamaCpp, sky: "dict[str, Any]") -> None:
    """The text is not a part of the answer, nor of a piece, also when it spans tokens."""
    fourth, fifth = sky["result"]["text"].split()[3:5]
    result, pieces = ask(llm, **SKY, stop=["never said", f"{fourth[-3:]} {fifth[:2]}"])
    assert (
        result["stopped"] == "stop"
        and result["text"] == "".join(pieces) == sky["result"]["text"].partition(f"{fourth[-3:]} {fifth}")[0]
    )


@pytest.mark.slow
def test_it_ends_when_the_model_is_done(llm: LlamaCpp) -> None:
    """Which is called `stop` too, as in OpenAI's API."""
    done, _ = ask(llm, prompt="Say hello.", temperature=0, max_tokens=60)
    assert done["stopped"] == "stop" and done["tokens"] < 60


@pytest.mark.slow
def test_the_context_may_be_full_before() -> None:
    """Then that is the reason."""
    models.need(LLM)
    plugin = LlamaCpp()
    plugin.load({"context": 64, "threads": 1})
    result, _ = ask(plugin, prompt="Tell me a long story about the sea.", temperature=0, max_tokens=10_000)
    plugin.unload()
    assert (
        result["stopped"] == "context" and result["tokens"] + result["prompt_tokens"] <= 257
    )  # llama.cpp rounds a context up


@pytest.mark.slow
def test_a_letter_is_never_cut(llm: LlamaCpp) -> None:
    """A letter of several bytes may be several tokens; a piece has whole ones."""
    result, pieces = ask(llm, prompt="Repeat after me: 🦊🐻 日本語", temperature=0, max_tokens=24)
    assert "".join(pieces) == result["text"] and "\ufffd" not in result["text"]


def test_progress_is_that_of_the_tokens(llm: LlamaCpp) -> None:
    """First the prompt, batch by batch, then the answer; it ends with 1."""
    job = Job()
    job.run(llm, prompt="sea " * (BATCH // 2), max_tokens=2, temperature=0)
    fractions = [fraction for fraction, _ in job.seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert sum("prompt" in message for _, message in job.seen) >= 2


def test_it_stops_between_two_tokens(llm: LlamaCpp) -> None:
    """A run that is cancelled, or given up, ends at once; the next one is not disturbed. No thread is left."""
    for checks in (0, 9):
        with pytest.raises(CancelRequested):
            Job(checks).run(llm, prompt="Tell me a long story.", max_tokens=400)
    given_up = llm.run("Tell me a long story.", max_tokens=400)
    next(given_up)
    given_up.close()
    assert ask(llm, **SKY, max_tokens=3)[0]["text"].lower().startswith("the sky is")
    assert not [thread for thread in threading.enumerate() if thread.name == "llm"]


# Files that are no models


def gguf(values: "dict[str, Any]", tensors: "dict[str, tuple[int, int]]", version: int = 3) -> bytes:
    """A header with values and tensors: elements and offset of each."""
    made = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        made += struct.pack("<Q", len(key)) + key.encode()
        if isinstance(value, int):
            made += struct.pack("<II", 4, value)
        elif isinstance(value, str):
            made += struct.pack("<IQ", 8, len(value)) + value.encode()
        else:
            made += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(
                struct.pack("<Q", len(one)) + one.encode() for one in value
            )
    for name, (elements, offset) in tensors.items():
        made += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, elements, 0, offset)
    return made


HEADER = gguf(
    {"general.architecture": "llama", "llama.context_length": 2048, "tokenizer.ggml.tokens": ["a", "bc"]},
    {"a": (4, 0), "b": (4, 32)},
)


def test_a_header_is_read(tmp_path: Path) -> None:
    """The context that a model was made for, and the bytes that its file must have."""
    path = tmp_path / "a.gguf"
    path.write_bytes(HEADER + bytes(64))
    found = model_file(str(path))
    assert (found.size, found.context, found.least) == (len(HEADER) + 64, 2048, len(HEADER) + 32)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    """The error has the file and what is wrong with it; in a part of a model, the number of bytes."""
    cases = {
        "empty": (b"", "an empty file"),
        "text": (b"once upon a time", "begins with b'once'"),
        "one byte": (b"G", "begins with b'G'"),
        "old": (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "version 1"),
        "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "version 50,331,648"),
        "no context": (
            gguf({"general.architecture": "a", "a.context_length": 0}, {"a": (4, 0)}) + bytes(64),
            "context has no tokens",
        ),
        "no tensors": (gguf({"a": 1}, {}), "without any tensor"),
        "odd kind": (HEADER[:24] + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77), "unknown kind 77"),
        "long text": (HEADER[:24] + struct.pack("<Q", 1 << 62), "header that goes on after its 32 bytes"),
        "half a header": (HEADER[:100], "header that goes on after its 100 bytes"),
        "no data": (HEADER, f"{len(HEADER):,} bytes of at least {len(HEADER) + 32:,}"),
        "half the data": (HEADER + bytes(32), f"{len(HEADER) + 32:,} bytes of at least {len(HEADER) + 32:,}"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelFileError) as caught:
            model_file(str(path))
        assert reason in caught.value.got and repr(str(path)) in str(caught.value), name
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "missing", "no such file"),
        (tmp_path, "a directory"),
        (tmp_path / "pipe", "a pipe"),
    ):
        with pytest.raises(ModelFileError, match=reason):
            model_file(str(path))


def test_no_header_breaks_the_reader(tmp_path: Path) -> None:
    """Random changes are errors about the file, or harmless; none takes long, or memory."""
    path, dice = tmp_path / "a.gguf", random.Random(7)
    for _ in range(500):
        data = bytearray(HEADER + bytes(64))
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(4, len(HEADER))] = dice.choice((0, 1, 8, 9, 127, 255, dice.randrange(256)))
        path.write_bytes(data[: dice.randint(1, len(data))])
        try:
            model_file(str(path))
        except ModelFileError:
            pass


def test_what_llama_cpp_refuses_is_named(tmp_path: Path) -> None:
    """A header alone makes no model. Nothing is left behind, and the next model can be loaded."""
    models.need(LLM)
    path = tmp_path / "a.gguf"
    path.write_bytes(HEADER + bytes(64))
    files = len(os.listdir("/dev/fd"))
    for _ in range(2):
        with pytest.raises(ModelFileError, match=rf"{len(HEADER) + 64:,} bytes that llama.cpp refuses"):
            LlamaCpp().load({"model": str(path)})
    assert len(os.listdir("/dev/fd")) <= files + 1  # llama.cpp's own log


def test_a_model_that_is_larger_than_memory_is_refused(tmp_path: Path) -> None:
    """Before anything is loaded; the error has both numbers."""
    models.need(LLM)
    path, size = tmp_path / "large.gguf", 1 << 42
    path.write_bytes(HEADER)
    os.truncate(path, size)  # sparse
    with pytest.raises(ModelFileError, match=f"{size:,} bytes, for "):
        LlamaCpp().load({"model": path})


def test_without_a_model_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None is set, and the small one is not there."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install -e '.[llm]'")
    monkeypatch.setenv("CJM_WORKERS_GGUF", str(tmp_path / "small.gguf"))
    with pytest.raises(ModelFileError, match="set 'model' in the plugin's config"):
        LlamaCpp().load({})


@pytest.mark.parametrize("cut", [50, 99])
def test_a_part_of_the_model_is_refused(cut: int, tmp_path: Path) -> None:
    """Some per cent of a download."""
    models.need(LLM)
    data = Path(small_model()).read_bytes()
    path = tmp_path / "part.gguf"
    path.write_bytes(data[: len(data) * cut // 100])
    with pytest.raises(ModelFileError, match=f"{path.stat().st_size:,} bytes"):
        LlamaCpp().load({"model": str(path)})


# Settings and parameters


@pytest.mark.parametrize(
    "config",
    [
        {"context": 1},
        {"context": "many"},
        {"context": 1 << 40},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": True},
        {"threads": 1 << 40},
    ]
    + [{"gpu_layers": -2}, {"gpu_layers": 1 << 31}, {"model": 0}, {"model": ["a.gguf"]}, {"model": "\udce9.gguf"}],
)
def test_a_wrong_setting_is_named(config: "dict[str, Any]") -> None:
    """The error says what it may be."""
    models.need(LLM)
    with pytest.raises(ParameterError) as caught:
        LlamaCpp().load(config)
    assert [caught.value.name] == list(config)


WRONG = {
    "prompt": [5, ["hi"], b"hi", "\ud800"],
    "max_tokens": [0, -1, 1.5, "many", True, 2**31],
    "temperature": [-1, float("nan"), float("inf"), 10**400, "hot"],
    "top_p": [-0.1, 1.1, None],
    "stop": [5, [""], "", [1], "\ud800"],
    "seed": [-1, 2**32 - 1, "lucky"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_parameter_is_named(name: str, llm: LlamaCpp) -> None:
    """Where the server would take it for a default, too; a text is never shown."""
    for value in WRONG[name]:
        with pytest.raises(ParameterError) as caught:
            ask(llm, **{"prompt": "hi", name: value})
        assert caught.value.name == name, value
        assert not isinstance(value, (str, list)) or not value or repr(value) not in str(caught.value)


@pytest.mark.parametrize(
    "messages", [[], "hi", {"role": "user"}, ["hi"], [{"role": "user"}], [{"role": 5, "content": "hi"}], 5]
)
def test_wrong_messages_are_refused(messages: Any, llm: LlamaCpp) -> None:
    """Anything but dicts with two texts."""
    with pytest.raises(ParameterError, match="message"):
        ask(llm, messages=messages)


def test_either_a_prompt_or_messages(llm: LlamaCpp) -> None:
    """Neither both nor none."""
    for given in ({}, {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}):
        with pytest.raises(ParameterError, match="either prompt or messages"):
            ask(llm, **given)


def test_a_prompt_that_is_too_long_is_refused(llm: LlamaCpp) -> None:
    """The error has the file, the tokens and the context; the model goes on."""
    with pytest.raises(PromptTooLongError) as caught:
        ask(llm, prompt="sea " * 1000)
    assert caught.value.context == 512 < 1000 < caught.value.tokens and caught.value.path == small_model()
    assert ask(llm, **SKY, max_tokens=1)[0]["stopped"] == "max_tokens"


# In its process


def test_nothing_listens_on_a_port(tmp_path: Path) -> None:
    """The server of llama.cpp is bound to a socket that has no name any more."""
    models.need(LLM)
    code = (
        "import os, sys\n"
        "from cjm_worker_protocols.plugins.text import LlamaCpp\n"
        "plugin = LlamaCpp()\n"
        "plugin.load({'threads': 1})\n"
        "mine = {os.readlink(f'/dev/fd/{fd}') for fd in os.listdir('/dev/fd') if os.path.islink(f'/dev/fd/{fd}')}\n"
        "rows = [row.split() for kind in ('tcp', 'tcp6') for row in open(f'/proc/self/net/{kind}').readlines()[1:]]\n"
        "print([row[1] for row in rows if f'socket:[{row[9]}]' in mine])\n"
        "print([row.split()[7:] for row in open('/proc/self/net/unix').readlines()[1:] if f'socket:[{row.split()[6]}]' in mine])\n"
        "print(os.listdir(sys.argv[1]))\n"
        "plugin.unload()"
    )
    done = python(code, str(tmp_path), cwd=tmp_path, TMPDIR=str(tmp_path))
    tcp, unix, left = done.stdout.splitlines()
    assert (tcp, left) == ("[]", "[]") and "unused.sock" in unix, said(done)


AGAIN = """
import json
from pathlib import Path
from cjm_worker_protocols.plugins.text import LlamaCpp
plugin, seen = LlamaCpp(), []
for _ in range(4):
    plugin.load({"context": 256, "threads": 1})
    plugin.unload()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    seen.append((int(status["Threads"]), int(status["RssAnon"].split()[0]) * 1024))
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_it_can_be_loaded_again_and_again() -> None:
    """Unloading ends its threads and frees its memory."""
    models.need(LLM)
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], capture_output=True, text=True, timeout=90, check=False
    )  # no other test's memory
    assert done.returncode == 0, said(done)
    seen = json.loads(done.stdout)
    assert seen[-1][0] <= seen[1][0] and seen[-1][1] - seen[1][1] < 20_000_000


@pytest.mark.limit(120)
async def test_in_a_worker() -> None:
    """It streams, answers as it does outside, and stops when cancelled; an error does not end the process."""
    models.need(LLM)
    outside = LlamaCpp()
    outside.load({"context": 512, "threads": 1})
    expected, _ = ask(outside, **STORY, seed=5)
    outside.unload()
    registry = EntryPointRegistry({"llm": TARGET}, {"llm": {"context": 512, "threads": 1}})
    async with JobManager("text", "text", plugins=registry.targets(), plugin_registry=registry) as manager:
        job = await manager.start_job("llm", params={**STORY, "seed": 5})
        pieces = [piece async for piece in job.stream()]
        assert {**await job, "tokens_per_second": 0} == {**expected, "tokens_per_second": 0} and "".join(
            pieces
        ) == expected["text"]
        failed = await (await manager.start_job("llm", prompt="sea " * 1000)).wait()
        assert failed.error and failed.error.category == "exception" and small_model() in failed.error.message
        long = await manager.start_job("llm", prompt="Tell me a long story.", max_tokens=400)
        await long.stream().__anext__()
        assert await manager.cancel_job(long.id) and long.status == "cancelled"
        after = await manager.start_job("llm", **SKY, max_tokens=3)
        assert (await after)["stopped"] == "max_tokens"
        assert {job.worker_pid, failed.worker_pid, long.worker_pid} == {after.worker_pid}


async def test_a_missing_model_fails_the_job(tmp_path: Path) -> None:
    """While loading, with the name of the file."""
    models.need(LLM)
    registry = EntryPointRegistry({"llm": TARGET}, {"llm": {"model": str(tmp_path / "gone.gguf")}})
    async with JobManager("text", "text", plugins=registry.targets(), plugin_registry=registry) as manager:
        failed = await (await manager.start_job("llm", prompt="hi")).wait()
    assert failed.error and failed.error.category == "load" and str(tmp_path / "gone.gguf") in failed.error.message


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_its_threads_along() -> None:
    """SIGKILL in the middle of an answer fails the job; the next one gets another worker."""
    models.need(LLM)

    async def session() -> None:
        registry = EntryPointRegistry({"llm": TARGET}, {"llm": {"threads": 1}})
        async with JobManager("text", "text", plugins=registry.targets(), plugin_registry=registry) as manager:
            job = await manager.start_job("llm", prompt="Tell me a long story.", max_tokens=400)
            await job.stream().__anext__()
            assert job.worker_pid
            os.kill(job.worker_pid, 9)
            assert (await job.wait()).error and job.error and job.error.category == "crash"
            assert (await (await manager.start_job("llm", **SKY, max_tokens=3)))["tokens"] == 3

    asyncio.run(session())


def test_what_is_missing_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cjm-workers plugins` shows it, with the line for pip."""
    monkeypatch.setattr("cjm_worker_protocols.plugins.extras.find_spec", lambda name: None)
    assert describe(TARGET)["problem"] == "needs xllamacpp: run pip install 'cjm-worker-protocols[llm]'"


def test_importing_it_imports_no_model(tmp_path: Path) -> None:
    """The module costs nothing until a model is loaded."""
    code = "import sys, cjm_worker_protocols.plugins.text as t; print({*t.LLM.packages, 'numpy', 'asyncio'} & {*sys.modules})"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "set()", said(done)


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading names the package that is missing, and the extra."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ExtraNotInstalledError, match=r"pip install 'cjm-worker-protocols\[llm\]'") as caught:
        LlamaCpp().load({})
    assert caught.value.package == "xllamacpp"


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path) -> None:
    """`cjm-workers run llm` streams the words, and gives the result."""
    models.need(LLM)
    command = (
        "run",
        TARGET,
        "prompt=What color is the sky?",
        "max_tokens=4",
        "temperature=0",
        '--config={"threads": 1}',
    )
    done = subprocess.run(
        [sys.executable, "-m", "cjm_worker_protocols", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.count('{"event": "job:chunk"') == 4, done.stderr
