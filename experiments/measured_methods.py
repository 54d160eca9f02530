"""What the measurement compares: every method, at the same kept shares.

A method is measured once it has a line in one of the dictionaries here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from experiments.accuracy_questions import Survey
from experiments.altered_inputs import ALTERED, Row
from experiments.reference_methods import BestSample, Oracle
from experiments.streamed import Streamed
from omnizip_jax.compression import (
    EVS,
    AllTokens,
    DyCoke,
    FastV,
    Method,
    Mixed,
    OmniZipConfig,
    QuestionGuided,
    RandomTokens,
    Seats,
    Surprise,
    TemporalOnly,
    VidCom2,
    VisionZip,
)
from omnizip_jax.compression.per_modality import PerModality
from omnizip_jax.testbed.synthetic_clips import SPEC

RANDOM_SEEDS = 5
FULL = "all tokens"

Make = Callable[[float], Method]

# Without a share; measured once.
REFERENCES: dict[str, Method] = {
    FULL: AllTokens(),
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


# With a share EVS keeps what TemporalOnly does, which therefore has no rows.
METHODS: dict[str, Make] = {
    "omnizip": lambda share: OmniZipConfig(keep=share),
    "omnizip, published": _published,
    "omnizip, the paper's letter": lambda share: OmniZipConfig.paper(keep=share),
    "random": lambda share: RandomTokens(keep=share),
    "random, omnizip's split": lambda share: RandomTokens(keep=share, split=True),
    "dycoke": lambda share: DyCoke(keep=share),
    "visionzip": lambda share: VisionZip(keep=share),
    "visionzip, per window": lambda share: VisionZip(keep=share, per_window=True),
    "evs": lambda share: EVS(keep=share),
    "vidcom2": lambda share: VidCom2(keep=share),
    "seats": lambda share: Seats(keep=share),
    "fastv": lambda share: FastV(keep=share),
    "surprise": lambda share: Surprise(keep=share),
    "surprise, then the question": lambda share: QuestionGuided(keep=share),
}

# It knows what no method can know.
KNOWING: dict[str, Make] = {"oracle": lambda share: Oracle(keep=share)}

# As a stream plans and hears.
STREAMED: dict[str, Callable[[float], Row]] = {
    "omnizip, live sound": lambda share: Row(OmniZipConfig(keep=share), sound="live"),
    "omnizip, causal": lambda share: Row(OmniZipConfig(keep=share, causal=True)),
    "omnizip, causal, live sound": lambda share: Row(
        OmniZipConfig(keep=share, causal=True), sound="live"
    ),
    "surprise, in a stream": lambda share: Row(Streamed(method=Surprise(keep=share))),
    "surprise, in a stream, live sound": lambda share: Row(
        Streamed(method=Surprise(keep=share)), sound="live"
    ),
}


def _with(
    share: float, sound: PerModality | None = None, picture: PerModality | None = None
) -> Method:
    """Surprise with another sound or picture, both at the same share, as Surprise keeps them."""
    rates = {"rho_audio": 1 - share, "rho_video": 1 - share}
    parts = (dataclasses.replace(part or Surprise(), **rates) for part in (sound, picture))
    return Mixed(*parts)


# Table 5 and figure 7 of the paper; and Surprise, part by part, and with the answers known.
ABLATION_SHARES = (0.25, 0.15)
ABLATIONS: dict[str, Make] = {
    "omnizip, no dynamic rates": lambda share: OmniZipConfig(keep=share, rho_min=0.6, rho_max=0.6),
    "omnizip, no anchors (G = 0)": lambda share: OmniZipConfig(keep=share, merge_size=0),
    "omnizip, G = 15": lambda share: OmniZipConfig(keep=share, merge_size=15),
    "surprise, even sound": lambda share: Surprise(keep=share, lean=0.0),
    "surprise, salient sound": lambda share: _with(share, sound=EVS()),
    "surprise, random sound": lambda share: _with(share, sound=RandomTokens()),
    "surprise, the paper's split": lambda share: Mixed(Surprise(), Surprise(), keep=share),
    "surprise, VidCom2's picture": lambda share: _with(share, picture=VidCom2()),
    "surprise, changes as picture": lambda share: _with(share, picture=TemporalOnly()),
    "surprise, random picture": lambda share: _with(share, picture=RandomTokens()),
    "surprise, even picture": lambda share: _with(share, picture=Surprise(sharpness=0.0)),
    "surprise, the best of 16": lambda share: BestSample(keep=share, samples=16),
}

# Table 4: the sound of one method and the picture of another.
MIXTURE_SHARES = (0.35, 0.25)
MIXTURES: dict[str, Make] = {
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


# Where clips are long: what takes minutes there, and what nobody streams.
NOT_LONG = (
    "fastv",
    "sound of another clip",
    "picture of another clip",
)


def row_name(method: str, share: float) -> str:
    """What a method at a share is called in results and tables."""
    return f"{method} | {share:.0%}"


def rows_of(survey: Survey, layers: int) -> dict[str, Row]:
    """Every reference, and every method at every share that it can keep.

    Args:
        layers: of the decoder.
    """
    rows = {name: Row(method) for name, method in REFERENCES.items()} | ALTERED

    def add(
        makes: Mapping[str, Callable[[float], Method | Row]], shares: tuple[float, ...]
    ) -> None:
        for name, make in makes.items():
            for share in shares:
                try:
                    made = make(share)
                    row = made if isinstance(made, Row) else Row(made)
                    _check(row.method, survey, layers)
                except ValueError:  # less than it can keep
                    continue
                rows[row_name(name, share)] = row

    add(METHODS | KNOWING, survey.shares)
    add(STREAMED, survey.shares)
    if survey.thorough:
        add(ABLATIONS, ABLATION_SHARES)
        add(MIXTURES, MIXTURE_SHARES)
        return rows
    return {name: row for name, row in rows.items() if method_of(name) not in NOT_LONG}


def method_of(name: str) -> str:
    """A row's name without its share."""
    return name.split(" | ")[0]


def _check(method: Method, survey: Survey, layers: int) -> None:
    """Raise ``ValueError`` unless the method can keep its share of the shortest clips."""
    windows = min(survey.lengths)
    method.bound(np.full(windows, SPEC.audio_slots), np.full(windows, SPEC.video_slots))
    method.stages(layers)


def seeds_of(method: Method) -> int:
    """With how many seeds a method is measured: one says little about what draws tokens."""
    if isinstance(method, BestSample):
        return method.samples
    parts = (method.audio, method.video) if isinstance(method, Mixed) else (method,)
    return RANDOM_SEEDS if any(isinstance(part, RandomTokens) for part in parts) else 1
