"""Windows as they arrive: against ``load_clip``, and with sources that fail or stall."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import http.server
import signal
import threading
import time

import jax
import numpy as np
import pytest

from omnizip_jax.media import PushSource, load_clip, window_frames, windows
from omnizip_jax.window_spec import WindowSpec
from tests.media.make import grey, tone, write

SMALL = WindowSpec(grid_slots=12)
SHORT = WindowSpec(seconds=1, audio_slots=25, grid_slots=12)  # four frames a second
live = functools.partial(windows, spec=SMALL)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("windows of")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threads()
    yield
    deadline = time.monotonic() + 2
    while left := [thread for thread in threads() if thread not in before]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
        gc.collect()  # takes a second beside all the compiled programs, so not after every test


def stacked(given):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *given)


def assert_equal(given, clip, atol=1e-5):
    ours = stacked(given)
    for name in ("patches", "grid_size", "grid_mask", "grid_time", "mel_length"):
        ours_leaf, leaf = getattr(ours, name), getattr(clip.windows, name)
        np.testing.assert_array_equal(ours_leaf, leaf, err_msg=name)
        assert ours_leaf.dtype == leaf.dtype
    np.testing.assert_allclose(ours.mel, clip.windows.mel, atol=atol)


def textured_frames(count, height=48, width=64):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (count, height // 8, width // 8, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def swelling(seconds, rate=16_000):
    return tone(seconds, rate) * np.geomspace(0.01, 1, round(seconds * rate), dtype=np.float32)


# A file gives what load_clip gives


CLIPS = {
    "both": {"frames": textured_frames(130), "sound": swelling(5.2)},
    "video only": {"frames": textured_frames(60)},
    "audio only": {"sound": swelling(5.0)},
    "audio longer": {"frames": textured_frames(25), "sound": swelling(7.0)},
    "video longer": {"frames": textured_frames(150), "sound": swelling(2.5)},
    "late video": {
        "frames": textured_frames(20),
        "times": 4.6 + np.arange(20) / 10,
        "sound": tone(5.0),
    },
    "late audio, gaps": {"frames": textured_frames(100), "sound": tone(0.5), "starts": (1.0, 3.0)},
    "audio in the fifth window": {
        "frames": textured_frames(250),
        "sound": tone(1.0),
        "starts": (8.5,),
    },
    "variable rate": {"frames": textured_frames(7), "times": [0, 0.1, 0.9, 2.6, 2.61, 3.4, 5.9]},
    "one frame": {"frames": textured_frames(1)},
    "one frame, late": {"frames": textured_frames(1), "times": [1.9], "sound": tone(2.5)},
    "two mel frames over": {"frames": textured_frames(50), "sound": tone(2.02)},
    "three mel frames over": {"frames": textured_frames(50), "sound": tone(2.03)},
    "nearly no audio": {"sound": tone(0.001)},
}


@pytest.mark.parametrize("case", CLIPS)
def test_a_file_gives_the_windows_of_the_clip(tmp_path, case):
    path = write(tmp_path / "a.mkv", **CLIPS[case])
    stream = live(path)
    given = list(stream)
    assert_equal(given, load_clip(path, SMALL))
    assert (stream.emitted, stream.skipped, stream.incomplete) == (len(given), 0, 0)
    assert (stream.late_frames, stream.late_audio) == (0, 0.0)
    assert stream.time == 2.0 * (len(given) - 1)
    assert stream.has_video == ("frames" in CLIPS[case])
    assert stream.has_audio == ("sound" in CLIPS[case])


def test_compressed_audio_of_another_rate(tmp_path):
    sound = np.tile(swelling(4.5, 44_100), (2, 1))
    path = write(
        tmp_path / "a.mp4",
        textured_frames(110),
        sound=sound,
        rate=44_100,
        layout="stereo",
        audio_codec="aac",
        options={"bf": "3", "preset": "medium"},
    )
    assert_equal(list(live(path)), load_clip(path, SMALL))
    assert_equal(list(live(path, use_audio=False)), load_clip(path, SMALL, use_audio=False))
    assert_equal(list(live(path, use_video=False)), load_clip(path, SMALL, use_video=False))


def test_other_window_shapes(tmp_path):
    path = write(tmp_path / "a.mkv", textured_frames(100), sound=tone(4.0))
    spec = dataclasses.replace(SHORT, patch=4, mel_bins=80)
    assert_equal(list(windows(path, spec)), load_clip(path, spec))


def test_arrays_in_memory():
    clip = (textured_frames(40), 10, swelling(4.3, 44_100)[0], 44_100)
    assert_equal(list(live(clip)), load_clip(clip, SMALL))


def test_audio_from_a_second_file(tmp_path):
    frames, sound = textured_frames(60), swelling(3.0)
    both = write(tmp_path / "both.mkv", frames, sound=sound)
    camera = write(tmp_path / "camera.mkv", frames, sound=tone(1.0))
    microphone = write(tmp_path / "microphone.wav", sound=sound)
    assert_equal(list(live(camera, audio=microphone)), load_clip(both, SMALL))


def test_one_pass_differs_only_in_the_floor_of_the_audio(tmp_path):
    path = write(tmp_path / "a.mkv", textured_frames(100), sound=swelling(4.0))
    clip = load_clip(path, SMALL)
    given = list(live(path, two_pass=False))
    assert_equal(given, clip, atol=1.0)
    assert (given[0].mel <= clip.windows.mel[0]).all() and (given[0].mel < 0.9 * -1).any()
    np.testing.assert_allclose(given[-1].mel, clip.windows.mel[-1], atol=1e-5)


# Sources that arrive slowly


@contextlib.contextmanager
def serve(data, pause=None, length=True):
    """``data`` by HTTP; after half of it, ``pause()``. With or without a word on its length."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            if length:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            half = len(data) // 2
            with contextlib.suppress(OSError):  # the client has left
                self.chunk(data[:half])
                if pause is not None:
                    pause()
                self.chunk(data[half:])
                self.chunk(b"")

        def chunk(self, part):
            whole = f"{len(part):x}\r\n".encode() + part + b"\r\n"
            self.wfile.write(whole if length else part)

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/stream.mkv"
        server.shutdown()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """10 s of which frames take most of the bytes."""
    path = tmp_path_factory.mktemp("live") / "a.mkv"
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (100, 48, 64, 3)).astype(np.uint8)
    return write(path, frames, fps=10, sound=tone(10.0))


