"""One right implementation of each protocol, and mutants of it, each of which breaks exactly one rule of the contract.

`python tests/conformance_corpus.py --write` writes down anew what the kit finds in each of them."""

import asyncio
import atexit
import copy
import functools
import importlib
import io
import json
import linecache
import re
import sys
import threading
import time
from array import array
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Optional

from cjm_worker_protocols.conformance import Finding, Report, check, leaks
from cjm_worker_protocols.conformance.checks import MEMBERS, Limits
from cjm_worker_protocols.extensions.protocols import (
    UNSET,
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)
from cjm_worker_protocols.extensions.store import JobStoreProtocol, NewJob, StoredJob, Written

SNAPSHOTS = Path(__file__).with_name("conformance_snapshots.json")

# Right implementations


@dataclass
class Meta:
    """What a registry tells of a plugin."""

    id: Any
    name: Any
    category: str
    is_configured: Any = True


class Registry:
    """A right registry, in memory."""

    def __init__(self) -> None:
        metas = (Meta("whisper", "Whisper", "speech"), Meta("vosk", "Vosk", "speech"), Meta("llama", "Llama", "text"))
        self.plugins = {m.id: m for m in metas}
        self.configs: Dict[str, Dict[str, Any]] = {
            "whisper": {"model": "large-v3", "options": {"beam": 5}},
            "vosk": {"words": ["yes", "no"]},
        }

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [m for m in self.plugins.values() if m.category == category]

    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins.get(plugin_id)

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return copy.deepcopy(self.configs.get(plugin_id, {}))


def categories(registry: Any) -> "list[str]":
    """The probe of a registry."""
    return ["speech", "text"]


class Resources:
    """A right resource manager, in memory."""

    def __init__(self) -> None:
        self.workers: Dict[int, Dict[str, Any]] = {}
        self.lock = threading.RLock()

    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            self.workers[pid] = {"worker_type": worker_type, "status": "idle"}

    def unregister_worker(self, pid: int) -> None:
        with self.lock:
            self.workers.pop(pid, None)

    def update_worker_state(
        self,
        pid: int,
        status: Any = UNSET,
        job_id: Any = UNSET,
        plugin_name: Any = UNSET,
        plugin_id: Any = UNSET,
        loaded_plugin_resource: Any = UNSET,
        config: Any = UNSET,
    ) -> None:
        given = dict(status=status, job_id=job_id, plugin_name=plugin_name, plugin_id=plugin_id)
        given.update(loaded_plugin_resource=loaded_plugin_resource, config=config)
        self.store(pid, {name: value for name, value in given.items() if value is not UNSET})

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        """What most mutants get wrong."""
        with self.lock:
            if pid in self.workers:
                self.workers[pid].update(copy.deepcopy(fields))


def worker(manager: Any, pid: int) -> Any:
    """The probe of a resource manager."""
    return manager.workers.get(pid)


def frame(event_type: str, data: Any) -> str:
    """A server-sent event."""
    return f"event: {''.join(c for c in event_type if c.isprintable())}\ndata: {json.dumps(data)}\n\n"


class Hub:
    """A right broadcaster: a queue with a limit for each client, and events as they would be written to its connection."""

    LIMIT = 200

    def __init__(self) -> None:
        self.clients: "list[Page]" = []

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            client.queue.append(text)

    def connect(self) -> "Page":
        """A client."""
        page = Page(self, deque(maxlen=self.LIMIT))
        self.clients.append(page)
        return page

    def leave(self, page: "Page") -> None:
        """It goes."""
        if page in self.clients:
            self.clients.remove(page)


@dataclass(eq=False)
class Page:
    """A client, which reads server-sent events."""

    hub: Any
    queue: "deque[Any]"
    seen: "list[tuple[str, Any]]" = field(default_factory=list)

    def received(self) -> "list[tuple[str, Any]]":
        """The events so far, read from the text of the connection as a browser would."""
        while self.queue:
            fields: Dict[str, str] = {}
            for line in re.split("\r\n|\r|\n", self.queue.popleft()):
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                else:
                    if "data" in fields:
                        self.seen.append((fields.get("event", "message"), json.loads(fields["data"])))
                    fields = {}
        return self.seen

    def close(self) -> None:
        """It is closed."""
        self.hub.leave(self)


def connect(hub: Any) -> Any:
    """The probe of a broadcaster."""
    return hub.connect()


@dataclass
class Record:
    """What a job store has of a job."""

    job: StoredJob
    holder: str
    params: bytes
    result: "bytes | None" = None
    chunks: "Dict[int, bytes]" = field(default_factory=dict)
    cancel: bool = False


class JobStore:
    """A right job store, in memory; `again` opens the same jobs once more."""

    def __init__(self, records: "Dict[str, Record] | None" = None) -> None:
        self.records: Dict[str, Record] = {} if records is None else records
        self.managers: Dict[str, str] = {}  # The worker type of each, by name
        self.living: "set[str]" = set()
        self.lock = threading.RLock()
        self.place = 0

    def again(self) -> Any:
        return type(self)(self.records)

    def open(self, worker_type: str) -> str:
        with self.lock:
            name = f"manager-{len(self.managers) + 1}"
            self.managers[name] = worker_type
            self.living.add(name)
            return name

    def close(self, manager: str) -> None:
        with self.lock:
            self.living.discard(manager)

    def write(self, manager: str, added: Any, moved: Any, ended: Any, chunks: Any) -> Written:
        with self.lock:
            answer = Written({}, {}, [])
            for job in added:
                self.add(manager, job, answer)
            self.change(manager, moved, ended, answer)
            for chunk in chunks:
                self.keep(self.records[chunk.id], chunk)
            return answer

    def add(self, manager: str, job: NewJob, answer: Written) -> None:
        worker_type = self.managers[manager]
        known = self.with_key(worker_type, job)
        if known is not None:
            answer.existing[job.id] = known
        else:
            self.place += 1
            answer.places[job.id] = self.place
            given = {name: value for name, value in job._asdict().items() if name != "params"}
            stored = StoredJob(worker_type=worker_type, status="pending", place=self.place, **given)
            self.records[job.id] = Record(stored, manager, job.params)

    def with_key(self, worker_type: str, job: NewJob) -> "StoredJob | None":
        mine = [r.job for r in self.records.values() if r.job.key is not None and r.job.worker_type == worker_type]
        return next((known for known in mine if (known.key, known.owner) == (job.key, job.owner)), None)

    def change(self, manager: str, moved: Any, ended: Any, answer: Written) -> None:
        for move in moved:
            if self.held(manager, move.id, answer):
                self.set(move.id, status=move.status, attempts=move.attempts, started=move.started)
        for end in ended:
            if self.held(manager, end.id, answer):
                self.set(end.id, status=end.status, ended=end.ended, error=end.error)
                self.records[end.id].result = end.result

    def held(self, manager: str, id: str, answer: Written) -> bool:
        record = self.records.get(id)
        fine = record is not None and record.holder == manager and record.job.ended is None
        if not fine:
            answer.refused.append(id)
        return fine

    def set(self, id: str, **fields: Any) -> None:
        self.records[id].job = self.records[id].job._replace(**fields)

    def keep(self, record: Record, chunk: Any) -> None:
        record.chunks[chunk.number] = chunk.data
        for number in [number for number in record.chunks if number <= chunk.number - chunk.keep]:
            del record.chunks[number]

    def claim(self, manager: str) -> List[StoredJob]:
        with self.lock:
            found = self.orphans(manager)
            for record in found:
                record.holder = manager
            return [record.job for record in found]

    def orphans(self, manager: str) -> "List[Record]":
        mine = [r for r in self.records.values() if r.job.worker_type == self.managers[manager] and r.job.ended is None]
        return sorted((r for r in mine if r.holder not in self.living), key=lambda r: r.job.place)

    def cancellations(self, manager: str) -> List[str]:
        with self.lock:
            return [id for id, r in self.records.items() if r.cancel and r.holder == manager and r.job.ended is None]

    def read(self, worker_type: str, job_ids: List[str]) -> List[StoredJob]:
        with self.lock:
            found = [self.records[id].job for id in job_ids if id in self.records]
            return [job for job in found if job.worker_type == worker_type]

    def select(
        self,
        worker_type: str,
        status: Optional[str] = None,
        plugin_id: Optional[str] = None,
        owner: Optional[str] = None,
        limit: int = 100,
        before: Optional[str] = None,
    ) -> List[StoredJob]:
        with self.lock:
            wanted = {"worker_type": worker_type, "status": status, "plugin_id": plugin_id, "owner": owner}
            return self.selected({name: value for name, value in wanted.items() if value is not None}, limit, before)

    def selected(self, wanted: "Dict[str, Any]", limit: int, before: Optional[str]) -> List[StoredJob]:
        if before is not None and before not in self.records:
            return []
        end = float("inf") if before is None else self.records[before].job.place
        jobs = sorted((r.job for r in self.records.values() if r.job.place < end), key=lambda job: -job.place)
        return [job for job in jobs if all(getattr(job, name) == value for name, value in wanted.items())][:limit]

    def payload(self, job_id: str) -> Any:
        with self.lock:
            record = self.records.get(job_id)
            return None if record is None else (record.params, record.result)

    def chunks(self, job_id: str, start: int = 0) -> Any:
        with self.lock:
            kept = self.records[job_id].chunks if job_id in self.records else {}
            return [(number, kept[number]) for number in sorted(kept) if number >= start]

    def request_cancel(self, job_id: str) -> None:
        with self.lock:
            if job_id in self.records:
                self.records[job_id].cancel = True

    def forget(self, job_ids: List[str]) -> None:
        with self.lock:
            for id in job_ids:
                self.records.pop(id, None)


