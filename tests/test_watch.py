"""`watch`: in a real Jupyter kernel, in a terminal, in a pipe; what it returns, and what an interrupt does."""

import asyncio
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import alive, children, ctrl_c, end, finish, gone_soon, manager, script, until
from repo import ROOT, python, said

from cjm_worker_protocols import Job, JobCancelled, JobError, watch
from cjm_worker_protocols.core.errors import ConfigError, WrongLoopError
from cjm_worker_protocols.managers.watch import LogLines

BAR = "\u2501"
QUIET = "import logging\nlogging.getLogger('cjm_worker_protocols').addHandler(logging.NullHandler())\n"
SETUP = """
import asyncio, sys
from cjm_worker_protocols import JobManager, WorkerConfig, report_progress, watch

def count(to, pause=0.0, fail=False):
    import time
    for n in range(1, to + 1):
        time.sleep(pause)
        report_progress(n / to, f"{n} of {to}")
    if fail: raise ValueError("no \\x1b[2J<b>luck")
    return to

def spin():
    report_progress(0.5, "half")
    while True: pass

def make(**settings):
    config = WorkerConfig(max_workers=2, standby=False, grace_timeout=2.0)
    return JobManager("test", "tests", plugins={"count": count, "spin": spin}, worker_config=config)
"""
SCRIPT = (
    SETUP
    + """
async def main():
    async with make() as manager:
        jobs = [await manager.start_job("count", to=to, pause=0.05) for to in (6, 12, 8)]
        jobs.append(await manager.start_job("count", to=3, fail=True))
        try: await watch(*jobs)
        except RuntimeError as e: print("error", e.category)
        print(*(job.result for job in jobs[:3]), sorted(t.name for t in __import__("threading").enumerate()))

asyncio.run(main())
"""
)


# What it returns


async def test_results_come_in_the_order_of_the_call() -> None:
    """Several jobs give a list, one job its own result, none an empty list; jobs that have ended already are no exception."""
    async with manager("echo", "pause") as m:
        slow, quick = await m.start_job("pause", seconds=0.1), await m.start_job("echo", x=1)
        assert await watch(slow, quick, file=io.StringIO()) == [None, 1]
        assert await watch(quick, file=io.StringIO()) == 1 and await watch(file=io.StringIO()) == []


async def test_a_failure_is_raised_once_all_have_ended() -> None:
    """The error of the first job of the call that failed; the others have their results."""
    async with manager("fail", "pause", "echo", max_workers=2) as m:
        jobs = [await m.start_job("pause", seconds=0.1), await m.start_job("fail", message="b"), await m.start_job("fail", message="c")]
        with pytest.raises(JobError, match="b"):
            await watch(*jobs, file=io.StringIO())
        assert [job.status for job in jobs] == ["completed", "failed", "failed"]


async def test_a_manager_is_watched_until_it_is_idle() -> None:
    """Jobs that come meanwhile count; those that had ended before are not shown; an idle manager returns at once."""
    async with manager("pause", "echo") as m:
        log = io.StringIO()
        before = await m.start_job("echo")
        await before
        assert await watch(m, file=log) is None and log.getvalue() == ""
        await m.start_job("pause", seconds=0.2)
        watching = asyncio.ensure_future(watch(m, file=log))
        await asyncio.sleep(0)
        late = await m.start_job("pause", seconds=0.2)
        await watching
        assert late.done and log.getvalue().count("\u2713 pause") == 2 and "echo" not in log.getvalue()


async def test_a_manager_that_keeps_no_job_is_watched_too() -> None:
    """The end of a job is shown although the manager forgets it at once."""
    async with manager("pause", keep_finished=0) as m:
        log = io.StringIO()
        await m.start_job("pause", seconds=0.3)
        await watch(m, file=log)
        assert log.getvalue().splitlines()[-1].startswith("\u2713 pause")


