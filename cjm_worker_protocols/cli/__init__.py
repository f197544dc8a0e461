"The `cjm-workers` command."

TYPE_CHECKING = False  # as type checkers read it, it is true
if TYPE_CHECKING: from collections.abc import Sequence

def main(
    argv: "Sequence[str] | None" = None # The arguments; None for those of this process
) -> int: # The exit code
    "Run the command of this process. What it needs is imported here, so that Ctrl-C is quiet from the first moment."
    import signal
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual: signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported there is nothing to clean up
    try:
        from .entry import main as run
        if usual: signal.signal(signal.SIGINT, signal.default_int_handler)
        return run(argv)
    except KeyboardInterrupt: return 128 + signal.SIGINT
    finally:
        if usual: signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor is there while the interpreter ends
