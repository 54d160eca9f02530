"""Memory that requests reserve before they use it."""

from __future__ import annotations

import pytest

from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.memory_budget import MemoryBudget, Reservation

MiB = 2**20


def test_reservations_are_bounded_together():
    budget = MemoryBudget(10 * MiB, "clips")
    with Reservation(budget) as first, Reservation(budget) as second:
        first.ensure(4 * MiB)
        second.ensure(6 * MiB)
        second.ensure(5 * MiB)  # has them already
        with pytest.raises(RequestError, match="clips hold 6 of 10 MiB, and this") as error:
            first.ensure(5 * MiB)
        assert error.value.status == 503 and budget.used == 10 * MiB
        second.release()
        second.release()
        first.ensure(10 * MiB)
    assert budget.used == 0


def test_a_request_that_is_the_only_one_may_exceed_the_limit():
    budget = MemoryBudget(10 * MiB, "clips")
    with Reservation(budget) as only, Reservation(budget) as other:
        only.ensure(20 * MiB)
        only.ensure(30 * MiB)
        with pytest.raises(RequestError, match="clips hold 30 of 10 MiB"):
            other.ensure(1)
    assert budget.used == 0