async def test_only_jobs_or_one_manager() -> None:
    """Anything else is refused."""
    async with manager("echo") as m:
        job = await m.start_job("echo")
        for wrong in ([job], m, job), (m, m), ("echo",):
            with pytest.raises(ConfigError, match="one manager"):
                await watch(*wrong)


async def test_another_loop_is_refused() -> None:
    """As for `await job`."""
    async with manager("pause") as m:
        job = await m.start_job("pause", seconds=0.3)

        def elsewhere() -> None:
            with pytest.raises(WrongLoopError):
                asyncio.run(watch(job, file=io.StringIO()))

        await asyncio.to_thread(elsewhere)


# Interrupts


async def test_cancelling_the_wait_leaves_the_jobs_alone() -> None:
    """The display says so, and nothing of the wait is left."""
    async with manager("stuck") as m:
        job, log = await m.start_job("stuck"), io.StringIO()
        watching = asyncio.ensure_future(watch(job, file=log))
        await until(lambda: "\u25cf" in log.getvalue())
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert not job.done and "the jobs go on" in log.getvalue().splitlines()[-1]
        assert await m.cancel_job(job.id)


async def test_cancel_true_cancels_what_is_watched_and_nothing_else() -> None:
    """The wait ends when the jobs have ended."""
    async with manager("stuck", max_workers=2) as m:
        job, other = await m.start_job("stuck"), await m.start_job("stuck")
        watching = asyncio.ensure_future(watch(job, cancel=True, file=io.StringIO()))
        await until(lambda: job.status == "running")
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert job.status == "cancelled" and not other.done
        with pytest.raises(JobCancelled):
            await watch(job, file=io.StringIO())


def test_ctrl_c_ends_a_script(tmp_path: Path) -> None:
    """No worker is left, with the jobs cancelled."""
    source = SETUP + """
async def main():
    async with make() as manager:
        job = await manager.start_job("spin")
        while job.progress != 0.5: await asyncio.sleep(0.01)
        print(job.worker_pid, flush=True)
        await watch(job, cancel=True)

asyncio.run(main())
"""
    with script(tmp_path / "app.py", source) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        ctrl_c(process)
        code, _, err = finish(process)
    assert code != 0 and "KeyboardInterrupt" in err and not alive([pid])


# A pipe, and what can happen to it


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    """Each state and each tenth of progress once; no escape sequence, neither ours nor a plugin's; stdout is the script's own."""
    done = python(QUIET + SCRIPT, cwd=tmp_path)
    assert done.returncode == 0, said(done)
    assert done.stdout.splitlines() == ["error exception", "6 12 8 ['MainThread']"]
    lines = done.stderr.splitlines()
    assert not [line for line in lines if not line.isprintable()] and len(lines) < 60
    assert len([line for line in lines if line.startswith("\u2713 count")]) == 3
    assert "\u2715 count  ValueError: no <b>luck" in lines and any("of 12" in line and BAR in line for line in lines)


async def test_a_reader_that_left_ends_nothing() -> None:
    """A closed pipe, a closed file and no stderr at all: the results come all the same."""
    async with manager("echo") as m:
        read, write = os.pipe()
        os.close(read)
        broken, closed = open(write, "w"), io.StringIO()
        closed.close()
        job = await m.start_job("echo", x=1)
        assert await watch(job, file=broken) == 1 and await watch(job, file=closed) == 1
        with pytest.raises(BrokenPipeError):
            broken.close()
        sys_stderr, sys.stderr = sys.stderr, None  # type: ignore[assignment]
        try:
            assert await watch(job) == 1
        finally:
            sys.stderr = sys_stderr


