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
# With the released weights, set `CHECKPOINT` to the folder that `omnizip convert` wrote, and
# `SOURCE` to a file, a URL, or a camera such as `"device:v4l2:/dev/video0"`. Without them the
# notebook uses the small trained model that comes along, and three of its clips one after the
# other.

# %%
# %matplotlib inline
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

import omnizip_jax
from omnizip_jax import OmniZipConfig
from omnizip_jax.app.follow import begin_stream
from omnizip_jax.testbed.clips import FPS, SAMPLE_RATE, make_clip
from omnizip_jax.testbed.questions import NAMES, NUMBERS

CHECKPOINT = "small"
clips = [make_clip(seed) for seed in (0, 1, 2)]
frames = np.concatenate([clip.frames for clip in clips])
SOURCE = (frames, FPS, np.concatenate([clip.waveform for clip in clips]), SAMPLE_RATE)
for number, clip in enumerate(clips):
    for thing in clip.things:
        print(f"second {8 * number + thing.slot}: {thing.colour} {thing.shape}, {thing.sound}")

# %% [markdown]
# ## A stream
#
# Its state is a context, handed from call to call. The cache is small here, so that it overflows
# before the clip ends; `memory="fading"` then thins out old windows, the older the more. A share to
# keep is a running balance in a stream. `begin_stream` is `omnizip_jax.init_stream` with the
# programs compiled beforehand, so that the times below are those of a stream that runs.

# %%
params = omnizip_jax.load(CHECKPOINT, dtype="float32")  # bfloat16 on a GPU
state = begin_stream(
    params, OmniZipConfig(keep=0.45), capacity=768, memory="fading", text_slots=160
)

# %% [markdown]
# ## Feed the first clip, one window of 2 s at a time
#
# `windows` decodes ahead in a thread while the device computes. Each `feed` is one compiled
# program: encode, score, select, merge, rate, thin, and prefill into the cache.

# %%
source = omnizip_jax.windows(SOURCE, params.config.spec)
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


for _ in range(4):
    feed(next(source))
print(f"{source.emitted} windows, the cache is {state.fill:.0%} full")

# %% [markdown]
# ## Ask in the middle
#
# An answer is forgotten again: the stream goes on as if nobody had asked. With `keep=True`
# question and answer stay, so that a later question can refer to them. `feed` uses up the state
# that it is given, `ask` does not; `fork` makes a copy that goes its own way.

# %%
event = clips[0].events[1]
question = f"Which colour was seen during the {NAMES[event.sound]}?"
answer, state = omnizip_jax.ask(params, state, question, max_new_tokens=4)
print(f"8 s, forgotten:  {question} {answer} (truth: {event.colour})")
question = "How many sounds were there?"
answer, state = omnizip_jax.ask(params, state, question, max_new_tokens=4, keep=True)
print(f"8 s, remembered: {question} {answer} (truth: {NUMBERS[len(clips[0].events)]})")
past = omnizip_jax.fork(state)  # the first clip, whatever comes

# %% [markdown]
# ## The rest, and a question at the end
#
# The small model was trained on clips of 8 s with one answer each; three times as long a stream, in
# which colours come back, is more than it has learned.

# %%
for window in source:
    feed(window)
colour = clips[2].things[-1].colour
question = f"Was there a {colour} shape?"
answer, state = omnizip_jax.ask(params, state, question, max_new_tokens=4)
print(f"{source.time + 2:.0f} s: {question} {answer} (truth: yes)")
print(answer.counts)
print({stage: f"{1e3 * seconds:.0f} ms" for stage, seconds in answer.seconds.items()})
question = "Which sound came first?"
answer, past = omnizip_jax.ask(params, past, question, max_new_tokens=4)
print(f"fork, at {past.seconds} s: {question} {answer} (truth: {clips[0].events[0].sound})")

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
axes[0].axvline(8, color="black", linestyle=":", linewidth=1)
axes[0].annotate("asked", (8, 0.9), xytext=(4, 0), textcoords="offset points")
plt.show()
