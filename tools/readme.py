"""Make README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py`."""

import json
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|export|exporti)\b", re.MULTILINE)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
IMAGE = re.compile(r"(!\[[^\]]*\])\((?!\w+:)([\w/.-]+)\)")
LINK = re.compile(r"\]\((?!\w+:)([\w/.-]+\.ipynb)(#[\w.-]*)?\)")


def _fence(text: str, language: str) -> str:
    return f"```{language}\n{text.strip(chr(10))}\n```"


def _outputs(cell: dict[str, Any]) -> Iterator[str]:
    for out in cell["outputs"]:
        if out["output_type"] == "stream":
            yield _fence("".join(out["text"]), "text")
        elif "text/markdown" in out.get("data", {}):
            yield "".join(out["data"]["text/markdown"])
        elif "text/plain" in out.get("data", {}):
            yield _fence("".join(out["data"]["text/plain"]), "text")
        else:
            raise ValueError(f"README.md has no way to show this output: {out}")


def _parts(nb: dict[str, Any], blob: str) -> Iterator[str]:
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if not source.strip():
            continue
        if cell["cell_type"] == "markdown":
            source = IMAGE.sub(lambda m: f"{m[1]}({blob.replace('/blob/', '/raw/')}/{m[2]})", source)
            yield LINK.sub(lambda m: f"]({blob}/{m[1]}{m[2] or ''})", source).strip()
        elif cell["cell_type"] == "code" and not HIDDEN.search(source):
            yield _fence(DIRECTIVE.sub("", source), "python")
            yield from _outputs(cell)


def render(root: Path = ROOT) -> str:
    """The text that README.md should have."""
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    cfg = parser["DEFAULT"]
    nb = json.loads((root / cfg["nbs_path"] / "index.ipynb").read_text(encoding="utf-8"))
    blob = f"{cfg['git_url']}/blob/{cfg['branch']}/{cfg['nbs_path']}"
    title, *rest = _parts(nb, blob)
    return "\n\n".join([title, NOTE, *rest]) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(), encoding="utf-8")
