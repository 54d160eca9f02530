"""The OmniZip paper, section by section, on masked windows; knows nothing of models or files.

``audio`` is section 3.3 (eq. 2-4), ``budget`` eq. 5 and appendix A, ``video`` section 3.4
(eq. 6-8), ``window`` a whole clip, ``published`` what the authors' newest code does differently,
``causal`` what a stream does instead of the two clip-wide steps.
"""

from omnizip_jax.compression.audio import attention_scores
from omnizip_jax.compression.causal import CausalPlan, compress_causal, init_plan
from omnizip_jax.compression.pack import front, pack
from omnizip_jax.compression.window import CompressedClip, compress_clip, kept_bound

__all__ = [
    "CausalPlan",
    "CompressedClip",
    "attention_scores",
    "compress_causal",
    "compress_clip",
    "front",
    "init_plan",
    "kept_bound",
    "pack",
]
