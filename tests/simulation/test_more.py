"""More simulated jobs. They have a file of their own, so that the other slow tests run beside them."""

from __future__ import annotations

import pytest

from .campaign import campaign, explain
from .test_simulation import RANGES


@pytest.mark.slow
@pytest.mark.parametrize("part", range(RANGES))
def test_every_invariant_holds_for_long(part: int) -> None:
    """The same with 88,000 more."""
    done = campaign(part * 1_000_000 + 100_000, 11_000)
    assert not done.failures, explain(done.failures[0])
