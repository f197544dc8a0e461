"""Let Quarto draw the Mermaid pictures of the notebooks.

The notebooks carry plain mermaid fences, which GitHub and JupyterLab draw; Quarto draws only executable ones (with
braces). A picture that runs from left to right is turned top-down: the column of a page is too narrow for it.
Quarto runs this file before it renders, in `_proc`, nbdev's copy of the notebooks: the notebooks themselves are never
touched.
"""

import json
import re
from pathlib import Path

FENCE = re.compile(r"^(\s*`{3,})mermaid\s*$", re.MULTILINE)
SIDEWAYS = re.compile(r"^(\s*(?:flowchart|graph)) (?:LR|RL)\b", re.MULTILINE)


def convert(folder: Path) -> int:
    """Make every plain mermaid fence below `folder` executable; the number of fences changed."""
    changed = 0
    for path in folder.rglob("*.ipynb"):
        nb = json.loads(path.read_text(encoding="utf-8"))
        here = 0
        for cell in nb["cells"]:
            if cell["cell_type"] != "markdown":
                continue
            source, n = FENCE.subn(r"\1{mermaid}", "".join(cell["source"]))
            if n:
                source = SIDEWAYS.sub(r"\1 TB", source)
                cell["source"] = source.splitlines(keepends=True)
                here += n
        if here:
            path.write_text(json.dumps(nb, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        changed += here
    return changed


if __name__ == "__main__":
    if Path.cwd().name == "_proc":
        convert(Path.cwd())