def test_url(recording):
    with serve(recording.read_bytes()) as url:
        stream = live(url)
        assert stream.has_video and stream.has_audio
        assert_equal(list(stream), load_clip(recording, SMALL))  # a tone: the maximum is early


def test_a_connection_that_ends_is_the_end(recording):
    with serve(recording.read_bytes(), length=False) as url, pytest.warns(UserWarning, match="end"):
        assert_equal(list(live(url)), load_clip(recording, SMALL))


def test_first_windows_come_before_the_end_is_there(recording):
    resume = threading.Event()
    with serve(recording.read_bytes(), resume.wait) as url, live(url) as stream:
        given = [next(stream)]
        assert not resume.is_set()
        resume.set()
        assert_equal([*given, *stream], load_clip(recording, SMALL))


def test_a_stall_costs_what_is_late_and_no_more(recording):
    resume = threading.Event()
    clip = load_clip(recording, SMALL)
    with serve(recording.read_bytes(), resume.wait) as url, live(url, timeout=0.5) as stream:
        given = []
        while stream.incomplete == 0:
            given.append(next(stream))
        torn = len(given) - 1
        resume.set()
        given += stream
        assert stream.incomplete == 1
    ours = stacked(given)
    whole = np.arange(5) != torn
    assert ours.grid_mask[whole].all() and (ours.mel_length[whole] == 200).all()
    assert not ours.grid_mask[torn].all() and ours.mel_length[torn] < 200
    np.testing.assert_array_equal(ours.patches[whole], clip.windows.patches[whole])
    after = ours.mel[torn + 1 :, :, 3:]  # the first frames reach back into what is lost
    np.testing.assert_allclose(after, clip.windows.mel[torn + 1 :, :, 3:], atol=1e-5)
    assert stream.late_frames > 0 and stream.late_audio > 0


