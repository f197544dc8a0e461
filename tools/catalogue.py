"""Make nbs/conformance/catalogue.ipynb, the page of all checks: `python tools/catalogue.py`.

The examples are what the kit says of the mutants in tests/conformance_corpus.py, which this script checks for a minute."""

import json
import re
import sys
from pathlib import Path
from typing import Any, Iterator

from cjm_worker_protocols.conformance import Finding
from cjm_worker_protocols.conformance.checks import CHECKS, MEMBERS, NAMES, Check
from cjm_worker_protocols.conformance.deep import deep_checks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "nbs/conformance/catalogue.ipynb"
HEAD = """# All checks

> Every check of the conformance kit: the rule, why it is one, and what breaking it looks like.

<!-- Made from the kit by tools/catalogue.py: do not edit. -->

A check of level *error* is about what the manager relies on; a *warning* will matter later. The ids never change, so you can waive them
and search for them. Each example is what the kit says of an implementation that breaks just this rule. `PID_1` and `PID_2` stand for
process ids."""
TITLES = {"registry": "A plugin registry", "resources": "A resource manager", "events": "An event broadcaster", "store": "A job store"}
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
    """What there is to say of one check."""
    return f"### {check.id}\n\n*{check.level}*, `{check.member}`\n\n**{check.rule}** {check.why}"


def cells() -> "Iterator[str]":
    """The page, piece by piece."""
    found, protocol = examples(), None
    yield HEAD
    for check in checks():
        if check.protocol is not protocol:
            protocol, name = check.protocol, next(name for name, known in NAMES.items() if known is check.protocol)
            yield f"## {TITLES[name]}\n\nIt is checked against `{protocol.__name__}`: {', '.join(f'`{m}`' for m in MEMBERS[protocol])}."
        example = found[check.id]
        rows = [("got", example.actual), ("after", example.witness), ("mend", example.fix)]
        yield head(check) + "\n\n```text\n" + "".join(f"{name:6}{plain(text)}\n" for name, text in rows if text) + "```"


def written() -> "list[str]":
    """The pieces of the page as it is."""
    return ["".join(cell["source"]) for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"]]


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
