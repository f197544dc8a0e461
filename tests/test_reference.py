"""The reference that readers get: the notebooks as nbdev hands them to Quarto, held against the package as it is imported."""

import ast
import dataclasses
import enum
import functools
import html
import importlib
import inspect
import json
import os
import re
import runpy
import shutil
import textwrap
from pathlib import Path
from typing import Any, Iterator, NamedTuple, TypeVar

import pytest
from repo import NBS, PACKAGE, SETTINGS, copy_checkout, notebooks, python, said

from cjm_worker_protocols.core.errors import FactError

pytest.importorskip("nbdev", reason="nbdev is not installed: pip install -e '.[dev]'")
yaml = pytest.importorskip("yaml")

HEADING = re.compile(r"^(#+) (.+?)(?: \{#([\w.-]+)\})?$", re.MULTILINE)
FENCE = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[((?:`[^`]*`|[^\[\]])*)\]\(([^)\s]+)\)")
PLAIN, EXECUTABLE = (re.compile(rf"^\s*`{{3,}}{word}\s*$", re.MULTILINE) for word in ("mermaid", r"\{mermaid\}"))
PRIVATE = {  # What differs from one run to the next, or between machines, and so says nothing to a reader
    "a pid": re.compile(r"(?<=\bpid)['\"]?\s*[=:]?\s*\d{2,}", re.IGNORECASE),
    "a time": re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\b\d\d:\d\d:\d\d\b"),
    "a path": re.compile(r"(?<![\w.<])/(home|root|tmp|work|usr|var|opt|Users)/\w+"),
    "a log line": re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL):|\bTraceback \(most recent", re.MULTILINE),
    "an address": re.compile(r"\b0x[0-9a-f]{6,}\b"),
}


MOST = 1 << 22  # The highest pid that Linux gives: /proc/sys/kernel/pid_max in proc(5)


class Section(NamedTuple):
    """A heading and the text below it."""

    level: int
    text: str

    @property
    def signature(self) -> str:
        """The first block of code."""
        found = FENCE.search(self.text)
        assert found, f"no signature:\n{self.text}"
        return found[1]

    @property
    def rows(self) -> "dict[str, dict[str, str]]":
        """The rows of its tables and lists, by their first cell."""
        listed = re.findall(r"^- `\**(\w+)`(?: \((.+?)(?:, default (.+?))?\))?: (.+)$", self.text, re.MULTILINE)
        keys = ("Type", "Default", "Meaning")
        found = {name: dict(zip(keys, said), kind="Parameter") for name, *said in listed}
        heads: "list[str]" = []
        for line in self.text.splitlines():
            if not line.startswith("| "):
                heads = []
                continue
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|(?=(?:[^`]*`[^`]*`)*[^`]*$)", line)[1:-1]]
            if not heads:
                heads = cells
            elif set(line) - set("| -"):
                name = re.sub(r"^\[?(`+) ?(.*?) ?\1.*", r"\2", cells[0]).lstrip("*")
                found[name] = dict(zip(heads, cells), kind=heads[0])
        return found


class Page:
    """A processed notebook."""

    def __init__(self, path: Path) -> None:
        self.cells: "list[dict[str, Any]]" = json.loads(path.read_text(encoding="utf-8"))["cells"]
        self.text = "\n\n".join("".join(c["source"]) for c in self.cells if c["cell_type"] == "markdown")
        self.prose = CODE.sub("", self.text)
        self.sections: "dict[str, Section]" = {}
        self.anchors: "set[str]" = set()
        self.doubled: "list[str]" = []
        found = list(HEADING.finditer(CODE.sub(lambda m: re.sub(r"[^\n]", "x", m[0]), self.text)))
        for this, following in zip(found, [*found[1:], None]):
            auto = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", this[2].strip().lower()))
            anchor = this[3] or re.sub(r"^[^a-z]+", "", auto)
            if anchor in self.anchors:
                self.doubled.append(anchor)
            self.sections[anchor] = Section(len(this[1]), self.text[this.end() : following.start() if following else None])
            self.anchors.add(anchor)
        self.anchors.update(re.findall(r'<summary id="([\w.-]+)">', self.text))  # Of sections that open


class Site:
    """All processed notebooks."""

    def __init__(self, tmp: Path) -> None:
        self.checkout = copy_checkout(tmp / "checkout")
        code = "from nbdev.serve import proc_nbs; proc_nbs(force=True, n_workers=0)"
        done = python(code, cwd=self.checkout, timeout=300, PYTHONPATH=str(self.checkout))
        assert done.returncode == 0, said(done)
        self.said = done.stdout + done.stderr
        self.pages = {name: Page(self.checkout / "_proc" / name) for name in notebooks()}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """What Quarto is given."""
    return Site(tmp_path_factory.mktemp("site"))


pytestmark = pytest.mark.slow  # Making the site takes half a minute, in each process that tests it
each_page = pytest.mark.parametrize("name", notebooks())
MADE = [name for name in notebooks() if "default_exp" in (NBS / name).read_text(encoding="utf-8")]
each_module_page = pytest.mark.parametrize("name", MADE)


def listed(section: "dict[str, Any]") -> "set[str]":
    """The pages of a section of the sidebar."""
    nested = [{entry} if isinstance(entry, str) else listed(entry) for entry in section["contents"]]
    return set().union(*nested)


SIDEBAR = yaml.safe_load((NBS / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
INTERNALS = listed(next(section for section in SIDEBAR if section["section"] == "Internals"))


def module_of(name: str) -> Any:
    """The module that a notebook makes."""
    return importlib.import_module(f"{PACKAGE}.{name.removesuffix('.ipynb').replace('/', '.')}")


def things(name: str) -> "dict[str, Any]":
    """The public names of a module, type variables and what it imports apart."""
    module = module_of(name)
    found = {key: getattr(module, key) for key in module.__all__ if not isinstance(getattr(module, key), TypeVar)}
    own = {key for key, thing in found.items() if getattr(thing, "__module__", module.__name__) == module.__name__}
    return {key: thing for key, thing in found.items() if key in own or not callable(thing)}


def function(member: Any) -> Any:
    """The function that a method or a property is made of; `None` for other members."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    if isinstance(member, (classmethod, staticmethod)):
        return inspect.unwrap(member.__func__)
    return inspect.unwrap(member) if inspect.isfunction(member) else None


def parameters(key: str, member: Any) -> "list[str]":
    """The names of a function's parameters, without `self`, and without the one that Ray adds to the methods of an actor."""
    names = list(inspect.signature(function(member) or inspect.unwrap(member)).parameters)
    return [name for name in names["." in key and not isinstance(member, staticmethod) :] if name != "_ray_trace_ctx"]


def is_hook(name: str, member: Any) -> bool:
    """Whether a method with a leading underscore is one that subclasses define."""
    return name in ("_validate_resources", "_on_job_completed") and inspect.isfunction(member)


def members(cls: type) -> "dict[str, Any]":
    """The methods and properties of a class that readers need."""
    own = {key: member for key, member in vars(cls).items() if not key.startswith("_") or is_hook(key, member)}
    found = {key: member for key, member in own.items() if function(member) is not None}
    return {key: member for key, member in found.items() if function(member).__qualname__.startswith(cls.__qualname__)}


def inherited(cls: type) -> "dict[str, tuple[type, Any]]":
    """The methods and properties that a class inherits from classes of the package, each with the class that has it."""
    found: "dict[str, tuple[type, Any]]" = {}
    for base in cls.__mro__[1:]:
        if base.__module__.split(".")[0] == PACKAGE:
            found = {**{key: (base, member) for key, member in members(base).items()}, **found}
    return {key: pair for key, pair in found.items() if key not in vars(cls)}


def anchor_of(site: Site, name: str, key: str) -> str:
    """The anchor of a name: in small letters; a function or a value gives way to a class of the same letters."""
    clashes = [key.lower() + end for end in ("-function", "-value")]
    found = [clash for clash in clashes if clash in site.pages[name].anchors]
    return found[0] if found and (key.islower() or key.isupper()) else key.lower()


def section(site: Site, name: str, key: str) -> Section:
    """The part of a page that is about a name."""
    anchor = anchor_of(site, name, key)
    assert anchor in site.pages[name].sections, f"{key} has no heading on {name}"
    return site.pages[name].sections[anchor]


def foreign(cls: type, key: str) -> bool:
    """Whether a class of another package documents a method."""
    return any(key in vars(base) for base in cls.__mro__ if base.__module__.split(".")[0] != PACKAGE)


def documented(site: Site, name: str) -> "Iterator[tuple[str, Any, Section]]":
    """Every function, method and property of a page's module, with the part of the page that is about it."""
    for key, thing in things(name).items():
        if inspect.isclass(thing):
            here = {k: m for k, (_, m) in inherited(thing).items() if f"{key}.{k}".lower() in site.pages[name].anchors}
            for member_name, member in (here | members(thing)).items():
                if foreign(thing, member_name):
                    continue
                yield f"{key}.{member_name}", member, section(site, name, f"{key}.{member_name}")
        elif inspect.isroutine(thing) and thing.__name__ == key:
            yield key, thing, section(site, name, key)


def classes(site: Site, name: str) -> "Iterator[tuple[str, type, Section]]":
    """Every class of a page's module, with the part of the page that is about it."""
    for key, thing in things(name).items():
        if inspect.isclass(thing) and thing.__name__ == key:
            yield key, thing, section(site, name, key)


@each_module_page
def test_every_public_name_has_a_heading(name: str, site: Site) -> None:
    """Every name of `__all__`, and every method and property of a class, has a heading of its own, below that of its class."""
    missing = []
    for key, thing in things(name).items():
        is_class = inspect.isclass(thing) and thing.__name__ == key
        wanted = [key, *(f"{key}.{m}" for m in members(thing))] if is_class else [key]
        missing += [w for w in wanted if anchor_of(site, name, w) not in site.pages[name].anchors]
        assert all(section(site, name, w).level == 3 + w.count(".") for w in wanted if w not in missing)
    assert not missing
    ours = {key.lower() for key in things(name)}
    assert not [anchor for anchor in site.pages[name].doubled if "." in anchor or anchor in ours]


@each_module_page
def test_what_a_class_inherits_is_found_on_its_page(name: str, site: Site) -> None:
    """Each method and property that a class inherits from one of the package has a heading on its page, or a link there.

    A page for users has no such link to internals, and none to a class with a leading underscore."""
    for key, cls, part in classes(site, name):
        for member, (base, _) in inherited(cls).items():
            if foreign(cls, member) or f"{key}.{member}".lower() in site.pages[name].anchors:
                continue
            found = re.search(rf"^From .*\[`{member}`\]\(([^)#]*)#[\w.]+\.{member.lower()}\)", part.text, re.MULTILINE)
            assert found, f"{key}.{member}, of {base.__name__}"
            page = os.path.normpath(os.path.join(os.path.dirname(name), found[1])) if found[1] else name
            assert page not in INTERNALS or name in INTERNALS, f"{key}.{member}: {page}"


@each_module_page
def test_signatures_are_those_of_the_code(name: str, site: Site) -> None:
    """A signature has every parameter; a class is no function, and a coroutine function says so."""
    for key, member, part in documented(site, name):
        code = function(member) or inspect.unwrap(member)
        last = key.rpartition(".")[2]
        if isinstance(member, (property, functools.cached_property)):
            assert part.signature.startswith(last), key
            continue
        start = "async def " if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code) else "def "
        assert f"{start}{last}(" in part.signature, key
        for parameter in parameters(key, member):
            assert re.search(rf"\b{parameter}\b", part.signature), f"{key}: {parameter}"
        if re.search(r"\*args,\s*\*\*kw(args|ds)", part.signature):
            assert re.search(r"\*args.*?\*\*kw(args|ds)", inspect.getsource(code), re.DOTALL), key
    for key, cls, part in classes(site, name):
        assert re.match(rf"class {key}\b", part.signature), key
        assert f"def {key}(" not in part.text
        if "*args" in part.signature:
            assert "*args" in inspect.getsource(cls), key


@each_module_page
def test_parameters_and_results_are_explained(name: str, site: Site) -> None:
    """Every parameter has a row with its meaning, and a result is said in words."""
    unsaid = []
    for key, member, part in documented(site, name):
        is_property = isinstance(member, (property, functools.cached_property))
        signature = inspect.signature(function(member) or inspect.unwrap(member))
        if not is_property:
            unsaid += [f"{key}: {p}" for p in parameters(key, member) if not part.rows.get(p, {}).get("Meaning")]
        if signature.return_annotation not in (None, "None", inspect.Signature.empty):
            found = re.search(r"^\*\*(Returns|Value)\*\* .*: \S", part.text, re.MULTILINE)
            unsaid += [] if found else [f"{key}: what it returns"]
        description = FENCE.sub("", part.text).replace("[source]", "").strip().splitlines()
        unsaid += [] if any(re.match(r"[A-Z`\[“\"]", line) for line in description) else [f"{key}: what it does"]
    for key, cls, part in classes(site, name):
        init = vars(cls).get("__init__")
        written = inspect.isfunction(init) and init.__code__.co_filename == inspect.getsourcefile(cls)
        if inspect.isfunction(init) and written:
            wanted = [p.name for p in list(inspect.signature(init).parameters.values())[1:] if not p.name.startswith("_")]
            found = re.search(r"^The other parameters are those of \[`(\w+)`\]\(#", part.text, re.MULTILINE)
            rows = section(site, name, found[1]).rows | part.rows if found else part.rows
            unsaid += [f"{key}: {p}" for p in wanted if not rows.get(p, {}).get("Meaning")]
    assert not unsaid, "\n" + "\n".join(unsaid)


@each_module_page
def test_errors_are_listed(name: str, site: Site) -> None:
    """Every `:raises X: …` of a docstring is an entry below `Raises`, after what `Raises …, and:` says; neither stays in the text."""
    for key, member, part in documented(site, name):
        for error in re.findall(r"^\s*:raises (\w+):", (function(member) or member).__doc__ or "", re.MULTILINE):
            assert re.search(rf"^- \[?`{error}`", part.text.partition("**Raises**")[2], re.MULTILINE), f"{key}: {error}"
    assert ":raises" not in site.pages[name].prose
    assert not re.search(r"^.*\bRaises .*, and:$", site.pages[name].prose, re.MULTILINE)


def facts(cls: type) -> "dict[str, bool]":
    """The fields, members or facts of a class, and whether each has a default."""
    if issubclass(cls, enum.Enum):
        return dict.fromkeys(cls.__members__, False)
    if dataclasses.is_dataclass(cls):
        public = [f for f in dataclasses.fields(cls) if not f.name.startswith("_")]
        return {f.name: {f.default, f.default_factory} != {dataclasses.MISSING} for f in public}
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return {field: field in cls._field_defaults for field in cls._fields}  # type: ignore[attr-defined]
    if issubclass(cls, FactError):
        return {fact: hasattr(cls, fact) for fact in cls.facts}
    return {}


@each_module_page
def test_fields_members_and_facts_are_in_a_table(name: str, site: Site) -> None:
    """A table lists every field, member and fact with its type, default and meaning."""
    for key, cls, part in classes(site, name):
        for field, optional in facts(cls).items():
            row = part.rows.get(field, {})
            assert row.get("Meaning"), f"{key}.{field}"
            assert row.get("Value" if issubclass(cls, enum.Enum) else "Type"), f"{key}.{field}"
            assert not optional or row.get("Default"), f"{key}.{field}"


def test_settings_have_units(site: Site) -> None:
    """What a setting counts is said: its times are seconds, its other limits name what they limit."""
    part = section(site, "core/config.ipynb", "WorkerConfig")
    timed = [name for name, row in part.rows.items() if "float" in row["Type"] and "Mapping" not in row["Type"]]
    assert len(timed) > 5
    assert [name for name in timed if "econds" not in part.rows[name]["Meaning"]] == []


@pytest.mark.parametrize(
    ("cls", "wanted"),
    [
        ("managers/base.BaseJobManager", "start_job cancel_job retry_job drain reload_plugin shutdown"),
        ("managers/lookup.ManagerView", "events workers find_job list_jobs ready get_job get_job_result"),
        ("managers/hooks.Hooks", "create_job prepare_execute_request extract_job_result estimate_resources _validate_resources"),
        ("core/jobs.Job", "stream wait __await__"),
        ("extensions/protocols.PluginRegistryProtocol", "get_plugins_by_category get_plugin load_plugin_config"),
        ("extensions/protocols.ResourceManagerProtocol", "register_worker unregister_worker update_worker_state"),
        ("extensions/protocols.EventBroadcasterProtocol", "broadcast"),
    ],
)
def test_what_readers_look_for_first_is_there(cls: str, wanted: str, site: Site) -> None:
    """The methods that an app calls or defines have a heading."""
    page, _, name = cls.partition(".")
    assert {f"{name}.{method}".lower() for method in wanted.split()} <= site.pages[f"{page}.ipynb"].anchors


@each_page
def test_no_markdown_leaks(name: str, site: Site) -> None:
    """No link stands in a link, no cell is left that would have to be executed, and nothing of the code is shown twice."""
    page = site.pages[name]
    assert not re.search(r"\[\[?`[^`]*`\]\([^)]*\)[^\[\n]*\]\(|\[\[`", page.prose)
    assert not re.search(r"^\|.*`[^`|]*\\\|", page.prose, re.MULTILINE), "Pandoc shows the backslash of code in a table"
    code = ["".join(c["source"]) for c in page.cells if c["cell_type"] == "code"]
    assert not [source for source in code if re.search(r"^show_doc\(|^#\|\s*exports?\b", source, re.MULTILINE)]


@each_page
def test_links_are_relative_and_lead_to_headings(name: str, site: Site) -> None:
    """A link to another page is relative; the page and the heading exist."""
    page, broken = site.pages[name], []
    for words, to in LINK.findall(page.prose):
        assert not to.startswith(SETTINGS["doc_host"]), f"{words}: {to}"
        if re.match(r"\w+:", to):
            continue
        file, _, anchor = to.partition("#")
        path = (NBS / name).parent.joinpath(file).resolve() if file else NBS / name
        there = site.pages.get(path.relative_to(NBS).as_posix()) if NBS in path.parents else None
        lost = there is None and path.suffix == ".ipynb" or not path.exists()
        if lost or anchor and there and anchor not in there.anchors:
            broken.append(f"{words}: {to}")
    assert not broken


@each_page
def test_names_lead_to_themselves(name: str, site: Site) -> None:
    """A name that is a link to a heading of the reference leads to the heading of that name, or of its class."""
    for words, to in LINK.findall(site.pages[name].prose):
        anchor = to.partition("#")[2]
        code = re.fullmatch(r"`([\w.]+)(?:\(\))?(?: \| None)?`", words)
        if code and anchor and not re.match(r"\w+:", to):
            parts = code[1].lower().split(".")
            assert set(parts) & set(re.sub("-(function|value)$", "", anchor).split(".")), f"{words}: {to}"


@each_page
def test_the_whole_text_is_there(name: str, site: Site) -> None:
    """Processing drops no text, not even what stands in the first cell below the title and the subtitle."""
    stored = json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]
    first, *others = ["".join(c["source"]) for c in stored if c["cell_type"] == "markdown"]
    title, _, rest = first.partition("\n\n> ")
    header = yaml.safe_load("".join(site.pages[name].cells[0]["source"]).strip().strip("-"))
    assert [header["title"], header["description"]] == [title.removeprefix("# "), rest.partition("\n")[0]]
    shown = re.sub(r"\]\([^)]*\)|[\[\]]", "", site.pages[name].text)
    for text in (rest.partition("\n")[2], *others):
        for line in re.sub(r"\]\([^)]*\)|[\[\]]", "", text.replace("<!-- folded -->", "")).splitlines():
            folded = re.sub(r"`([^`]+)`", r"<code>\1</code>", line.strip("# "))
            assert line.strip() in shown or f">{folded}</summary>" in shown or re.search(r"^#+ (.* -|`\w+`)$", line), line


@each_page
def test_outputs_are_the_same_everywhere(name: str, site: Site) -> None:
    """No output holds a pid, a time, a path, a log line or an address, unless the page itself made it up, and processing makes none."""
    cells = json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]
    stored = {c["id"]: c.get("outputs", []) for c in cells}
    written = "\n".join("".join(c["source"]) for c in cells)
    for cell in site.pages[name].cells:
        outputs = cell.get("outputs", [])
        text = json.dumps(outputs, ensure_ascii=False).replace("\\n", "\n")
        for what, pattern in PRIVATE.items():
            for found in pattern.finditer(text):
                said = re.sub(r"^\W*(?=\d)", "", found[0])
                made_up = said in written or said.isdigit() and int(said) > MOST
                assert made_up, f"{what}: {text[max(0, found.start() - 60) : found.end() + 60]}"
        if outputs:
            assert text == json.dumps(stored[cell["id"]], ensure_ascii=False).replace("\\n", "\n")


BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOOKED_AT = [f"{name}.ipynb" for name in ("index", "managers/base", "core/config", "core/errors", "extensions/protocols")]
LOOKED_AT += [f"{name}.ipynb" for name in ("conformance/catalogue/store", "cli/usage", "explanations/security", "explanations/limits")]
LOOKED_AT += ["managers/lookup.ipynb", "howto/live_events_in_production.ipynb"]
SCREEN, SCREENS = 800, 10.5  # The height of a window in pixels, and how many of them a page for users may fill
MEASURED = 30  # Of the pages for users, those with the largest files; the others are shorter by far


@pytest.fixture(scope="session")
def preview(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some pages as tools/preview.py makes them: those that are looked at, and the longest ones for users."""
    pytest.importorskip("pypandoc", reason="pypandoc_binary is not installed: pip install -e '.[dev]'")
    to = tmp_path_factory.mktemp("preview")
    wanted = dict.fromkeys([*LOOKED_AT, *longest(site)])
    runpy.run_path(str(site.checkout / "tools/preview.py"))["build"](to, site.checkout / "_proc", [*wanted])
    return to


def longest(site: Site) -> "list[str]":
    """The longest pages for users, by their files."""
    sizes = {name: (site.checkout / "_proc" / name).stat().st_size for name in site.pages if name not in INTERNALS}
    return sorted(sizes, key=lambda name: -sizes[name])[:MEASURED]


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_page_is_whole_in_html(name: str, preview: Path, site: Site) -> None:
    """No Markdown is left in the HTML, no identifier is given twice, and every heading of the page is there."""
    page = (preview / name).with_suffix(".html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page.partition("<main")[2], flags=re.DOTALL))
    assert not re.search(r"\]\(|\*\*|^\| |:::|\{#|\{\.", re.sub(r"<[^>]*>", "", text), re.MULTILINE)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {anchor for anchor in site.pages[name].anchors if "." in anchor} <= set(ids)
    assert not re.search(r'href="(?!\w+:)[^"]*\.ipynb', page)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("theme", ["quarto-light", "quarto-dark"])
def test_a_page_fits_its_window_and_can_be_read(width: int, theme: str, preview: Path) -> None:
    """Nothing is cut off or needs scrolling sideways, nothing comes from another host, and links stand out from their ground."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    asked: "list[str]" = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        for name in LOOKED_AT:
            page.goto((preview / name).with_suffix(".html").as_uri())
            page.evaluate(f"document.body.className = '{theme}'")
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
            assert not page.evaluate(CUT), name
            assert not page.evaluate(WIDE), name
            assert width < 768 or not page.evaluate(BROKEN), name
            for what in ("main a code", "main pre.mermaid"):
                if page.locator(what).count():
                    assert page.evaluate(CONTRAST, what) > 4.5, (name, what)  # WCAG 2.2, 1.4.3 Contrast (Minimum)
        browser.close()
    assert asked and all(url.startswith("file:") for url in asked)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
def test_pages_for_users_fill_about_ten_screens_at_most(preview: Path, site: Site) -> None:
    """A longer page is two pages, or has sections that open."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page, screens = browser.new_page(viewport={"width": 1200, "height": 900}), {}
        for name in longest(site):
            page.goto((preview / name).with_suffix(".html").as_uri())
            screens[name] = page.evaluate("document.documentElement.scrollHeight") / SCREEN
        browser.close()
    assert len(screens) == MEASURED
    assert {name: height for name, height in screens.items() if height > SCREENS} == {}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
def test_a_link_into_a_folded_section_opens_it(preview: Path) -> None:
    """From another page, from the page itself, and again after the section was closed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page, url = browser.new_page(), (preview / "core/errors.html").as_uri()
        page.goto(url)
        assert not page.locator("#facterror").is_visible()
        page.goto(f"{url}#facterror")
        assert page.locator("#facterror").is_visible()
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = false)")
        page.evaluate("location.hash = 'pluginloaderror'")
        page.wait_for_function("document.querySelector('#pluginloaderror').checkVisibility()")
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = false); unfold()")
        assert page.locator("#pluginloaderror").is_visible()
        browser.close()


CUT = """() => [...document.querySelectorAll("main pre")]
    .filter(block => block.scrollWidth > block.clientWidth + 1).map(block => block.textContent)"""
WIDE = """() => [...document.querySelectorAll("main table")].filter(table => !table.closest(".reference, .cell-output-display"))
    .map(table => table.getBoundingClientRect().right - table.parentElement.getBoundingClientRect().right).filter(over => over > 1)"""
BROKEN = """() => [...document.querySelectorAll("main td:first-child code")]
    .filter(code => code.getClientRects().length > 1).map(code => code.textContent)"""
CONTRAST = """(what) => {
    const light = (color) => {
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = color.match(/[\\d.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const code = getComputedStyle(document.querySelector(what));
    const [a, b] = [light(code.color), light(code.backgroundColor)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""


def test_processing_has_nothing_to_complain_of(site: Site) -> None:
    """nbdev understands every page."""
    assert "Warning" not in site.said, site.said


def test_a_page_follows_from_the_source_alone(site: Site) -> None:
    """The reference of two pages is that of their cells: no other page and no import adds to it."""
    text = site.pages["core/config.ipynb"].text
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(module_of("core/config.ipynb").RestartPolicy))).body
    assert (ast.get_docstring(tree) or "?") in text  # type: ignore[arg-type]


def test_mermaid_pictures_reach_quarto(site: Site, tmp_path: Path) -> None:
    """What Quarto runs before it renders turns every plain fence into one that it draws, in nbdev's copy only."""
    there = site.checkout
    text = {name: "\n".join("".join(c["source"]) for c in page.cells) for name, page in site.pages.items()}
    plain = sum(len(PLAIN.findall(t)) for t in text.values())
    assert plain, "the index has a picture"
    script = there / "tools/mermaid.py"
    config = yaml.safe_load((there / "_quarto.yml").read_text())
    assert (there / "_proc" / config["project"]["pre-render"]).resolve() == script
    copy = shutil.copytree(there / "_proc", tmp_path / "_proc")
    assert runpy.run_path(str(script))["convert"](copy) == plain
    for name in site.pages:
        after = "\n".join("".join(c["source"]) for c in Page(copy / name).cells)
        assert not PLAIN.search(after)
        assert len(EXECUTABLE.findall(after)) == len(PLAIN.findall(text[name]))
        assert not re.search(r"^\s*(flowchart|graph) (LR|RL)\b", after, re.MULTILINE), "a column is too narrow for it"
    assert (there / "nbs/index.ipynb").read_bytes() == (NBS / "index.ipynb").read_bytes()


def test_the_top_quarto_yml_is_the_one_used(site: Site) -> None:
    """nbs/_quarto.yml only includes the top one, and does so from nbdev's copy of nbs/ too."""
    there = site.checkout
    for folder in ("nbs", "_proc"):
        here = there / folder
        config = yaml.safe_load((here / "_quarto.yml").read_text())
        assert list(config) == ["metadata-files"]
        included = [(here / file).resolve() for file in config["metadata-files"]]
        assert included == [there / "_quarto.yml", here / "nbdev.yml", here / "sidebar.yml"]
        assert all(file.exists() for file in included)
    top = yaml.safe_load((there / "_quarto.yml").read_text())
    assert top["project"]["type"] == "website"
    assert "metadata-files" not in top, "Quarto does not follow an include of an include"
    assert (there / "_proc" / top["format"]["html"]["css"]).exists()
    assert (there / "_proc" / top["website"]["favicon"]).exists()
    assert all((there / "_proc" / theme[1]).exists() for theme in top["format"]["html"]["theme"].values())
    assert top["website"]["sidebar"]["collapse-level"] == 1, "only the section of the page that is shown is open"
    assert top["website"]["page-navigation"] and top["website"]["navbar"]["search"] and top["format"]["html"]["toc"]
    assert top["website"]["page-footer"]["left"] == f"{SETTINGS['lib_name']} {SETTINGS['version']}"
    assert top["website"]["navbar"]["right"][0]["href"] == SETTINGS["git_url"]
    hosts = [re.findall(r"https?://[\w.]+", (NBS / file).read_text()) for file in ("styles.css", "theme.scss")]
    assert hosts == [[], []], "nothing comes from another host"
