"""The reference: one of nbdev's processors. It replaces each cell that exports by the reference of what the cell defines.

A class shows its signature, its docstring, a table of its parameters, fields, members or facts, and then each method
and property under a heading of its own. Everything is read from the source of the cell: see symbols.py.

A section whose heading is followed by `<!-- folded -->` is a line that opens: on a page for users, what only those need who read the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass, replace
from typing import Any

from execnb.nbio import mk_cell
from nbdev.process import Processor

from .links import page_of, relative
from .symbols import Function, Index, Symbol, index, lines_of, methods, public

WIDTH = 88  # Of a signature on one line
HEADING = re.compile(r"^(?=#{1,6} )", re.MULTILINE)
FOLDED = re.compile(r"\A(#+) (.+?)(?: \{#([\w.-]+)\})?\n+<!-- folded -->\s*")
OPEN = '```{{=html}}\n<details class="folded"><summary id="{anchor}">{title}</summary>\n```\n\n::: {{.folded}}'
CLOSE = ":::\n\n```{=html}\n</details>\n```"
RAISES = re.compile(r"^:raises? +([\w.]+) *: *(.*)$")
RAISES_TOO = re.compile(r"\bRaises ((?:(?!\.\s).)+), and:\Z", re.DOTALL)  # Before the first `:raises`
LISTED = {"Parameter": 3, "Field": 6, "Fact": 6}  # From how many rows on they are a table
SHOWN = ("classmethod", "staticmethod", "contextmanager", "asynccontextmanager")  # Decorators that change how one calls
SPECIAL = {"dataclass": "Field", "Enum": "Member", "FactError": "Fact", "NamedTuple": "Field", "TypedDict": "Key"}


@dataclass(frozen=True)
class Row:
    """A parameter, a field, a member or a fact."""

    name: str
    type: str
    default: str
    meaning: str
    in_call: bool = True  # Whether the constructor takes it


def text(node: "ast.expr | None") -> str:
    """The source of a type or a default."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isspace(): return node.value
    return ast.unparse(node) if node else ""


def code(source: str) -> str:
    """A piece of code in a sentence."""
    if not source: return ""
    return f"`` {source} ``" if "`" in source else f"`{source}`"


def table(head: str, rows: Iterable[Row]) -> str:
    """A table of rows, without columns that are empty; of a few, a list."""
    rows = list(rows)
    if len(rows) < LISTED.get(head, 0): return "\n".join(map(item, rows))
    cells = [[code(r.name), code(r.type), code(r.default), escaped(r.meaning)] for r in rows]
    keep = [i for i in range(4) if any(row[i] for row in cells)]
    widths = [max(len(row[i]) for row in cells) + 2 for i in range(4)]
    heads = [head, "Type", "Value" if head == "Member" else "Default", "Meaning"]
    lines = [heads, ["-" * max(3, min(width, 60)) for width in widths], *cells]
    listed = "\n".join("| " + " | ".join(line[i] for i in keep) + " |" for line in lines)
    return f"::: {{.reference}}\n{listed}\n:::"


def item(row: Row) -> str:
    """A parameter or a fact in a line."""
    about = ", ".join([*filter(None, [code(row.type)]), *([f"default {code(row.default)}"] if row.default else [])])
    return f"- {code(row.name)}{f' ({about})' if about else ''}: {escaped(row.meaning)}"


def escaped(words: str) -> str:
    """A text in which `<` and `|` outside of code are themselves."""
    parts = re.split(r"(`+[^`]*`+)", words)
    return "".join(part if part.startswith("`") else re.sub(r"(?<!\\)([<|])", r"\\\1", part) for part in parts)


def heading(symbol: Symbol, level: int, source: str) -> str:
    """A heading, with the link to the source."""
    name = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", symbol.name)
    return f"{'#' * level} {name} {{#{symbol.anchor}}}\n\n[source]({source}){{.source-link}}"


