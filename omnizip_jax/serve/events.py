"""What the engine's thread tells, for coroutines to hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from omnizip_jax.serve.engine import Engine
from omnizip_jax.serve.failure import Failure


class Ear:
    """Hears what is told on any thread; belongs to the loop that runs."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Any] = asyncio.Queue()

    def tell(self, news: Any) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def hear(self) -> Any:
        """The next thing that was told."""
        return await self._news.get()


async def followed(
    engine: Engine, steps: Iterator[Any], seconds: float, *, first: bool = False
) -> AsyncGenerator[Any]:
    """What steps on the device give; closing it, or being cancelled, stops them.

    Args:
        seconds: until the next one is given up.
        first: see ``Engine.submit``.

    Raises:
        Failure: theirs; there is too much to do; it takes too long.
    """
    ear = Ear()
    job = engine.submit(steps, ear.tell, first=first)
    try:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    news = await ear.hear()
            except TimeoutError:
                raise Failure(f"nothing has come for {seconds:g} s; try again", 504) from None
            if news is None:
                return
            if isinstance(news, Failure):
                raise news
            yield news
    finally:
        job.cancel()