def test_a_source_gone_silent_is_an_error_after_its_windows(recording):
    done = threading.Event()
    with serve(recording.read_bytes(), done.wait) as url:
        stream, given = live(url, timeout=0.2), []
        with pytest.raises(ValueError, match=r"stream\.mkv: .*nothing came for 0\.6 s"):
            given += stream
            raise AssertionError(f"ended after {len(given)} windows")
        assert stream.emitted >= 3 and not threads()
        done.set()


def test_closing_a_stalled_source_takes_no_longer_than_its_read(recording):
    done = threading.Event()
    with serve(recording.read_bytes(), done.wait) as url:
        start = time.monotonic()
        with live(url, timeout=0.3) as stream:
            next(stream)
        assert time.monotonic() - start < 2 and not threads()
        done.set()


# Devices, of which FFmpeg's virtual one is everywhere

BARS, BEEP = "testsrc=size=64x48:rate=10", "sine=frequency=440"


@pytest.mark.parametrize("form", ["text", "pair"])
def test_device(form):
    graph = f"{BARS}[out0];{BEEP}[out1]"
    source = f"device:lavfi:{graph}" if form == "text" else ("lavfi", graph)
    with live(source, when_slow="wait") as stream:
        given = stacked([next(stream) for _ in range(3)])
        assert stream.name == f"lavfi:{graph}" and stream.has_video and stream.has_audio
    assert given.grid_mask.all() and (given.mel_length == 200).all()
    assert (given.mel.max((1, 2)) > 1).all() and given.patches.any()


def test_camera_and_microphone_are_two_devices():
    spec = {"spec": SHORT, "use_video": True, "use_audio": True}
    with windows(("lavfi", f"{BARS},realtime"), audio=("lavfi", f"{BEEP},arealtime"), **spec) as s:
        next(s)
        second = next(s)
        assert s.has_video and s.has_audio and s.incomplete == 0
    assert second.grid_mask.all() and second.mel_length == 100 and second.mel.max() > 1


def test_wrong_devices_are_named():
    with pytest.raises(ValueError, match=r"nonsense:x: .*format"):
        live(("nonsense", "x"))
    with pytest.raises(ValueError, match="lavfi:nonsense: "):
        live("device:lavfi:nonsense")
    with pytest.raises(ValueError, match="device:v4l2:/dev/video0"):
        live("device:v4l2")


# Pushed


def test_pushed_arrays_equal_the_clip():
    frames, sound = textured_frames(53), swelling(5.3, 44_100)[0]
    source = PushSource(sample_rate=44_100)
    for start in range(0, 53, 5):
        times = np.arange(start, min(53, start + 5)) / 10
        source.push_frames(frames[start : start + 5], times)
        source.push_audio(sound[start * 4410 : (start + 5) * 4410])
    source.close()
    source.close()
    stream = live(source)
    assert_equal(list(stream), load_clip((frames, 10, sound, 44_100), SMALL), atol=1.0)
    with pytest.raises(ValueError, match="closed"):
        source.push_audio(sound)


def test_pushed_from_another_thread_each_window_comes_at_once():
    frames, sound = textured_frames(40), tone(4.1)[0]
    source, taken = PushSource(), threading.Semaphore()

    def push():
        for second in range(4):
            if second % 2 == 0:
                taken.acquire()  # the window before is with the consumer
            for at in range(10 * second, 10 * second + 10):
                source.push_frames(frames[at], at / 10)
            source.push_audio(sound[16_000 * second + 100 : 16_000 * second + 16_100])
        source.close()

    pusher = threading.Thread(target=push)
    given = []
    source.push_audio(sound[:100])
    with live(source) as stream:
        pusher.start()
        for window in stream:
            given.append(window)
            taken.release()
    pusher.join()
    assert_equal(given, load_clip((frames, 10, sound[:64_100], 16_000), SMALL), atol=0.01)


def test_frames_may_be_reused_by_their_owner():
    source, buffer = PushSource(), np.zeros((48, 64, 3), np.uint8)
    for at in range(8):
        buffer[:] = 30 * at
        source.push_frames(buffer, at / 2 + 0.1)
    source.close()
    frames = window_frames(stacked(live(source, use_audio=False)))
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 30 * np.arange(8))


