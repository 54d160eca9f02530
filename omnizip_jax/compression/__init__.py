"""Methods that select media tokens, independent of models and files.

``method`` is the contract, ``counts`` exact arithmetic of token counts. The OmniZip paper on masked
windows: ``omnizip_audio`` is section 3.3 (eq. 2-4), ``omnizip_budget`` eq. 5 and Algorithm 1,
``omnizip_video`` section 3.4 (eq. 6-8), ``omnizip_steps`` their order, ``omnizip`` the method,
``omnizip_streaming`` its form for streams, ``omnizip_official`` the authors' newest code.

The other methods derive from ``per_modality``, which also mixes the audio selection of one with the
video selection of another. ``surprise`` is this package's own rule, with ``novelty_weights``;
``fastv``, ``seats`` and ``question_guided`` have ``decoder_stages``.
"""

from omnizip_jax.compression.baselines import EVS, AllTokens, RandomTokens, TemporalOnly
from omnizip_jax.compression.dycoke import DyCoke
from omnizip_jax.compression.fastv import FastV
from omnizip_jax.compression.method import Budget as Budget
from omnizip_jax.compression.method import Method
from omnizip_jax.compression.omnizip import OmniZipConfig
from omnizip_jax.compression.omnizip_official import PublishedOmniZip
from omnizip_jax.compression.per_modality import Mixed as Mixed
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
