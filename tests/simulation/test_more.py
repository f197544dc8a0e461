"""More simulated jobs, with those of `test_simulation` a million. In a file of their own, so that other slow tests run beside them.

CI runs one of the nine ranges of long lives, `pytest -m slow` all of them."""

from __future__ import annotations

import pytest

from .campaign import campaign, explain
from .long import draw_long
from .test_simulation import RANGES


@pytest.mark.slow
@pytest.mark.parametrize("part", range(RANGES))
def test_every_invariant_holds_for_long(part: int) -> None:
    """The same with 88,000 more."""
    done = campaign(part * 1_000_000 + 100_000, 11_000)
    assert not done.failures, explain(done.failures[0])


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 9))])
def test_nothing_grows_in_long_lives(part: int) -> None:
    """Managers that live through some 20,000 jobs each, 900,000 in all."""
    done = campaign(part * 1_000, 100_000, draw=draw_long)
    assert not done.failures, explain(done.failures[0])