@pytest.mark.parametrize(
    ("push", "message"),
    [
        (lambda s: s.push_frames(np.zeros((2, 8, 8, 3)), [0, 1]), "uint8 RGB"),
        (lambda s: s.push_frames(np.zeros((2, 8, 8), np.uint8), [0, 1]), "uint8 RGB"),
        (lambda s: s.push_frames(grey([0, 0]), [0.0]), "a time for each of 2"),
        (lambda s: s.push_frames(grey([0, 0]), [1.0, 0.5]), "never decrease"),
        (lambda s: s.push_frames(grey([0]), [-1.0]), "never decrease"),
        (lambda s: s.push_frames(grey([0]), [np.nan]), "never decrease"),
        (lambda s: s.push_audio(np.zeros(5, np.int16)), "float"),
        (lambda s: s.push_audio(np.zeros((2, 5))), "mono"),
        (lambda s: s.push_audio(np.array([0, np.nan])), "NaN"),
        (lambda s: s.push_audio(np.zeros(5), time=-1), "seconds"),
    ],
)
def test_wrong_pushes_add_nothing(push, message):
    source = PushSource()
    source.push_audio(tone(0.5)[0])
    with pytest.raises(ValueError, match=message):
        push(source)
    source.close()
    given = list(live(source))
    assert [int(w.mel_length) for w in given] == [50] and not given[0].grid_mask.any()


def test_pushing_into_a_closed_stream_is_an_error():
    source = PushSource()
    live(source).close()
    with pytest.raises(ValueError, match="closed"):
        source.push_audio(tone(0.5)[0])
    with pytest.raises(ValueError, match="sample_rate"):
        PushSource(sample_rate=0)
    with pytest.raises(ValueError, match="push_audio"):
        live(PushSource(), audio="a.wav")


# The window clock is authoritative


def filled(given):
    return [int(w.grid_mask.sum()) for w in given], [int(w.mel_length) for w in given]


def test_a_stream_that_starts_without_audio_and_gains_it():
    source = PushSource()
    source.push_frames(textured_frames(72), np.arange(72) / 10)
    with live(source, timeout=0.3) as stream:
        # The first windows go without audio. Then the audio is back, and is waited for again.
        given = [next(stream) for _ in range(3)]
        source.push_audio(tone(2.0)[0], time=5.0)
        source.push_frames(textured_frames(14), 7.2 + np.arange(14) / 10)
        source.push_audio(tone(3.0)[0], time=7.0)
        source.push_frames(textured_frames(14), 8.6 + np.arange(14) / 10)
        source.close()
        given += stream
    assert filled(given) == ([2] * 5, [0, 0, 0, 200, 200])
    assert stream.incomplete == 3 and stream.late_audio == pytest.approx(1.0, abs=0.05)
    assert given[3].mel[:, 5:195].max(0).min() > 0.5  # the tone, from 6 s to 8 s


def test_audio_that_starts_inside_a_window_follows_silence():
    source = PushSource()
    source.push_frames(textured_frames(40), np.arange(40) / 10)
    with live(source, timeout=0.3) as stream:
        given = [next(stream), next(stream)]
        source.push_audio(tone(3.0)[0], time=5.0)
        source.push_frames(textured_frames(40), 4 + np.arange(40) / 10)
        source.close()
        given += stream
    lengths = filled(given)[1]
    assert lengths == [0, 0, 200, 200]
    loud = given[2].mel.max(0) > 0.5
    assert not loud[:98].any() and loud[102:].all()


def test_a_stream_that_loses_its_video_and_regains_it():
    source = PushSource()
    source.push_frames(textured_frames(15), np.arange(15) / 10)
    source.push_audio(tone(7.5)[0])
    with live(source, timeout=0.3) as stream:
        given = [next(stream) for _ in range(3)]
        source.push_frames(textured_frames(7), 8.2 + np.arange(7) / 10)
        source.push_audio(tone(3.0)[0])
        source.push_frames(textured_frames(8), 8.9 + np.arange(8) / 10)
        source.close()
        given += stream
    # Nothing is held over from 1.5 s: those frames are lost, and their slots are masked.
    assert filled(given) == ([2, 0, 0, 0, 2, 0], [200, 200, 200, 200, 200, 50])
    assert given[0].grid_mask.all() and stream.late_frames == 0


