"""The contract: three protocols to the letter, what importing them costs, and the implementations that its notebook shows."""

import ast
import asyncio
import copy
import inspect
import json
import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any, Dict, Optional

import pytest
from contract_notebook import cells, example_source, shown, source
from repo import LIB, PACKAGE, ROOT, said

from cjm_worker_protocols.extensions import protocols
from cjm_worker_protocols.extensions.protocols import (
    UNSET,
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
    Unset,
)

MODULE = f"{PACKAGE}.extensions.protocols"
NO_DEFAULT = inspect.Parameter.empty

MEMBERS: "dict[type, dict[str, tuple[list[tuple[str, Any, Any]], Any]]]" = {
    PluginRegistryProtocol: {
        "get_plugins_by_category": ([("category", Any, NO_DEFAULT)], list),
        "get_plugin": ([("plugin_id", str, NO_DEFAULT)], Any),
        "load_plugin_config": ([("plugin_id", str, NO_DEFAULT)], Dict[str, Any]),
    },
    ResourceManagerProtocol: {
        "register_worker": ([("pid", int, NO_DEFAULT), ("worker_type", str, NO_DEFAULT)], None),
        "unregister_worker": ([("pid", int, NO_DEFAULT)], None),
        "update_worker_state": (
            [
                ("pid", int, NO_DEFAULT),
                ("status", Optional[str], None),
                ("job_id", Optional[str], None),
                ("plugin_name", Optional[str], None),
                ("plugin_id", Optional[str], None),
                ("loaded_plugin_resource", Optional[str], None),
                ("config", Optional[Dict[str, Any]], None),
            ],
            None,
        ),
    },
    EventBroadcasterProtocol: {
        "broadcast": ([("event_type", str, NO_DEFAULT), ("data", Dict[str, Any], NO_DEFAULT)], None),
    },
}
each_protocol = pytest.mark.parametrize("protocol", MEMBERS, ids=lambda p: p.__name__)
each_method = pytest.mark.parametrize(
    ("protocol", "name"), [(p, name) for p, members in MEMBERS.items() for name in members], ids=lambda v: getattr(v, "__name__", v)
)


# Signatures


@each_protocol
def test_a_protocol_has_exactly_its_members(protocol: type) -> None:
    """No member is missing, and a further wish is never a new member of the three."""
    assert [name for name in vars(protocol) if not name.startswith("_")] == list(MEMBERS[protocol])
    assert inspect.get_annotations(protocol) == {}
    assert protocol.__mro__[1].__name__ == "Protocol"


@each_method
def test_a_member_has_its_signature_to_the_letter(protocol: type, name: str) -> None:
    """Names, order, kinds, defaults and annotations are those of the contract; annotations are objects, not strings."""
    parameters, returns = MEMBERS[protocol][name]
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    want = [inspect.Parameter("self", either)]
    want += [inspect.Parameter(p, either, default=default, annotation=annotation) for p, annotation, default in parameters]
    assert inspect.signature(getattr(protocol, name)) == inspect.Signature(want, return_annotation=returns)


@each_method
def test_only_broadcast_is_async(protocol: type, name: str) -> None:
    """`broadcast` is a coroutine function; every other member is a plain method."""
    method = getattr(protocol, name)
    assert inspect.iscoroutinefunction(method) == (name == "broadcast")
    assert not inspect.isgeneratorfunction(method) and not inspect.isasyncgenfunction(method)


def test_signatures_read_as_they_are_written_in_the_contract() -> None:
    """The source says `Optional[str] = None`, where an equal annotation could be written in other ways."""
    text = inspect.getsource(ResourceManagerProtocol.update_worker_state)
    for name in ("status", "job_id", "plugin_name", "plugin_id", "loaded_plugin_resource"):
        assert f"{name}: Optional[str] = None," in text
    assert "config: Optional[Dict[str, Any]] = None," in text


@each_method
def test_a_docstring_tells_both_sides(protocol: type, name: str) -> None:
    """Each member says what the implementation guarantees and what the caller does."""
    doc = inspect.getdoc(getattr(protocol, name)) or ""
    assert "The implementation " in doc and "The caller " in doc


@each_method
def test_every_parameter_is_documented(protocol: type, name: str) -> None:
    """Each parameter, and a result that is not None, has a comment that becomes documentation."""
    parameters, returns = MEMBERS[protocol][name]
    lines = inspect.getsource(getattr(protocol, name)).splitlines()
    for parameter, _, _ in parameters:
        assert any(line.strip().startswith(f"{parameter}: ") and " # " in line for line in lines), parameter
    assert returns is None or any(line.strip().startswith(") -> ") and " # " in line for line in lines)


# isinstance


class Complete:
    """Has every member of the three."""

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any: ...

    def load_plugin_config(self, plugin_id: str) -> Dict[str, Any]:
        return {}

    def register_worker(self, pid: int, worker_type: str) -> None: ...

    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, **fields: Any) -> None: ...

    async def broadcast(self, event_type: str, data: Dict[str, Any]) -> None: ...


