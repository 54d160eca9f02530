"""FastV (arXiv 2403.06764, repository pkunlp-icler/FastV): its settings.

At the entry of a layer the media tokens stay that the last token of the prompt attended to most in
the layer before: mean over heads, one row of the attention.
"""

from __future__ import annotations

import dataclasses

from omnizip_jax.compression.method import check_share

LAYERS = 28  # of the decoders that the settings were published for


@dataclasses.dataclass(frozen=True)
class FastVSettings:
    """When FastV prunes, and how much.

    Args:
        after: finished layers of 28; other depths in proportion. The paper's 5.
        rho_audio, rho_video: share of the tokens to discard there.
        keep: kept share of all media tokens, averaged over the layers; the rates give way.

    Raises:
        ValueError: not a share.
    """

    after: int = 5
    rho_audio: float = 0.5
    rho_video: float = 0.5
    keep: float | None = None

    def __post_init__(self):
        for name in ("rho_audio", "rho_video", "keep"):
            if getattr(self, name) is not None:
                check_share(f"FastVSettings.{name}", getattr(self, name))

    def layer(self, layers: int) -> int:
        """After how many of a decoder's layers it prunes."""
        return max(1, round(self.after * layers / LAYERS))

    def kept_after(self, layers: int) -> float | None:
        """Share that the later layers see, so that the mean over all is ``keep``.

        Raises:
            ValueError: the first layers alone, which see everything, are more than ``keep``.
        """
        if self.keep is None:
            return None
        whole = self.layer(layers)
        if self.keep * layers < whole:
            raise ValueError(
                f"FastV reads all tokens in {whole} of {layers} layers: keep at least "
                f"{whole / layers:.3f}, got {self.keep}"
            )
        return (self.keep * layers - whole) / (layers - whole) if layers > whole else 1.0
