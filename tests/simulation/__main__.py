"""Simulate so many jobs, from a seed on; or replay one seed, with its trace."""

from __future__ import annotations

import argparse
import sys
import time

from .campaign import campaign, report, show
from .long import draw_long
from .scenario import draw


def main() -> int:
    """Run what the command line asks for; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="how many jobs to simulate")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--long", action="store_true", help="simulate long scenarios: thousands of jobs of one manager, with few faults")
    parser.add_argument("--only", action="store_true", help="replay this seed alone, with its trace")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure, and count them by invariant")
    asked = parser.parse_args()
    kind = draw_long if asked.long else draw
    if asked.only:
        return show(kind(asked.seed))
    began = time.perf_counter()
    done = campaign(asked.seed, asked.jobs, keep_going=asked.keep_going, draw=kind)
    print(report(done, time.perf_counter() - began))
    return bool(done.failures)


if __name__ == "__main__":
    sys.exit(main())
