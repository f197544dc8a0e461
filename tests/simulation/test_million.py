"""A million simulated jobs. They have a file of their own, so that the other slow tests run beside them."""

from __future__ import annotations

import pytest

from .campaign import campaign, explain
from .test_simulation import JOBS, RANGES


@pytest.mark.slow
@pytest.mark.parametrize("part", range(RANGES))
def test_every_invariant_holds_for_long(part: int) -> None:
    """The same with a million jobs."""
    done = campaign(part * 1_000_000 + 100_000, JOBS * 10)
    assert not done.failures, explain(done.failures[0])
