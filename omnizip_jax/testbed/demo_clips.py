"""The clips that the demo and the notebooks show: made on the spot, the same every time."""

from __future__ import annotations

from omnizip_jax.testbed.synthetic_clips import (
    DIFFICULTIES,
    SPEC,
    TestClip,
    Thing,
    draw_things,
    make_clip,
    random_generator,
    render,
)

# Of the clip, and of the questions about it: one on which methods differ. How often they are right
# in general is in docs/accuracy.md.
CLIP_SEED = 0
STREAM_SEED = 4  # of the stream, and of the questions about it
STREAM_WINDOWS = 32
BEGINNING = 5 * SPEC.seconds  # seconds of the stream that it is asked about when they are long past


def sample_clip(seed: int = CLIP_SEED) -> TestClip:
    """Eight seconds in which the camera moves, and so does what it sees."""
    return make_clip(seed, difficulty=DIFFICULTIES["moving"])


def sample_stream(seed: int = STREAM_SEED) -> TestClip:
    """A minute in which things come again, but not all that are heard in its first ten seconds."""
    random, look = random_generator("test", seed), DIFFICULTIES["long"]
    things = draw_things(random, look, STREAM_WINDOWS)
    while not any(thing.sound for thing in only_at_the_beginning(things)):
        things = draw_things(random, look, STREAM_WINDOWS)
    return render(things, random, look, STREAM_WINDOWS)


def only_at_the_beginning(things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """What is there in the first ten seconds and never again."""
    later = {thing.colour for thing in things if thing.slot >= BEGINNING}
    return tuple(t for t in things if t.slot < BEGINNING and t.colour not in later)
