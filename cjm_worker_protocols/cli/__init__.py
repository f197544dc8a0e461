"The `cjm-workers` command."

import signal
import sys

TYPE_CHECKING = False  # as type checkers read it, it is true
if TYPE_CHECKING: from collections.abc import Sequence

def quiet_ctrl_c(
    quiet: bool # Whether Ctrl-C ends the process at once, without a traceback; else it raises KeyboardInterrupt
) -> None:
    """Switch between Python's two ways to take Ctrl-C.

    A process that ignores it, or has a handler of its own, is left alone."""
    now = signal.getsignal(signal.SIGINT)
    if quiet and now is signal.default_int_handler: signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not quiet and now is signal.SIG_DFL: signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.argv and sys.argv[0].endswith("/cjm-workers"): quiet_ctrl_c(True)  # the rest of the installed script takes a while too

def main(
    argv: "Sequence[str] | None" = None # The arguments; None for those of this process
) -> int: # The exit code
    """Run the command of this process.

    What it needs is imported here. Until that has happened, and at the end, Ctrl-C prints no traceback."""
    quiet_ctrl_c(True)
    try:
        from .entry import main as run
        quiet_ctrl_c(False)
        return run(argv)
    except KeyboardInterrupt: return 128 + signal.SIGINT
    finally: quiet_ctrl_c(True)
