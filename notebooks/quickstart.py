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
# Load a model, ask about a clip, look at what compression kept, ask again, and compare methods.
#
# With the released weights, convert them once (`omnizip convert Qwen2.5-Omni-3B TARGET`), set
# `CHECKPOINT` to that folder, `CLIP` to your video and `QUESTIONS` to what you want to know.
# Without them the notebook uses the small model of the package: the same architecture with 2
# million parameters, trained on generated clips of shapes and sounds.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import omnizip_jax
from omnizip_jax import METHODS, OmniZipConfig
from omnizip_jax.testbed.clip_questions import NAMES
from omnizip_jax.testbed.synthetic_clips import sample_clip
from omnizip_jax.visualize import plot_compression

CHECKPOINT = "small"
sample = sample_clip()  # its camera moves
CLIP = sample.write(Path(tempfile.mkdtemp()) / "clip.mp4")
for obj in sample.objects:
    print(f"second {obj.second}: {obj.colour} {obj.shape}, sound: {obj.sound}")
QUESTIONS = {  # and the correct answers
    f"Which colour was seen during the {NAMES[event.sound]}?": event.colour
    for event in sample.events
}

# %% [markdown]
# ## Load and ask
#
# `keep=0.45` keeps 45 % of the audio and video tokens together.

# %%
params = omnizip_jax.load(CHECKPOINT, dtype="float32")  # bfloat16 on a GPU
question, truth = next(iter(QUESTIONS.items()))
answer = omnizip_jax.generate(
    params, CLIP, question, compression=OmniZipConfig(keep=0.45), max_new_tokens=16
)
print(question, answer)
print("correct answer:", truth)

# %% [markdown]
# The answer contains the numbers of tokens by modality before and after compression, and the
# seconds of each stage (the first call compiles).

# %%
print(answer.counts)
print({stage: round(seconds, 2) for stage, seconds in answer.seconds.items()})

# %% [markdown]
# ## What was kept
#
# Dropped tokens are dimmed. The first row of frames shows the spatial step (DPC-KNN), the second
# the temporal step. Below: the share of audio tokens that each window keeps, and its video pruning
# rate. Windows that keep more audio keep more video.

# %%
plot_compression(answer)

# %% [markdown]
# ## Ask again
#
# `generate` discards its cache. `read` prefills a clip once and returns a context; each `ask`
# prefills the question alone. With `keep=True` the returned context contains question and answer,
# so that a later question can refer to them. The context that was passed to `ask` does not change
# and can be used again.

# %%
context = omnizip_jax.read(params, CLIP, OmniZipConfig(keep=0.45))
for question, truth in QUESTIONS.items():
    answer, _ = omnizip_jax.ask(params, context, question, max_new_tokens=16)
    print(f"{question} {answer} (correct: {truth})")
print({stage: f"{1e3 * seconds:.0f} ms" for stage, seconds in answer.seconds.items()})

dialogue = context
for question in QUESTIONS:
    answer, dialogue = omnizip_jax.ask(params, dialogue, question, max_new_tokens=16, keep=True)
print(
    f"{context.cache.length} tokens in the first context, {dialogue.cache.length} in the dialogue"
)

for piece in omnizip_jax.stream_answer(params, context, "Which sound came first?"):
    print(piece, end="", flush=True)  # while it is generated

# %% [markdown]
# ## Other methods
#
# `omnizip_jax.METHODS` has them by name; `docs/methods.md` describes them and how to write one.
# Here each keeps 45 % of the tokens, except the authors' published code, which has no exact share.
#
# The paper-exact spatial step can drop a small object on a static background. `OmniZipConfig()`
# therefore divides distances by the largest one in the grid. `docs/accuracy.md` explains it and has
# the measured difference; on a single clip the two may agree.

# %%
rivals = ("random", "temporal", "dycoke", "visionzip", "evs", "vidcom2")
methods = {
    "all tokens": None,
    "omnizip": OmniZipConfig(keep=0.45),
    "paper-exact": OmniZipConfig.paper(keep=0.45),
    "published": OmniZipConfig.published(rho_audio=0.45, rho_video=0.65),
} | {name: METHODS[name](keep=0.45) for name in rivals}
print(f"{'':>20}  {'kept':>6}  {' '.join(f'{truth:<7}' for truth in QUESTIONS.values())}(correct)")
for name, method in methods.items():
    context = omnizip_jax.read(params, CLIP, method)
    replies = [omnizip_jax.ask(params, context, q, max_new_tokens=16)[0] for q in QUESTIONS]
    words = " ".join(f"{answer.text:<7}" for answer in replies)
    print(f"{name:>20}  {replies[0].counts.retained:>6.1%}  {words}")

# %%
paper = OmniZipConfig.paper(keep=0.45)
answer = omnizip_jax.generate(params, CLIP, question, compression=paper, max_new_tokens=16)
plot_compression(answer)
