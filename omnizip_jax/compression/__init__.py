"""Methods that choose among media tokens; knows nothing of models or files.

``method`` is the contract. The OmniZip paper, section by section, on masked windows: ``audio`` is
section 3.3 (eq. 2-4), ``budget`` eq. 5 and appendix A, ``video`` section 3.4 (eq. 6-8), ``rule``
the order of the steps, ``omnizip`` the method; ``published`` is what the authors' newest code does
differently, ``causal`` what a stream does instead of the two clip-wide steps.
"""

from omnizip_jax.compression.baselines import AllTokens, RandomTokens, TemporalOnly
from omnizip_jax.compression.method import Method
from omnizip_jax.compression.omnizip import OmniZipConfig
from omnizip_jax.compression.published import PublishedOmniZip

# Every method by the name that the command line, the testbed and the evaluation know it by.
METHODS: dict[str, type[Method]] = {
    "omnizip": OmniZipConfig,
    "published": PublishedOmniZip,
    "all": AllTokens,
    "random": RandomTokens,
    "temporal": TemporalOnly,
}

__all__ = [
    "METHODS",
    "AllTokens",
    "Method",
    "OmniZipConfig",
    "PublishedOmniZip",
    "RandomTokens",
    "TemporalOnly",
]
