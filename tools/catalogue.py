"""Make nbs/conformance/catalogue.ipynb, the page of all checks, from the kit and what it says of mutants: `python tools/catalogue.py`."""

import json
from pathlib import Path
from typing import Any, Iterator

from cjm_worker_protocols.conformance.checks import CHECKS, MEMBERS, NAMES, Check
from cjm_worker_protocols.conformance.deep import deep_checks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "nbs/conformance/catalogue.ipynb"
SNAPSHOTS = ROOT / "tests/conformance_snapshots.json"
HEAD = """# Catalogue

> Every check of the conformance kit: the rule, why it is one, and what breaking it looks like.

<!-- Made from the kit by tools/catalogue.py: do not edit. -->

A check of level *error* is about what the manager relies on; a *warning* will bite later. The ids never change, so they can be waived
and searched for. Each example is what the kit says of an implementation that breaks just this rule. In it
`PID_1` and `PID_2` stand for process ids."""
TITLES = {"registry": "A plugin registry", "resources": "A resource manager", "events": "An event broadcaster"}


def section(check: Check, example: "dict[str, str] | None") -> str:
    """What there is to say of one check."""
    lines = [f"### {check.id}", "", f"*{check.level}*, `{check.member}`", "", f"**{check.rule}** {check.why}"]
    if example is not None:
        rows = [(name, example[key]) for name, key in (("got", "actual"), ("after", "witness"), ("mend", "fix"))]
        lines += ["", "```text", *(f"{name:6}{text}" for name, text in rows if text), "```"]
    return "\n".join(lines)


def cells() -> "Iterator[str]":
    """The page, piece by piece."""
    said = [finding for findings in json.loads(SNAPSHOTS.read_text(encoding="utf-8")).values() for finding in findings]
    examples = {finding["id"]: finding for finding in reversed(said)}
    yield HEAD
    for name, protocol in NAMES.items():
        yield f"## {TITLES[name]}\n\nIt is checked against `{protocol.__name__}`: {', '.join(f'`{m}`' for m in MEMBERS[protocol])}."
        ordinary = [check for check in CHECKS.values() if check.protocol is protocol]
        for check in (*ordinary, *deep_checks(protocol, None)):
            yield section(check, examples.get(check.id))


def notebook() -> str:
    """The text of the file."""
    made: "list[dict[str, Any]]" = []
    for number, text in enumerate(cells()):
        made.append({"cell_type": "markdown", "id": f"check-{number}", "metadata": {}, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    page = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(page, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    PAGE.write_text(notebook(), encoding="utf-8")