@each_protocol
def test_isinstance_accepts_whatever_has_the_members(protocol: type) -> None:
    """An implementation need not inherit from a protocol."""
    assert isinstance(Complete(), protocol)
    assert issubclass(Complete, protocol)
    assert not isinstance(object(), protocol)


@each_method
def test_isinstance_rejects_what_lacks_one_member(protocol: type, name: str) -> None:
    """Every member is asked for."""
    members = {k: v for k, v in vars(Complete).items() if k in MEMBERS[protocol] and k != name}
    assert not isinstance(type("Incomplete", (), members)(), protocol)


@each_protocol
def test_a_protocol_can_be_inherited_from(protocol: type) -> None:
    """But it may."""
    members = {k: v for k, v in vars(Complete).items() if k in MEMBERS[protocol]}
    child = type("Child", (protocol,), members)()
    assert isinstance(child, protocol)
    with pytest.raises(TypeError):
        protocol()


# UNSET


def test_unset_is_the_one_member_of_its_enum() -> None:
    """There is one UNSET, in whatever way it is reached, also in another process."""
    assert list(Unset) == [UNSET]
    assert protocols.UNSET is UNSET is Unset.UNSET is copy.deepcopy(UNSET) is pickle.loads(pickle.dumps(UNSET))
    assert repr(UNSET) == "UNSET"
    assert (Unset.__module__, Unset.__qualname__) == (MODULE, "Unset")
    assert UNSET is not None and UNSET != None and UNSET not in ("", 0, False)  # noqa: E711


def test_the_module_offers_the_contract_and_nothing_else() -> None:
    """`import *` gives the protocols and the sentinel; another name is an AttributeError, as for any module."""
    given: Dict[str, Any] = {}
    exec(f"from {MODULE} import *", given)
    assert set(given) - {"__builtins__"} == {*(p.__name__ for p in MEMBERS), "UNSET", "Unset"}
    with pytest.raises(AttributeError, match=f"module '{MODULE}' has no attribute 'nothing'"):
        protocols.nothing  # type: ignore[attr-defined]


def test_the_package_gives_the_same_protocols() -> None:
    """The short import is the same class."""
    import cjm_worker_protocols as package

    for protocol in MEMBERS:
        assert getattr(package, protocol.__name__) is protocol


# What it costs

COST = """
import json, sys
import enum, typing
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("flags", [[], ["-S", "-E"]], ids=["with site", "bare"])
def test_importing_the_contract_loads_nothing_but_typing_and_enum(flags: "list[str]") -> None:
    """After `import enum, typing`, the contract adds its own module and the two packages around it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})" + COST.format(module=MODULE)
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, said(done)
    assert json.loads(done.stdout) == [PACKAGE, f"{PACKAGE}.extensions", MODULE]


def test_the_contract_imports_typing_and_enum_alone() -> None:
    """The source has no other import."""
    tree = ast.parse((LIB / "extensions/protocols.py").read_text(encoding="utf-8"))
    assert {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} <= {"typing", "enum"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import)]


# What the notebook shows


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The classes of the notebook, as a module."""
    module = ModuleType("notebook_examples")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclass looks there
    exec(compile(example_source(), "protocols.ipynb", "exec"), vars(module))
    return module


def test_the_registry_of_the_notebook(examples: ModuleType) -> None:
    """Two plugins, each in its category and with its configuration."""
    registry = examples.SimplePluginRegistry()
    assert isinstance(registry, PluginRegistryProtocol)
    (text,) = registry.get_plugins_by_category("processing")
    (image,) = registry.get_plugins_by_category("vision")
    assert (text.id, text.name, text.category) == ("plugin-1", "Text Processor", "processing")
    assert (image.id, image.name, image.category) == ("plugin-2", "Image Analyzer", "vision")
    assert registry.get_plugin("plugin-1") is text and registry.get_plugin("plugin-2") is image
    assert registry.load_plugin_config("plugin-1") == {"model": "gpt-3.5", "max_tokens": 100}
    assert registry.load_plugin_config("plugin-2") == {"model": "resnet-50", "device": "cuda"}


def test_the_registry_of_the_notebook_keeps_the_contract(examples: ModuleType) -> None:
    """Unknown ids and categories are answers, and what a caller changes stays with the caller."""
    registry = examples.SimplePluginRegistry()
    assert registry.get_plugin("plugin-3") is None
    assert registry.load_plugin_config("plugin-3") == {}
    assert registry.get_plugins_by_category(("any", "hashable")) == []
    registry.get_plugins_by_category("processing").clear()
    registry.load_plugin_config("plugin-1").clear()
    assert len(registry.get_plugins_by_category("processing")) == 1
    assert registry.load_plugin_config("plugin-1")["max_tokens"] == 100


RUNNING = {"status": "running", "job_id": "job-abc123", "plugin_name": "whisper", "loaded_plugin_resource": "whisper-large-v3"}


def test_the_resource_manager_of_the_notebook(examples: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints each call, to the letter."""
    manager = examples.SimpleResourceManager()
    assert isinstance(manager, ResourceManagerProtocol)
    manager.register_worker(12345, "transcription")
    manager.update_worker_state(pid=12345, **RUNNING)
    manager.unregister_worker(12345)
    assert capsys.readouterr().out.splitlines() == [
        "Registered transcription worker with PID 12345",
        "Updated worker 12345: {'type': 'transcription', 'status': 'running', 'job_id': 'job-abc123', "
        "'plugin_name': 'whisper', 'loaded_plugin_resource': 'whisper-large-v3'}",
        "Unregistered worker PID 12345",
    ]