def test_a_log_in_ascii_gets_question_marks() -> None:
    """A character that a file's encoding lacks is no error."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    LogLines(file).show_jobs([Job("na\u00efve")])
    assert raw.getvalue() == b"? na?ve  waits\n"


def test_watching_many_jobs_stays_short() -> None:
    """A table has a limited number of rows, and says how many are left out; those that have not ended come first."""
    from cjm_worker_protocols.core.display import MOST, jobs_html

    jobs = [Job("old") for _ in range(100)]
    for job in jobs:
        job.status = "completed"
    html = jobs_html([*jobs, Job("new")])
    assert html.count("<tr>") == MOST + 1 and html.index("new") < html.index("old") and "81 more jobs" in html


# A terminal


def in_terminal(source: str, path: Path, columns: int = 80, lines: int = 24, **env: str) -> str:
    """Run a script in a terminal; gives all that it wrote."""
    import fcntl
    import struct
    import termios

    path.write_text(source, encoding="utf-8")
    fd, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", **env}
    process = subprocess.Popen([sys.executable, str(path)], stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True)
    os.close(theirs)
    parts, deadline = [], time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([fd], [], [], 1)[0]:
                try:
                    parts.append(os.read(fd, 65536))
                except OSError:
                    break
                if not parts[-1]:
                    break
        assert process.wait(10) == 0, b"".join(parts)
    finally:
        process.kill()
        process.wait()
        os.close(fd)
    return b"".join(parts).decode()


def screen(written: str) -> "Iterator[list[str]]":
    """What the screen shows after each piece, of a program that only goes up, to the start of a line, and down."""
    rows: "list[str]" = [""]
    row = column = 0
    for part in re.split(r"(\x1b\[A|\r|\n)", written):
        if part == "\x1b[A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif part:
            assert "\x1b" not in part, repr(part)
            rows[row] = (rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]).rstrip()
            column += len(part)
        yield list(rows)


def test_a_terminal_shows_bars(tmp_path: Path) -> None:
    """Two run at the same time; each bar moves; in the end there is one line a job, then what the script prints."""
    pytest.importorskip("tqdm")
    states = list(screen(in_terminal(SCRIPT, tmp_path / "app.py")))
    assert any(sum(BAR in line for line in rows) == 2 for rows in states)
    records = [line for line in states[-1] if line.startswith("job ")]  # what the manager logs is above the bars
    assert len(records) == 1 and "ValueError" in records[0]
    last = [line for line in states[-1] if line and line not in records]
    ends = sorted(line.split("  ")[0] for line in last[:4])
    assert ends == ["\u2713 count"] * 3 + ["\u2715 count"] and last[4:] == ["error exception", "6 12 8 ['MainThread']"]
    percents = {int(n) for rows in states for line in rows for n in re.findall(r"(\d+)%  \d+ of 12", line)}
    assert len(percents) > 3


def test_no_line_is_wider_than_the_terminal(tmp_path: Path) -> None:
    """Otherwise it would wrap, and could not be drawn over."""
    pytest.importorskip("tqdm")
    source = SCRIPT.replace('f"{n} of {to}"', '"\u65e5\u672c\u8a9e and more " * 5')
    states = list(screen(in_terminal(source, tmp_path / "app.py", columns=30, lines=6)))
    drawn = (line for rows in states for line in rows)
    live = [line for line in drawn if ("\u25cf" in line or BAR in line) and not line.startswith("job ")]
    assert live and max(map(len, live)) < 30


@pytest.mark.slow
@pytest.mark.parametrize("why", ["no tqdm", "dumb"])
def test_a_terminal_without_bars_gets_lines(why: str, tmp_path: Path) -> None:
    """Without tqdm, or where the cursor cannot move."""
    source = QUIET + ("import sys\nsys.modules['tqdm'] = None\n" if why == "no tqdm" else "") + SCRIPT
    written = in_terminal(source, tmp_path / "app.py", TERM="dumb" if why == "dumb" else "xterm")
    assert "\x1b" not in written and written.count("\u2713 count") == 3


@pytest.mark.slow
def test_bars_of_the_app_stay(tmp_path: Path) -> None:
    """A tqdm bar of the script's own is drawn again below what is written."""
    pytest.importorskip("tqdm")
    source = SCRIPT.replace("async def main():", "import tqdm\nown = tqdm.tqdm(total=1, desc='own')\nasync def main():", 1)
    assert any("own:" in line for line in list(screen(in_terminal(source, tmp_path / "app.py")))[-1])