class Writer:
    """Writes the reference of one page."""

    def __init__(self, page: str, symbols: Index) -> None:
        self.page, self.symbols = page, symbols
        parser = ConfigParser(delimiters=["="])
        parser.read(symbols.root / "settings.ini", encoding="utf-8")
        self.settings = parser["DEFAULT"]

    def write(self, symbol: Symbol) -> str:
        """The reference of a class, a function or a constant."""
        if isinstance(symbol.node, ast.ClassDef): parts = self.of_class(symbol)
        elif isinstance(symbol.node, Function): parts = self.of_function(symbol, 3)
        else: parts = self.of_constant(symbol)
        return "\n\n".join(part for part in parts if part)

    def source(self, symbol: Symbol) -> str:
        """The address of the source."""
        file = f"{self.settings['lib_path']}/{symbol.module.replace('.', '/')}.py"
        line = lines_of(self.symbols.root / file).get(symbol.defined or symbol.name)
        return f"{self.settings['git_url']}/blob/{self.settings['branch']}/{file}" + (f"#L{line}" if line else "")

    def of_constant(self, symbol: Symbol) -> Iterator[str]:
        """The reference of a constant or a type alias."""
        yield heading(symbol, 3, self.source(symbol))
        lines = (symbol.node.end_lineno or 0) - symbol.node.lineno
        yield fence(ast.unparse(symbol.node) if lines < 12 else symbol.name)
        yield escaped(symbol.comments.get(symbol.node.end_lineno or 0, ""))

    def of_function(self, symbol: Symbol, level: int) -> Iterator[str]:
        """The reference of a function, a method or a property."""
        node, shown = symbol.node, self.original(symbol)
        assert isinstance(node, Function) and isinstance(shown.node, Function)
        yield heading(symbol, level, self.source(symbol))
        decorators = symbol.decorators
        result = text(node.returns)
        rows = list(parameters(node, symbol.comments, level > 3 and "staticmethod" not in decorators))
        if shown is not symbol: rows = explained(rows, parameters(shown.node, shown.comments, True))
        if decorators & {"property", "cached_property"}:
            yield fence(f"{node.name}: {result}" if result else node.name)
        else:
            prefix = "".join(f"@{name}\n" for name in SHOWN if name in decorators)
            prefix += "async def " if isinstance(node, ast.AsyncFunctionDef) else "def "
            yield fence(call(prefix + node.name, rows, result))
        description, errors = parted(symbol.doc or shown.doc or self.elsewhere(symbol))
        yield description
        listed = [row for row in rows if row.name not in ("/", "*")]
        if listed and not decorators & {"property", "cached_property"}: yield table("Parameter", listed)
        meaning = returned(node, symbol.comments) or returned(shown.node, shown.comments)
        if meaning: yield f"**{'Value' if 'property' in decorators else 'Returns'}** {code(result)}: {escaped(meaning)}"
        yield errors
        if shown is not symbol and not symbol.doc: yield f"As `{shown.name}`."

    def original(self, symbol: Symbol) -> Symbol:
        """The method that explains this one: itself, or the method of a base class or a Protocol that it implements."""
        assert isinstance(symbol.node, Function)
        explains = any(row.meaning for row in parameters(symbol.node, symbol.comments, True))
        if "." not in symbol.name or explains or returned(symbol.node, symbol.comments): return symbol
        owner, _, name = symbol.name.rpartition(".")
        parent = self.symbols.find(owner, self.page)
        bases = self.symbols.ancestors(parent) if parent else []
        for base in [*bases, *self.symbols.protocols()]:
            for method in methods(base):
                if method.last == name and method.doc: return method
        return symbol

    def elsewhere(self, symbol: Symbol) -> str:
        """Where a method without a docstring is documented: by a class of another package."""
        parent = self.symbols.find(symbol.name.rpartition(".")[0], self.page)
        if parent is None: return ""
        every = [base for member in (parent, *self.symbols.ancestors(parent)) for base in member.bases]
        foreign = [base for base in every if self.symbols.find(base, self.page) is None]
        return f"As `{foreign[-1]}.{symbol.last}`." if foreign else ""

    def of_class(self, symbol: Symbol) -> Iterator[str]:
        """The reference of a class and of its methods."""
        node = symbol.node
        assert isinstance(node, ast.ClassDef)
        family = [symbol, *self.symbols.ancestors(symbol)]
        kind, rows = self.rows(family)
        members = ((s, m) for s in family for m in s.body)
        every = [(s, m) for s, m in members if isinstance(m, Function) and m.name == "__init__"]
        owner, made = every[0] if every else (symbol, None)
        yield heading(symbol, 3, self.source(symbol))
        bases = [base for base in symbol.bases if not base.startswith("_")]
        taken: list[Row] = []
        if kind == "Fact" and owner is not symbol and owner.name == "FactError": made = None  # the facts say it better
        if made is not None: taken = list(parameters(made, owner.comments, True))
        elif kind in ("Field", "Fact", "Key"): taken = arranged([row for row in rows if row.in_call], node)
        if kind in ("Member", "Fact") or symbol.is_protocol: yield fence(f"class {node.name}({', '.join(bases)})")
        else: yield fence(call(f"class {node.name}", taken, ""))
        description, errors = parted(symbol.doc)
        yield description
        if made is not None and owner is symbol:
            more, raised = parted(ast.get_docstring(made) or "")
            yield more
            errors = "\n\n".join(part for part in (errors, raised) if part)
        with_meaning = [row for row in taken if row.name not in ("/", "*") and row.meaning]
        if made is not None and owner is not symbol and owner.page == self.page and public(owner.name):
            yield f"The parameters are those of [`{owner.name}`](#{owner.anchor})."
        elif made is not None and with_meaning and not same(with_meaning, rows): yield from self.of_parameters(with_meaning, every)
        if rows: yield table(kind or "Attribute", rows)
        yield errors
        if bases and not symbol.is_protocol and kind not in ("Member", "Fact"): yield f"Bases: {', '.join(map(code, bases))}."
        mine = [*methods(symbol), *self.symbols.inherited(symbol)]
        own = {m.last for m in mine}
        for base in [base for base in family[1:] if not self.symbols.speaks_for(symbol, base)]:
            rest = [m for m in (*methods(base), *self.symbols.inherited(base)) if m.last not in own]
            links = [f"[{code(m.last)}]({relative(m.page, self.page)}#{m.anchor})" for m in rest]
            if links: yield f"From `{base.name}`: {', '.join(links)}."
            own |= {m.last for m in rest}
        for method in mine: yield from self.of_function(method, 4)

    def of_parameters(self, listed: list[Row], every: "list[tuple[Symbol, Any]]") -> Iterator[str]:
        """The table of a constructor's parameters; those that are a base class's too are listed there."""
        for base, node in every[1:]:
            known = list(parameters(node, base.comments, True))
            more = [row for row in listed if row not in known]
            if base.page != self.page or not public(base.name) or more == listed or not more: continue
            yield table("Parameter", more)
            yield f"The other parameters are those of [`{base.name}`](#{base.anchor})."
            return
        yield table("Parameter", listed)

    def rows(self, family: list[Symbol]) -> tuple[str, list[Row]]:
        """What the table of a class lists: its kind, and the fields, members or facts, the inherited ones first."""
        words = {base.partition("[")[0].rpartition(".")[2] for member in family for base in member.bases}
        words |= {member.name for member in family} | {word for member in family for word in member.decorators}
        if words & {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}: return "Member", list(members(family[0]))
        kind = next((label for word, label in SPECIAL.items() if word in words), "")
        found = {row.name: row for symbol in reversed(family) for row in fields(symbol, bool(kind))}
        return kind, list(found.values())