def test_short_gaps_are_bridged():
    """Below the timeout: the last frame stays, missing audio is silence; as in a file."""
    source, times = PushSource(), np.array([0, 0.5, 1.0, 3.1, 3.6])
    source.push_frames(grey([10, 20, 30, 40, 50]), times)
    source.push_audio(tone(1.0)[0])
    source.push_audio(tone(1.5)[0], time=2.5)
    source.close()
    given = list(live(source))
    assert filled(given) == ([2, 2], [200, 200])
    levels = window_frames(stacked(given)).mean((1, 2, 3))
    np.testing.assert_allclose(levels, [10, 20, 30, 30, 30, 30, 40, 50])
    assert not (given[0].mel[:, 105:].max(0) > 0).any()


def test_drift_is_taken_up_by_the_timestamps():
    """A microphone 1 % slow: 10 s by its clock take 10.1 s, and its stamps say so."""
    source = PushSource()
    source.push_frames(textured_frames(101), np.arange(101) / 10)
    for second in range(10):
        source.push_audio(tone(1.0)[0], time=second * 1.01)
    source.close()
    stream = live(source)
    given = list(stream)
    assert filled(given)[1][:5] == [200] * 5 and stream.late_audio == 0
    lengths = sum(filled(given)[1])
    assert 1000 < lengths <= 1015


def test_nothing_blocks_for_ever_and_late_frames_are_counted():
    source = PushSource()
    source.push_frames(textured_frames(10), np.arange(10) / 10)
    source.push_audio(tone(0.5)[0])
    start = time.monotonic()
    with live(source, timeout=0.2) as stream:
        given = [next(stream), next(stream)]
        assert 0.35 < time.monotonic() - start < 2
        source.push_frames(textured_frames(50), 1 + np.arange(50) / 10)  # up to 4 s: too late
        source.push_audio(tone(5.5)[0])
        source.close()
        given += stream
    assert filled(given) == ([1, 0, 2], [49, 0, 200])
    assert stream.late_frames == 28 and stream.late_audio == pytest.approx(3.5, abs=0.05)
    assert stream.incomplete == 2


def test_a_consumer_that_is_busy_itself_is_not_hurried():
    source = PushSource()
    source.push_frames(textured_frames(21), np.arange(21) / 10)
    with live(source, use_audio=False, timeout=0.2) as stream:
        next(stream)
        time.sleep(0.6)  # computes; pushes on this same thread afterwards
        source.push_frames(textured_frames(21), 2.1 + np.arange(21) / 10)
        assert next(stream).grid_mask.all() and stream.incomplete == 0


def test_without_a_timeout_it_waits():
    source = PushSource()
    source.push_audio(tone(0.5)[0])
    with live(source, use_video=False, timeout=None) as stream:
        threading.Timer(0.3, lambda: (source.push_audio(tone(2.0)[0]), source.close())).start()
        assert filled(list(stream)) == ([0, 0], [200, 50])


def test_a_source_that_never_starts():
    with pytest.raises(ValueError, match=r"nothing has come for 0\.1 s"):
        next(live(PushSource(), timeout=0.1))
    source = PushSource()
    source.close()
    with pytest.raises(ValueError, match="no video and no audio"):
        next(live(source))


def test_clock_of_the_wall_in_place_of_the_stream():
    source = PushSource()
    source.push_frames(textured_frames(1), 1.7e9)
    with pytest.raises(ValueError, match="pushed arrays: timestamps of the video jump"):
        next(live(source))


# Slow consumers, pace


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_slow_consumer_skips_the_oldest(recording):
    with live(recording, when_slow="skip", queue=2) as stream:
        wait_until(lambda: stream.skipped == 3)
        times = [stream.time for _ in stream]
    assert times == [6.0, 8.0] and stream.emitted == 2


def test_or_the_source_waits(recording):
    with live(recording, queue=1) as stream:
        next(stream)
        time.sleep(0.3)
        assert len(list(stream)) == 4 and stream.skipped == 0


