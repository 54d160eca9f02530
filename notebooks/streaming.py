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
# # Streaming
#
# Feed a video window by window as it comes, ask at any moment, and watch what the stream keeps.
#
# With the released weights, set `CHECKPOINT` to the folder that `omnizip convert` wrote and
# `SOURCE` to a file, a URL, or a camera such as `"device:v4l2:/dev/video0"`. Without them the
# notebook makes a small checkpoint (every part real, the weights **random**, so the answers are
# words without meaning) and a clip with moving shapes and tones.

# %%
# %matplotlib inline
import tempfile
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt

import omnizip_jax
from omnizip_jax import OmniZipConfig
from omnizip_jax.convert import convert
from omnizip_jax.demo.checkpoint import write_random_checkpoint
from omnizip_jax.demo.clip import write_clip
from omnizip_jax.live import begin

# %%
# %%capture
FOLDER = Path(tempfile.mkdtemp())
CHECKPOINT = FOLDER / "checkpoint"
convert(write_random_checkpoint(FOLDER / "released", "tiny"), CHECKPOINT)
SOURCE = write_clip(FOLDER / "clip.mp4", seconds=24)

# %% [markdown]
# ## A stream
#
# Its state is a pytree that is handed from call to call. The cache is small here, so that it
# overflows before the clip ends; `memory="fading"` then thins out old windows, the older the more.
# `live.begin` is `omnizip_jax.init_stream` with the programs compiled beforehand, so that the times
# below are those of a stream that runs.

# %%
params = omnizip_jax.load(CHECKPOINT, dtype="float32")  # bfloat16 on a GPU
state = begin(params, OmniZipConfig(), capacity=1792, memory="fading", text_slots=384)

# %% [markdown]
# ## Feed the first half, one window of 2 s at a time
#
# `windows` decodes ahead in a thread while the device computes. Each `feed` is one compiled
# program: encode, score, select, merge, rate, thin, and prefill into the cache.

# %%
source = omnizip_jax.windows(SOURCE)
log = []


def feed(window):
    """Feed, and note what became of the window."""
    global state
    began = time.perf_counter()
    state = jax.block_until_ready(omnizip_jax.feed(params, state, window))
    log.append(
        {
            "milliseconds": 1e3 * (time.perf_counter() - began),
            "fill": state.fill,
            "audio kept, $S_a$": float(state.trace.audio_retention),
            "video pruned, $\\rho_v$": float(state.trace.video_rate),
        }
    )


for _ in range(6):
    feed(next(source))
print(f"{source.emitted} windows, the cache is {state.fill:.0%} full")

# %% [markdown]
# ## Ask in the middle
#
# An answer is forgotten again: the stream goes on as if nobody had asked. With `keep=True`
# question and answer stay, so that a later question can refer to them.

# %%
answer, state = omnizip_jax.ask(params, state, "What is heard?", max_new_tokens=12)
print("12 s, forgotten: ", answer)
answer, state = omnizip_jax.ask(params, state, "What is seen?", max_new_tokens=12, keep=True)
print("12 s, remembered:", answer)

# %% [markdown]
# ## The rest, and a question at the end

# %%
for window in source:
    feed(window)
answer, state = omnizip_jax.ask(params, state, "Does it go on like that?", max_new_tokens=12)
print(f"{source.time + 2:.0f} s:", answer)
print(answer.counts)
print({stage: f"{1e3 * seconds:.0f} ms" for stage, seconds in answer.seconds.items()})

# %% [markdown]
# ## What the stream did
#
# The cache fills and is thinned when it is full; the rates follow the sound while the balance
# holds the budget; once the cache has been full, the time per window stays where it is.

# %%
figure, axes = plt.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
ends = [2 * (i + 1) for i in range(len(log))]
axes[0].plot(ends, [w["fill"] for w in log], "o-", color="#555555")
axes[0].set(ylabel="cache fill", ylim=(0, 1))
for name, color in [("audio kept, $S_a$", "#2a7f9e"), ("video pruned, $\\rho_v$", "#d1663d")]:
    axes[1].plot(ends, [w[name] for w in log], "o-", color=color, label=name)
axes[1].set(ylabel="share", ylim=(0, 1.05))
axes[1].legend()
axes[2].bar(ends, [w["milliseconds"] for w in log], width=1.2, color="#555555")
axes[2].set(ylabel="ms per window", xlabel="stream time, s")
axes[0].axvline(12, color="black", linestyle=":", linewidth=1)
axes[0].annotate("asked", (12, 0.9), xytext=(4, 0), textcoords="offset points")
plt.show()