def same(some: list[Row], others: list[Row]) -> bool:
    """Whether two tables list the same."""
    return {row.name for row in some} <= {row.name for row in others}


def arranged(rows: list[Row], node: ast.ClassDef) -> list[Row]:
    """The parameters of a constructor that is made of fields."""
    only = any("kw_only=True" in ast.unparse(d) for d in node.decorator_list)
    return [Row("*", "", "", ""), *rows] if only and rows else rows


def members(symbol: Symbol) -> Iterator[Row]:
    """The members of an enum."""
    for node in symbol.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and public(node.targets[0].id):
            meaning = symbol.comments.get(node.end_lineno or 0, "")
            yield Row(node.targets[0].id, "", ast.unparse(node.value), meaning)


def fields(symbol: Symbol, every: bool) -> Iterator[Row]:
    """The annotated fields of a class; unless it is made of fields, only those that are explained."""
    for node in symbol.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name): continue
        if not public(node.target.id): continue
        kind, meaning = text(node.annotation), symbol.comments.get(node.end_lineno or 0, "")
        if kind.startswith("ClassVar") or not (every or meaning): continue
        default, in_call = default_of(node.value)
        yield Row(node.target.id, kind, default, meaning, in_call)


def default_of(value: "ast.expr | None") -> tuple[str, bool]:
    """The default of a field, and whether the constructor takes the field."""
    if not isinstance(value, ast.Call) or ast.unparse(value.func) not in ("field", "dataclasses.field"):
        return (ast.unparse(value) if value else ""), True
    given = {k.arg: k.value for k in value.keywords}
    if "default" in given: default = ast.unparse(given["default"])
    elif "default_factory" in given:
        made = given["default_factory"]
        default = ast.unparse(made.body) if isinstance(made, ast.Lambda) else f"{ast.unparse(made)}()"
    else: default = ""
    return default, not ("init" in given and ast.unparse(given["init"]) == "False")


