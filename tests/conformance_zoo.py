"""Odd implementations, all of them right: the kit has nothing to say of any."""

import asyncio
import copy
import enum
import functools
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
import types
import weakref
from array import array
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Generator, List
from unittest.mock import AsyncMock, Mock

import psutil
from conformance_corpus import (
    PROBES,
    HistoryIsWrittenLate,
    Hub,
    InboxPage,
    JobStore,
    Meta,
    Page,
    Registry,
    Resources,
    TheOtherLoopSleeps,
    frame,
)

from cjm_worker_protocols.extensions.protocols import (
    UNSET,
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)
from cjm_worker_protocols.integrations.store import SQLiteJobStore


@dataclass(frozen=True)
class Animal:
    """An implementation that is right."""

    name: str
    protocol: str
    factory: Callable[[], Any]
    probe: "Callable[..., Any] | None"


ZOO: "dict[str, Animal]" = {}


def animal(protocol: str, **how: Any) -> "Callable[[Any], Any]":
    """Put a class, or a function that makes an implementation, into the zoo; `probe=None` for one that cannot be seen into."""

    def keep(factory: Any) -> Any:
        assert factory.__name__ not in ZOO, factory.__name__
        ZOO[factory.__name__] = Animal(factory.__name__, protocol, factory, how.get("probe", PROBES[protocol]))
        return factory

    return keep


class Called:
    """An object that can be called like the function it holds."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Proxy:
    """Something that stands for another object."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


