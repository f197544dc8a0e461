"""Links from names in the text to where they are documented: one of nbdev's processors, in place of its own.

Unlike nbdev's, it links nothing twice, and links only what is clear: a class, `Class.method`, a function whose name is
the only one of its kind and no parameter's, and such a method of this page, or of a class that the package itself
offers. Links are relative.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nbdev.config import get_config
from nbdev.process import Processor

from .symbols import Index, index

PIECE = re.compile(
    r"(?P<fence>^[ ]*(?P<ticks>`{3,}|~{3,}).*?^[ ]*(?P=ticks)[ ]*$)"
    r"|(?P<heading>^\#+[ ].*?$)"
    r"|(?P<link>!?\[(?:`[^`]*`|[^\[\]`]|\[[^\]]*\])*\]\([^)]*\))"
    r"|(?P<html><[a-zA-Z/!][^>]*>)"
    r"|(?<!`)`(?P<code>[^`\n]+)`(?!`)",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
NAME = re.compile(r"(?P<name>[A-Za-z_][\w.]*)(?P<call>\(\))?(?: \| None)?")


def page_of(nb: Any) -> str:
    """The path of a notebook below nbs/."""
    return Path(nb.path_).resolve().relative_to(Path(get_config().nbs_path).resolve()).as_posix()


def target(code: str, page: str, symbols: Index) -> "str | None":
    """Where a piece of code in a sentence of a page leads."""
    found = NAME.fullmatch(code)
    if not found: return None
    name, last = found["name"], found["name"].rpartition(".")[2]
    symbol = symbols.find(name, page)
    is_class = name[:1].isupper()  # or a constant
    if symbol is None and "." not in name and ("_" in name.strip("_") or found["call"]):
        symbol = symbols.find("." + name, page)
    if symbol is None: symbol = symbols.owner(name, page)
    if symbol is None: return None
    if "." not in name and not is_class:
        every = symbols.by_name.get(name, []) + symbols.by_name.get("." + name, [])
        clear = len(every) == 1 and "_" in name.strip("_") and name not in symbols.taken
        clear = clear and symbol.name.rpartition(".")[0] in ("", *symbols.faces)
        here = symbol.page == page and last not in symbols.taken
        if not (clear or here): return None
    return relative(symbol.page, page) + f"#{symbol.anchor}"


def relative(to: str, page: str) -> str:
    """The relative path from one page to another; nothing for the page itself."""
    return "" if to == page else Path(os.path.relpath(to, os.path.dirname(page) or ".")).as_posix()


def linked(text: str, page: str, symbols: Index) -> str:
    """A text with links on the names in it."""

    def link(match: "re.Match[str]") -> str:
        where = target(match["code"], page, symbols) if match["code"] else None
        return f"[{match[0]}]({where})" if where else match[0]

    return PIECE.sub(link, text)


class Links(Processor):  # type: ignore[misc]
    """Link the names in the text of a page."""

    def cell(self, cell: Any) -> None:
        """Link those of one cell."""
        if cell.cell_type == "markdown": cell.source = linked(cell.source, page_of(self.nb), index())
