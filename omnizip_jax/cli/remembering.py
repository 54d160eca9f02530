"""What a stream still holds of each of its windows, as it goes on: counted, as a line, drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from omnizip_jax.cli.times import clock
from omnizip_jax.inference.context import Context
from omnizip_jax.visualize import HEARD, VIDEO

BARS = " ▁▂▃▄▅▆▇█"


class Remembering:
    """Watches a state from the first window on, every window once.

    Attributes:
        left: after every window, the tokens that the cache holds of each window so far.
    """

    def __init__(self):
        self._units: list[int] = []
        self.left: list[list[int]] = []

    def __call__(self, state: Context) -> None:
        """Look at the state that the next window has made."""
        self._units.append(int(state.state.unit) - 1)
        retained = state.retained
        self.left.append([retained.get(unit, 0) for unit in self._units])

    @property
    def entered(self) -> list[int]:
        """The tokens of each window when it came."""
        return [left[-1] for left in self.left]

    def of(self, windows: slice) -> tuple[int, int]:
        """Tokens of some windows: in the cache now, and when they came."""
        return sum(self.left[-1][windows]), sum(self.entered[windows])

    def bars(self, total: int) -> str:
        """A bar for every window of a stream: what is left of it; dots for those to come."""
        shares = zip(self.left[-1], self.entered, strict=True)
        heights = [-(-(len(BARS) - 1) * left // max(came, 1)) for left, came in shares]
        return "".join(BARS[height] for height in heights).ljust(total, "·")


def plot_remembering(seen: Remembering, seconds: int, asked: Sequence[float]) -> Figure:
    """Draw the share that is left of every window, from when it came to the end of the stream.

    Args:
        seconds: of a window.
        asked: times at which questions were asked.
    """
    count = len(seen.left)
    shares = np.full((count, count), np.nan)
    for now, left in enumerate(seen.left):
        shares[: now + 1, now] = np.array(left) / np.maximum(seen.entered[: now + 1], 1)
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    ax, end = figure.subplots(), count * seconds
    columns = (seconds / 2, end + seconds / 2)  # each is centred on the end of a window
    image = ax.imshow(
        shares, cmap=HEARD, vmin=0, vmax=1, origin="lower", aspect="auto",
        extent=(*columns, 0, end), interpolation="nearest",
    )  # fmt: skip
    for time in asked:
        ax.axvline(time, color=VIDEO, linestyle=":")
    above = ax.secondary_xaxis("top")
    above.set_xticks(asked, [f"asked, {clock(time)}" for time in asked], fontsize=8)
    ax.set(xlabel="stream time, s", ylabel="window that came at second", xlim=(0, columns[1]))
    ax.set_title("share of each window's kept tokens that is left in the cache", fontsize=11)
    figure.colorbar(image, ax=ax)
    return figure
