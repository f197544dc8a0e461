"""A plugin with all that one can have: settings, a stream, progress, cancelling, and an error for bad input."""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

from cjm_worker_protocols import check_cancel, report_progress

RHYME = "one two buckle my shoe three four open the door five six pick up sticks seven eight lay them straight one more"


class Babbler:
    "Writes text in the manner of a text that it has read."

    @staticmethod
    def problem() -> str:
        "Say which package is missing, for `cjm-workers plugins`."
        return "" if find_spec("random") else "needs random: run pip install random"

    def load(self, config: dict[str, Any]) -> None:
        "Learn which words follow each word. Runs once in each worker; import heavy packages here."
        import random

        path, self._dice, self._next = config.get("text", ""), random.Random(), dict[str, list[str]]()
        if path and not os.path.isfile(path):
            raise FileNotFoundError(f"babbler, setting text: expected a file (got {path!r})")
        words = open(path, encoding="utf-8").read().split() if path else RHYME.split()
        for word, following in zip(words, [*words[1:], words[0]]):
            self._next.setdefault(word, []).append(following)

    def run(self, words: int = 20, seed: int | None = None) -> Generator[str, None, dict[str, Any]]:
        "Write some words, and yield each. Runs once for each job."
        if words < 1:
            raise ValueError(f"words: expected at least 1 (got {words})")
        self._dice.seed(seed)
        word, written = next(iter(self._next)), []
        for number in range(words):
            check_cancel()  # a cancelled job stops here, and the model stays loaded
            written.append(word)
            yield word + " "
            report_progress((number + 1) / words, f"{number + 1} of {words} words")
            word = self._dice.choice(self._next[word])
        return {"text": " ".join(written)}

    def unload(self) -> None:
        "Free the model."
        del self._next