def parameters(node: "ast.FunctionDef | ast.AsyncFunctionDef", lines: dict[int, str], bound: bool) -> Iterator[Row]:
    """The parameters of a function, with `/` and `*` between them; of a method, those after the first."""
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)

    def row(arg: ast.arg, default: "ast.expr | None", stars: str = "") -> Row:
        meaning = lines.get(arg.end_lineno or 0) or lines.get(default.end_lineno or 0 if default else 0, "")
        return Row(stars + arg.arg, text(arg.annotation), ast.unparse(default) if default else "", meaning)

    skipped = 1 if bound and plain else 0
    for number, (arg, default) in enumerate(zip(plain, defaults)):
        if number >= skipped: yield row(arg, default)
        if number + 1 == len(args.posonlyargs) > skipped: yield Row("/", "", "", "")
    if args.vararg: yield row(args.vararg, None, "*")
    elif args.kwonlyargs: yield Row("*", "", "", "")
    for arg, given in zip(args.kwonlyargs, args.kw_defaults): yield row(arg, given)
    if args.kwarg: yield row(args.kwarg, None, "**")


def explained(rows: list[Row], by: Iterable[Row]) -> list[Row]:
    """Parameters with the meanings that those of another function have."""
    meanings = {row.name: row.meaning for row in by}
    return [replace(row, meaning=row.meaning or meanings.get(row.name, "")) for row in rows]


def returned(node: "ast.FunctionDef | ast.AsyncFunctionDef", lines: dict[int, str]) -> str:
    """The comment that explains the result."""
    return lines.get(node.returns.end_lineno or 0, "") if node.returns and text(node.returns) != "None" else ""


