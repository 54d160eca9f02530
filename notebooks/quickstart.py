# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# Convert a checkpoint, load it, ask about a clip, and look at what compression kept.
#
# With the released weights, set `SOURCE` to their folder and `CLIP` to your video. Without them
# the notebook makes a small checkpoint in the released layout (every part real, the weights
# **random**, so the answers are words without meaning) and a clip with moving shapes and tones.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import omnizip_jax
from omnizip_jax import OmniZipConfig
from omnizip_jax.convert import convert
from omnizip_jax.demo.checkpoint import write_random_checkpoint
from omnizip_jax.demo.clip import write_clip
from omnizip_jax.picture import plot_compression

FOLDER = Path(tempfile.mkdtemp())
SOURCE = write_random_checkpoint(FOLDER / "released", "tiny")
CLIP = write_clip(FOLDER / "clip.mp4", seconds=8)

# %% [markdown]
# ## Convert, once
#
# The same as `python convert/hf_to_flax.py SOURCE TARGET`.

# %%
convert(SOURCE, FOLDER / "checkpoint")

# %% [markdown]
# ## Load and ask

# %%
params = omnizip_jax.load(FOLDER / "checkpoint", dtype="float32")  # bfloat16 on a GPU
question = "What happens in this video, and what can be heard?"
answer = omnizip_jax.generate(params, CLIP, question, max_new_tokens=16)
print(answer)

# %% [markdown]
# The answer carries what led to it: tokens by modality before and after compression, and seconds
# by stage.

# %%
print(answer.counts)
print({stage: round(seconds, 2) for stage, seconds in answer.seconds.items()})

# %% [markdown]
# ## What was kept
#
# Dropped tokens are dimmed. The first row of frames is the spatial step (DPC-KNN), the second the
# temporal one. Below: the share of audio kept in each window, and how hard its video was pruned:
# where there is more to hear, more of the picture stays.

# %%
plot_compression(answer)

# %% [markdown]
# ## Fewer tokens, all tokens, the authors' rule

# %%
settings = {
    "all": None,
    "45 %": OmniZipConfig(rho_audio=0.3, rho_video=0.6),
    "35 %": OmniZipConfig(rho_audio=0.4, rho_video=0.7),
    "45 %, published rule": OmniZipConfig.published(rho_audio=0.3, rho_video=0.6),
}
for name, compression in settings.items():
    answer = omnizip_jax.generate(
        params, CLIP, question, compression=compression, max_new_tokens=16
    )
    counts = answer.counts
    print(f"{name:>21}: {counts.kept:5} of {counts.media} tokens ({counts.retained:.1%})")
