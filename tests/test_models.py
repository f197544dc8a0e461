"""The three real models in one manager, with jobs that are cancelled and workers that are killed at random."""

import asyncio
import os
import random
import signal
import wave
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import models
import psutil
import pytest
from harness import until
from test_image import draw, saved

from cjm_worker_protocols import Job, JobManager, WorkerConfig
from cjm_worker_protocols.integrations.registry import EntryPointRegistry
from cjm_worker_protocols.plugins.image import OCR, RapidOcr
from cjm_worker_protocols.plugins.speech import SPEECH, PocketSphinx, sample_recording
from cjm_worker_protocols.plugins.text import LLM, LlamaCpp
from cjm_worker_protocols.worker.plugins import drive

JOBS, CANCELLED, KILLED, SEED = 200, 0.15, 6, 11
PLUGINS = {"speech": PocketSphinx, "llm": LlamaCpp, "ocr": RapidOcr}
CONFIGS: "dict[str, dict[str, Any]]" = {
    "speech": {},
    "llm": {"threads": 1, "context": 256},
    "ocr": {"threads": 1, "Det.limit_side_len": 64},
}


def requests(folder: Path) -> "list[tuple[str, dict[str, Any]]]":
    """Short jobs of the three plugins."""
    recording = folder / "short.wav"
    with wave.open(str(sample_recording())) as whole, wave.open(str(recording), "wb") as short:
        short.setparams(whole.getparams())
        short.writeframes(whole.readframes(11_000))
    talk = [{"role": "system", "content": "Hi."}, {"role": "user", "content": "Go on."}]
    made: "list[tuple[str, dict[str, Any]]]" = [("speech", {"audio": str(recording)})]
    made += [("llm", {"messages": talk, "max_tokens": 3, "seed": seed}) for seed in (1, 2)]
    made += [("ocr", {"image": saved(draw(word, size=(160, 64)))}) for word in ("Coffee", "Total", "Three", "Page")]
    return made


def comparable(result: "dict[str, Any]") -> "dict[str, Any]":
    """A result without what differs from run to run."""
    return {key: value for key, value in result.items() if key != "tokens_per_second"}


def memory(manager: JobManager) -> "dict[str, int]":
    """The bytes that this process and its largest worker have allocated.

    A model's file that is mapped does not count: it is this process's own while one worker maps it, and shared when a second does.
    Nor are plugins told apart, since a worker that has run another one before keeps some of its memory.
    """
    sizes = [allocated(worker.pid) for worker in manager.workers if worker.status in ("idle", "running")]
    return {"app": allocated(os.getpid()), "largest worker": max(sizes, default=0)}


def allocated(pid: int) -> int:
    """The bytes of a process that come from no file: `RssAnon` of proc(5)."""
    memory = psutil.Process(pid).memory_info()
    return int(memory.rss - memory.shared)


@pytest.mark.slow
@pytest.mark.limit(240)
async def test_two_hundred_jobs_with_cancels_and_kills(tmp_path: Path) -> None:
    """Every job has one end; those that complete have the result of the plugin run directly; memory stays flat; nothing is left."""
    models.need(SPEECH, LLM, OCR)
    kinds, expected = requests(tmp_path), list[dict[str, Any]]()
    for name, group in groupby(kinds, key=itemgetter(0)):
        plugin = PLUGINS[name]()
        plugin.load(dict(CONFIGS[name]))
        expected += [comparable(drive(plugin.run(**parameters), lambda chunk: None)) for _, parameters in group]
        plugin.unload()
    dice, ends, jobs = random.Random(SEED), dict[str, list[str]](), list[tuple[int, Job]]()
    registry = EntryPointRegistry({name: f"{made.__module__}:{made.__name__}" for name, made in PLUGINS.items()}, CONFIGS)
    config = WorkerConfig(max_workers=3, keep_finished=JOBS)
    manager = JobManager("soak", "models", plugins=registry.targets(), plugin_registry=registry, worker_config=config)
    kills = set(dice.sample(range(20, JOBS - 20), KILLED))
    early: "dict[str, int]" = {}

    def unfinished(name: str) -> int:
        return sum(job.plugin_id == name and not job.done for _, job in jobs)

    async def listen() -> None:
        async for event in manager.events():
            if event.type in ("job:completed", "job:failed", "job:cancelled"):
                ends.setdefault(event.data["job_id"], []).append(event.type)

    async with manager:
        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        for number in range(JOBS):
            most = 1 + (dice.random() < 0.02)  # mostly each plugin has a worker of its own
            free = await until(lambda: [kind for kind, (name, _) in enumerate(kinds) if unfinished(name) < most], limit=60)
            kind = dice.choice(free)
            job = await manager.start_job(kinds[kind][0], params=kinds[kind][1])
            jobs.append((kind, job))
            if dice.random() < CANCELLED:
                asyncio.get_running_loop().call_later(dice.random(), lambda job=job: asyncio.ensure_future(manager.cancel_job(job.id)))
            if number in kills and (busy := [worker.pid for worker in manager.workers if worker.status == "running"]):
                os.kill(dice.choice(busy), signal.SIGKILL)
            if JOBS // 4 <= number < JOBS // 2:
                for name, used in memory(manager).items():
                    early[name] = max(used, early.get(name, 0))
        for _, job in jobs:
            await job.wait()
        late = memory(manager)
        await until(lambda: len(ends) >= JOBS)
        pids = [worker.pid for worker in manager.workers]
    listening.cancel()
    counts = {status: sum(job.status == status for _, job in jobs) for status in ("completed", "failed", "cancelled")}
    assert sum(counts.values()) == JOBS and counts["completed"] > JOBS * 0.7 and counts["failed"] <= KILLED, counts
    assert len(ends) == JOBS and all(len(found) == 1 for found in ends.values())
    for kind, job in jobs:
        assert ends[job.id] == [f"job:{job.status}"]
        if job.status == "completed":
            assert comparable(job.result) == expected[kind], kinds[kind][0]
        elif job.status == "failed":
            assert job.error and job.error.category == "crash"
    for name, after in late.items():
        assert 0 < after < early[name] * 1.25 + 40_000_000, (name, early, late)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