# A notebook


@pytest.fixture
def kernel() -> "Iterator[Callable[..., list[dict[str, Any]]]]":
    """A kernel of Jupyter; call it with code to get the messages that the code makes."""
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import start_new_kernel

    km, client = start_new_kernel(startup_timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def run(code: str, until: "Callable[[dict[str, Any]], bool] | None" = None) -> "list[dict[str, Any]]":
        """Until the code has ended, or a message came, at which the kernel is interrupted."""
        sent, found = client.execute(code), []
        while True:
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != sent:
                continue
            found.append({"type": message["msg_type"], **message["content"]})
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return found
            if until is not None and until(found[-1]):
                km.interrupt_kernel()
                until = None

    try:
        yield run
    finally:
        client.stop_channels()
        km.shutdown_kernel(now=True)
        km.cleanup_resources()
        km.context.destroy()


@pytest.mark.slow
def test_an_interrupted_cell_cancels_nothing(kernel: Any) -> None:
    """The button `Interrupt` ends the wait; the job runs on, unless `cancel=True`."""
    assert not [m for m in kernel(SETUP + "manager = make()\njob = await manager.start_job('spin')") if m["type"] == "error"]

    def half(message: "dict[str, Any]") -> bool:
        return "50%" in str(message.get("data"))

    said_then = kernel("await watch(job)", until=half)
    assert "the jobs go on" in said_then[-3 if said_then[-2]["type"] == "error" else -2]["data"]["text/html"]
    assert [m["type"] for m in said_then].count("display_data") == 1
    assert "'running'" in str(kernel("job.status"))
    last = [m for m in kernel("await watch(job, cancel=True)", until=half) if "data" in m][-1]
    assert "cancelled" in last["data"]["text/html"]
    assert "'cancelled'" in str(kernel("job.status"))
    kernel("await manager.shutdown()")


@pytest.mark.slow
def test_what_a_notebook_stores_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several bars of two workers in one display; stored, and shown by nbconvert, is the finished state, without widget or script."""
    nbformat = pytest.importorskip("nbformat")
    nbclient, nbconvert = pytest.importorskip("nbclient"), pytest.importorskip("nbconvert")
    cells = [SETUP, "manager = make()\njobs = [await manager.start_job('count', to=to, pause=0.05) for to in (4, 8)]",
             "await watch(*jobs)", "await manager.shutdown()"]  # fmt: skip
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(nbconvert.__file__).parents[4] / "share/jupyter"))
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    shown, result = book.cells[2].outputs
    assert result["data"]["text/plain"] == "[4, 8]" and set(shown["data"]) == {"text/html", "text/plain"}
    html = shown["data"]["text/html"]
    assert html.count("\u2713 completed") == 2 and "running" not in html and "<script" not in html
    assert "widgets" not in json.dumps(book.metadata)
    page, _ = nbconvert.HTMLExporter().from_notebook_node(book)
    assert page.count("\u2713 completed") == 2


def test_a_shell_of_ipython_in_a_terminal_is_no_notebook(tmp_path: Path) -> None:
    """There, HTML would be shown as its repr."""
    pytest.importorskip("IPython")
    code = """
from cjm_worker_protocols.managers.watch import in_notebook
assert not in_notebook()
from IPython.terminal.interactiveshell import TerminalInteractiveShell
TerminalInteractiveShell.instance(history_load_length=0)
assert not in_notebook()
"""
    done = python(code, cwd=tmp_path, IPYTHONDIR=str(tmp_path))
    assert done.returncode == 0, said(done)


async def test_nothing_is_left_behind() -> None:
    """A hundred watches leave no task."""
    async with manager("echo") as m:
        job = await m.start_job("echo")
        await end(job)
        before = asyncio.all_tasks()
        for _ in range(100):
            await watch(job, file=io.StringIO())
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before
    assert await gone_soon([process.pid for process in children()], 5)
