"""What a method has to beat: everything, random tokens, and the tokens that change."""

from __future__ import annotations

import dataclasses

from jaxtyping import PRNGKeyArray

from omnizip_jax.compression.method import Method
from omnizip_jax.types import EncodedWindow, Selection


@dataclasses.dataclass(frozen=True)
class AllTokens(Method):
    """Everything is kept."""

    def select(self, windows: EncodedWindow, key: PRNGKeyArray) -> Selection:
        audio, video = windows.audio.token_mask, windows.video_mask
        return Selection.of(audio, video, audio, video)

    def begin(self, window: EncodedWindow) -> tuple[()]:
        return ()

    def step(
        self, state: tuple[()], window: EncodedWindow, key: PRNGKeyArray
    ) -> tuple[tuple[()], Selection]:
        return state, self.select(window, key)
