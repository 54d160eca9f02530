"""What the measurement compares: every method, at the same kept shares."""

from __future__ import annotations

from collections.abc import Callable

from omnizip_jax.compression import (
    EVS,
    AllTokens,
    DyCoke,
    FastV,
    Method,
    Mixed,
    OmniZipConfig,
    RandomTokens,
    Seats,
    TemporalOnly,
    VidCom2,
    VisionZip,
)
from omnizip_jax.compression.method import Counts

SHARES = (0.45, 0.35, 0.25, 0.15)
RANDOM_SEEDS = 5

# Without a share; measured once.
REFERENCES: dict[str, Method] = {
    "all tokens": AllTokens(),
    "no sound": AllTokens(audio=False),
    "no picture": AllTokens(video=False),
}

# The authors' rule takes rates, not shares. Here 50 of 122 tokens are sound and not 50 of 338, so
# the paper's rates would keep more than 45 and 35 %; these keep about what the share says.
PUBLISHED = {
    0.45: OmniZipConfig.published(rho_audio=0.45, rho_video=0.65),
    0.35: OmniZipConfig.published(rho_audio=0.6, rho_video=0.71),
    0.25: OmniZipConfig.published(rho_audio=0.72, rho_video=0.8, rho_max=0.9),
}


def _published(share: float) -> Method:
    if share not in PUBLISHED:
        raise ValueError(f"the authors' rule has no rates for {share}")
    return PUBLISHED[share]


METHODS: dict[str, Callable[[float], Method]] = {
    "omnizip": lambda share: OmniZipConfig(keep=share),
    "omnizip, published": _published,
    "omnizip, the paper's letter": lambda share: OmniZipConfig.paper(keep=share),
    "random": lambda share: RandomTokens(keep=share),
    "random, omnizip's split": lambda share: RandomTokens(keep=share, split=True),
    "temporal": lambda share: TemporalOnly(keep=share),
    "dycoke": lambda share: DyCoke(keep=share),
    "visionzip": lambda share: VisionZip(keep=share),
    "visionzip, per window": lambda share: VisionZip(keep=share, per_window=True),
    "evs": lambda share: EVS(keep=share),
    "vidcom2": lambda share: VidCom2(keep=share),
    "seats": lambda share: Seats(keep=share),
    "fastv": lambda share: FastV(keep=share),
}

# Table 5 and figure 7 of the paper, and the plan of a stream.
ABLATIONS: dict[str, Callable[[float], Method]] = {
    "omnizip, causal": lambda share: OmniZipConfig(keep=share, causal=True),
    "omnizip, no dynamic rates": lambda share: OmniZipConfig(keep=share, rho_min=0.6, rho_max=0.6),
    "omnizip, no anchors (G = 0)": lambda share: OmniZipConfig(keep=share, merge_size=0),
    "omnizip, G = 15": lambda share: OmniZipConfig(keep=share, merge_size=15),
}

# Table 4: the sound of one method and the picture of another.
MIXTURES: dict[str, Callable[[float], Method]] = {
    "random sound, omnizip's picture": lambda share: Mixed(
        audio=RandomTokens(), video=OmniZipConfig(), keep=share
    ),
    "omnizip's sound, dycoke's picture": lambda share: Mixed(
        audio=OmniZipConfig(), video=DyCoke(), keep=share
    ),
    "omnizip's sound, visionzip's picture": lambda share: Mixed(
        audio=OmniZipConfig(), video=VisionZip(), keep=share
    ),
    "omnizip's sound, random picture": lambda share: Mixed(
        audio=OmniZipConfig(), video=RandomTokens(), keep=share
    ),
}


def row_name(method: str, share: float) -> str:
    """What a method at a share is called in results and tables."""
    return f"{method} | {share:.0%}"


def all_rows(audio: Counts, video: Counts, layers: int) -> dict[str, Method]:
    """Every reference, and every method at every share that it can keep.

    Args:
        audio, video: tokens of each window of the clips.
        layers: of the decoder.
    """
    rows = dict(REFERENCES)
    for name, make in (METHODS | ABLATIONS | MIXTURES).items():
        for share in SHARES:
            try:
                method = make(share)
                method.bound(audio, video)
                method.stages(layers)
            except ValueError:  # less than it can keep
                continue
            rows[row_name(name, share)] = method
    return rows


def draws(method: Method) -> bool:
    """Whether a method draws tokens, so that one seed says little."""
    parts = (method.audio, method.video) if isinstance(method, Mixed) else (method,)
    return any(isinstance(part, RandomTokens) for part in parts)
