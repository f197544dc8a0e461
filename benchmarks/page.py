"""How much script does the live page run when 20 rows of 1,000 change, one after the other in a second, and at once?"""

import asyncio
import shutil
import socket
from typing import Any

import uvicorn
from bench import Row, Target, compare, main, peer

from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.core.jobs import Job
from cjm_worker_protocols.web import WorkersApp
from cjm_worker_protocols.web.documents import job_document
from cjm_worker_protocols.web.live import ALL

ROWS, LIMIT = 20, 0.020  # Rows that change, and seconds of script that they may take


def noop() -> None:
    """A plugin that does nothing."""


async def listed(page: Any, jobs: int) -> None:
    """The page follows the events, and has so many jobs."""
    while not await page.evaluate(f"workersPage.loaded && workersPage.jobs.size >= {jobs}"):
        await asyncio.sleep(0.05)


async def script_time(devtools: Any) -> float:
    """Seconds that the page has run script since it was opened."""
    found = (await devtools.send("Performance.getMetrics"))["metrics"]
    return float(next(metric["value"] for metric in found if metric["name"] == "ScriptDuration"))


async def measure(rounds: int, jobs: int) -> "list[Row]":
    """Seconds of script for 20 events of the real server, in a headless Chromium that shows 1,000 jobs."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if peer("playwright", "playwright") is None or chromium is None:
        return []
    from playwright.async_api import async_playwright

    running = [Job("noop") for _ in range(ROWS)]
    for job in running:
        job.status = "running"
    took: "dict[str, list[float]]" = {"one after the other": [], "at once": []}

    def change(app: WorkersApp, job: Job, progress: float) -> None:
        job.progress = progress
        app.live.log.put("job", ALL, job_document(job), (ALL, job.id))

    manager = JobManager("bench", "page", plugins={"noop": noop}, worker_config=WorkerConfig(standby=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with manager, async_playwright() as p:
            await asyncio.gather(*[(await manager.start_job("noop")).wait() for _ in range(jobs - ROWS)])
            app = WorkersApp(manager)
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
            serving = asyncio.ensure_future(server.serve([listener]))
            browser = await p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = await browser.new_page(viewport={"width": 1200, "height": 900})
            devtools = await page.context.new_cdp_session(page)
            await devtools.send("Performance.enable")
            await page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            await listed(page, jobs - ROWS)
            for number in range(rounds + 1):
                for way, times in took.items():
                    start = await script_time(devtools)
                    for job in running:
                        change(app, job, (number + 1) / (rounds + 1))
                        await asyncio.sleep(1 / ROWS if way != "at once" else 0)
                    await listed(page, jobs)
                    await asyncio.sleep(0.1)
                    times.append(await script_time(devtools) - start)
            await browser.close()
            server.should_exit = True
            await serving
    question = "script of the live page for 20 changed rows of 1,000"
    return [compare(f"{question}, {way}", times[1:], "its limit", [LIMIT] * rounds, Target("at most", 1)) for way, times in took.items()]


if __name__ == "__main__":
    main(measure, full={"rounds": 10, "jobs": 1000}, tiny={"rounds": 1, "jobs": 1000}, limit=120)