@pytest.mark.parametrize("field", RUNNING)
@pytest.mark.parametrize("name", ["SimpleResourceManager", "MyResourceManager"])
def test_a_field_is_left_when_omitted_and_cleared_by_none(examples: ModuleType, name: str, field: str) -> None:
    """Each field by itself: None clears it and nothing else, and to omit it leaves it."""
    manager = getattr(examples, name)()
    manager.register_worker(1, "transcription")
    manager.update_worker_state(1, **RUNNING)
    before = dict(manager.workers[1])
    manager.update_worker_state(1)
    assert manager.workers[1] == before
    manager.update_worker_state(1, **{field: None})
    assert manager.workers[1] == {**before, field: None}


@pytest.mark.parametrize("name", ["SimpleResourceManager", "MyResourceManager"])
def test_a_resource_manager_of_the_notebook_keeps_the_contract(examples: ModuleType, name: str) -> None:
    """A pid that comes again begins anew; an unknown one is ignored; to unregister twice is no error."""
    manager = getattr(examples, name)()
    manager.register_worker(1, "transcription")
    fresh = dict(manager.workers[1])
    manager.update_worker_state(1, **RUNNING, plugin_id="whisper", config={"model": "large-v3"})
    manager.register_worker(1, "transcription")
    assert manager.workers[1] == fresh
    manager.update_worker_state(2, **RUNNING)
    manager.unregister_worker(2)
    assert list(manager.workers) == [1]
    manager.unregister_worker(1)
    manager.unregister_worker(1)
    assert manager.workers == {}


def test_the_broadcaster_of_the_notebook(examples: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints and lists the events in order, and what a caller does with its dict afterwards changes nothing."""
    broadcaster = examples.SimpleEventBroadcaster()
    assert isinstance(broadcaster, EventBroadcasterProtocol)
    data: Dict[str, Any] = {"job_id": "job-123", "plugin": "test"}

    async def main() -> None:
        await broadcaster.broadcast("job:started", data)
        data.clear()
        await broadcaster.broadcast("job:completed", {"job_id": "job-123", "status": "success"})

    asyncio.run(main())
    assert broadcaster.events == [
        {"type": "job:started", "data": {"job_id": "job-123", "plugin": "test"}},
        {"type": "job:completed", "data": {"job_id": "job-123", "status": "success"}},
    ]
    assert capsys.readouterr().out.splitlines() == [
        "Broadcast: job:started - {'job_id': 'job-123', 'plugin': 'test'}",
        "Broadcast: job:completed - {'job_id': 'job-123', 'status': 'success'}",
    ]


SHOWN = {
    "registry.get_plugins_by_category('processing')": (
        "[PluginMeta(id='plugin-1', name='Text Processor', category='processing')]"
    ),
    "print(f\"Config: {config}\")": "Plugin: Text Processor\nConfig: {'model': 'gpt-3.5', 'max_tokens': 100}",
    "resource_mgr.register_worker(12345, 'transcription')": "Registered transcription worker with PID 12345",
    "loaded_plugin_resource='whisper-large-v3'\n)": (
        "Updated worker 12345: {'type': 'transcription', 'status': 'running', 'job_id': 'job-abc123', "
        "'plugin_name': 'whisper', 'loaded_plugin_resource': 'whisper-large-v3'}"
    ),
    "await broadcaster.broadcast('job:started', {'job_id': 'job-123', 'plugin': 'test'})": (
        "Broadcast: job:started - {'job_id': 'job-123', 'plugin': 'test'}"
    ),
    "broadcaster.events": (
        "Broadcast: job:completed - {'job_id': 'job-123', 'status': 'success'}\n"
        "[{'type': 'job:started', 'data': {'job_id': 'job-123', 'plugin': 'test'}},\n"
        " {'type': 'job:completed', 'data': {'job_id': 'job-123', 'status': 'success'}}]"
    ),
}


@pytest.mark.parametrize("ending", SHOWN)
def test_the_notebook_shows_the_promised_lines(ending: str) -> None:
    """A cell that ends in this call shows exactly this, as a reader of the page sees it."""
    found = [shown(cell).strip() for cell in cells() if source(cell).endswith(ending)]
    assert found == [SHOWN[ending]]


def test_the_library_never_prints() -> None:
    """The example classes live in the notebook only."""
    text = (LIB / "extensions/protocols.py").read_text(encoding="utf-8")
    assert "Simple" not in text and "print(" not in text