class Remote:
    """Like the client of a remote procedure call: it has every attribute that one may ask for."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: getattr(self.behind, name)(*args, **kwargs)


def logged(method: Callable[..., Any]) -> Any:
    """A decorator that prints."""

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        print(method.__name__, args[1:], kwargs)
        return method(*args, **kwargs)

    return wrapper


class Folder:
    """A folder for as long as it is held."""

    def __init__(self) -> None:
        self.name = tempfile.mkdtemp()

    def __del__(self, remove: Callable[..., Any] = shutil.rmtree) -> None:
        remove(self.name, ignore_errors=True)


# Registries


@animal("registry")
class InTheMannerOfTheMission:
    """Metadata with no `is_configured`, and names that are no strings elsewhere."""

    def __init__(self) -> None:
        self.plugins = {"plugin-1": types.SimpleNamespace(id="plugin-1", name="Text Processor", category="speech")}

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [p for p in self.plugins.values() if p.category == category]

    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins.get(plugin_id)

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return {}


@animal("registry")
def registry_of_callable_objects() -> Any:
    right = Registry()
    names = ("get_plugins_by_category", "get_plugin", "load_plugin_config")
    return types.SimpleNamespace(**{name: Called(getattr(right, name)) for name in names})


@animal("registry")
def registry_of_partials() -> Any:
    right = Registry()
    names = ("get_plugins_by_category", "get_plugin", "load_plugin_config")
    return types.SimpleNamespace(**{name: functools.partial(getattr(Registry, name), right) for name in names})


@animal("registry")
def registry_behind_a_proxy() -> Any:
    return Proxy(Registry())


@animal("registry")
def registry_behind_a_remote_call() -> Any:
    return Remote(Registry())


@animal("registry")
class RegistryWithMoreParameters(Registry):
    def get_plugins_by_category(self, category: Any, *more: Any, limit: "int | None" = None, **filters: Any) -> List[Any]:
        return super().get_plugins_by_category(category)[:limit]

    def get_plugin(self, plugin_id: str, version: str = "newest", *more: Any, **options: Any) -> Any:
        return super().get_plugin(plugin_id)

    def load_plugin_config(self, /, plugin_id: str, *, merged: bool = True) -> Dict[str, Any]:
        return super().load_plugin_config(plugin_id)


@animal("registry")
class RegistryWithACache(Registry):
    """`lru_cache` makes a callable that is written in C."""

    def __init__(self) -> None:
        super().__init__()
        self.get_plugin = functools.lru_cache(maxsize=20)(super().get_plugin)  # type: ignore[method-assign]


@animal("registry", probe=None)
def registry_that_is_a_mock() -> Any:
    mock = Mock(spec=PluginRegistryProtocol)
    mock.get_plugin.return_value = None
    mock.get_plugins_by_category.side_effect = lambda category: []
    mock.load_plugin_config.side_effect = lambda plugin_id: {}
    return mock


@animal("registry")
class RegistryThatInherits(Registry, PluginRegistryProtocol):
    @functools.wraps(PluginRegistryProtocol.get_plugin)
    def get_plugin(self, plugin_id: str) -> Any:
        return super().get_plugin(plugin_id)


ONE = Registry()


@animal("registry")
def registry_that_is_one_for_all() -> Any:
    return ONE


@animal("registry")
class SlowRegistry(Registry):
    def get_plugin(self, plugin_id: str) -> Any:
        time.sleep(0.002)
        return super().get_plugin(plugin_id)


@animal("registry")
def registry_that_is_a_module() -> Any:
    module, right = types.ModuleType("plugins_of_my_app"), Registry()
    vars(module).update({name: getattr(right, name) for name in ("get_plugins_by_category", "get_plugin", "load_plugin_config")})
    return module


@animal("registry")
@dataclass
class RegistryThatIsADataclass:
    plugins: Dict[str, Any] = field(default_factory=lambda: {"a": {"unique_id": "a", "name": "A", "is_configured": False}})

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return list(self.plugins.values()) if category == "speech" else []

    def get_plugin(self, plugin_id: str) -> Any:
        return self.plugins.get(plugin_id)

    @staticmethod
    def load_plugin_config(plugin_id: str) -> Dict[str, Any]:
        return {}


class Configured:
    """A value that is equal to nothing but itself, and can be sent."""


@animal("registry")
class RegistryWhoseConfigsDiffer(Registry):
    """Each has the time in it, and an object."""

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        if plugin_id not in self.plugins:
            return {}
        return {"now": time.monotonic_ns(), "object": Configured(), **super().load_plugin_config(plugin_id)}


@animal("registry")
class RegistryThatAsksALoop(Registry):
    """It may: it is never called on an event loop."""

    def get_plugin(self, plugin_id: str) -> Any:
        async def ask() -> Any:
            return super(RegistryThatAsksALoop, self).get_plugin(plugin_id)

        return asyncio.run(ask())


@animal("registry")
class RegistryInFiles:
    """An id that has been made the name of a file is no way out of the folder."""

    def __init__(self) -> None:
        self.folder = Folder()
        Path(self.folder.name, "a.json").write_text('{"name": "A"}')

    def file(self, plugin_id: str) -> Path:
        return Path(self.folder.name, plugin_id.encode("utf-8", "replace").decode().replace("/", "_").replace("\0", "_")[:100] + ".json")

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [m for m in [self.get_plugin(p.stem) for p in Path(self.folder.name).iterdir()] if m and category == "speech"]

    def get_plugin(self, plugin_id: str) -> Any:
        try:
            return {"id": plugin_id, **json.loads(self.file(plugin_id).read_text())}
        except FileNotFoundError:
            return None

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return self.get_plugin(plugin_id) or {}


@animal("registry")
class RegistryOfFilesThatAreThere(RegistryInFiles):
    """It makes sure that a path stays in the folder, and then looks whether there is such a file."""

    def file(self, plugin_id: str) -> Path:
        try:
            file, folder = Path(self.folder.name, f"{plugin_id}.json").resolve(), Path(self.folder.name).resolve()
            if file.parent == folder and file.name == f"{plugin_id}.json" and file.exists():
                return file
        except (OSError, ValueError):
            pass
        return Path(self.folder.name, "no such plugin")


@animal("registry")
class RegistryReadWhenFirstAsked(Registry):
    """What is read is kept when all of it is there; two may do so at once, and come to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.installed, self.plugins = self.plugins, {}

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        self.load()
        return super().get_plugins_by_category(category)

    def get_plugin(self, plugin_id: str) -> Any:
        self.load()
        return super().get_plugin(plugin_id)

    def load(self) -> None:
        """Once."""
        if not self.plugins:
            found = {}
            for plugin_id, m in self.installed.items():
                found[plugin_id] = m
            self.plugins = found


