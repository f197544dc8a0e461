"""A job store in memory that fails and checks, as a seed says: what a manager wrote before it did something, and what is left of an app."""

from __future__ import annotations

from typing import Any

from cjm_worker_protocols.extensions.store import JobChunk, JobEnd, JobMove, NewJob, StoredJob, Written

from .clock import EPOCH
from .integrations import Mind


class MemoryStore(Mind):
    """Keeps jobs for one app after the other. A call that raises has changed nothing, or everything."""

    keep_chunks = 2

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.jobs: dict[str, StoredJob] = {}
        self.payloads: dict[str, tuple[bytes, bytes | None]] = {}
        self.kept: dict[str, dict[int, bytes]] = {}
        self.managers: set[str] = set()  # Those that are alive
        self.holders: dict[str, str] = {}  # By job
        self.shown_last: dict[str, str] = {}  # By manager
        self._names = self._places = 0

    def _may_fail(self) -> None:
        if self.likely("raises"):
            raise self.rng.choice([OSError("the disk is full"), KeyError("x")])

    def open(self, worker_type: str) -> str:
        """A manager begins."""
        self._may_fail()
        self._names += 1
        self.managers.add(name := f"manager-{self._names}")
        return name

    def close(self, manager: str) -> None:
        """It ends."""
        self.managers.discard(manager)

    def write(
        self, manager: str, added: list[NewJob], moved: list[JobMove], ended: list[JobEnd], chunks: list[JobChunk]
    ) -> Written:
        """All or nothing; now and then all, and the caller hears that it failed."""
        self._may_fail()
        self.book.check("written by a manager that is open", manager in self.managers, manager)
        self.book.check("one move a job", len({move.id for move in moved}) == len(moved), *moved)
        answer = Written({}, {}, [])
        for job in added:
            if job.id in self.jobs:
                answer.refused.append(job.id)
                continue
            self._places += 1
            place = answer.places[job.id] = self._places
            self.jobs[job.id] = StoredJob(job.id, "simulated", job.plugin_id, "pending", place, EPOCH + self.book.now, *job[4:9])
            self.payloads[job.id], self.holders[job.id] = (job.params, None), manager
        changes: list[JobMove | JobEnd] = [*moved, *ended]
        for change in changes:
            known = self.jobs.get(change.id)
            if known is None or known.ended is not None or self.holders[change.id] != manager:
                answer.refused.append(change.id)
            else:
                self.jobs[change.id] = known._replace(**{k: v for k, v in change._asdict().items() if k != "result"})
        for end in ended:
            if end.id not in answer.refused:
                self.payloads[end.id] = self.payloads[end.id][0], end.result
        for chunk in chunks:
            kept = self.kept.setdefault(chunk.id, {})
            kept[chunk.number] = chunk.data
            for number in [number for number in kept if number <= chunk.number - chunk.keep]:
                del kept[number]
        self._may_fail()
        return answer

    def claim(self, manager: str) -> list[StoredJob]:
        """Take over what no living manager holds."""
        self._may_fail()
        free = [job for job in self.jobs.values() if job.ended is None and self.holders[job.id] not in self.managers]
        self.holders.update((job.id, manager) for job in free)
        return free

    def read(self, worker_type: str, job_ids: list[str]) -> list[StoredJob]:
        """Look jobs up."""
        self._may_fail()
        return [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]

    def select(
        self,
        worker_type: str,
        status: str | None = None,
        plugin_id: str | None = None,
        owner: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[StoredJob]:
        """The newest first."""
        return list(self.jobs.values())[::-1][:limit]

    def payload(self, job_id: str) -> tuple[bytes, bytes | None] | None:
        """Parameters and result."""
        self._may_fail()
        return self.payloads.get(job_id)

    def chunks(self, job_id: str, start: int = 0) -> list[tuple[int, bytes]]:
        """Kept chunks."""
        return sorted((n, data) for n, data in self.kept.get(job_id, {}).items() if n >= start)

    def request_cancel(self, job_id: str) -> None:
        """No other manager is there."""

    def cancellations(self, manager: str) -> list[str]:
        """Return nothing: no other process asks for a cancel."""
        self._may_fail()
        return []

    def show_workers(self, manager: str, workers: str) -> None:
        """Keep what a manager shows."""
        self._may_fail()
        self.book.check("shown by a manager that is open", manager in self.managers, manager)
        self.shown_last[manager] = workers

    def shown_workers(self) -> dict[str, str]:
        """What managers show that are open."""
        return {manager: workers for manager, workers in self.shown_last.items() if manager in self.managers}

    def forget(self, job_ids: list[str]) -> None:
        """Remove jobs."""
        for job_id in job_ids:
            self.jobs.pop(job_id, None)

    def has_open(self) -> bool:
        """Whether a job has no end."""
        return any(job.ended is None for job in self.jobs.values())

    # What must hold

    def sent(self, job_id: str) -> None:
        """A frame leaves for a worker: the job is stored as running."""
        stored = self.jobs.get(job_id)
        self.book.check("marked before it is sent", stored is not None and stored.status == "running", job_id, stored)

    def shown(self, job: Any) -> None:
        """An end is shown: it is stored, or the job says why not."""
        stored = self.jobs.get(job.id)
        same = stored is not None and stored.ended is not None and stored.status == job.status
        self.book.check("stored before it is shown", same or job.unsaved, job.id, job.status, stored)

    def drop_ended(self) -> None:
        """Keep only what has no end, as an app does that is not interested in the past."""
        for job_id in [job.id for job in self.jobs.values() if job.ended is not None]:
            for kept in (self.jobs, self.payloads, self.kept, self.holders):
                kept.pop(job_id, None)

    def over(self, fates: list[Any]) -> None:
        """The manager is closed: what the store has is what was shown, and what has no end waits."""
        for fate in fates:
            if fate.job is None:
                continue
            if not fate.accepted:
                self.book.check("refused jobs are not stored", fate.job.id not in self.jobs, fate)
                continue
            stored = self.jobs.get(fate.job.id)
            status = stored.status if stored is not None else None
            self.book.check("the store has what was shown", status == fate.job.status or fate.job.unsaved, fate, status, fate.job.status)
