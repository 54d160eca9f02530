"""Methods that select media tokens, independent of models and files.

``method`` is the contract, ``counts`` exact arithmetic of token counts. The OmniZip paper on masked
windows: ``audio`` is section 3.3 (eq. 2-4), ``budget`` eq. 5 and Algorithm 1, ``video`` section 3.4
(eq. 6-8), ``rule`` the order of the steps, ``omnizip`` the method, ``causal`` its form for streams,
``published`` the differences of the authors' newest code.

The other methods, a file each, derive from ``per_modality``, which also mixes the audio selection
of one with the video selection of another. ``surprise`` is this package's own rule, with weights
from ``novelty``; ``stages`` and ``question_guided`` prune inside the decoder.
"""

from omnizip_jax.compression.baselines import AllTokens, RandomTokens, TemporalOnly
from omnizip_jax.compression.dycoke import DyCoke
from omnizip_jax.compression.evs import EVS
from omnizip_jax.compression.fastv import FastV
from omnizip_jax.compression.method import Budget, Method
from omnizip_jax.compression.omnizip import OmniZipConfig
from omnizip_jax.compression.omnizip_official import PublishedOmniZip
from omnizip_jax.compression.per_modality import Mixed
from omnizip_jax.compression.question_guided import QuestionGuided
from omnizip_jax.compression.seats import Seats
from omnizip_jax.compression.surprise import Surprise
from omnizip_jax.compression.vidcom2 import VidCom2
from omnizip_jax.compression.visionzip import VisionZip

# Every method by its name on the command line, in the testbed and in evaluations.
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
    "question_guided": QuestionGuided,
}

__all__ = [
    "EVS",
    "METHODS",
    "AllTokens",
    "Budget",
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
    """The method itself; ``AllTokens`` for None.

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
