"""Look at the site without Quarto: `python tools/preview.py FOLDER [PAGE ...]`, then open FOLDER/index.html.

nbdev processes the notebooks, as it does for Quarto; pandoc makes each page, with the site's own style sheet and a plain sidebar.
Mermaid pictures stay text, and there is no search: those are Quarto's.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).resolve().parents[1]
OPTION = re.compile(r"^#\|\s*([\w-]+)\s*:\s*(.*)$", re.MULTILINE)
LINK = re.compile(r'(href="(?!\w+:)[^"#]*)\.ipynb([#"])')
FORMAT = "markdown-implicit_figures+lists_without_preceding_blankline"
PAGE = """<!doctype html>
<html lang="en" data-bs-theme="light"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="{up}favicon.svg">
<link rel="stylesheet" href="{up}preview.css"><link rel="stylesheet" href="{up}styles.css">
</head><body class="{theme}"><nav id="preview-sidebar">{sidebar}</nav><main class="content">
<header id="title-block-header"><h1 class="title">{title}</h1><div class="description">{description}</div></header>
{body}</main>{script}</body></html>
"""
LOOK = """body { margin: 0; font: 17px/1.5 system-ui, sans-serif; color: #343a40; background: #fff; }
nav { position: fixed; width: 15rem; top: 0; bottom: 0; overflow: auto; padding: 1rem; font-size: 0.85rem; box-sizing: border-box; }
nav a { display: block; color: inherit; text-decoration: none; } nav a.active { color: #2761e3; font-weight: 600; }
nav summary { margin-top: 0.6rem; font-weight: 600; cursor: pointer; } nav details details { margin-left: 0.8rem; }
main { margin-left: 16rem; max-width: 47rem; padding: 1rem; } a { color: #2761e3; }
pre { padding: 0.5rem 0.8rem; border-radius: 4px; } .sourceCode pre, pre.sourceCode { background: #f1f3f5; }
code { font: 0.85em/1.4 ui-monospace, monospace; color: #5b3a9e; background: #f1f3f5; padding: 1px 3px; border-radius: 3px; }
pre code { color: inherit; background: none; padding: 0; } table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
td, th { border-bottom: 1px solid #8884; padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }
h1, h2, h3, h4 { line-height: 1.2; } h2 { margin: 2rem 0 1rem; padding-bottom: 0.5rem; border-bottom: 1px solid #8884; }
h3 { margin: 1.5rem 0 0.5rem; font-size: 1.45rem; } h2 { font-size: 1.65rem; } h4 { font-size: 1.25rem; }
p, ul, ol, pre { margin: 0 0 1rem; } .sourceCode, .cell, .cell-output { margin: 1rem 0; } .cell pre { margin: 0; }
img { max-width: 100%; }
pre.mermaid { white-space: pre-wrap; overflow-wrap: anywhere; } .sr-only { display: none; }
body.quarto-dark { color: #fff; background: #222; } .quarto-dark :is(a, nav a.active) { color: #5fb3f0; }
.quarto-dark code { color: #e0c8ff; background: #333; }
.quarto-dark .sourceCode pre, .quarto-dark pre.sourceCode { background: #2d2d2d; }
.quarto-dark pre code { background: none; color: inherit; }
@media (max-width: 767px) { nav { position: static; width: auto; max-height: 30vh; } main { margin: 0; } }
"""


def output(out: dict[str, Any]) -> str:
    """An output as Markdown: what a browser would choose of it."""
    data = out.get("data", {})

    def joined(value: Any) -> str:
        return "".join(value)

    if out["output_type"] == "stream": return fenced(joined(out["text"]), "cell-output cell-output-stdout")
    if "text/html" in data:
        shown = f'<div class="cell-output cell-output-display">{joined(data["text/html"])}</div>'
        return f"\n```{{=html}}\n{shown}\n```\n"
    if "text/markdown" in data: return joined(data["text/markdown"])
    return fenced(joined(data["text/plain"]), "cell-output cell-output-display") if "text/plain" in data else ""


def fenced(text: str, classes: str) -> str:
    """A text as it stands, in a box."""
    ticks = "`" * 8
    return f"\n::: {{.{classes.replace(' ', ' .')}}}\n{ticks}\n{text.rstrip()}\n{ticks}\n:::\n"


def markdown(nb: dict[str, Any]) -> Iterator[str]:
    """The text of a page, the outputs of its cells among it."""
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": yield source
        elif cell["cell_type"] == "code":
            options = dict(OPTION.findall(source))
            if options.get("include") == "false": continue
            code = OPTION.sub("", source).strip()
            if code and options.get("echo") != "false":
                yield f"::: {{.cell}}\n````````{{.python .cell-code}}\n{code}\n````````\n:::"
            if options.get("output") != "false": yield from map(output, cell.get("outputs", []))


def header(nb: dict[str, Any]) -> dict[str, Any]:
    """The title and the description of a page."""
    import yaml

    first = next(("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "raw"), "")
    return yaml.safe_load(first.strip().strip("-")) or {}


def sidebar(entries: list[Any], page: str, titles: dict[str, str]) -> str:
    """The links of nbs/sidebar.yml. As on the site, the section of the page is open."""
    parts = []
    for entry in entries:
        path = entry if isinstance(entry, str) else entry.get("href", "")
        if path:
            where = os.path.relpath(path, os.path.dirname(page) or ".").removesuffix(".ipynb") + ".html"
            here = " class='active'" if path == page else ""
            label = entry.get("text") if isinstance(entry, dict) else None
            parts.append(f"<a{here} href='{where}'>{html.escape(label or titles.get(path, path))}</a>")
        if isinstance(entry, dict) and "section" in entry:
            inside = sidebar(entry["contents"], page, titles)
            is_open = " open" if "class='active'" in inside else ""
            parts.append(f"<details{is_open}><summary>{html.escape(entry['section'])}</summary>{inside}</details>")
    return "".join(parts)


def process(folder: Path) -> Path:
    """The notebooks as nbdev hands them to Quarto, in a copy of the checkout."""
    ignored = shutil.ignore_patterns(".*", "_proc", "_docs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored)
    command = [sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(force=True, n_workers=2)"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "_proc"


def build(to: Path, proc: Path, wanted: "list[str]", theme: str = "quarto-light") -> None:
    """Make the pages of a processed site."""
    import pypandoc
    import yaml

    found = {path.relative_to(proc).as_posix(): path for path in proc.rglob("*.ipynb")}
    pages = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items()}
    heads = {name: header(nb) for name, nb in pages.items()}
    titles = {name: str(head.get("title", name)) for name, head in heads.items()}
    entries = yaml.safe_load((proc / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    script = yaml.safe_load((proc.parent / "_quarto.yml").read_text(encoding="utf-8"))["format"]["html"]["include-after-body"]["text"]
    for file in ("styles.css", "favicon.svg", "page.png"): shutil.copy(proc / file, to / file)
    (to / "preview.css").write_text(LOOK, encoding="utf-8")
    for name in wanted or sorted(pages):
        path = to / Path(name).with_suffix(".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(markdown(pages[name]))
        made = pypandoc.convert_text(text, "html", FORMAT, ["--wrap=none"])
        shown = {key: html.escape(str(heads[name].get(key, ""))) for key in ("title", "description")}
        shown["description"] = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown["description"])
        up = "../" * name.count("/")
        parts = {"body": LINK.sub(r"\1.html\2", made), "sidebar": sidebar(entries, name, titles)}
        path.write_text(PAGE.format(**shown, **parts, up=up, theme=theme, script=script), encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        build(destination, process(Path(made) / "checkout"), sys.argv[2:])