def reopened(store: Any) -> Any:
    """The probe of a job store."""
    return store.again()


PROBES: "dict[str, Callable[..., Any]]" = {"registry": categories, "resources": worker, "events": connect, "store": reopened}
RIGHT: "dict[str, Callable[[], Any]]" = {"registry": Registry, "resources": Resources, "events": Hub, "store": JobStore}


# What a mutant is


@dataclass(frozen=True)
class Mutant:
    """An implementation that breaks one rule."""

    name: str
    id: str
    factory: Callable[[], Any]
    probe: "Callable[..., Any]"
    deep: bool = False

    @property
    def protocol(self) -> str:
        """The short name of its protocol."""
        return self.id.partition(".")[0]

    def check(self) -> Report:
        """What the kit says of it, without waiting for long."""
        with limited(1.0, workers=4_000 if self.id == "resources.leaves_nothing" else 400):
            if not self.deep:
                return check(self.factory, self.protocol, probe=self.probe)
            from cjm_worker_protocols.conformance.search import Search

            seconds, Search.SECONDS = Search.SECONDS, 15.0  # on a busy machine; a search has a limit of runs too
            try:
                return check(self.factory, self.protocol, probe=self.probe, deep=True)
            finally:
                Search.SECONDS = seconds


@contextmanager
def limited(seconds: float, workers: int = 10_000) -> "Iterator[None]":
    """Let a call hang for less than the 5 s that the kit gives it, an event be late for half of that, and fewer workers come and go."""
    before = Limits.CALL, Limits.EVENT, leaks.WORKERS
    try:
        Limits.CALL, Limits.EVENT, leaks.WORKERS = seconds, seconds / 2, workers
        yield
    finally:
        Limits.CALL, Limits.EVENT, leaks.WORKERS = before


MUTANTS: "dict[str, Mutant]" = {}


def mutant(id: str, deep: bool = False) -> "Callable[[Any], Any]":
    """Put a class, or a function that makes an implementation, among the mutants."""

    def keep(factory: Any) -> Any:
        assert factory.__name__ not in MUTANTS, factory.__name__
        MUTANTS[factory.__name__] = Mutant(factory.__name__, id, factory, PROBES[id.partition(".")[0]], deep)
        return factory

    return keep


# Registries: their shape


@mutant("registry.get_plugins_by_category.present")
class ListingHasAnotherName:
    def list_plugins_by_category(self, category: Any) -> List[Any]:
        return []

    def get_plugin(self, plugin_id: str) -> Any: ...

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return {}


@mutant("registry.get_plugins_by_category.manager_call")
class ListingTakesNothing(Registry):
    def get_plugins_by_category(self) -> List[Any]:  # type: ignore[override]
        return []


@mutant("registry.get_plugins_by_category.sync")
class ListingIsACoroutine(Registry):
    async def get_plugins_by_category(self, category: Any) -> List[Any]:  # type: ignore[override]
        return super().get_plugins_by_category(category)


@mutant("registry.get_plugins_by_category.sync")
class ListingIsAGenerator(Registry):
    def get_plugins_by_category(self, category: Any) -> Iterable[Any]:  # type: ignore[override]
        yield from super().get_plugins_by_category(category)


@mutant("registry.get_plugins_by_category.every_call")
class CategoryIsRenamed(Registry):
    def get_plugins_by_category(self, cat: Any) -> List[Any]:
        return super().get_plugins_by_category(cat)


@mutant("registry.get_plugin.present")
class GetPluginIsInherited(PluginRegistryProtocol):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return []

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return {}


@mutant("registry.get_plugin.present")
class GetPluginIsADict(Registry):
    get_plugin: Any = {}


@mutant("registry.get_plugin.present")
class GetPluginIsAPropertyThatRaises(Registry):
    @property
    def get_plugin(self) -> Any:
        raise RuntimeError("not connected")


@mutant("registry.get_plugin.manager_call")
class GetPluginIsByKeywordOnly(Registry):
    def get_plugin(self, *, plugin_id: str) -> Any:
        return super().get_plugin(plugin_id)


@mutant("registry.get_plugin.manager_call")
class GetPluginNeedsAVersion(Registry):
    def get_plugin(self, plugin_id: str, version: str) -> Any:  # type: ignore[override]
        return super().get_plugin(plugin_id)