def test_realtime(recording):
    start = time.monotonic()
    with windows(recording, SHORT, realtime=True) as stream:
        arrived = [time.monotonic() - start for _, _ in zip(range(2), stream, strict=False)]
    assert 1.0 <= arrived[0] < 5 and 2.0 <= arrived[1] < 6


@pytest.mark.slow  # waits in real time
def test_realtime_skips_for_a_slow_consumer(recording):
    with windows(recording, SHORT, realtime=True, queue=1) as stream:
        next(stream)
        wait_until(lambda: stream.skipped == 1)
        next(stream)
        assert stream.time >= 2.0


@pytest.mark.slow  # waits in real time
def test_realtime_begins_when_the_first_window_is_asked_for(recording):
    with windows(recording, SHORT, realtime=True, queue=1) as stream:
        time.sleep(2.5)  # a program is compiled meanwhile
        start = time.monotonic()
        next(stream)
        assert time.monotonic() - start >= 0.9
        assert (stream.time, stream.skipped) == (0.0, 0)


# Everything is closed


def test_leaving_early_closes(recording):
    with live(recording, queue=1) as stream:
        next(stream)
        assert len(threads()) == 2
    assert not threads() and list(stream) == []
    for _ in live(recording, queue=1):
        break  # nobody holds it any more; checked by the fixture
    with pytest.raises(RuntimeError), live(recording, queue=1) as stream:
        raise RuntimeError
    assert not threads()


def test_the_end_of_the_source_closes(recording):
    stream = live(recording)
    assert len(list(stream)) == 5 and not threads() and list(stream) == []


def test_ctrl_c_closes():
    source = PushSource()
    source.push_audio(tone(0.5)[0])
    with pytest.raises(KeyboardInterrupt):
        stream = live(source, use_video=False)
        main = threading.get_ident()
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        next(stream)
    assert not threads()


def test_ctrl_c_during_the_first_pass_closes(recording, monkeypatch):
    endless = functools.partial(open_again, recording)
    monkeypatch.setattr("omnizip_jax.media.sources._read_audio", lambda open_audio: endless())
    with live(recording, when_slow="wait"):
        time.sleep(0.1)
        assert len(threads()) == 2
    assert not threads()


def open_again(path):
    from omnizip_jax.media.container import MediaFile

    while True:
        with MediaFile(path) as media:
            yield from media.decode(video=False)


# Errors reach the consumer


def test_missing_file_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.mp4: "):
        live(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match=r"a\.wav: expected video"):
        live(write(tmp_path / "a.wav", sound=tone(1.0)), use_audio=False)


@pytest.mark.parametrize("two_pass", [False, True])
def test_nan_in_the_audio_of_a_file(tmp_path, two_pass):
    sound = tone(5.0)
    sound[:, 60_000] = np.nan
    path = write(tmp_path / "a.mkv", sound=sound, audio_codec="pcm_f32le")
    stream = live(path, two_pass=two_pass)
    with pytest.raises(ValueError, match=r"a\.mkv: the audio holds NaN"):
        list(stream)
    assert stream.emitted == (0 if two_pass else 1) and not threads()


def test_a_frame_of_extreme_aspect_is_named(tmp_path):
    with pytest.raises(ValueError, match="200:1"):
        list(live((np.zeros((4, 1000, 4, 3), np.uint8), 2.0, None, 0)))


def test_a_truncated_file_gives_its_start_and_a_warning(recording, tmp_path):
    data = recording.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"cut\.mkv: ends at"):
        given = list(live(path))
    with pytest.warns(UserWarning, match=r"cut\.mkv: ends at"):
        assert_equal(given, load_clip(path, SMALL))


def test_an_unforeseen_error_is_named(recording, monkeypatch):
    def fail(self, event):
        raise KeyError("oops")

    monkeypatch.setattr("omnizip_jax.media.windowing.WindowAssembler.push", fail)
    with pytest.raises(ValueError, match=r"a\.mkv: KeyError: 'oops'"):
        list(live(recording))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when_slow": "drop"}, '"skip"'),
        ({"queue": 0}, "queue"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"use_audio": False, "use_video": False}, "both False"),
        ({"use_audio": False, "audio": "b.wav"}, "audio="),
    ],
)
def test_wrong_options(recording, options, message):
    with pytest.raises(ValueError, match=message):
        live(recording, **options)
