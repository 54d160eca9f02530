"""Methods that choose among media tokens; knows nothing of models or files.

``method`` is the contract. The OmniZip paper, section by section, on masked windows: ``audio`` is
section 3.3 (eq. 2-4), ``budget`` eq. 5 and appendix A, ``video`` section 3.4 (eq. 6-8), ``rule``
the order of the steps, ``omnizip`` the method; ``published`` is what the authors' newest code does
differently, ``causal`` what a stream does instead of the two clip-wide steps.

The others, a file each, are built from ``parts``: one for the sound, one for the picture, which
``mixed`` joins anew; ``share`` holds a share of all tokens. ``surprise`` is this package's own
rule, and ``questioned`` lets the question thin what another method kept.
"""

from omnizip_jax.compression.baselines import AllTokens, RandomTokens, TemporalOnly
from omnizip_jax.compression.dycoke import DyCoke
from omnizip_jax.compression.evs import EVS
from omnizip_jax.compression.fastv import FastV
from omnizip_jax.compression.method import Method
from omnizip_jax.compression.mixed import Mixed
from omnizip_jax.compression.omnizip import OmniZipConfig
from omnizip_jax.compression.published import PublishedOmniZip
from omnizip_jax.compression.question_guided import QuestionGuided
from omnizip_jax.compression.seats import Seats
from omnizip_jax.compression.surprise import Surprise
from omnizip_jax.compression.vidcom2 import VidCom2
from omnizip_jax.compression.visionzip import VisionZip

# Every method by the name that the command line, the testbed and the evaluation know it by.
METHODS: dict[str, type[Method]] = {
    "omnizip": OmniZipConfig,
    "published": PublishedOmniZip,
    "all": AllTokens,
    "random": RandomTokens,
    "temporal": TemporalOnly,
    "dycoke": DyCoke,
    "visionzip": VisionZip,
    "evs": EVS,
    "vidcom2": VidCom2,
    "seats": Seats,
    "fastv": FastV,
    "surprise": Surprise,
    "questioned": QuestionGuided,
}

__all__ = [
    "EVS",
    "METHODS",
    "AllTokens",
    "DyCoke",
    "FastV",
    "Method",
    "Mixed",
    "OmniZipConfig",
    "PublishedOmniZip",
    "QuestionGuided",
    "RandomTokens",
    "Seats",
    "Surprise",
    "TemporalOnly",
    "VidCom2",
    "VisionZip",
    "as_method",
]


def as_method(compression: Method | None) -> Method:
    """None keeps all tokens.

    Raises:
        ValueError: neither None nor a method.
    """
    if compression is None:
        return AllTokens()
    if not isinstance(compression, Method):
        raise ValueError(
            f"compression must be a method such as OmniZipConfig(), or None for all tokens; got "
            f"{compression!r}"
        )
    return compression