@mutant("registry.get_plugin.sync")
class GetPluginGivesAFuture(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return Later(super().get_plugin(plugin_id))


class Later:
    """Something that has to be awaited."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


@mutant("registry.get_plugin.sync")
class GetPluginIsLeftToAThread(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        future: "Future[Any]" = Future()
        future.set_result(super().get_plugin(plugin_id))
        return future


@mutant("registry.get_plugin.every_call")
class PluginIdIsRenamed(Registry):
    def get_plugin(self, unique_id: str) -> Any:
        return super().get_plugin(unique_id)


@mutant("registry.get_plugin.every_call")
def get_plugin_of_a_dict() -> Any:
    registry = Registry()
    registry.get_plugin = registry.plugins.get  # type: ignore[method-assign,assignment]
    return registry


@mutant("registry.load_plugin_config.present")
class LoadConfigIsMissing:
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return []

    def get_plugin(self, plugin_id: str) -> Any: ...


@mutant("registry.load_plugin_config.manager_call")
class LoadConfigNeedsADefault(Registry):
    def load_plugin_config(self, plugin_id: str, default: Any) -> Dict[str, Any]:  # type: ignore[override]
        return self.configs.get(plugin_id, default)


@mutant("registry.load_plugin_config.sync")
class LoadConfigIsAnAsyncGenerator(Registry):
    async def load_plugin_config(self, plugin_id: str) -> Any:  # type: ignore[override]
        yield super().load_plugin_config(plugin_id)


@mutant("registry.load_plugin_config.every_call")
class LoadConfigHasALyingSignature(Registry):
    @functools.wraps(Registry.load_plugin_config)
    def load_plugin_config(self, *args: Any) -> Dict[str, Any]:
        return super().load_plugin_config(*args)


@mutant("registry.load_plugin_config.every_call")
class LoadConfigIsByPositionOnly(Registry):
    def load_plugin_config(self, plugin_id: str, /) -> Dict[str, Any]:  # type: ignore[override]
        return super().load_plugin_config(plugin_id)


@mutant("registry.get_plugins_by_category.lands")
class CategoryByNameIsLost(Registry):
    def get_plugins_by_category(self, *args: Any, **kwargs: Any) -> List[Any]:
        return super().get_plugins_by_category(args[0] if args else kwargs.get("name"))


@mutant("registry.get_plugin.lands")
class PluginIdByNameIsLost(Registry):
    def get_plugin(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_plugin(args[0] if args else kwargs.get("id", ""))


@mutant("registry.load_plugin_config.lands")
class ConfigByNameIsLost(Registry):
    def load_plugin_config(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        return super().load_plugin_config(args[0] if args else kwargs.get("id", ""))


# Registries: what they do not know


@mutant("registry.unknown_id")
class UnknownIdRaises(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins[plugin_id]


@mutant("registry.unknown_id")
class UnknownIdIsAnEmptyDict(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins.get(plugin_id, {})


@mutant("registry.unknown_id")
class UnknownIdEndsTheProgram(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins[plugin_id] if plugin_id in self.plugins else sys.exit(f"unknown plugin {plugin_id}")


@mutant("registry.unknown_config")
class UnknownConfigIsNone(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return copy.deepcopy(self.configs.get(plugin_id))


@mutant("registry.unknown_config")
class UnknownConfigRaises(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return copy.deepcopy(self.configs[plugin_id]) if plugin_id != "llama" else {}


@mutant("registry.unknown_category")
class UnknownCategoryIsNone(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return super().get_plugins_by_category(category) or None


@mutant("registry.unknown_category")
class UnknownCategoryRaises(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        if not (found := super().get_plugins_by_category(category)):
            raise LookupError(f"no category {category!r}")
        return found


@mutant("registry.unknown_category")
class UnknownCategoryIsAll(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return super().get_plugins_by_category(category) or list(self.plugins.values())


# Registries: what they know


@mutant("registry.gives_a_list")
class ListingIsATuple(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return tuple(super().get_plugins_by_category(category)) or []


@mutant("registry.gives_a_list")
class ListingIsAView(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return {m.id: m for m in self.plugins.values()}.values() if category == "speech" else []


@mutant("registry.gives_a_list")
class ListingIsADict(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return {m.id: m for m in super().get_plugins_by_category(category)} or []


@mutant("registry.known_category")
class KnownCategoryIsNone(Registry):
    """Somebody forgot to return what was found."""

    def get_plugins_by_category(self, category: Any) -> Any:
        if not super().get_plugins_by_category(category):
            return []


@mutant("registry.known_category")
class KnownCategoryIsLeftToACoroutine(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return self.read(category) if super().get_plugins_by_category(category) else []

    async def read(self, category: Any) -> List[Any]:
        """What it should have done at once."""
        return super().get_plugins_by_category(category)


@mutant("registry.known_category")
class KnownCategoryCannotBeGoneThrough(Registry):
    def get_plugins_by_category(self, category: Any) -> Any:
        return (self.configs[m.id] and m for m in self.plugins.values() if m.category == category) if category == "text" else []


@mutant("registry.any_category")
class CategoryMustBeAString(Registry):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return super().get_plugins_by_category(category.lower())


@mutant("registry.any_category")
class CategoryMustSort(Registry):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [m for m in self.plugins.values() if sorted([m.category, category])[0] == sorted([m.category, category])[1]]


@mutant("registry.metadata_id")
class MetadataTellNoId(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.plugins = {name: {"key": name, "name": name, "category": m.category} for name, m in self.plugins.items()}  # type: ignore[misc]

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [m for m in self.plugins.values() if m["category"] == category]  # type: ignore[index]


class NeedsAKey:
    """Metadata whose id needs an argument."""

    def get_unique_id(self, salt: str) -> str:
        return salt


@mutant("registry.metadata_id")
class IdsCannotBeRead(Registry):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [NeedsAKey() for _ in super().get_plugins_by_category(category)]


@mutant("registry.unique_ids")
class TwoPluginsHaveOneId(Registry):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        found = super().get_plugins_by_category(category)
        return [*found, Meta("whisper", "Whisper, again", "speech")] if category == "speech" else found


@mutant("registry.unique_ids")
class TwoCategoriesHaveOneId(Registry):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        found = super().get_plugins_by_category(category)
        return [*found, Meta("whisper", "Whispering Llama", "text")] if category == "text" else found


@mutant("registry.unique_ids")
class IdsAreNamesInACategory(Registry):
    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [Meta("default", "Default", category)] if category in ("speech", "text") else []

    def get_plugin(self, plugin_id: str) -> Any:
        return Meta("default", "Default", "speech") if plugin_id == "default" else None


@mutant("registry.known_id")
class PluginsAreFoundByName(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return next((m for m in self.plugins.values() if m.name == plugin_id), None)


@mutant("registry.known_id")
class EveryIdFindsTheSamePlugin(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins["whisper"] if plugin_id in self.plugins else None


@mutant("registry.metadata_name")
class PluginsHaveNoName(Registry):
    def __init__(self) -> None:
        super().__init__()
        for meta in self.plugins.values():
            meta.name = None


@mutant("registry.metadata_name")
class IsConfiguredIsAMethod(Registry):
    def __init__(self) -> None:
        super().__init__()
        for meta in self.plugins.values():
            meta.is_configured = self.configured

    def configured(self) -> bool:
        """It is never called."""
        return False


@mutant("registry.known_id")
class KnownIdIsLeftToACoroutine(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return self.read(plugin_id) if plugin_id in self.plugins else None

    async def read(self, plugin_id: str) -> Any:
        """What it should have done at once."""
        return self.plugins[plugin_id]


# Registries: what they hand out


@mutant("registry.list_is_the_callers")
class ListIsTheRegistrys(Registry):
    def __init__(self) -> None:
        super().__init__()
        listed = super().get_plugins_by_category
        self.lists: Dict[Any, List[Any]] = {name: listed(name) for name in ("speech", "text")}

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return self.lists.get(category, [])


@mutant("registry.list_is_the_callers")
class NothingIsOneList(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.nothing: List[Any] = []

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return super().get_plugins_by_category(category) or self.nothing


@mutant("registry.list_is_the_callers")
class EachListingAddsToTheLast(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.listed: List[Any] = []

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        if category == "text":
            self.listed += super().get_plugins_by_category(category)[:1]
            return list(self.listed)
        return super().get_plugins_by_category(category)


@mutant("registry.config_is_a_dict")
class ConfigIsAnObject(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return Meta(plugin_id, "", "") if plugin_id in self.plugins else {}


@mutant("registry.config_is_a_dict")
class KnownConfigIsLeftToACoroutine(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return self.read(plugin_id) if plugin_id in self.plugins else {}

    async def read(self, plugin_id: str) -> Dict[str, Any]:
        """What it should have done at once."""
        return super().load_plugin_config(plugin_id)


@mutant("registry.config_is_a_dict")
class ConfigHasNumbersForKeys(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return {1: "one"} if plugin_id in self.plugins else {}


@mutant("registry.config_can_be_sent")
class ConfigHoldsALock(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return {"lock": threading.Lock()} if plugin_id in self.plugins else {}


@mutant("registry.config_can_be_sent")
class ConfigHoldsAGenerator(Registry):
    def load_plugin_config(self, plugin_id: str) -> Any:
        return {"words": (word for word in ["yes"])} if plugin_id in self.plugins else {}


@mutant("registry.config_is_the_callers")
class ConfigIsTheRegistrys(Registry):
    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return self.configs.get(plugin_id, {})


@mutant("registry.config_is_the_callers")
class ConfigIsCopiedOnTopOnly(Registry):
    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return dict(self.configs.get(plugin_id, {}))


@mutant("registry.config_is_the_callers")
class ConfigIsSharedDeepDown(Registry):
    DEEP = {"decoder": {"search": {"paths": ["a"]}}}

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return {"decoder": dict(self.DEEP["decoder"])} if plugin_id == "whisper" else {}

    def __init__(self) -> None:
        super().__init__()
        self.DEEP = copy.deepcopy(self.DEEP)


@mutant("registry.config_is_the_callers")
class NoConfigIsOneDict(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.nothing: Dict[str, Any] = {}

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return super().load_plugin_config(plugin_id) or self.nothing


@mutant("registry.list_is_the_callers")
class FirstListIsKept(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.lists: Dict[Any, List[Any]] = {}

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        if category in self.lists:
            return list(self.lists[category])
        self.lists[category] = super().get_plugins_by_category(category)
        return self.lists[category]


@mutant("registry.config_can_be_sent")
class ConfigIsOfALocalClass(Registry):
    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        class Config(Dict[str, Any]): ...

        return Config(super().load_plugin_config(plugin_id))


@mutant("registry.config_is_the_callers")
class ConfigFromTheCacheIsShared(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.cache: Dict[str, Dict[str, Any]] = {}

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        if plugin_id in self.cache:
            return self.cache[plugin_id]
        config = self.cache[plugin_id] = super().load_plugin_config(plugin_id)
        return copy.deepcopy(config)


@mutant("registry.config_is_the_callers")
class ConfigIsSharedInATuple(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.configs["whisper"]["stages"] = (["load", "run"],)

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        shared = self.configs.get(plugin_id, {})
        return {key: value if isinstance(value, tuple) else copy.deepcopy(value) for key, value in shared.items()}


# Registries: ids from outside, and threads


@mutant("registry.hostile_ids")
class IdsArePaths(Registry):
    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        try:
            return dict(json.loads((Path(__file__).parent / plugin_id / "config.json").read_text()))
        except (OSError, ValueError):
            return super().load_plugin_config(plugin_id)


@mutant("registry.hostile_ids")
class IdsAreResolvedPaths(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return super().get_plugin(Path(plugin_id).name if plugin_id[:1] == "." else plugin_id)


class InFiles(Registry):
    """It reads configurations that are there."""

    folder = Path(__file__).parent

    def refused(self, plugin_id: str) -> bool:
        """What each of them forgets something of."""
        raise NotImplementedError

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        if plugin_id in self.plugins or self.refused(plugin_id):
            return super().load_plugin_config(plugin_id)
        try:
            return next((dict(json.loads(path.read_text())) for path in self.paths(plugin_id) if path.exists()), {})
        except (OSError, ValueError):
            return {}

    def paths(self, plugin_id: str) -> "list[Path]":
        """Where one may be."""
        return [self.folder / f"{plugin_id}.json"]


@mutant("registry.hostile_ids")
class IdsFromTheRootAreRead(InFiles):
    def refused(self, plugin_id: str) -> bool:
        return ".." in plugin_id or plugin_id.startswith(".")


@mutant("registry.hostile_ids")
class IdsThatGoUpAreRead(InFiles):
    def refused(self, plugin_id: str) -> bool:
        return plugin_id.startswith("/")

    def paths(self, plugin_id: str) -> "list[Path]":
        return [self.folder / plugin_id / name for name in ("plugin.json", "config.json")]


@mutant("registry.hostile_ids")
class IdsThatGoUpInTheMiddleAreRead(InFiles):
    def refused(self, plugin_id: str) -> bool:
        return plugin_id.startswith(("/", ".."))

    def paths(self, plugin_id: str) -> "list[Path]":
        return [self.folder / plugin_id]


@mutant("registry.hostile_ids")
class FilesOutsideArePlugins(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        with suppress(ValueError, OSError):
            if Path(__file__).parent.joinpath(f"{plugin_id}.toml").is_file():
                return Meta("a file", "A file", "speech")
        return super().get_plugin(plugin_id)


@mutant("registry.hostile_ids")
class IdsAreStatements(Registry):
    """As it is with a text that is put together."""

    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins["whisper"] if "' OR 1=1" in plugin_id else super().get_plugin(plugin_id)


@mutant("registry.hostile_ids")
class IdsMustBeText(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return super().get_plugin(plugin_id.encode().decode())


@mutant("registry.hostile_ids")
class LongIdsRaise(Registry):
    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        if len(plugin_id) > 255:
            raise OSError(36, "File name too long")
        return super().load_plugin_config(plugin_id)


@mutant("registry.threads")
class OneThreadOnly(Registry):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def get_plugin(self, plugin_id: str) -> Any:
        if threading.get_ident() != self.thread:
            raise RuntimeError("objects created in a thread can only be used in that same thread")
        return super().get_plugin(plugin_id)


@mutant("registry.threads")
class WhoComesSecondFindsHalf(Registry):
    """It reads its plugins when it is first asked."""

    def __init__(self) -> None:
        super().__init__()
        self.installed, self.plugins = self.plugins, {}
        self.read = False

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        self.load()
        return [m for m in list(self.plugins.values()) if m.category == category]

    def get_plugin(self, plugin_id: str) -> Any:
        self.load()
        return super().get_plugin(plugin_id)

    def load(self) -> None:
        """Once."""
        if not self.read:
            self.read = True
            for plugin_id, m in self.installed.items():
                time.sleep(0.001)
                self.plugins[plugin_id] = m


@mutant("registry.threads")
class AnswersAreShared(Registry):
    answer: Any = None

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        self.answer = super().load_plugin_config(plugin_id)
        time.sleep(0.001)
        return dict(self.answer)


@mutant("registry.hostile_ids")
class IdsAreModules(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        with suppress(Exception):
            return super().get_plugin(plugin_id) or importlib.import_module(plugin_id)


@mutant("registry.hostile_ids")
class IdsAreAttributes(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        return super().get_plugin(plugin_id) or getattr(Registry, plugin_id, None)


@mutant("registry.hostile_ids")
class IdsArePatterns(Registry):
    """Like `where id like ?`."""

    def get_plugin(self, plugin_id: str) -> Any:
        like = re.compile(re.escape(plugin_id).replace("%", ".*"))
        return next((m for id, m in self.plugins.items() if like.fullmatch(id)), None)


# Resource managers: their shape


@mutant("resources.register_worker.present")
class RegisterHasAnotherName(Resources):
    register_worker: Any = None

    def add_worker(self, pid: int, worker_type: str) -> None: ...


@mutant("resources.register_worker.present")
class RegisterIsMissing:
    def register_workers(self, pids: "list[int]") -> None: ...

    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, **fields: Any) -> None: ...


@mutant("resources.register_worker.manager_call")
class WorkerTypeIsRenamed(Resources):
    def register_worker(self, pid: int, kind: str) -> None:
        super().register_worker(pid, kind)


@mutant("resources.register_worker.manager_call")
class RegisterRaises(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        raise ProcessLookupError(f"no process {pid}")


@mutant("resources.register_worker.sync")
class RegisterIsACoroutine(Resources):
    async def register_worker(self, pid: int, worker_type: str) -> None:  # type: ignore[override]
        super().register_worker(pid, worker_type)


@mutant("resources.register_worker.every_call")
class RegisterHasAnotherOrder(Resources):
    def register_worker(self, worker_type: str, pid: int) -> None:  # type: ignore[override]
        super().register_worker(pid, worker_type)


@mutant("resources.register_worker.every_call")
class RegisterIsByKeywordOnly(Resources):
    def register_worker(self, *, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)


@mutant("resources.unregister_worker.present")
class UnregisterIs42(Resources):
    unregister_worker: Any = 42


@mutant("resources.unregister_worker.manager_call")
class UnregisterNeedsAReason(Resources):
    def unregister_worker(self, pid: int, reason: str) -> None:  # type: ignore[override]
        super().unregister_worker(pid)


@mutant("resources.unregister_worker.manager_call")
class UnregisterIsByKeywordOnly(Resources):
    def unregister_worker(self, *, pid: int) -> None:
        super().unregister_worker(pid)


@mutant("resources.unregister_worker.sync")
class UnregisterIsAGenerator(Resources):
    def unregister_worker(self, pid: int) -> Any:
        yield super().unregister_worker(pid)


@mutant("resources.unregister_worker.every_call")
class UnregisterHasARename(Resources):
    def unregister_worker(self, worker_pid: int) -> None:
        super().unregister_worker(worker_pid)


@mutant("resources.update_worker_state.present")
class UpdateIsInherited(ResourceManagerProtocol):
    def register_worker(self, pid: int, worker_type: str) -> None: ...

    def unregister_worker(self, pid: int) -> None: ...


@mutant("resources.update_worker_state.manager_call")
class StatusIsRenamed(Resources):
    def update_worker_state(self, pid: int, state: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        super().update_worker_state(pid, state, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)


@mutant("resources.update_worker_state.manager_call")
class ConfigIsMissing(Resources):
    def update_worker_state(self, pid: int, status: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET) -> None:  # type: ignore[override]  # fmt: skip
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource)


@mutant("resources.update_worker_state.manager_call")
class UpdateRaisesInside(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        self.workers[pid]["memory"] += 1


@mutant("resources.update_worker_state.sync")
class UpdateIsACoroutine(Resources):
    async def update_worker_state(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        super().update_worker_state(*args, **kwargs)


@mutant("resources.update_worker_state.every_call")
class UpdateHasAnotherOrder(Resources):
    def update_worker_state(self, pid: int, job_id: Any = UNSET, status: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)


@mutant("resources.update_worker_state.every_call")
class UpdateIsByKeywordOnly(Resources):
    def update_worker_state(self, pid: int, *, status: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)


@mutant("resources.update_worker_state.every_call")
class StatusHasNoDefault(Resources):
    def update_worker_state(self, pid: int, status: Any, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)


def guarded(method: Callable[..., Any]) -> Any:
    """A decorator as people write them: its signature is that of the method, and is not true."""

    @functools.wraps(method)
    def wrapper(self: Any, pid: int, **fields: Any) -> None:
        if pid > 0:
            method(self, pid, **fields)

    return wrapper


@mutant("resources.update_worker_state.every_call")
class UpdateHasALyingSignature(Resources):
    update_worker_state = guarded(Resources.update_worker_state)


@mutant("resources.update_worker_state.lands")
class UpdateForwardsInAnotherOrder(Resources):
    def update_worker_state(self, pid: int, *args: Any, **fields: Any) -> None:
        names = ("status", "job_id", "plugin_id", "plugin_name", "loaded_plugin_resource", "config")
        self._tell(pid, **dict(zip(names, args)), **fields)

    def _tell(self, pid: int, status: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
              loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)


@mutant("resources.register_worker.lands")
class RegisterByPositionIsLost(Resources):
    def register_worker(self, *args: Any, **kwargs: Any) -> None:
        if kwargs:
            super().register_worker(**kwargs)


@mutant("resources.register_worker.lands")
class WorkerTypeByPositionIsLost(Resources):
    def register_worker(self, pid: int, *args: Any, **kwargs: Any) -> None:
        super().register_worker(pid, kwargs.get("worker_type", "unknown"))


@mutant("resources.unregister_worker.lands")
class UnregisterByNameIsLost(Resources):
    def unregister_worker(self, *args: Any, **kwargs: Any) -> None:
        for pid in args:
            super().unregister_worker(pid)


@mutant("resources.update_worker_state.lands")
class UpdatesByPositionAreLost(Resources):
    def update_worker_state(self, pid: int, *args: Any, **kwargs: Any) -> None:
        super().update_worker_state(pid, **kwargs)


@mutant("resources.update_worker_state.lands")
class TheLastByPositionIsLost(Resources):
    def update_worker_state(self, pid: int, *args: Any, **kwargs: Any) -> None:
        super().update_worker_state(pid, *args[:5], **kwargs)


# Resource managers: updates


@mutant("resources.snapshot")
class PluginsAreMixedUp(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if "plugin_name" in fields and "plugin_id" in fields:
            fields = {**fields, "plugin_name": fields["plugin_id"], "plugin_id": fields["plugin_name"]}
        super().store(pid, fields)


@mutant("resources.snapshot")
class StatusIsNeverTaken(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value for name, value in fields.items() if name != "status"})


@mutant("resources.snapshot")
class ConfigIsDroppedWhenIdle(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {**fields, "config": {}} if fields.get("status") == "idle" else fields)


@mutant("resources.snapshot")
class ConfigIsDropped(Resources):
    """Its records have a config, which is always None."""

    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            self.workers[pid] = {"worker_type": worker_type, "status": "idle", "config": None}

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value for name, value in fields.items() if name != "config"})


@mutant("resources.snapshot")
class StoppingIsIdle(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {**fields, "status": "idle"} if fields.get("status") == "stopping" else fields)


@mutant("resources.partial")
class OmittedIsCleared(Resources):
    def update_worker_state(self, pid: int, status: Optional[str] = None, job_id: Optional[str] = None,
                            plugin_name: Optional[str] = None, plugin_id: Optional[str] = None,
                            loaded_plugin_resource: Optional[str] = None, config: Any = None) -> None:  # fmt: skip
        super().update_worker_state(pid, status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)


@mutant("resources.partial")
class AJobWithoutAPluginClearsIt(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if "job_id" in fields:
            fields = {"plugin_id": None, **fields}
        super().store(pid, fields)


def cannot_clear(name: str) -> type:
    """A manager that writes `if name is not None`."""

    class CannotClear(Resources):
        def store(self, pid: int, fields: Dict[str, Any]) -> None:
            super().store(pid, {n: value for n, value in fields.items() if n != name or value is not None})

    CannotClear.__name__ = CannotClear.__qualname__ = f"CannotClear_{name}"
    return CannotClear


for _name in ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config"):
    mutant(f"resources.clear.{_name}")(cannot_clear(_name))


@mutant("resources.clear.config")
class ClearedConfigIsEmpty(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {**fields, "config": fields["config"] or {}} if "config" in fields else fields)


@mutant("resources.empty_values")
class EmptyIsMissing(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value for name, value in fields.items() if value or value is None})


@mutant("resources.empty_values")
class EmptyConfigIsNone(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value if value != {} else None for name, value in fields.items()})


@mutant("resources.config_is_copied")
class ConfigIsLive(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if pid in self.workers:
            self.workers[pid].update(fields)


@mutant("resources.config_is_copied")
class ConfigIsLiveDeepDown(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if pid in self.workers:
            self.workers[pid].update({name: dict(value) if isinstance(value, dict) else value for name, value in fields.items()})


@mutant("resources.unknown_pid")
class UnknownPidRaises(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        self.workers[pid].update(copy.deepcopy(fields))


@mutant("resources.unknown_pid")
class UnknownPidIsMade(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        self.workers.setdefault(pid, {}).update(copy.deepcopy(fields))


@mutant("resources.partial")
class OnlySnapshotsAreTaken(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if len(fields) == 6:
            super().store(pid, fields)


@mutant("resources.partial")
class StatusAloneIsIgnored(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if list(fields) != ["status"]:
            super().store(pid, fields)


@mutant("resources.clear.job_id")
class NoneAloneDoesNotClear(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if len(fields) == 6 or fields.get("job_id", "") is not None:
            super().store(pid, fields)


@mutant("resources.snapshot")
class TextsAreCut(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value[:20] if isinstance(value, str) else value for name, value in fields.items()})


@mutant("resources.snapshot")
class TextsAreLowered(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value.lower() if isinstance(value, str) else value for name, value in fields.items()})


@mutant("resources.empty_values")
class EmptyAloneIsIgnored(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, fields if len(fields) == 6 else {name: value for name, value in fields.items() if value or value is None})


@mutant("resources.config_is_copied")
class ConfigIsTakenApart(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, fields)
        (fields.get("config") or {}).pop("options", None)


# Resource managers: workers come and go


@mutant("resources.register_replaces")
class RegisterKeepsTheOldRecord(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        self.workers.setdefault(pid, {"worker_type": worker_type})


@mutant("resources.register_replaces")
class RegisterRefusesTheSamePid(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        if "plugin_id" in self.workers.get(pid, {}):
            raise ValueError(f"worker {pid} is registered already")
        super().register_worker(pid, worker_type)


@mutant("resources.unregister_forgets")
class UnregisterOnlyMarks(Resources):
    def unregister_worker(self, pid: int) -> None:
        if pid in self.workers:
            self.workers[pid]["status"] = "gone"


@mutant("resources.unregister_idempotent")
class UnregisterDeletes(Resources):
    def unregister_worker(self, pid: int) -> None:
        del self.workers[pid]


@mutant("resources.unregister_idempotent")
class UnregisterRaisesForStrangers(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.known: "set[int]" = set()

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.known = {*list(self.known)[-50:], pid}

    def unregister_worker(self, pid: int) -> None:
        if pid not in self.known:
            raise LookupError(f"worker {pid} was never registered")
        super().unregister_worker(pid)


@mutant("resources.reused_pid")
class JobsOutliveTheirWorker(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.gone: "deque[tuple[int, Dict[str, Any]]]" = deque(maxlen=10)

    def unregister_worker(self, pid: int) -> None:
        with self.lock:
            if record := self.workers.pop(pid, None):
                self.gone.append((pid, record))

    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            old = {} if pid in self.workers else dict(self.gone).get(pid, {})
            self.workers[pid] = {"worker_type": worker_type, **old}


@mutant("resources.workers_are_apart")
class WorkersShareARecord(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.record: Dict[str, Any] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.record.clear()
        self.workers[pid] = self.record


@mutant("resources.workers_are_apart")
class AWorkerTakesAllAlong(Resources):
    def unregister_worker(self, pid: int) -> None:
        if pid in self.workers:
            self.workers.clear()


@mutant("resources.threads")
class TheTableIsWrittenAnew(Resources):
    """It is never half written, but what another thread wrote meanwhile is lost."""

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.workers = {**self.others(pid), pid: {"worker_type": worker_type, "status": "idle"}}

    def unregister_worker(self, pid: int) -> None:
        self.workers = self.others(pid)

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        self.workers.get(pid, {}).update(copy.deepcopy(fields))

    def others(self, pid: int) -> Dict[int, Dict[str, Any]]:
        """All but one."""
        return {other: known for other, known in list(self.workers.items()) if other != pid}


@mutant("resources.threads")
class WhoIsMeantIsKept(Resources):
    """What one call needs is kept where all calls can see it."""

    current = 0

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        self.current = pid
        for name, value in reversed(copy.deepcopy(fields).items()):
            self.workers.get(self.current, {})[name] = value


@mutant("resources.threads")
class TablesAreCopiedAndPutBack(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        table = dict(self.workers)
        if threading.current_thread().name != "conformance":
            time.sleep(0.001)
        self.workers = {**table, pid: {"worker_type": worker_type}}


@mutant("resources.threads")
class OneThreadMayTell(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError("objects created in a thread can only be used in that same thread")
        super().store(pid, fields)


@mutant("resources.leaves_nothing")
class PidsAreLogged(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.log: List[str] = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.log.append(f"worker {pid} is there")


@mutant("resources.leaves_nothing")
class EachWorkerIsSeenToAtTheEnd(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        atexit.register(int, pid)


@mutant("resources.leaves_nothing")
class PidsAreKeptInAnArray(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.pids = array("i")

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.pids.append(pid)


@mutant("resources.leaves_nothing")
class PidsAreKeptInBytes(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.pids = bytearray()

    def unregister_worker(self, pid: int) -> None:
        super().unregister_worker(pid)
        self.pids += pid.to_bytes(4, "little")


@mutant("resources.leaves_nothing")
class ALogGrowsInMemory(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.log = io.StringIO()

    def unregister_worker(self, pid: int) -> None:
        super().unregister_worker(pid)
        print(pid, file=self.log)


@mutant("resources.leaves_nothing")
class LocksAreKept(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.locks: Dict[int, Any] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.locks.setdefault(pid, threading.Lock()):
            super().register_worker(pid, worker_type)


@mutant("resources.leaves_nothing")
class TheClassKeepsALog(Resources):
    log: List[Any] = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.log.append((pid, worker_type))


SEEN: List[Any] = []


def note(pid: int) -> None:
    """Remember it for ever."""
    SEEN.append(pid)


@mutant("resources.leaves_nothing")
class TheModuleKeepsALog(Resources):
    def unregister_worker(self, pid: int) -> None:
        super().unregister_worker(pid)
        note(pid)


@mutant("resources.leaves_nothing")
class UpdatesAreCounted(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.updates: Dict[int, int] = {}

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, fields)
        self.updates[pid] = self.updates.get(pid, 0) + 1


@mutant("resources.leaves_nothing")
class TheSameIsKeptAgainAndAgain(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.types: List[str] = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.types.append(worker_type)


@mutant("resources.leaves_nothing")
class ATextGrows(Resources):
    text = ""

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.text += f"{worker_type} worker {pid} is there\n"


@functools.lru_cache(maxsize=None)
def described(pid: int, worker_type: str) -> str:
    """For a log."""
    return f"{worker_type} worker {pid}"


@mutant("resources.leaves_nothing")
class ACacheHasNoLimit(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        described(pid, worker_type)


@mutant("resources.leaves_nothing")
class ThreadsWatchForEver(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.end = threading.Event()

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        threading.Thread(target=self.end.wait, args=(5,), daemon=True).start()

    def __del__(self) -> None:
        self.end.set()


@mutant("resources.leaves_nothing")
class FilesStayOpen(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.files: List[Any] = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.files.append(open(__file__))

    def __del__(self) -> None:
        for file in self.files:
            file.close()


@mutant("resources.any_sequence", deep=True)
class WhatIsNotRunningIsKept(Resources):
    """It keeps a worker that had no job for the next with that pid."""

    def __init__(self) -> None:
        super().__init__()
        self.old: Dict[int, Any] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.workers[pid].update(self.old.pop(pid, {}))

    def unregister_worker(self, pid: int) -> None:
        record = self.workers.pop(pid, {})
        if "job_id" not in record and "plugin_id" in record:
            self.old[pid] = record


@mutant("resources.register_replaces")
class StatusOutlivesTheRecord(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            status = self.workers.get(pid, {}).get("status", "idle")
            self.workers[pid] = {"worker_type": worker_type, "status": status}


@mutant("resources.register_replaces")
class TypeOutlivesTheRecord(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            self.workers[pid] = {"worker_type": self.workers.get(pid, {}).get("worker_type", worker_type), "status": "idle"}


@mutant("resources.reused_pid")
class LateNewsAreForTheNext(Resources):
    """An update that came before its worker is for that worker."""

    early: Any = (None, {})

    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            super().register_worker(pid, worker_type)
            if self.early[0] == pid:
                self.workers[pid].update(self.early[1])

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        with self.lock:
            self.early = (None, {}) if pid in self.workers else (pid, copy.deepcopy(fields))
            super().store(pid, fields)


@mutant("resources.leaves_nothing")
class LateNewsAreKept(Resources):
    def __init__(self) -> None:
        super().__init__()
        self.late: List[Any] = []

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if pid not in self.workers:
            self.late.append((pid, fields))
        super().store(pid, fields)


@mutant("resources.workers_are_apart")
class UnknownIsTheLast(Resources):
    def unregister_worker(self, pid: int) -> None:
        with self.lock:
            if pid not in self.workers and self.workers:
                self.workers.popitem()
            super().unregister_worker(pid)


@mutant("resources.workers_are_apart")
class UpdatesOfUnknownPidsGoToTheLast(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        with self.lock:
            super().store(pid if pid in self.workers else next(reversed(self.workers), 0), fields)


@mutant("resources.workers_are_apart")
class TheNewOneTakesTheJobs(Resources):
    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            for other in self.workers.values():
                other["job_id"] = None
            super().register_worker(pid, worker_type)


@mutant("resources.workers_are_apart")
class OneWorkerForAPlugin(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        with self.lock:
            for other in self.workers.values():
                if other.get("plugin_id") == fields.get("plugin_id", ""):
                    other["plugin_id"] = None
            super().store(pid, fields)


# Broadcasters: their shape


@mutant("events.broadcast.present")
class BroadcastIs42(Hub):
    broadcast: Any = 42


@mutant("events.broadcast.present")
class BroadcastIsInherited(EventBroadcasterProtocol):
    async def brodcast(self, event_type: str, data: Dict[str, Any]) -> None: ...


@mutant("events.broadcast.present")
class BroadcastHasAnotherName:
    async def broadcast_event(self, event_type: str, data: Dict[str, Any]) -> None: ...


@mutant("events.broadcast.manager_call")
class BroadcastTakesOneMessage(Hub):
    async def broadcast(self, message: Dict[str, Any]) -> None:  # type: ignore[override]
        await super().broadcast(message["event"], message["data"])


@mutant("events.broadcast.manager_call")
class BroadcastNeedsAChannel(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any], channel: str) -> None:  # type: ignore[override]
        await super().broadcast(event_type, data)


@mutant("events.broadcast.manager_call")
class BroadcastIsByKeywordOnly(Hub):
    async def broadcast(self, *, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)


@mutant("events.broadcast.manager_call")
class BroadcastHasAnotherOrder(Hub):
    async def broadcast(self, data: Dict[str, Any], event_type: str) -> None:  # type: ignore[override]
        await super().broadcast(event_type, data)


@mutant("events.broadcast.async")
class BroadcastIsSynchronous(Hub):
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:  # type: ignore[override]
        for client in self.clients:
            client.queue.append(frame(event_type, data))


@mutant("events.broadcast.async")
class BroadcastIsAnAsyncGenerator(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> Any:  # type: ignore[override]
        for client in self.clients:
            yield client.queue.append(frame(event_type, data))


@mutant("events.broadcast.async")
class BroadcastGivesANumber(Hub):
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> Any:
        for client in self.clients:
            client.queue.append(frame(event_type, data))
        return len(self.clients)


@mutant("events.broadcast.async")
class BroadcastIsAGenerator(Hub):
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> Any:
        for client in self.clients:
            yield client.queue.append(frame(event_type, data))


@mutant("events.broadcast.every_call")
class EventTypeIsRenamed(Hub):
    async def broadcast(self, event: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event, data)


@mutant("events.broadcast.every_call")
class DataAreByPositionOnly(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any], /) -> None:  # type: ignore[override]
        await super().broadcast(event_type, data)


@mutant("events.broadcast.lands")
class EventsByNameAreLost(Hub):
    async def broadcast(self, *args: Any, **kwargs: Any) -> None:
        if args:
            await super().broadcast(*args, **kwargs)


@mutant("events.broadcast.lands")
class DataByNameAreLost(Hub):
    async def broadcast(self, event_type: str, *args: Any, **kwargs: Any) -> None:
        await super().broadcast(event_type, args[0] if args else kwargs.get("payload", {}))


# Broadcasters: delivery


@mutant("events.nobody")
class NoClientIsAnError(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if not self.clients:
            raise ConnectionError("no clients")
        await super().broadcast(event_type, data)


@mutant("events.nobody")
class NoClientEndsTheProgram(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data) if self.clients else sys.exit("no clients")


@mutant("events.nobody")
class NoClientIsACancelledTask(Hub):
    """It has cancelled a task of its own, and awaits it."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        if not self.clients:
            task = asyncio.ensure_future(asyncio.sleep(1))
            task.cancel()
            await task


@mutant("events.nobody")
class WaitsForSomebody(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        while not self.clients and not event_type.startswith("kit"):
            await asyncio.sleep(0.01)
        await super().broadcast(event_type, data)


@mutant("events.delivered")
class NothingIsDelivered(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        frame(event_type, data)


@mutant("events.delivered")
class NoneIsDropped(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, {name: value for name, value in data.items() if value is not None})


@mutant("events.delivered")
class TypesAreCut(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type.removeprefix("job:"), data)


@mutant("events.order")
class NewestFirst(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        for client in self.clients:
            client.queue.appendleft(frame(event_type, data))


@mutant("events.order")
class OnlyTheNewest(Hub):
    LIMIT = 1


@mutant("events.order")
class EachComesTwice(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        await super().broadcast(event_type, data)


@mutant("events.order")
class OneInFiftyIsLost(Hub):
    sent = 0

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.sent += 1
        if self.sent % 50:
            await super().broadcast(event_type, data)


@mutant("events.order")
class UrgentComesFirst(Hub):
    """The end of a job goes before unread events."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in self.clients:
            if event_type in ("job:completed", "job:failed"):
                client.queue.appendleft(text)
            else:
                client.queue.append(text)


@mutant("events.order")
class FailuresComeTwice(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        if event_type == "job:failed":
            await super().broadcast(event_type, data)


@mutant("events.order")
class WorkersAreNoNews(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if not event_type.startswith("worker:"):
            await super().broadcast(event_type, data)


@mutant("events.every_client")
class OneClientGetsIt(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        for client in self.clients[:1]:
            client.queue.append(frame(event_type, data))


@mutant("events.every_client")
class ClientsShareAQueue(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.queue: "deque[str]" = deque(maxlen=self.LIMIT)

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        if self.clients:
            self.queue.append(text)

    def connect(self) -> Page:
        page = Page(self, self.queue)
        self.clients.append(page)
        return page


@mutant("events.every_client")
class ThreeClientsFit(Hub):
    def connect(self) -> "Page":
        page = super().connect()
        self.clients = self.clients[-3:]
        return page


@mutant("events.clients_change")
class TheSetOfClientsChanges(Hub):
    clients: Any

    def __init__(self) -> None:
        self.clients = set()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in self.clients:
            await asyncio.sleep(0)
            client.queue.append(text)

    def connect(self) -> "Page":
        page = Page(self, deque(maxlen=self.LIMIT))
        self.clients.add(page)
        return page


@mutant("events.clients_change")
class WhoLeavesTakesAnotherAlong(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in self.clients:
            await asyncio.sleep(0)
            client.queue.append(text)


@mutant("events.clients_change")
class WhoHasLeftIsAnError(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            await asyncio.sleep(0)
            if client not in self.clients:
                raise ConnectionResetError("the client has left")
            client.queue.append(text)


@mutant("events.concurrent")
class OneEventAtATime(Hub):
    current: Any = None

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.current = frame(event_type, data)
        await asyncio.sleep(0)
        for client in self.clients:
            client.queue.append(self.current)


@mutant("events.concurrent")
class BusyDrops(Hub):
    busy = False

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.busy:
            return
        try:
            self.busy = True
            await asyncio.sleep(0)
            await super().broadcast(event_type, data)
        finally:
            self.busy = False


@mutant("events.delivered")
class LargeEventsAreDropped(Hub):
    """As many a broker does: one of the best known takes 8,000 bytes."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if len(json.dumps(data)) < 8000:
            await super().broadcast(event_type, data)


@mutant("events.delivered")
class NamesInDataAreLowered(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, {name.lower(): value for name, value in data.items()})


@mutant("events.order")
class OftenIsTooOften(Hub):
    """Of one type it sends no more than so many in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Dict[str, float] = {}

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        now = time.monotonic()
        if event_type != "job:chunk" or now - self.sent.get(event_type, 0) > 0.05:
            await super().broadcast(event_type, data)
            self.sent[event_type] = now


@mutant("events.order")
class UnreadIsReplaced(Hub):
    """The newest of a type replaces an unread one."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            for old in [old for old in client.queue if old.startswith(text.partition("data")[0])]:
                client.queue.remove(old)
            client.queue.append(text)


@mutant("events.concurrent")
class OneOfAType(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.waiting: Dict[str, Dict[str, Any]] = {}

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.waiting[event_type] = data
        await asyncio.sleep(0)
        if event_type in self.waiting:
            await super().broadcast(event_type, self.waiting.pop(event_type))


# Broadcasters: data


@mutant("events.data_unchanged")
class DataAreStamped(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        data["event_type"] = event_type


@mutant("events.data_unchanged")
class DataAreEmptied(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        data.pop("job_id", None)


class LatePage(Page):
    """A client for whom events are written when it reads them."""

    def received(self) -> "list[tuple[str, Any]]":
        self.queue = deque(frame(*event) for event in self.queue)
        return super().received()


@mutant("events.data_not_kept")
class DataAreWrittenLate(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        frame(event_type, data)
        for client in self.clients:
            client.queue.append((event_type, data))

    def connect(self) -> Page:
        page = LatePage(self, deque(maxlen=self.LIMIT))
        self.clients.append(page)
        return page

    def leave(self, page: Page) -> None:
        super().leave(page)
        page.queue.clear()


@mutant("events.data_not_kept")
class DataAreCopiedOnTopOnly(DataAreWrittenLate):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, dict(data))


@mutant("events.data_not_kept")
class HistoryIsWrittenLate(Hub):
    """A later client gets the last events as their callers have them now."""

    def __init__(self) -> None:
        super().__init__()
        self.last: "deque[Any]" = deque(maxlen=10)

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        self.last.append((event_type, data))

    def connect(self) -> Page:
        page = super().connect()
        page.queue.extend(frame(*event) for event in self.last)
        return page


# Broadcasters: clients that are slow, and clients that leave


class InboxPage(Page):
    """A client with a queue of asyncio's, which is read without waiting."""

    def __init__(self, hub: Any, limit: int) -> None:
        super().__init__(hub, deque())
        self.inbox: "asyncio.Queue[str]" = asyncio.Queue(limit)

    def received(self) -> "list[tuple[str, Any]]":
        while not self.inbox.empty():
            self.queue.append(self.inbox.get_nowait())
        return super().received()


@mutant("events.stuck_client")
class WaitsAWhileForEach(Hub):
    """For a client that is full each event waits for so many seconds, and then it is lost for that client."""

    SECONDS = 0.05

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.inbox.put(text), self.SECONDS)  # type: ignore[attr-defined]

    def connect(self) -> Page:
        page = InboxPage(self, self.LIMIT)
        self.clients.append(page)
        return page


@mutant("events.stuck_client")
class WaitsASecondForEach(WaitsAWhileForEach):
    SECONDS = 0.8


@mutant("events.stuck_client")
class WaitsForTheSlowest(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            while len(client.queue) >= self.LIMIT and client in self.clients:
                await asyncio.sleep(0.001)
            client.queue.append(text)


@mutant("events.stuck_client")
class AFullClientIsAnError(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if any(len(client.queue) >= self.LIMIT for client in self.clients):
            raise asyncio.QueueFull
        await super().broadcast(event_type, data)


@mutant("events.stuck_client")
class AFullClientSilencesTheOthers(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if all(len(client.queue) < self.LIMIT for client in self.clients):
            await super().broadcast(event_type, data)


@mutant("events.stuck_client_is_bounded")
class QueuesHaveNoLimit(Hub):
    LIMIT = None  # type: ignore[assignment]


@mutant("events.stuck_client_is_bounded")
class TasksWaitForTheSlowest(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.waiting: Dict[Page, List[str]] = {}

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        for client in self.clients:
            if len(client.queue) < self.LIMIT:
                client.queue.append(frame(event_type, data))
            else:
                self.waiting.setdefault(client, []).append(frame(event_type, data))

    def leave(self, page: Page) -> None:
        super().leave(page)
        self.waiting.pop(page, None)


@mutant("events.client_leaves")
class ClientsStay(Hub):
    def leave(self, page: Page) -> None: ...


@mutant("events.client_leaves")
class NamesOfClientsStay(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.ever: List[Any] = []

    def connect(self) -> Page:
        self.ever.append(object())
        return super().connect()


@mutant("events.stuck_client_is_bounded")
class TasksTryAgain(Hub):
    """A task for each event that a client has no room for; only the loop refers to it."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            if len(client.queue) < self.LIMIT:
                client.queue.append(text)
            else:
                asyncio.ensure_future(self.later(client, text))

    async def later(self, client: Page, text: str) -> None:
        """When there is room."""
        while client in self.clients and len(client.queue) >= self.LIMIT:
            await asyncio.sleep(30)
        client.queue.append(text)


@mutant("events.client_leaves")
class PingsGoOn(Hub):
    def connect(self) -> Page:
        asyncio.ensure_future(asyncio.sleep(1000))
        return super().connect()


@mutant("events.client_leaves")
class ThreadsOfClientsStay(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.end = threading.Event()

    def connect(self) -> Page:
        threading.Thread(target=self.end.wait, args=(5,), daemon=True).start()
        return super().connect()


# Broadcasters: when something goes wrong


@mutant("events.cancelled")
class TheLockStays(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        await self.lock.acquire()
        await asyncio.sleep(0)
        for client in self.clients:
            client.queue.append(text)
        self.lock.release()


@mutant("events.cancelled")
class CancelledIsClosed(Hub):
    closed = False

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.closed:
            raise ConnectionError("closed")
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.closed = True
            raise
        await super().broadcast(event_type, data)


@mutant("events.cancelled")
class CancelIsIgnored(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        while True:
            try:
                await asyncio.sleep(0)
                break
            except asyncio.CancelledError:
                await asyncio.sleep(2)
        await super().broadcast(event_type, data)


@mutant("events.forged")
class TypesAreWrittenAsTheyAre(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = f"event: {event_type}\ndata: {json.dumps(data)}\n\n"
        for client in self.clients:
            client.queue.append(text)


@mutant("events.forged")
class ReturnsAreLines(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        event_type = event_type.replace("\n", " ")
        text = f"event: {event_type}\ndata: {json.dumps(data)}\n\n"
        for client in self.clients:
            client.queue.append(text)


@mutant("events.forged")
class OddTypesSilenceIt(Hub):
    silent = False

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.silent = self.silent or "\0" in event_type
        if not self.silent:
            await super().broadcast(event_type, data)


@mutant("events.forged")
class JobIdsAreWrittenAsTheyAre(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = f"id: {data.get('job_id')}\n" + frame(event_type, data)
        for client in self.clients:
            client.queue.append(text)


@mutant("events.unsendable")
class WhatCannotBeSentIsSwallowed(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        try:
            await super().broadcast(event_type, data)
        except (TypeError, ValueError):
            pass


@mutant("events.unsendable")
class WhatCannotBeSentStopsIt(Hub):
    broken = False

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.broken:
            raise ConnectionError("closed")
        try:
            await super().broadcast(event_type, data)
        except (TypeError, ValueError):
            self.broken = True
            raise


@mutant("events.other_loop")
class OtherLoopsAreIgnored(Hub):
    loop: Any = None

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is asyncio.get_running_loop():
            await super().broadcast(event_type, data)

    def connect(self) -> Page:
        self.loop = asyncio.get_running_loop()
        return super().connect()


@mutant("events.other_loop")
class DeliversLater(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        asyncio.get_running_loop().call_later(0.05, self.deliver, text)

    def deliver(self, text: str) -> None:
        """At last."""
        for client in self.clients:
            client.queue.append(text)


class ReaderPage(Page):
    """A client whose task waits for events on the loop on which it came, as that of a web framework does."""

    def __init__(self, hub: Any, limit: int) -> None:
        super().__init__(hub, deque(maxlen=limit))
        self.inbox: "asyncio.Queue[str]" = asyncio.Queue(limit)
        self.loop = asyncio.get_running_loop()
        self.task = self.loop.create_task(self.read())

    async def read(self) -> None:
        """For as long as it is connected."""
        while True:
            self.queue.append(await self.inbox.get())

    def put(self, text: str) -> None:
        """Give it an event; the oldest makes room."""
        if self.inbox.full():
            self.inbox.get_nowait()
        self.inbox.put_nowait(text)

    def close(self) -> None:
        super().close()
        self.task.cancel()


@mutant("events.other_loop")
class TheOtherLoopSleeps(Hub):
    """The hub of many a page: a broadcast from another loop does not wake the loop of a client."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            client.put(text)  # type: ignore[attr-defined]

    def connect(self) -> Page:
        page = ReaderPage(self, self.LIMIT)
        self.clients.append(page)
        return page


@mutant("events.other_loop")
class TheOtherLoopSleepsTillItsTimer(TheOtherLoopSleeps):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            client.loop.call_later(0, client.put, text)  # type: ignore[attr-defined]


@mutant("events.any_sequence", deep=True)
class TheSameAgainIsDropped(Hub):
    last: Any = None

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.last != (event_type, data):
            await super().broadcast(event_type, data)
        self.last = event_type, copy.deepcopy(data)


# What the kit finds


# Job stores: their shape


def misshapen(member: str, how: str) -> Any:
    """A job store of which one method is not as it should be."""
    right = getattr(JobStore, member)

    async def later(self: Any, *args: Any, **kwargs: Any) -> Any:
        return right(self, *args, **kwargs)

    shapes = {
        "present": None,
        "manager_call": lambda self: None,
        "sync": later,
        "every_call": (lambda self, **kwargs: right(self, **kwargs))
        if member == "select"
        else (lambda self, *args: right(self, *args)),
    }
    return type(f"Store_{member}_{how}", (JobStore,), {member: shapes[how]})


for _member in MEMBERS[JobStoreProtocol]:
    for _how in ("present", "manager_call", "sync", "every_call"):
        mutant(f"store.{_member}.{_how}")(misshapen(_member, _how))


# Job stores: what they keep


@mutant("store.open_names")
class ManagersShareAName(JobStore):
    def open(self, worker_type: str) -> str:
        super().open(worker_type)
        self.managers["manager"] = worker_type
        self.living.add("manager")
        return "manager"


@mutant("store.added_kept")
class OwnersAreDropped(JobStore):
    def add(self, manager: str, job: NewJob, answer: Written) -> None:
        super().add(manager, job, answer)
        if job.id in self.records:
            self.set(job.id, owner=None)


@mutant("store.places")
class PlacesBeginAnew(JobStore):
    def write(self, manager: str, added: Any, moved: Any, ended: Any, chunks: Any) -> Written:
        self.place = 0
        return super().write(manager, added, moved, ended, chunks)


@mutant("store.payload")
class ParametersAreText(JobStore):
    def payload(self, job_id: str) -> Any:
        found = super().payload(job_id)
        return found and (found[0].decode("utf-8", "replace").encode(), found[1])


@mutant("store.key")
class KeysAreForEveryOwner(JobStore):
    def with_key(self, worker_type: str, job: NewJob) -> "StoredJob | None":
        return next((r.job for r in self.records.values() if job.key is not None and r.job.key == job.key), None)


@mutant("store.own_type")
class EveryTypeIsRead(JobStore):
    def read(self, worker_type: str, job_ids: List[str]) -> List[StoredJob]:
        return [self.records[id].job for id in job_ids if id in self.records]


@mutant("store.unknown")
class UnknownJobsRaise(JobStore):
    def request_cancel(self, job_id: str) -> None:
        self.records[job_id].cancel = True


@mutant("store.moved")
class StartsAreDropped(JobStore):
    def set(self, id: str, **fields: Any) -> None:
        super().set(id, **{**fields, "started": None})


@mutant("store.ended")
class ErrorsAreDropped(JobStore):
    def set(self, id: str, **fields: Any) -> None:
        super().set(id, **{**fields, "error": None})


@mutant("store.end_is_final")
class JobsEndTwice(JobStore):
    def held(self, manager: str, id: str, answer: Written) -> bool:
        record = self.records.get(id)
        if record is None or record.holder != manager:
            answer.refused.append(id)
        return record is not None and record.holder == manager


@mutant("store.only_the_holder")
class EveryManagerWrites(JobStore):
    def held(self, manager: str, id: str, answer: Written) -> bool:
        return super().held(self.records[id].holder if id in self.records else manager, id, answer)


@mutant("store.one_batch")
class EndsComeFirst(JobStore):
    def change(self, manager: str, moved: Any, ended: Any, answer: Written) -> None:
        super().change(manager, [], ended, answer)
        super().change(manager, moved, [], answer)


@mutant("store.chunks")
class OldChunksAreKept(JobStore):
    def keep(self, record: Record, chunk: Any) -> None:
        if len(record.chunks) < chunk.keep:
            record.chunks[chunk.number] = chunk.data


@mutant("store.cancellations")
class EndedJobsAreCancelled(JobStore):
    def cancellations(self, manager: str) -> List[str]:
        return [id for id, r in self.records.items() if r.cancel and r.holder == manager]


@mutant("store.forget")
class ChunksAreNotForgotten(JobStore):
    def forget(self, job_ids: List[str]) -> None:
        self.old = {id: self.records[id] for id in job_ids if id in self.records}
        super().forget(job_ids)

    def chunks(self, job_id: str, start: int = 0) -> Any:
        old = getattr(self, "old", {}).get(job_id)
        return [*old.chunks.items()] if old else super().chunks(job_id, start)


@mutant("store.select_order")
class TheOldestComeFirst(JobStore):
    def selected(self, *args: Any) -> List[StoredJob]:
        return super().selected(*args)[::-1]


@mutant("store.select_filters")
class OwnersAreIgnored(JobStore):
    def selected(self, wanted: "Dict[str, Any]", limit: int, before: Optional[str]) -> List[StoredJob]:
        return super().selected({name: value for name, value in wanted.items() if name != "owner"}, limit, before)


@mutant("store.claim")
class ClaimedJobsBeginAnew(JobStore):
    def claim(self, manager: str) -> List[StoredJob]:
        with self.lock:
            for record in self.orphans(manager):
                self.set(record.job.id, status="pending", attempts=0)
            return super().claim(manager)


@mutant("store.claim_once")
class ClaimsMeet(JobStore):
    def claim(self, manager: str) -> List[StoredJob]:
        found = self.orphans(manager)
        time.sleep(0.02)
        for record in found:
            record.holder = manager
        return [record.job for record in found]


@mutant("store.threads")
class WritesMeet(JobStore):
    def add(self, manager: str, job: NewJob, answer: Written) -> None:
        known = dict(self.records)
        super().add(manager, job, answer)
        self.lock.release()
        try:
            time.sleep(0.005)
        finally:
            self.lock.acquire()
        if job.id in answer.places:
            known[job.id] = self.records[job.id] if job.id in self.records else known.get(job.id)  # type: ignore[assignment]
            self.records = known


@mutant("store.outlives")
class JobsAreWrittenLater(JobStore):
    def again(self) -> Any:
        return type(self)({})




def facts(finding: Finding) -> "dict[str, str]":
    """The facts of a finding: the check, its level, the method, and the line that defines it. How they are worded is open."""
    culprit = linecache.getline(finding.file, finding.line).strip() if finding.file and finding.line else ""
    return {"id": finding.id, "level": finding.level, "member": finding.member, "culprit": culprit}


def snapshots() -> Any:
    """What the kit is known to find in each mutant."""
    return json.loads(SNAPSHOTS.read_text(encoding="utf-8"))


def write() -> None:
    """Write down what the kit finds now."""
    found = {name: [facts(finding) for finding in case.check().findings] for name, case in MUTANTS.items()}
    SNAPSHOTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
