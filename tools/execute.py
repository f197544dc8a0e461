"""Execute notebooks, store their outputs and clean them: `python tools/execute.py [NOTEBOOK ...]` (default: all).

Each runs in a process of its own, a fork of this one, which has already imported what executes them.
With `-` the names come from stdin, a line each, and the exit status of each goes to stdout when it has ended.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from execnb.nbio import NbCell, read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives


def skipped(cell: NbCell) -> bool:
    """Whether a cell is left as it is: text, the export of the notebook, `#| eval: false`, a flag in `tst_flags`."""
    if cell.cell_type != "code" or "nbdev_export(" in cell.source:
        return True
    directives = extract_directives(cell, remove=False)
    flags = set(get_config().tst_flags.split())
    return directives.get("eval:", [""])[0].lower() == "false" or bool(flags & directives.keys())


class Shell(CaptureShell):
    """A shell that stores of a display with a `display_id` only the last state, as Jupyter does."""

    def run_cell(self, *args: Any, **kwargs: Any) -> Any:
        """Run a cell."""
        done = super().run_cell(*args, **kwargs)
        last: "dict[Any, Any]" = {}
        for n, shown in enumerate(done.display_objects):
            last[(shown.transient or {}).get("display_id", n)] = shown
        done["display_objects"] = list(last.values())
        return done


def execute(path: Path) -> "str | None":
    """Execute a notebook in its own folder and store the outputs; the traceback if a cell raised."""
    os.environ["IN_TEST"] = "1"
    os.chdir(path.parent)
    nb = read_nb(path)
    for cell in nb.cells:
        if not skipped(cell):
            cell.outputs = []
    shell = Shell(path)
    try:
        shell.run_all(nb, exc_stop=True, preproc=skipped)
    except BaseException:
        return str(shell.prettytb(path.name))
    clean_nb(nb)
    write_nb(nb, path)
    return None


def apart(path: Path) -> int:
    """Execute a notebook in a process of its own; gives its exit status."""
    gc.freeze()  # at its end, that process need not go through all that this one has imported
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.exit(execute(path))


def results(names: "list[str]") -> Iterator[int]:
    """The exit status of each notebook, when it has ended."""
    if names == ["-"]:
        for line in sys.stdin:
            yield (status := apart(Path(line.strip()).resolve()))
            print(status, flush=True)
    else:
        yield from (apart(path) for path in sorted(Path(name).resolve() for name in names or nbglob()))


if __name__ == "__main__":
    sys.exit(max(map(abs, results(sys.argv[1:])), default=0))