@animal("registry")
class RegistryInADatabase:
    """Each thread opens its own connection."""

    def __init__(self) -> None:
        self.folder = Folder()
        self.local = threading.local()
        with self.connection as connection:
            connection.execute("create table plugins (id text primary key, name text, category text, config text)")
            connection.execute("insert into plugins values ('a', 'A', 'speech', '{\"model\": \"large\"}')")

    @property
    def connection(self) -> sqlite3.Connection:
        if not hasattr(self.local, "connection"):
            self.local.connection = sqlite3.connect(Path(self.folder.name, "plugins.db"))
        connection: sqlite3.Connection = self.local.connection
        return connection

    def find(self, where: str, value: Any) -> "list[Any]":
        value = str(value).encode("utf-8", "replace").decode()
        return self.connection.execute(f"select id, name, config from plugins where {where} = ?", [value]).fetchall()

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [Identified(*row[:2]) for row in self.find("category", category)]

    def get_plugin(self, plugin_id: str) -> Any:
        return next((Identified(*row[:2]) for row in self.find("id", plugin_id)), None)

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return next((dict(json.loads(row[2])) for row in self.find("id", plugin_id)), {})


@animal("registry")
class RegistryWithAPluginInTwoCategories(Registry):
    """It is one plugin, though its metadata are made anew each time, and are equal to nothing."""

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        found = super().get_plugins_by_category(category)
        return [*found, Identified("both", "Both")] if category in ("speech", "text") else found

    def get_plugin(self, plugin_id: str) -> Any:
        return Identified("both", "Both") if plugin_id == "both" else super().get_plugin(plugin_id)


async def categories_of(registry: Any) -> "list[str]":
    """A probe that is asynchronous."""
    return ["speech"]


@animal("registry", probe=categories_of)
class RegistryReadAsynchronously(Registry): ...


@dataclass(eq=False)
class Identified:
    """Metadata as in cjm-fasthtml-workers."""

    key: str
    name: str

    def get_unique_id(self) -> str:
        return self.key


@animal("registry")
class RegistryOfArrays(Registry):
    """Its metadata are like arrays: they are neither true nor false, and cannot be compared."""

    class Array:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, m: Meta) -> None:
            self.id, self.name = m.id, m.name

        def __bool__(self) -> bool:
            raise ValueError("ambiguous")

        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

    def get_plugins_by_category(self, category: Any) -> List[Any]:
        return [self.Array(m) for m in super().get_plugins_by_category(category)]

    def get_plugin(self, plugin_id: str) -> Any:
        m = super().get_plugin(plugin_id)
        return None if m is None else self.Array(m)


@animal("registry")
class RegistryThatStampsConfigs(Registry):
    """No two configs are the same."""

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        config = super().load_plugin_config(plugin_id)
        return {**config, "read": (time.monotonic(), [len(config)])} if config else config


# Resource managers


@animal("resources")
class ResourcesByKeyword(Resources):
    def update_worker_state(self, *args: Any, **fields: Any) -> None:
        names = ("pid", "status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config")
        fields.update(zip(names, args))
        self.store(fields.pop("pid"), fields)


@animal("resources")
class ResourcesWithMoreParameters(Resources):
    def register_worker(self, /, pid: int, worker_type: str, host: str = "localhost", **tags: Any) -> None:
        super().register_worker(pid, worker_type)

    def unregister_worker(self, pid: int, *, reason: str = "") -> None:
        super().unregister_worker(pid)


@animal("resources", probe=None)
class ResourcesThatDoNothing:
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


@animal("resources", probe=lambda manager, pid: manager.read(pid))
class ResourcesReadAsynchronously(Resources):
    async def read(self, pid: int) -> Any:
        await asyncio.sleep(0)
        return self.workers.get(pid)


@animal("resources", probe=None)
def resources_that_are_a_mock() -> Any:
    return Mock(spec=ResourceManagerProtocol)


@animal("resources")
class ResourcesThatPrint(Resources):
    register_worker = logged(Resources.register_worker)
    unregister_worker = logged(Resources.unregister_worker)
    update_worker_state = logged(Resources.update_worker_state)


@animal("resources")
class ResourcesThatKeepLittle(Resources):
    """What a manager does not keep, it need not."""

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        super().store(pid, {name: value for name, value in fields.items() if name in ("status", "job_id")})