def call(name: str, rows: list[Row], result: str) -> str:
    """A signature: on one line if it fits, else without the types, which the table has."""

    def shown(row: Row) -> str:
        if not row.default: return f"{row.name}: {row.type}" if row.type else row.name
        return f"{row.name}: {row.type} = {row.default}" if row.type else f"{row.name}={row.default}"

    end = f" -> {result}" if result else ""
    line = f"{name}({', '.join(map(shown, rows))}){end}"
    if len(line) <= WIDTH: return line
    every = [(f"{row.name}={row.default}" if row.default else row.name).replace(" ", "\0") for row in rows]  # a line ends after a comma
    lines = textwrap.fill(", ".join(every), WIDTH - 12, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
    return f"{name}(\n" + lines.replace("\0", " ") + f"\n){end}"


def fence(source: str) -> str:
    """A block of Python."""
    return f"```python\n{source}\n```"


def parted(doc: str) -> tuple[str, str]:
    """The description of a docstring, and its errors as a list."""
    description: list[str] = []
    errors: list[str] = []
    for line in re.sub(r"(?<=[.;]) +(:raises? )", r"\n\1", inspect.cleandoc(doc)).splitlines():
        if found := RAISES.match(line): errors.append(f"- `{found[1]}` {found[2]}")
        elif errors and line.strip(): errors[-1] += " " + line.strip()
        elif not errors: description.append(line)
    shown = "\n".join(description).strip()
    if errors and (found := RAISES_TOO.search(shown)):
        shown, errors = shown[:found.start()].rstrip(), [f"- {' '.join(found[1].split())}", *errors]
    return escaped(shown), "**Raises**\n\n" + escaped("\n".join(errors)) if errors else ""


def apart(source: str, anchors: set[str]) -> str:
    """Give the headings of a text identifiers that the reference does not use: `## Chunks` stands beside the class `Chunks`.

    Nothing is left of a text that is only the heading of a name: the reference has one.
    """
    if (alone := re.fullmatch(r"#{2,} `?(\w+)`?\s*", source)) and alone[1].lower() in anchors: return ""

    def marked(match: "re.Match[str]") -> str:
        name = match[1].strip("`").lower()
        return f"{match[0]} {{#about-{name}}}" if name in anchors else match[0]

    return re.sub(r"^#+ (`?\w+`?)$", marked, source, flags=re.MULTILINE)


def slug(title: str) -> str:
    """The identifier that Pandoc gives to a heading."""
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", title.lower())))


def pieces(source: str) -> list[str]:
    """A text, cut before each of its headings."""
    without_code = re.sub(r"^ *(`{3,}).*?^ *\1", lambda m: re.sub(r"[^\n]", "x", m[0]), source, flags=re.MULTILINE | re.DOTALL)
    cuts = [0, *(m.start() for m in HEADING.finditer(without_code) if m.start()), len(source)]
    return [source[start:end] for start, end in zip(cuts, cuts[1:])]


def folded(cells: Iterable[Any]) -> Iterator[Any]:
    """The cells, with each section that is marked as folded between two that make it a line that opens."""
    depth = 0  # The level of the heading of the section that is open
    for cell in cells:
        for piece in pieces(cell.source) if cell.cell_type == "markdown" else [""]:
            level = len(re.match(r"#*", piece)[0])  # type: ignore[index]
            if depth and 0 < level <= depth:
                yield mk_cell(CLOSE, "markdown")
                depth = 0
            if found := FOLDED.match(piece):
                depth, title = len(found[1]), re.sub(r"`([^`]+)`", r"<code>\1</code>", found[2])
                yield mk_cell(OPEN.format(anchor=found[3] or slug(found[2]), title=title), "markdown")
                piece = piece[found.end() :]
            if piece.strip(): yield mk_cell(piece, "markdown")
        if cell.cell_type != "markdown": yield cell
    if depth: yield mk_cell(CLOSE, "markdown")


class Reference(Processor):  # type: ignore[misc]
    """Replace the cells that export by the reference of what they define."""

    def __init__(self, nb: Any) -> None:
        """Split the first cell, of which nbdev keeps the title and subtitle only.

        It is done here because nbdev makes every processor before it runs the first."""
        super().__init__(nb)
        first = next((cell for cell in nb.cells if cell.cell_type == "markdown"), None)
        found = re.match(r"(# [^\n]+\n+> [^\n]+)\n+(\S.*)", first.source if first else "", re.DOTALL)
        if first and found:
            first.source = found[1]
            nb.cells.insert(nb.cells.index(first) + 1, mk_cell(found[2], "markdown"))

    def begin(self) -> None:
        """Do so for the whole page, before its first cell is processed."""
        path, symbols = page_of(self.nb), index()
        writer, page, cells = Writer(path, symbols), symbols.pages[path], []
        anchors = {symbol.anchor for defined in page.cells.values() for symbol in defined}
        for cell in self.nb.cells:
            if cell.get("id") in page.cells:
                cells += [mk_cell(writer.write(symbol), "markdown") for symbol in page.cells[cell.id]]
            elif not getattr(cell, "directives_", {}).keys() & {"export", "exporti", "exports", "hide", "default_exp"}:
                if cell.cell_type == "markdown": cell.source = apart(cell.source, anchors)
                if cell.source or cell.cell_type == "code": cells.append(cell)
        self.nb.cells = list(folded(cells))

    def cell(self, cell: Any) -> None:
        """Leave the rest as it is."""
