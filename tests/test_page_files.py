"""The files of the live page: how large they are, and what must not be in them."""

import re
from pathlib import Path

from repo import ROOT

STATIC = Path(ROOT) / "cjm_worker_protocols/web/static"


def test_the_files_are_small_and_nothing_is_inline() -> None:
    """At most 60 kB in all; the policy forbids inline scripts and styles, and the page has none; nothing names another host."""
    files = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    assert sum(len(text.encode()) for text in files.values()) <= 60_000
    html = files["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html)
    for name, text in files.items():
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text
        ), name
