"""The clips of the demo and the notebooks."""

from __future__ import annotations

from omnizip_jax.testbed.synthetic_clips import (
    DIFFICULTIES,
    SPEC,
    ClipObject,
    SyntheticClip,
    draw_objects,
    make_clip,
    random_generator,
    render,
)

# Seeds of clips on which methods differ; their accuracy in general is in docs/accuracy.md.
CLIP_SEED = 0
STREAM_SEED = 4
STREAM_WINDOWS = 32
OPENING_SECONDS = 5 * SPEC.seconds  # the part of the stream that later questions are about


def sample_clip(seed: int = CLIP_SEED) -> SyntheticClip:
    """A clip of eight seconds with a moving camera and background."""
    return make_clip(seed, difficulty=DIFFICULTIES["moving"])


def sample_stream(seed: int = STREAM_SEED) -> SyntheticClip:
    """A stream of 64 seconds; at least one sound occurs only in its first ten seconds."""
    random, difficulty = random_generator("test", seed), DIFFICULTIES["long"]
    objects = draw_objects(random, difficulty, STREAM_WINDOWS)
    while not any(obj.sound for obj in objects_only_in_opening(objects)):
        objects = draw_objects(random, difficulty, STREAM_WINDOWS)
    return render(objects, random, difficulty, STREAM_WINDOWS)


def objects_only_in_opening(objects: tuple[ClipObject, ...]) -> tuple[ClipObject, ...]:
    """The objects of the first ten seconds that do not appear again later."""
    later = {obj.colour for obj in objects if obj.second >= OPENING_SECONDS}
    return tuple(o for o in objects if o.second < OPENING_SECONDS and o.colour not in later)
