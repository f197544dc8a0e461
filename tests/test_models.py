"""The three real models in one manager, with jobs that are cancelled and workers that are killed at random."""

import asyncio
import os
import random
import signal
import time
import wave
from pathlib import Path
from typing import Any

import models
import psutil
import pytest
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
    talk = [{"role": "system", "content": "Hi."}, {"role": "user", "content": "Tell me a story."}]
    made: "list[tuple[str, dict[str, Any]]]" = [("speech", {"audio": str(recording)})]
    made += [("llm", {"messages": talk, "max_tokens": 3, "seed": seed}) for seed in (1, 2)]
    made += [("ocr", {"image": saved(draw(word, size=(160, 64)))}) for word in ("Coffee", "Total", "Three", "Page")]
    return made


def comparable(result: "dict[str, Any]") -> "dict[str, Any]":
    """A result without what differs from run to run."""
    return {key: value for key, value in result.items() if key != "tokens_per_second"}


def memory(manager: JobManager) -> "dict[str, int]":
    """The bytes that this process and the workers hold: of each plugin those of its largest worker."""
    found = {"app": psutil.Process().memory_full_info().uss}
    for worker in manager.workers:
        if worker.status == "idle" and worker.plugin_id:
            found[worker.plugin_id] = max(found.get(worker.plugin_id, 0), psutil.Process(worker.pid).memory_full_info().uss)
    return found


@pytest.mark.slow
@pytest.mark.limit(240)
async def test_two_hundred_jobs_with_cancels_and_kills(tmp_path: Path) -> None:
    """Every job has one end; those that complete have the result of the plugin run directly; memory stays flat; nothing is left."""
    models.need(SPEECH, LLM, OCR)
    kinds, expected = requests(tmp_path), []
    for name, parameters in kinds:
        plugin = PLUGINS[name]()
        plugin.load(dict(CONFIGS[name]))
        expected.append(comparable(drive(plugin.run(**parameters), lambda chunk: None)))
        plugin.unload()
    dice, ends, jobs = random.Random(SEED), dict[str, list[str]](), list[tuple[int, Job]]()
    registry = EntryPointRegistry({name: f"{made.__module__}:{made.__name__}" for name, made in PLUGINS.items()}, CONFIGS)
    config = WorkerConfig(max_workers=3, keep_finished=JOBS)
    manager = JobManager("soak", "models", plugins=registry.targets(), plugin_registry=registry, worker_config=config)
    kills = set(dice.sample(range(20, JOBS - 20), KILLED))
    early: "dict[str, int]" = {}

    async def listen() -> None:
        async for event in manager.events():
            if event.type in ("job:completed", "job:failed", "job:cancelled"):
                ends.setdefault(event.data["job_id"], []).append(event.type)

    async with manager:
        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        for number in range(JOBS):
            kind, most = dice.randrange(len(kinds)), 1 + (dice.random() < 0.1)  # mostly each plugin has a worker of its own
            while sum(kinds[other][0] == kinds[kind][0] and not job.done for other, job in jobs) >= most:
                await asyncio.sleep(0.01)
            job = await manager.start_job(kinds[kind][0], params=kinds[kind][1])
            jobs.append((kind, job))
            if dice.random() < CANCELLED:
                asyncio.get_running_loop().call_later(dice.random(), lambda job=job: asyncio.ensure_future(manager.cancel_job(job.id)))
            if number in kills and (busy := [worker.pid for worker in manager.workers if worker.status == "running"]):
                os.kill(dice.choice(busy), signal.SIGKILL)
            if JOBS // 3 <= number < JOBS // 2 and number % 3 == 0:  # several times: a worker that has just started has loaded nothing yet
                for name, used in memory(manager).items():
                    early[name] = max(used, early.get(name, 0))
        for _, job in jobs:
            await job.wait()
        late, deadline = memory(manager), time.monotonic() + 10
        while len(ends) < JOBS and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
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
    for name, before in early.items():
        assert late.get(name, 0) < before * 1.5 + 40_000_000, (name, before, late)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
