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
# Feed a video window by window as it arrives, ask at any time, and see what the cache retains.
#
# With the released weights, set `CHECKPOINT` to the folder that `omnizip convert` wrote, and
# `SOURCE` to a file, a URL, or a camera such as `"device:v4l2:/dev/video0"`. Without them the
# notebook uses the small trained model of the package, and a generated minute of shapes and sounds.

# %%
# %matplotlib inline
import time

import jax
import matplotlib.pyplot as plt

import omnizip_jax
from omnizip_jax import OmniZipConfig
from omnizip_jax.cli.stream_loop import RetentionLog, init_compiled_stream
from omnizip_jax.testbed.clip_questions import NAMES
from omnizip_jax.testbed.synthetic_clips import (
    OPENING_SECONDS,
    objects_only_in_opening,
    sample_stream,
)
from omnizip_jax.visualize import plot_retention

CHECKPOINT = "small"
clip = sample_stream()
SOURCE = clip.arrays
for obj in clip.objects:
    print(f"second {obj.second}: {obj.colour} {obj.shape}, {obj.sound}")

# %% [markdown]
# ## A stream
#
# The state of a stream is a context, passed from call to call. The cache is small here, so that it
# is full long before the clip ends; `memory="fading"` then evicts tokens of all windows, more of
# the older ones. In a stream `keep` is met as a running average. `init_compiled_stream` is
# `omnizip_jax.init_stream` with its programs compiled, so that the times below exclude compilation.

# %%
params = omnizip_jax.load(CHECKPOINT, dtype="float32")  # bfloat16 on a GPU
state = init_compiled_stream(
    params, OmniZipConfig(keep=0.45), capacity=1024, memory="fading", text_slots=160
)

# %% [markdown]
# ## Feed ten seconds, one window of 2 s at a time
#
# `windows` decodes ahead in a thread while the device computes. Each `feed` is one compiled
# program: it encodes a window, selects tokens and prefills them into the cache; a full cache is
# evicted first.

# %%
source = omnizip_jax.windows(SOURCE, params.config.spec)
seconds = params.config.spec.seconds
retention = RetentionLog()
log = []


def feed(window):
    """Feed a window, and log its rates and time."""
    global state
    began = time.perf_counter()
    state = jax.block_until_ready(omnizip_jax.feed(params, state, window))
    milliseconds = 1e3 * (time.perf_counter() - began)
    retention(state)  # counts the retained tokens of every window
    log.append(
        {
            "milliseconds": milliseconds,
            "fill": state.fill,
            "audio kept, $S_a$": float(state.trace.audio_retention),
            "video pruned, $\\rho_v$": float(state.trace.video_rate),
        }
    )


for _ in range(OPENING_SECONDS // seconds):
    feed(next(source))
print(f"{source.emitted} windows, the cache is {state.fill:.0%} full")

# %% [markdown]
# ## Ask
#
# About objects that only these ten seconds contain. `ask` does not change the stream; with
# `keep=True` the returned context contains question and answer, so that a later question can refer
# to them. `feed` donates the buffers of the state that it receives, `ask` does not; `fork` makes an
# independent copy.

# %%
QUESTIONS = {  # and the correct answers
    f"Which colour was seen during the {NAMES[obj.sound]}?": obj.colour
    for obj in objects_only_in_opening(clip.objects)
    if obj.sound
}


def ask(context, who):
    """Ask every question; the context does not change."""
    for question, truth in QUESTIONS.items():
        answer, _ = omnizip_jax.ask(params, context, question, max_new_tokens=4)
        print(f"{who}, {context.seconds} s: {question} {answer} (correct: {truth})")
    return answer


ask(state, "stream")
fork = omnizip_jax.fork(state)  # keeps the first ten seconds
_, dialogue = omnizip_jax.ask(params, state, "Which sound came first?", max_new_tokens=4, keep=True)
print(f"{state.cache.length} tokens without the answer, {dialogue.cache.length} with it")

# %% [markdown]
# ## The rest, and the same questions at the end
#
# By then the cache has been full several times, and few tokens of the first ten seconds are
# retained. The fork still has all of them.

# %%
for window in source:
    feed(window)
retained, kept = retention.count(slice(0, OPENING_SECONDS // seconds))
print(f"{retained} of {kept} tokens of the first {OPENING_SECONDS} s are in the cache")
answer = ask(state, "stream")
print(answer.counts)
print({stage: f"{1e3 * seconds:.0f} ms" for stage, seconds in answer.seconds.items()})
answer = ask(fork, "fork")

# %% [markdown]
# Retained tokens of every window over time:

# %%
marks = {time: f"asked, {time} s" for time in (OPENING_SECONDS, state.seconds)}
plot_retention(retention.retained, retention.initial, seconds, marks)

# %% [markdown]
# ## What the stream did
#
# The cache fills and is evicted when it is full. The rates follow the audio while the running
# average meets `keep`. The time per window grows until the cache is full for the first time, then
# stays.

# %%
figure, axes = plt.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
ends = [seconds * (i + 1) for i in range(len(log))]
axes[0].plot(ends, [w["fill"] for w in log], "o-", color="#555555")
axes[0].set(ylabel="cache fill", ylim=(0, 1))
for name, color in [("audio kept, $S_a$", "#2a7f9e"), ("video pruned, $\\rho_v$", "#d1663d")]:
    axes[1].plot(ends, [w[name] for w in log], "o-", color=color, label=name)
axes[1].set(ylabel="share", ylim=(0, 1.05))
axes[1].legend()
axes[2].bar(ends, [w["milliseconds"] for w in log], width=1.2, color="#555555")
axes[2].set(ylabel="ms per window", xlabel="stream time, s")
axes[0].axvline(OPENING_SECONDS, color="black", linestyle=":", linewidth=1)
axes[0].annotate("asked", (OPENING_SECONDS, 0.9), xytext=(4, 0), textcoords="offset points")
plt.show()
