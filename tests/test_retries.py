"""Which jobs are tried again and when, how long a job may wait, and what is said of jobs that fail. Real processes throughout."""

import asyncio
import functools
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Gate, Seen, end, gate, manager, until  # noqa: F401

from cjm_worker_protocols import Job, JobError, check_cancel
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.core.jobs import JobExpired, request_cancel


def at_last(marker: str, how: str, fails: int = 1) -> int:
    """Fail so often, in one of the ways that can be retried; say in which attempt it went well."""
    attempt = os.path.getsize(marker) + 1 if os.path.exists(marker) else 1
    with open(marker, "a") as file:
        file.write("x")
    if attempt > fails:
        return attempt
    if how == "exception":
        raise ConnectionError("not yet")
    if how == "crash":
        os._exit(3)
    while True:
        time.sleep(0.01)
        if how == "cooperative timeout":
            check_cancel()


SLOW = pytest.mark.slow
WAYS = ("exception", "crash", pytest.param("timeout", marks=SLOW), pytest.param("cooperative timeout", marks=SLOW))


@pytest.mark.parametrize("how", WAYS)
async def test_what_retry_on_names_is_tried_again(how: str, tmp_path: Path) -> None:
    """In the same worker if it lives, and with one end; a stale cancel of the first attempt does not stop the second."""
    async with manager(at_last, grace_timeout=0.5) as m:
        seen = Seen(m)
        job = await m.start_job("at_last", marker=str(tmp_path / "m"), how=how, fails=2, retries=3, timeout=1, retry_on=(how.split()[-1],))
        assert await job == 3 == job.attempts
        assert m.totals == {"completed": 1}
    queued = [e.data.get("attempt") for e in await seen.rest() if e.type == "job:queued"]
    assert queued == [None, 2, 3]
    assert len([e for e in seen if e.type == "worker:exited"]) == (1 if how in ("exception", "cooperative timeout") else 3)


async def test_a_job_that_is_cancelled_while_its_time_is_up_is_not_tried_again() -> None:
    """Its worker is being ended for the timeout; the cancel comes before that has succeeded."""
    async with manager("deaf", grace_timeout=1.0) as m:
        job = await m.start_job("deaf", timeout=0.2, retries=5, retry_on=("timeout",))
        await until(lambda: m.workers and m.workers[0].status == "stopping")
        assert await m.cancel_job(job.id) and job.attempts == 1
        assert m.totals == {"cancelled": 1}