@animal("resources", probe=lambda manager, pid: vars(manager.workers[pid]) if pid in manager.workers else None)
class ResourcesInRecords:
    @dataclass
    class Worker:
        worker_type: str
        status: Any = "idle"
        job_id: Any = None
        plugin_name: Any = None
        plugin_id: Any = None
        loaded_plugin_resource: Any = None
        config: Any = None

    def __init__(self) -> None:
        self.workers: Dict[int, Any] = {}

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.workers[pid] = self.Worker(worker_type)

    def unregister_worker(self, pid: int) -> None:
        self.workers.pop(pid, None)

    def update_worker_state(self, pid: int, status: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        for name, value in [*locals().items()]:
            if name not in ("self", "pid") and value is not UNSET and pid in self.workers:
                setattr(self.workers[pid], name, copy.deepcopy(value))


@animal("resources")
class ResourcesWithALog(Resources):
    """A log with a limit is no leak."""

    def __init__(self) -> None:
        super().__init__()
        self.log: "deque[str]" = deque(maxlen=500)

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        self.log.append(f"worker {pid} is there")


@animal("resources")
class ResourcesWrittenAnew(Resources):
    """Readers need no lock, since what they read never changes."""

    def register_worker(self, pid: int, worker_type: str) -> None:
        with self.lock:
            self.workers = {**self.workers, pid: {"worker_type": worker_type, "status": "idle"}}

    def unregister_worker(self, pid: int) -> None:
        with self.lock:
            self.workers = {other: known for other, known in self.workers.items() if other != pid}

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        with self.lock:
            if pid in self.workers:
                self.workers = {**self.workers, pid: {**self.workers[pid], **copy.deepcopy(fields)}}


@animal("resources")
class ResourcesWithABuffer(Resources):
    """The last pids are kept in a ring, which does not grow."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.count = array("i", [0] * 1000), 0

    def register_worker(self, pid: int, worker_type: str) -> None:
        super().register_worker(pid, worker_type)
        with self.lock:
            self.last[self.count % 1000] = pid
            self.count += 1


@animal("resources")
class ResourcesThatInherit(Resources, ResourceManagerProtocol):
    def register_worker(self, pid: int, worker_type: str) -> None:
        ResourceManagerProtocol.register_worker(self, pid, worker_type)
        super().register_worker(pid, worker_type)


@animal("resources")
def resources_behind_a_proxy() -> Any:
    return Proxy(Resources())


class ResourcesWithClassMethods:
    """Its state is that of its class."""

    workers: Dict[int, Any] = {}
    behind = Resources()
    behind.workers = workers

    @classmethod
    def register_worker(cls, pid: int, worker_type: str) -> None:
        cls.behind.register_worker(pid, worker_type)

    @classmethod
    def unregister_worker(cls, pid: int) -> None:
        cls.behind.unregister_worker(pid)

    update_worker_state = staticmethod(behind.update_worker_state)


animal("resources")(ResourcesWithClassMethods)


@animal("resources", probe=lambda manager, pid: manager.read(pid))
class ResourcesInADatabase:
    """One connection and one lock."""

    FIELDS = ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource", "config")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection = sqlite3.connect(":memory:", check_same_thread=False)
        self.connection.execute(f"create table workers (pid integer primary key, {', '.join(self.FIELDS)})")

    def do(self, statement: str, *values: Any) -> "list[Any]":
        with self.lock:
            return self.connection.execute(statement, values).fetchall()

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.do("insert or replace into workers (pid, status) values (?, 'idle')", pid)

    def unregister_worker(self, pid: int) -> None:
        self.do("delete from workers where pid = ?", pid)

    def update_worker_state(self, pid: int, status: Any = UNSET, job_id: Any = UNSET, plugin_name: Any = UNSET, plugin_id: Any = UNSET,
                            loaded_plugin_resource: Any = UNSET, config: Any = UNSET) -> None:  # fmt: skip
        values = (status, job_id, plugin_name, plugin_id, loaded_plugin_resource, config)
        for name, value in zip(self.FIELDS, values):
            if value is not UNSET:
                self.do(f"update workers set {name} = ? where pid = ?", json.dumps(value) if isinstance(value, dict) else value, pid)

    def read(self, pid: int) -> Any:
        for row in self.do(f"select {', '.join(self.FIELDS)} from workers where pid = ?", pid):
            known = dict(zip(self.FIELDS, row))
            return {**known, "config": None if known["config"] is None else json.loads(known["config"])}


@animal("resources")
class SlowResources(Resources):
    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        time.sleep(0.002)
        super().store(pid, fields)


class Status(enum.Enum):
    """What the manager says that a worker does."""

    STARTING, STANDBY, IDLE, RUNNING, STOPPING = "starting", "standby", "idle", "running", "stopping"


@animal("resources")
class ResourcesThatKnowEveryStatus(Resources):
    """What is not in the list raises."""

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if fields.get("status") is not None:
            Status(fields["status"])
        super().store(pid, fields)


@animal("resources")
class ResourcesThatLookUpProcesses(Resources):
    """A pid without a process raises."""

    def register_worker(self, pid: int, worker_type: str) -> None:
        assert psutil.Process(pid).ppid() == os.getpid()
        super().register_worker(pid, worker_type)

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        if pid in self.workers:
            super().store(pid, {**fields, "memory": psutil.Process(pid).memory_info().rss})


@animal("resources", probe=lambda manager, pid: manager.read(pid))
class ResourcesOfTheLiving(Resources):
    """A worker that has died is not shown, though it was never unregistered."""

    def read(self, pid: int) -> Any:
        return self.workers.get(pid) if psutil.pid_exists(pid) else None


@animal("resources")
class ResourcesThatMakeSure(Resources):
    """A worker that was unregistered must be gone, and what it was is killed."""

    def unregister_worker(self, pid: int) -> None:
        if pid in self.workers:
            super().unregister_worker(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@animal("resources")
class ResourcesOfOneType(Resources):
    """It has a list of the types of workers, and refuses others."""

    def register_worker(self, pid: int, worker_type: str) -> None:
        if worker_type != "transcription":
            raise ValueError(f"worker_type: expected 'transcription' (got {worker_type!r})")
        super().register_worker(pid, worker_type)


@animal("resources")
class ResourcesThatRemember(Resources):
    """It writes down the last update, whichever worker it was about."""

    def __init__(self) -> None:
        super().__init__()
        self.log: "deque[Any]" = deque(maxlen=500)

    def store(self, pid: int, fields: Dict[str, Any]) -> None:
        self.log.append((pid, dict(fields)))
        super().store(pid, fields)


# Broadcasters


@animal("events")
class HubThatGivesANumber(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> int:  # type: ignore[override]
        await super().broadcast(event_type, data)
        return len(self.clients)


@animal("events")
class HubThatGivesACoroutine(Hub):
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> Any:
        return super().broadcast(event_type, data)


@animal("events")
class HubThatGivesATask(Hub):
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> "Awaitable[None]":  # type: ignore[override]
        return asyncio.ensure_future(super().broadcast(event_type, data))


@animal("events")
class HubThatGivesAnAwaitableObject(Hub):
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> Any:
        send = super().broadcast

        class Sending:
            def __await__(self) -> Generator[Any, None, None]:
                return send(event_type, data).__await__()

        return Sending()


@animal("events")
class HubOfOldCoroutines(Hub):
    @types.coroutine
    def broadcast(self, event_type: str, data: Dict[str, Any]) -> Any:
        yield from super().broadcast(event_type, data).__await__()


@animal("events")
class HubThatIsCalled(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.broadcast = AsyncCalled(super().broadcast)  # type: ignore[assignment,method-assign]


class AsyncCalled(Called):
    """The same, asynchronously."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.function(*args, **kwargs)


@animal("events")
class HubOfAPartial(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.broadcast = functools.partial(self.send, "room")  # type: ignore[method-assign]

    async def send(self, room: str, event_type: str, data: Dict[str, Any]) -> None:
        await Hub.broadcast(self, event_type, data)


@animal("events")
def hub_behind_a_proxy() -> Any:
    return Proxy(Hub())


@animal("events")
def hub_behind_a_remote_call() -> Any:
    return Remote(Hub())


@animal("events")
class HubWithMoreParameters(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any], room: str = "", **options: Any) -> None:
        await super().broadcast(event_type, data)


@animal("events")
class HubThatTakesAnything(Hub):
    @logged
    async def broadcast(self, *args: Any, **kwargs: Any) -> None:
        await super().broadcast(*args, **kwargs)


@animal("events", probe=None)
class NoClients:
    """It does nothing."""

    async def broadcast(self, *_: Any, **__: Any) -> None: ...


@animal("events", probe=None)
def broadcaster_that_is_a_mock() -> Any:
    return Mock(spec=EventBroadcasterProtocol)


@animal("events", probe=None)
def broadcaster_that_is_an_async_mock() -> Any:
    return AsyncMock(spec=EventBroadcasterProtocol)


@animal("events")
class HubThatInherits(Hub, EventBroadcasterProtocol): ...


HUB = Hub()


@animal("events")
def hub_that_is_one_for_all() -> Any:
    return HUB


@animal("events")
class SlowHub(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        await asyncio.sleep(0.005)
        for client in list(self.clients):
            client.queue.append(text)


@animal("events")
class HubThatKnowsItsLoop(Hub):
    """It raises on another one; and what can be reached from a loop is not its own."""

    loop: Any = None

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.loop is not None and self.loop is not asyncio.get_running_loop():
            raise RuntimeError("broadcast was called on another event loop")
        await super().broadcast(event_type, data)

    def connect(self) -> Page:
        self.loop = asyncio.get_running_loop()
        return super().connect()


@animal("events")
class HubThatHandsOver(HubThatKnowsItsLoop):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.deliver, text)

    def deliver(self, text: str) -> None:
        for client in list(self.clients):
            client.queue.append(text)


@animal("events")
class HubWithTasks(Hub):
    """A task for each client; what is not taken is dropped, the client with it."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            if client.inbox.full():
                self.leave(client)
            else:
                client.inbox.put_nowait(text)
                client.loop.call_soon_threadsafe(lambda: None)  # wakes its task when the event came from another loop

    async def connect(self) -> Any:  # type: ignore[override]
        client = TaskPage(self, deque())
        self.clients.append(client)
        return client

    def leave(self, page: Any) -> None:
        super().leave(page)
        page.task.cancel()


class TaskPage(Page):
    """A client with an inbox, whose task writes to the connection while somebody reads."""

    def __init__(self, hub: Any, queue: "deque[Any]") -> None:
        super().__init__(hub, queue)
        self.loop = asyncio.get_running_loop()
        self.inbox: "asyncio.Queue[str]" = asyncio.Queue(300)
        self.read = asyncio.Event()
        self.task = asyncio.create_task(self.write())

    async def write(self) -> None:
        """What a web framework does."""
        while True:
            await self.read.wait()
            self.queue.append(await self.inbox.get())

    async def received(self) -> "list[tuple[str, Any]]":  # type: ignore[override]
        self.read.set()
        await asyncio.sleep(0)
        return super().received()


@animal("events")
class HubThatDeliversInTasks(Hub):
    """A task for each event, which ends soon."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: "set[Any]" = set()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        task = asyncio.ensure_future(self.deliver(frame(event_type, data)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def deliver(self, text: str) -> None:
        await asyncio.sleep(0)
        for client in list(self.clients):
            client.queue.append(text)


@animal("events")
class HubWhoseClientsTakeTheirTime(Hub):
    """A task for each client, which says goodbye when that leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: Dict[Any, Any] = {}

    def connect(self) -> Page:
        page = super().connect()
        self.tasks[id(page)] = asyncio.ensure_future(self.serve())
        return page

    async def serve(self) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.1)

    def leave(self, page: Page) -> None:
        super().leave(page)
        if id(page) in self.tasks:
            self.tasks.pop(id(page)).cancel()


@animal("events")
class HubWithALock(Hub):
    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        async with self.lock:
            await asyncio.sleep(0)
            for client in list(self.clients):
                client.queue.append(text)


@animal("events")
class HubInMemory(Hub):
    """It delivers objects, and so can deliver any."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        event = event_type, copy.deepcopy(data)
        for client in list(self.clients):
            client.queue.append(event)

    def connect(self) -> Page:
        page = ObjectPage(self, deque(maxlen=self.LIMIT))
        self.clients.append(page)
        return page


class ObjectPage(Page):
    """A client in the same process."""

    def received(self) -> "list[tuple[str, Any]]":
        while self.queue:
            self.seen.append(self.queue.popleft())
        return self.seen


@animal("events")
class HubThatRefusesOddTypes(Hub):
    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if not event_type or not event_type.isprintable():
            raise ValueError(f"event_type: expected printable characters (got {event_type!r})")
        await super().broadcast(event_type, data)


@animal("events")
class HubWithALongHistory(Hub):
    """It keeps the last ten thousand events for clients that come later, or come back."""

    def __init__(self) -> None:
        super().__init__()
        self.history: "deque[Any]" = deque(maxlen=10_000)

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.history.append({"type": event_type, "data": copy.deepcopy(data)})
        await super().broadcast(event_type, data)


@animal("events")
class HubThatIsFull(Hub):
    """It refuses more clients than it can serve, and says so."""

    def connect(self) -> Page:
        if len(self.clients) >= 5:
            raise ConnectionRefusedError("there are 5 clients already")
        return super().connect()


@animal("events")
class HubOfASet(Hub):
    """It goes through a copy of its clients, each of which takes its time."""

    clients: Any

    def __init__(self) -> None:
        self.clients = set()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in sorted(self.clients, key=id):
            client.queue.append(text)
            await asyncio.sleep(0)

    def connect(self) -> Page:
        page = Page(self, deque(maxlen=self.LIMIT))
        self.clients.add(page)
        return page


@animal("events")
class HubOfQueues(Hub):
    """From a queue that is full the oldest event is dropped."""

    clients: Any

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            if client.inbox.full():
                client.inbox.get_nowait()
            client.inbox.put_nowait(text)

    def connect(self) -> Page:
        page = InboxPage(self, 100)
        self.clients.append(page)
        return page


@animal("events")
class HubThatReplays(Hub):
    """A new client gets the last ten events first, as a page does that connects again."""

    def __init__(self) -> None:
        super().__init__()
        self.last: "deque[str]" = deque(maxlen=10)

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        self.last.append(frame(event_type, data))
        await super().broadcast(event_type, data)

    def connect(self) -> Page:
        page = super().connect()
        page.queue.extend(self.last)
        return page


@animal("events")
class HubThatReplaysCopies(HistoryIsWrittenLate):
    """It keeps a copy of each event, and writes it when a client comes."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, copy.deepcopy(data))


@animal("events")
class HubThatHandsOverToEach(TheOtherLoopSleeps):
    """It calls each client on the loop of that client."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            client.loop.call_soon_threadsafe(client.put, text)  # type: ignore[attr-defined]


@animal("events")
class HubThatKeepsCount(Hub):
    """It takes every event for what the manager says it is: of a worker with its pid, or of a job, of which nothing comes after its end."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: Dict[int, str] = {}
        self.ended: "set[str]" = set()

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        kind, _, what = event_type.partition(":")
        if kind in ("worker", "job"):
            assert data["worker_type"] and data["time"]
        if kind == "worker":
            self.workers[data["pid"]] = what
        elif kind == "job":
            if data["job_id"] in self.ended:
                return
            if what in ("completed", "failed", "cancelled"):
                self.ended.add(data["job_id"])
        await super().broadcast(event_type, data)


@animal("events")
class HubThatGoesHome(TheOtherLoopSleeps):
    """It does its work on the loop where its clients are, and waits for it where it was called."""

    loop: Any = None

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.loop in (None, asyncio.get_running_loop()):
            await super().broadcast(event_type, data)
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(super().broadcast(event_type, data), self.loop))

    def connect(self) -> Page:
        self.loop = asyncio.get_running_loop()
        return super().connect()


@animal("events")
class HubThatStaysHome(HubThatGoesHome):
    """It refuses to be called elsewhere."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        if self.loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError("broadcast was called on another event loop")
        await super().broadcast(event_type, data)


@animal("events")
class HubThatWakesAfterwards(TheOtherLoopSleeps):
    """It puts events into the queues of another loop, and then wakes that."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await super().broadcast(event_type, data)
        for client in list(self.clients):
            client.loop.call_soon_threadsafe(lambda: None)  # type: ignore[attr-defined]


@animal("events")
class SlowHubForEachClient(Hub):
    """Each client costs some time, whether or not it reads."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            client.queue.append(text)
            await asyncio.sleep(0.01)


class CollectedPage(Page):
    """A client that is written to now and then."""

    def __init__(self, hub: Any, queue: "deque[Any]") -> None:
        super().__init__(hub, queue)
        self.collected: "deque[str]" = deque(maxlen=queue.maxlen)
        self.task = asyncio.ensure_future(self.write())

    async def write(self) -> None:
        """For as long as it is connected."""
        while True:
            await asyncio.sleep(self.hub.SECONDS)
            self.queue.extend(self.collected)
            self.collected.clear()

    def close(self) -> None:
        super().close()
        self.task.cancel()


@animal("events")
class SlowHubThatCollects(Hub):
    """What comes within a tenth of a second goes out at once."""

    SECONDS = 0.1

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        for client in list(self.clients):
            client.collected.append(text)  # type: ignore[attr-defined]

    def connect(self) -> Page:
        page = CollectedPage(self, deque(maxlen=self.LIMIT))
        self.clients.append(page)
        return page


@animal("events")
class HubOnAThread(Hub):
    """It sends from a thread of a pool, so that no client can hold up the loop."""

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        await asyncio.to_thread(self.send, frame(event_type, data))

    def send(self, text: str) -> None:
        for client in list(self.clients):
            client.queue.append(text)


@animal("events")
class HubOfWeakReferences(Hub):
    """A client has left when no reference to it is left."""

    clients: Any

    def __init__(self) -> None:
        self.clients = weakref.WeakSet()

    def connect(self) -> Page:
        page = Page(self, deque(maxlen=self.LIMIT))
        self.clients.add(page)
        return page


@animal("events")
class HubWithADispatcher(Hub):
    """One task takes events from a queue and hands them to the clients, for as long as the hub lives."""

    task: Any = None

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None:
        text = frame(event_type, data)
        if self.task is None:
            self.inbox: "asyncio.Queue[str]" = asyncio.Queue()
            self.loop = asyncio.get_running_loop()
            self.task = self.loop.create_task(self.dispatch(self.inbox, weakref.ref(self)))
        self.loop.call_soon_threadsafe(self.inbox.put_nowait, text)

    @staticmethod
    async def dispatch(inbox: "asyncio.Queue[str]", hub: Any) -> None:
        while True:
            text = await inbox.get()
            for client in list(getattr(hub(), "clients", ())):
                client.queue.append(text)


# Job stores


@animal("store", probe=lambda store: SQLiteJobStore(store.path))
def store_in_a_file() -> Any:
    """Ours."""
    folder = Folder()
    store = SQLiteJobStore(Path(folder.name) / "jobs.db")
    weakref.finalize(store, folder.__del__)
    return store


@animal("store", probe=None)
class StoreThatCannotBeOpenedAgain(JobStore):
    """It is in memory, so nothing outlives the app."""


@animal("store", probe=lambda proxy: proxy.again())
def a_proxy_of_a_store() -> Any:
    """It stands for the store behind it."""
    return Proxy(JobStore())


@animal("store", probe=lambda remote: remote.behind.again())
def a_remote_store() -> Any:
    """It has every attribute that one may ask for."""
    return Remote(JobStore())


@animal("store")
class StoreThatReturnsOtherSequences(JobStore):
    """Tuples in place of lists, and lists in place of tuples."""

    def read(self, worker_type: str, job_ids: Any) -> Any:
        return tuple(super().read(worker_type, job_ids))

    def claim(self, manager: str) -> Any:
        return tuple(super().claim(manager))

    def payload(self, job_id: str) -> Any:
        found = super().payload(job_id)
        return found and list(found)

    def chunks(self, job_id: str, start: int = 0) -> Any:
        return tuple(map(list, super().chunks(job_id, start)))


@animal("store")
class StoreThatReturnsOneChunkAtATime(JobStore):
    """An implementation may return only the first of the chunks."""

    def chunks(self, job_id: str, start: int = 0) -> Any:
        return super().chunks(job_id, start)[:1]


@animal("store")
class StoreThatLogs(JobStore):
    """What it does is printed."""

    write, read, claim = map(logged, (JobStore.write, JobStore.read, JobStore.claim))


@animal("store")
class StoreWithOtherDefaults(JobStore):
    """It keeps more than the contract names, and takes more arguments."""

    def select(self, *args: Any, newest_first: bool = True, **kwargs: Any) -> Any:
        return super().select(*args, **kwargs)
