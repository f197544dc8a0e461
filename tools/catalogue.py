"""Make the pages of all checks, one for each protocol, in nbs/conformance/catalogue/: `python tools/catalogue.py`.

The examples are what the kit says of the mutants in tests/conformance_corpus.py, which this script checks for a minute."""

import html
import json
import re
import sys
from pathlib import Path
from typing import Any, Iterator

from cjm_worker_protocols.conformance import Finding
from cjm_worker_protocols.conformance.checks import CHECKS, MEMBERS, NAMES, Check
from cjm_worker_protocols.conformance.deep import deep_checks

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "nbs/conformance/catalogue"
HEAD = """# {title}

> Every check of {what}: the rule, why it is one, and what breaking it looks like.

<!-- Made from the kit by tools/catalogue.py: do not edit. -->

The kit checks `{protocol}`. Open a rule to see why it is one, and what the kit says of an implementation that breaks just this rule.
[All checks](../catalogue.ipynb) explains levels and ids."""
TITLES = {
    "registry": ("Checks of a plugin registry", "a plugin registry"),
    "resources": ("Checks of a resource manager", "a resource manager"),
    "events": ("Checks of an event broadcaster", "an event broadcaster"),
    "store": ("Checks of a job store", "a job store"),
}
VARIES = {  # What differs from run to run, or from one Python to the next
    r"\d[\d,]* more references": "N more references",
    r"took about [\d.]+ s": "took about N s",
    r"(did not come within|takes longer than) 0\.5 s": r"\1 2.5 s",  # as when nothing is hurried
    r"(within|for) 1 s": r"\1 5 s",
    r"left \d+": "left N",
    r"one thread got .* where another got .*": "one thread got … where another got …",
    r"(a worker that was (un)?registered is (not|still) there|job_id of one worker is).*": "a worker that was registered is not there",
    r"\.? Did you mean '\w+'\?": "",
    r"Can't get local object": "Can't pickle local object",
    r"kit-[0-9a-f]{16}": "kit-…",
}


def plain(text: str) -> str:
    """The text without what varies."""
    for pattern, instead in VARIES.items():
        text = re.sub(pattern, instead, text)
    return text.replace(str(ROOT), "…")


def _finding(mutant: Any, check_id: str) -> Any:
    """What the kit says of a mutant. A race is not seen in every run."""
    for _ in range(5):
        for finding in mutant.check().findings:
            if finding.id == check_id:
                return finding
    raise RuntimeError(f"the kit does not find what is wrong with the mutant of {check_id}")


def examples() -> "dict[str, Finding]":
    """What the kit says, by the id of the check: of the first mutant that breaks each."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conformance_corpus import MUTANTS

    firsts = {mutant.id: mutant for mutant in reversed(MUTANTS.values())}
    return {id: _finding(mutant, id) for id, mutant in firsts.items()}


def checks() -> "list[Check]":
    """All checks, those that search among them, in the order of the page."""
    members = {(protocol, member): n for protocol in MEMBERS for n, member in enumerate(MEMBERS[protocol])}
    found: "list[Check]" = []
    for protocol in NAMES.values():
        mine = [check for check in CHECKS.values() if check.protocol is protocol]
        plain = [check for check in mine if check.id.count(".") == 2 and ".clear." not in check.id]
        shape = sorted(plain, key=lambda c: members[protocol, c.member])
        found += [*shape, *(check for check in mine if check not in shape), *deep_checks(protocol, None)]
    return found


def head(check: Check) -> str:
    """A check in one line: its id, its level unless that is *error*, and its rule."""
    rule = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(check.rule, quote=False))
    level = "" if check.level == "error" else f" <em>({check.level})</em>"
    return f'<details id="{check.id}">\n<summary><code>{check.id}</code>{level} {rule}</summary>'


def entry(check: Check, example: Finding) -> str:
    """All that there is to say of a check."""
    rows = [("got", example.actual), ("after", example.witness), ("mend", example.fix)]
    said = "".join(f"{name:6}{plain(text)}\n" for name, text in rows if text)
    return f"{head(check)}\n\n{check.why}\n\n```text\n{said}```\n\n</details>"


def cells(name: str, found: "dict[str, Finding]") -> "Iterator[str]":
    """The page of a protocol, piece by piece: one for each of its methods."""
    protocol, (title, what) = NAMES[name], TITLES[name]
    yield HEAD.format(title=title, what=what, protocol=protocol.__name__)
    for member in MEMBERS[protocol]:
        mine = [check for check in checks() if check.protocol is protocol and check.member == member]
        if mine: yield f"## {member}\n\n" + "\n\n".join(entry(check, found[check.id]) for check in mine)


def page(name: str) -> Path:
    """The file of the page of a protocol."""
    return PAGES / f"{name}.ipynb"


def written() -> str:
    """The text of the pages as they are."""
    loaded = [json.loads(page(name).read_text(encoding="utf-8")) for name in NAMES]
    return "\n\n".join("".join(cell["source"]) for notebook in loaded for cell in notebook["cells"])


def notebook(name: str, found: "dict[str, Finding]") -> str:
    """The text of the file of a page."""
    made: "list[dict[str, Any]]" = []
    for number, text in enumerate(cells(name, found)):
        made.append({"cell_type": "markdown", "id": f"check-{number}", "metadata": {}, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    known = examples()
    for name in NAMES: page(name).write_text(notebook(name, known), encoding="utf-8")