async def test_a_log_handler_may_cancel_the_job_that_is_tried_again() -> None:
    """It is called when the job waits again, and not just before."""
    log = logging.getLogger("cjm_worker_protocols")

    class Cancels(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "tried again" in record.getMessage():
                request_cancel(job)

    handler, level = Cancels(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        async with manager("fail") as m:
            job = await m.start_job("fail", retries=1, retry_on=("exception",), retry_delay=0.01)
            await end(job)
            assert (job.status, m.totals) == ("cancelled", {"cancelled": 1})
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@pytest.mark.parametrize("how", WAYS)
async def test_what_retry_on_does_not_name_fails_at_once(how: str, tmp_path: Path) -> None:
    """Each category is on its own, and keeps its name."""
    category = how.split()[-1]
    others = tuple({"exception", "crash", "timeout"} - {category})
    async with manager(at_last, grace_timeout=0.5) as m:
        job = await end(await m.start_job("at_last", marker=str(tmp_path / "m"), how=how, retries=3, timeout=0.5, retry_on=others))
    assert job.error is not None and job.error.category == category and job.attempts == 1


async def test_retries_end(tmp_path: Path) -> None:
    """After the last attempt the job fails with the last error."""
    async with manager(at_last) as m:
        job = await m.start_job("at_last", marker=str(tmp_path / "m"), how="exception", fails=9, retries=2, retry_on=["exception"])
        await end(job)
        assert job.error is not None and job.error.category == "exception" and job.attempts == 3 and job.retry_on == ("exception",)


async def test_the_next_attempt_waits_for_its_time(tmp_path: Path) -> None:
    """Others run meanwhile; the job says what it waits for, counts as one that waits, and can be cancelled."""
    async with manager(at_last, "echo", max_pending=1) as m:
        options = {"how": "exception", "retries": 1, "retry_on": ("exception",), "retry_delay": 0.4}
        job = await m.start_job("at_last", marker=str(tmp_path / "a"), **options)
        seen = Seen(m)
        began = time.monotonic()
        await seen.until("job:queued", attempt=2)
        assert job.status == "pending" and "next attempt" in job.waiting_for
        with pytest.raises(errors.QueueFullError):
            await m.start_job("echo")
        assert await job == 2 and time.monotonic() - began >= 0.3 and not job.waiting_for
        late = await m.start_job("at_last", marker=str(tmp_path / "b"), **{**options, "retry_delay": 60})
        await seen.until("job:queued", attempt=2, job_id=late.id)
        assert await m.cancel_job(late.id) and late.attempts == 1
        left = await m.start_job("at_last", marker=str(tmp_path / "c"), **{**options, "retry_delay": 60})
        await seen.until("job:queued", attempt=2, job_id=left.id)
    assert left.status == "cancelled"


async def test_a_job_that_waits_too_long_expires(gate: Gate) -> None:  # noqa: F811
    """Whether it is in line or was sent ahead; one that runs does not. The error is data, as every other."""
    async with manager("wait_at", "echo") as m:
        seen = Seen(m)
        await (await m.start_job("echo"))
        running = await m.start_job("wait_at", gate=gate.path, expires=0.2)
        await seen.until("job:progress")
        waiting = [await m.start_job("wait_at", gate=gate.path, expires=0.2) for _ in range(3)]
        patient = await m.start_job("wait_at", gate=gate.path, expires=60)
        for job in waiting:
            await end(job)
            assert job.status == "failed" and job.attempts == 0 and isinstance(job.error, JobExpired)
        copy = pickle.loads(pickle.dumps(waiting[0])).error
        assert (copy.category, copy.expires) == ("expired", 0.2) and str(copy) == str(waiting[0].error)
        with pytest.raises(JobExpired):
            await waiting[0]
        assert running.status == "running"
        gate.open(2)
        await asyncio.gather(running, patient)
        assert m.totals == {"completed": 3, "failed": 3}
    assert {e.data["error"]["category"] for e in await seen.rest() if e.type == "job:failed"} == {"expired"}


async def test_a_busy_app_lets_no_job_expire() -> None:
    """A worker was free in time, and only the app's loop did not see it."""
    async with manager("pause", "echo", max_workers=1) as m:
        await (await m.start_job("pause", seconds=0))
        first = await m.start_job("pause", seconds=0.2)
        second = await m.start_job("echo", x=1, expires=2.0)
        await until(lambda: first.status == "running")
        time.sleep(2.3)  # longer than the second may wait
        assert await second == 1 and first.status == "completed"


@pytest.mark.parametrize(
    "options",
    [{"retry_on": "crash"}, {"retry_on": ("cancelled",)}, {"retry_on": None}, {"retry_delay": -1}, {"expires": 0}, {"expires": "1"}],
    ids=str,
)
async def test_options_that_cannot_be(options: "dict[str, Any]") -> None:
    """They are refused by name, and no job exists."""
    async with manager("echo") as m:
        with pytest.raises(errors.ConfigError, match=next(iter(options))):
            await m.start_job("echo", **options)
        assert not m.jobs


# What is said of ends


async def test_a_job_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Once, with what is needed to find it, also when it is not awaited; a job that is completed or cancelled is not."""
    async with manager("fail", "echo", "stuck_quietly") as m:
        failed = await m.start_job("fail", message="first line\nsecond line")
        good, stuck = await m.start_job("echo"), await m.start_job("stuck_quietly")
        await asyncio.gather(end(failed), end(good))
        await m.cancel_job(stuck.id)
    (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING and "failed" in r.getMessage())
    said = record.getMessage()
    assert record.levelname == "WARNING" and failed.id in said and "(fail)" in said and "exception: ValueError: first line" in said
    assert "\n" not in said


async def _many(m: Any, read: str) -> None:
    jobs = [await m.start_job("echo", x=n) for n in range(6)]
    if read == "awaited":
        await asyncio.gather(*jobs)
    while not all(job.done for job in jobs):
        for job in jobs if read == "asked for" else ():
            m.get_job(job.id)
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("read", ["not at all", "awaited", "as events"])
async def test_the_first_end_that_is_lost_is_logged(read: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once, unless the app has read it; the totals have all of them."""
    async with manager("echo", keep_finished=2) as m:
        listener = m.events() if read == "as events" else None
        await _many(m, read)
        await _many(m, read)
        assert m.totals == {"completed": 12} and len(m.get_all_jobs()) == 2
        m.clear_completed_jobs()
        assert m.totals == {"completed": 12}
    assert sum("keep_finished" in r.getMessage() for r in caplog.records) == (read == "not at all")
    assert listener is None or listener.closed


# Parameters


def takes(audio: str, language: str = "en", *, rate: int = 1) -> str:
    """A plugin with a signature."""
    return f"{audio} {language} {rate}"


class Takes:
    """The same, as a class."""

    def run(self, audio: str, language: str = "en", *, rate: int = 1) -> str:
        return f"{audio} {language} {rate}"


class TakesStatic:
    """The same, without an instance."""

    @staticmethod
    def run(audio: str, language: str = "en", *, rate: int = 1) -> str:
        return f"{audio} {language} {rate}"


def passes_on(function: "Callable[..., Any]") -> "Callable[..., Any]":
    """A decorator that renames a parameter."""

    @functools.wraps(function)
    def wrapper(**parameters: Any) -> Any:
        parameters["audio"] = parameters.pop("file")
        return function(**parameters)

    return wrapper


def streams(audio: str, language: str = "en", *, rate: int = 1) -> "Iterator[str]":
    """The same, as a stream."""
    yield f"{audio} {language} {rate}"


FORMS = {"function": takes, "class": Takes, "static": TakesStatic, "generator": streams, "partial": functools.partial(takes)}


@pytest.mark.parametrize("plugin", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("wrong", [{"lang": "de"}, {}, {"audio": "a", "sample_rate": 1}], ids=str)
async def test_parameters_that_do_not_fit_are_refused(plugin: Any, wrong: "dict[str, Any]") -> None:
    """Before anything is started, with the right names; nothing of a value is shown."""
    async with manager(plugins={"p": plugin}) as m:
        with pytest.raises(errors.WrongParametersError, match=r"takes: \(audio, language=…, \*, rate=…\)") as caught:
            await m.start_job("p", **wrong)
        assert caught.value.plugin_id == "p" and isinstance(caught.value, TypeError) and not m.jobs and not m.workers


async def test_a_wrapper_and_a_hook_have_the_last_word() -> None:
    """What counts is what the plugin is called with."""

    class Renames(type(manager("echo"))):  # type: ignore[misc]
        def prepare_execute_request(self, job: Job) -> "dict[str, Any]":
            return {"audio": job.params["upload"]}

    async with manager(plugins={"wrapped": passes_on(takes)}) as m:
        assert await (await m.start_job("wrapped", file="a.wav")) == "a.wav en 1"
    async with manager(plugins={"takes": takes}, cls=Renames) as m:
        assert await (await m.start_job("takes", upload="a.wav")) == "a.wav en 1"


async def test_an_import_string_is_not_imported_to_check() -> None:
    """A signature that is not at hand is not looked for; the job says what is wrong."""
    async with manager(plugins={"p": "test_retries:takes"}) as m:
        with pytest.raises(JobError, match="unexpected keyword argument 'lang'"):
            await (await m.start_job("p", audio="a", lang="b"))


# Progress bars


def bars(how: str) -> int:
    """Show bars of tqdm."""
    from tqdm import tqdm

    from cjm_worker_protocols import report_progress

    if how == "reports":
        report_progress(0.5, "halfway")
    for _ in tqdm(range(4), desc="Epochs", mininterval=0):
        time.sleep(0.06)
        for _ in tqdm(range(5), leave=False, mininterval=0) if how == "nested" else ():
            pass
    return 1


@pytest.mark.parametrize("how", ["plain", "nested", "reports"])
async def test_a_bar_of_tqdm_is_the_jobs_progress(how: str) -> None:
    """That of the outermost bar, which only grows; a plugin that reports itself is believed."""
    async with manager(bars) as m:
        seen = Seen(m)
        await (await m.start_job("bars", how=how))
    said = [(e.data["progress"], e.data["message"]) for e in await seen.rest() if e.type == "job:progress"]
    if how == "reports":
        assert said == [(0.5, "halfway")]
    else:
        assert said == sorted(said) and {message.split()[0] for _, message in said} == {"Epochs"}
        assert said[-1] == (1.0, "Epochs 4/4") and len(said) >= 3


def logs_to_a_file(path: str) -> str:
    """Log as a script does."""
    logging.basicConfig(filename=path, level=logging.DEBUG)
    logging.getLogger("x").debug("debug line")
    return Path(path).read_text()


async def test_a_plugin_has_a_log_file_of_its_own(tmp_path: Path) -> None:
    """`basicConfig` does in a worker what it does in any process, whatever the manager's level."""
    async with manager(logs_to_a_file) as m:
        assert await (await m.start_job("logs_to_a_file", path=str(tmp_path / "log"))) == "DEBUG:x:debug line\n"
