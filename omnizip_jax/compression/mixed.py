"""Any method's sound with any method's picture: the mixtures of the paper's Table 4."""

from __future__ import annotations

import dataclasses

import numpy as np

from omnizip_jax.compression.per_modality import PerModality


@dataclasses.dataclass(frozen=True)
class Mixed(PerModality):
    """The audio tokens that one method chooses, and the video tokens that another does.

    A picture that the sound guides (OmniZip's) is guided by the sound that is chosen here. Without
    ``keep`` each method keeps as many tokens of its modality as its own settings say.

    >>> Mixed(audio=RandomTokens(rho_audio=0.25), video=OmniZipConfig())  # Table 4, row 1
    >>> Mixed(audio=OmniZipConfig(), video=VisionZip(), keep=0.45)  # row 3
    """

    audio: PerModality
    video: PerModality

    @property
    def wants(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.audio.wants | self.video.wants

    def bound(self, audio_counts, video_counts):
        """As exact as those of the two methods."""
        if self.keep is not None:
            return self.kept_on_host(audio_counts, video_counts)
        audio_counts, video_counts = np.asarray(audio_counts), np.asarray(video_counts)
        return self.audio.bound(audio_counts, 0 * video_counts) + self.video.bound(
            0 * audio_counts, video_counts
        )

    def sound(self, windows, count, key):
        return self.audio.sound(windows, count, key)

    def picture(self, windows, count, key, audio_keep):
        return self.video.picture(windows, count, key, audio_keep)

    def anchors(self, audio_mask):
        return self.audio.anchors(audio_mask)

    def counts(self, windows):
        return self.audio.counts(windows)[0], self.video.counts(windows)[1]
