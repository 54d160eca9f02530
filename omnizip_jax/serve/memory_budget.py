"""Memory that requests reserve before they use it."""

from __future__ import annotations

from omnizip_jax.serve.config import MiB
from omnizip_jax.serve.errors import RequestError


class MemoryBudget:
    """Bytes that requests may hold together.

    Args:
        limit: in bytes; a request that alone needs more is admitted while it is the only one.
        purpose: what the memory is for, in messages.
    """

    def __init__(self, limit: float, purpose: str):
        self.limit, self.purpose, self.used = limit, purpose, 0


class Reservation:
    """Bytes reserved for one request; as a context manager it releases them at the end."""

    def __init__(self, budget: MemoryBudget):
        self._budget, self._size = budget, 0

    def ensure(self, size: int) -> None:
        """Reserve at least ``size`` bytes in all.

        Raises:
            RequestError: with those of other requests they exceed the limit.
        """
        budget, more = self._budget, max(size - self._size, 0)
        others = budget.used - self._size
        if more and others and budget.used + more > budget.limit:
            raise RequestError(
                f"{budget.purpose} hold {others / MiB:.0f} of {budget.limit / MiB:.0f} MiB, and "
                f"this request needs {size / MiB:.0f}; try again later",
                503,
            )
        budget.used += more
        self._size += more

    def release(self) -> None:
        """Give all bytes back; calling it again has no effect."""
        self._budget.used -= self._size
        self._size = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
