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
# notebook uses the small trained model that comes along, and a minute in which shapes are seen and
# sounds are heard while the camera moves.

# %%
# %matplotlib inline
import time

import jax
import matplotlib.pyplot as plt

import omnizip_jax
from omnizip_jax import OmniZipConfig
from omnizip_jax.cli.stream_loop import RetentionLog, init_compiled_stream
from omnizip_jax.testbed.clip_questions import NAMES
from omnizip_jax.testbed.demo_clips import OPENING_SECONDS, objects_only_in_opening, sample_stream
from omnizip_jax.visualize import plot_retention

CHECKPOINT = "small"
clip = sample_stream()
SOURCE = clip.arrays
for obj in clip.objects:
    print(f"second {obj.second}: {obj.colour} {obj.shape}, {obj.sound}")

# %% [markdown]
# ## A stream
#
# Its state is a context, handed from call to call. The cache is small here, so that it overflows
# long before the clip ends; `memory="fading"` then thins out old windows, the older the more. A
# share to keep is a running balance in a stream. `init_compiled_stream` is
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
# program: encode, score, select, merge, rate, thin, and prefill into the cache.

# %%
source = omnizip_jax.windows(SOURCE, params.config.spec)
seconds = params.config.spec.seconds
retention = RetentionLog()
log = []


def feed(window):
    """Feed, and note what became of the window."""
    global state
    began = time.perf_counter()
    state = jax.block_until_ready(omnizip_jax.feed(params, state, window))
    retention(state)  # counts the retained tokens of every window
    log.append(
        {
            "milliseconds": 1e3 * (time.perf_counter() - began),
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
# About things that are there in these ten seconds and never again. An answer is forgotten: the
# stream goes on as if nobody had asked. With `keep=True` question and answer stay, so that a later
# question can refer to them. `feed` uses up the state that it is given, `ask` does not; `fork`
# makes a copy that goes its own way.

# %%
QUESTIONS = {  # and the true answers
    f"Which colour was seen during the {NAMES[obj.sound]}?": obj.colour
    for obj in objects_only_in_opening(clip.objects)
    if obj.sound
}


def ask(context, who):
    """Ask everything; nothing of it is kept."""
    for question, truth in QUESTIONS.items():
        answer, _ = omnizip_jax.ask(params, context, question, max_new_tokens=4)
        print(f"{who}, {context.seconds} s: {question} {answer} (truth: {truth})")
    return answer


ask(state, "stream")
state = omnizip_jax.fork(state)  # the first ten seconds, whatever comes
_, dialogue = omnizip_jax.ask(params, state, "Which sound came first?", max_new_tokens=4, keep=True)
print(f"{state.cache.length} tokens are remembered without, {dialogue.cache.length} with an answer")

# %% [markdown]
# ## The rest, and the same questions at the end
#
# By then the cache has been full several times, and little is left of the first ten seconds. The
# fork still has all that was kept of them.

# %%
for window in source:
    feed(window)
left, kept = retention.count(slice(0, OPENING_SECONDS // seconds))
print(f"of the first {OPENING_SECONDS} s, {left} of {kept} tokens are left in the cache")
answer = ask(state, "stream")
print(answer.counts)
print({stage: f"{1e3 * seconds:.0f} ms" for stage, seconds in answer.seconds.items()})
answer = ask(state, "fork")

# %% [markdown]
# What is left of every window as time goes on:

# %%
marks = {time: f"asked, {time} s" for time in (OPENING_SECONDS, state.seconds)}
plot_retention(retention.retained, retention.initial, seconds, marks)

# %% [markdown]
# ## What the stream did
#
# The cache fills and is thinned when it is full; the rates follow the sound while the balance
# holds the budget; once the cache has been full, the time per window stays where it is.

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
