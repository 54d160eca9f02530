"""The page in a headless Chromium, with a real server of the small model: its answers are right.

Camera and microphone of the browser play a clip in a loop. With OMNIZIP_SCREENSHOTS=FOLDER the
tests save screenshots there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from omnizip_jax.testbed.clip_questions import Question, all_questions
from omnizip_jax.testbed.synthetic_clips import FPS, SAMPLE_RATE, SIDE, make_clip
from tests.serve.process import served

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,  # minutes: media play in real time
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]

WAIT = 300.0  # s, for compilers on busy machines
SOON = 90.0  # s, when the server is ready
KEY = "a key for the page only"
DESKTOP, PHONE = (1360, 1000), (390, 844)
SEED = 4  # of the clip that the camera plays
ALONE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)

# Records the configurations that the page sends, and its sockets. `latency` in milliseconds delays
# what it receives, `paused` holds the frames of a video, `deaf` refuses microphones.
LISTEN = """
Object.assign(window, { sent: [], sockets: [], latency: 0, paused: false, deaf: false });
const { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
Object.defineProperty(WebSocket.prototype, "onmessage", {
  set(call) {
    window.sockets.push(this);
    set.call(this, (event) => setTimeout(() => call(event), window.latency));
  },
});
const video = HTMLVideoElement.prototype;
const next = video.requestVideoFrameCallback;
video.requestVideoFrameCallback = function (call) {
  next.call(this, (...facts) =>
    window.paused ? this.requestVideoFrameCallback(call) : call(...facts));
};
const media = MediaDevices.prototype;
const open = media.getUserMedia;
media.getUserMedia = function (wanted) {
  const none = new DOMException("none", "NotFoundError");
  return window.deaf && wanted.audio ? Promise.reject(none) : open.call(this, wanted);
};
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (text) {
  const message = JSON.parse(text);
  if (message.type === "session.config") window.sent.push(message.omnizip);
  return send.call(this, text);
};
"""


@pytest.fixture(scope="module")
def clip():
    return make_clip(SEED)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    """Files for the fake camera and microphone, a clip, and the server's key."""
    folder = tmp_path_factory.mktemp("page")
    with (folder / "camera.y4m").open("wb") as file:
        file.write(f"YUV4MPEG2 W{SIDE} H{SIDE} F10:1 Ip A1:1 C420jpeg\n".encode())
        for picture in np.repeat(clip.frames, 10 // FPS, axis=0):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            file.write(b"FRAME\n" + frame.reformat(format="yuv420p").to_ndarray().tobytes())
    with wave.open(str(folder / "microphone.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((clip.waveform * 32767).astype("<i2").tobytes())
    clip.write(folder / "clip.mp4")
    (folder / "key").write_text(KEY)
    return folder


@pytest.fixture(scope="module")
def site(folder):
    """URL of ``omnizip serve`` with the small model."""
    settings = ("--checkpoint", "small", "--api-key-file", str(folder / "key"))
    with served(folder, *settings, "--save-sessions", str(folder / "sessions")) as (_, url):
        yield url


class Page:
    """The page in a browser."""

    def __init__(self, url: str, folder: Path, profile: Path):
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (
            *ALONE,
            f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}",
            f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
        self.look(DESKTOP)
        self.browser.get(url)

    def look(self, size: tuple[int, int], scheme: str = "light", height: int | None = None) -> None:
        """Set the screen size and the colour scheme."""
        screen = {"width": size[0], "height": height or size[1], "deviceScaleFactor": 1}
        self._tell("setDeviceMetricsOverride", screen | {"mobile": size == PHONE})
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._tell("setEmulatedMedia", {"features": features})
        time.sleep(0.3)

    def _tell(self, command: str, settings: dict) -> None:
        self.browser.execute_cdp_cmd(f"Emulation.{command}", settings)

    def all(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).get_property("textContent").replace("\u202f", " ")

    def until(self, what, seconds: float = SOON):
        """Wait until a function returns something true, and return it."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, " ".join(self.text("body").split())
            time.sleep(0.1)
        return found

    def enter_key(self) -> None:
        """Enter a key of another keyboard layout, a wrong one, then the right one."""
        self.until(lambda: self.one("#key").get_property("open"))
        self.one("#key-field").send_keys("\u043a\u043b\u044e\u0447", Keys.ENTER)
        self.until(lambda: "ASCII" in self.text("#key-hint"))
        self.until(lambda: self.one("#key").get_property("open"))
        self.one("#key-field").send_keys("not the key", Keys.ENTER)
        self.until(lambda: "Wrong API key" in self.text("#key-hint"))
        self.until(lambda: self.one("#key").get_property("open"))
        self.one("#key-field").send_keys(KEY, Keys.ENTER)
        self.until(lambda: self.text("#model") == "small")

    def windows(self) -> list[str]:
        """The titles of all windows."""
        return [each.get_property("title") for each in self.all("#timeline li[title]")]

    def ask(self, question: str) -> str:
        """Type a question and wait for its answer."""
        asked = len(self.all("#conversation article"))
        self.one("#question").send_keys(question, Keys.ENTER)
        self.until(lambda: len(self.all("#conversation article[aria-busy=false]")) == asked + 1)
        return self.text("#conversation article:last-child .answer")

    def pixels(self, canvas: str) -> np.ndarray:
        """Pixels of a canvas, [height, width, 4]."""
        script = (
            "const canvas = document.querySelector(arguments[0]);"
            "const { width, height } = canvas;"
            "const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);"
            "return [height, width, [...data]]"
        )
        height, width, data = self.browser.execute_script(script, canvas)
        return np.array(data, np.uint8).reshape(height, width, 4)

    def picture(self, name: str) -> None:
        """Save a screenshot if OMNIZIP_SCREENSHOTS is set."""
        folder = os.environ.get("OMNIZIP_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    def errors(self) -> list[str]:
        """Warnings and errors of the browser, except the refused keys."""
        entries = self.browser.get_log("browser")
        bad = [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
        return [message for message in bad if " 401 " not in message]


@pytest.fixture
def page(site, folder, tmp_path):
    page = Page(site, folder, tmp_path / "profile")
    try:
        page.enter_key()
        yield page
        assert not page.errors()
        script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        fetched = page.browser.execute_script(script)
        assert len(fetched) > 10 and all(
            name.startswith((site, f"blob:{site}")) for name in fetched
        )
    finally:
        page.browser.quit()


def one_of_each(questions: list[Question]) -> list[Question]:
    return list({question.kind: question for question in questions}.values())


def mostly_right(page: Page, questions: list[Question]) -> bool:
    """Whether at most one of ten answers is wrong, as the small model has some uncertainty."""
    wrong = {e.text: said for e in questions if (said := page.ask(e.text)) != e.answer}
    print(wrong)  # shown when it fails
    return len(wrong) <= len(questions) // 10


def test_a_camera_and_a_microphone(page, clip):
    """Audio and video of the fake devices start at different times: no question needs both."""
    page.picture("welcome")
    page.one(".doors [data-source=camera]").click()
    page.until(lambda: len(page.windows()) >= 6)  # the clip has four
    assert page.text("#status") == "Video and audio"
    kinds = ("shape of colour", "seen", "heard")
    about = [each for each in all_questions(clip.objects) if each.kind in kinds]
    page.picture("camera")
    asked = [each for each in one_of_each(about)] + about[:3]
    assert [page.ask(each.text) for each in asked] == [each.answer for each in asked]
    page.one("#stop").click()
    assert page.ask(asked[0].text) == asked[0].answer  # of the stream so far
    before = len(page.windows())  # pending ones were read before the answer
    time.sleep(3)
    assert len(page.windows()) == before


def test_the_sample(page):
    page.one(".doors [data-source=sample]").click()
    page.until(lambda: len(page.windows()) >= 5)
    right = 0
    while right < 5:
        page.until(lambda: page.all("#suggestions button"))
        page.one("#suggestions button").click()
        right += 1
        page.until(lambda n=right: len(page.all("#conversation article[aria-busy=false]")) == n)
        assert len(page.all(".answer.right")) == right, page.text("#conversation")
        if right == 3:
            pictures_of(page)
    page.until(lambda: page.one("body").get_attribute("data-state") == "ended")
    page.until(lambda: len(page.windows()) == 8)
    assert "of 122 tokens kept" in page.windows()[0] and "in the cache" in page.windows()[0]
    assert page.text("#remembered").startswith("0:00 to 0:16")
    share = int(page.text("#tokens strong").split()[0])
    assert 30 < share < 60 and int(page.text("#work strong").split()[0]) <= share


def pictures_of(page: Page) -> None:
    """Dropped tokens are dark in the frame, kept ones highlighted in the audio."""
    kept, all_of_it = map(int, page.text("#kept-facts").split(" of "))
    assert 0 < kept < all_of_it == 72
    assert (
        page.one("#kept")
        .get_attribute("aria-label")
        .endswith(f"{kept} of {all_of_it} tokens of the last two seconds")
    )
    cells = page.pixels("#kept")[..., :3].mean(2)
    side = len(cells) // 6
    cells = cells[: 6 * side, : 6 * side].reshape(6, side, 6, side).mean((1, 3))
    assert 0 < (cells < 35).sum() < 36  # no cell of a clip is as dark
    colours = {tuple(colour) for colour in page.pixels("#sound").reshape(-1, 4)}
    accent = page.browser.execute_script(
        "return getComputedStyle(document.body).getPropertyValue('--accent')"
    )
    lit = tuple(map(int, accent.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (*lit, 255) in colours and len(colours) > 3
    page.picture("light")
    page.look(DESKTOP, "dark")
    page.picture("dark")
    page.look(PHONE, "dark")
    width = page.browser.execute_script("return document.documentElement.scrollWidth")
    assert width == PHONE[0]  # no overflow
    page.picture("phone")
    page.look(
        PHONE, "light", height=page.browser.execute_script("return document.body.scrollHeight")
    )
    page.picture("phone_all")
    page.look(DESKTOP)


def test_the_method_changes_while_it_runs(page):
    page.one(".doors [data-source=sample]").click()
    page.until(lambda: len(page.windows()) >= 4)
    page.one("input[value=all] + span").click()
    page.until(lambda: "All tokens" in page.text("#settings-hint"))
    page.until(lambda: page.one("body").get_attribute("data-state") == "ended")
    page.until(lambda: "122 of 122 tokens kept, 122 in the cache" in page.windows()[-1])
    assert "122 of 122" not in page.windows()[0]
    assert "OmniZip: " in page.text("#time")  # beside the time of the current method
    assert page.ask("Which shape was blue?") == "circle"  # from a window before the change
    own = {"keep": None, "rho_audio": 0.3}
    first, second = page.browser.execute_script("return window.sent")
    assert first["method"] == "omnizip" and own.items() <= first["settings"].items()
    assert (first["memory"], first["audio"], first["video"]) == ("fading", True, True)
    assert second == {"method": "all", "settings": {}}


def test_a_file(page, clip, folder):
    page.one("#picker").send_keys(str(folder / "clip.mp4"))
    page.until(lambda: page.one("body").get_attribute("data-state") == "ended")
    page.until(lambda: len(page.windows()) == 4)
    assert mostly_right(page, all_questions(clip.objects, "audio-visual"))
    page.one("#picker").send_keys(str(folder / "key"))  # no video
    page.until(lambda: "cannot play" in page.text("#status"))
    assert page.one("body").get_attribute("data-state") == "idle"


def test_a_new_source_starts_a_new_session(page, clip, folder):
    """Sources replace each other, audio included; earlier ones are not in the session."""
    for source in ("sample", "camera", "sample"):  # the last one counts
        script = "document.querySelector(`[data-source=${arguments[0]}]`).click()"
        page.browser.execute_script(script, source)
    page.until(lambda: len(page.windows()) >= 2)
    page.one("#stop").click()
    page.one("input[value=recent] + span").click()
    page.one(".bar [data-source=camera]").click()
    # The first windows may be skipped while programs are compiled, which replaces the status.
    page.until(lambda: page.text("#status") == "Video and audio" and len(page.windows()) <= 1)
    page.until(page.windows)
    last = page.browser.execute_script("return window.sent.at(-1)")
    assert last["memory"] == "recent" and last["audio"] and last["video"]
    page.one("#picker").send_keys(str(folder / "clip.mp4"))
    page.until(lambda: page.one("body").get_attribute("data-state") == "ended")
    page.until(lambda: len(page.windows()) == 4)
    assert page.text("#timeline time") == "0:00" and page.text("#clock") == "0:08"
    asked = one_of_each([each for each in all_questions(clip.objects) if each.family == "audio"])
    assert [page.ask(each.text) for each in asked] == [each.answer for each in asked]


def test_a_question_keeps_its_own_answer(page):
    """Over a slow network the answer of the question before it arrives after it was asked."""
    page.one(".doors [data-source=sample]").click()
    page.until(lambda: page.one("body").get_attribute("data-state") == "ended")
    page.until(lambda: len(page.windows()) == 8)
    right = page.browser.execute_async_script(
        "fetch('/page/sample.json').then((answer) => answer.json()).then(arguments[0])"
    )["questions"]
    right = {question["text"]: question["answer"] for question in right}
    script = """
      const [questions, pause] = arguments;
      const [form, field] = ["form", "question"].map((id) => document.getElementById(id));
      window.latency = 200;
      questions.forEach((question, i) => setTimeout(() => {
        field.value = question;
        form.requestSubmit();
      }, i * pause));
    """
    for pause in range(50, 450, 50):
        asked = len(page.all("#conversation article"))
        page.browser.execute_script(script, list(right), pause)
        answered = f"#conversation article:nth-child(n + {asked + 1})[aria-busy=false]"
        page.until(lambda done=answered: len(page.all(done)) == len(right))
        for article in page.all(answered):
            question, answer, facts = (
                each.get_property("textContent") for each in article.find_elements(By.TAG_NAME, "p")
            )
            assert answer == right[question] or facts == "cancelled", (pause, question, answer)
        assert facts != "cancelled"


def test_a_lost_connection_comes_back(page, clip):
    """The session continues; a question that could not be sent is not lost."""
    page.one("#question").send_keys("Too early?", Keys.ENTER)
    page.until(lambda: page.text("#status") == "Choose a source first.")
    assert page.one("#question").get_property("value") == "Too early?"
    page.one("#question").clear()
    page.one(".doors [data-source=camera]").click()
    page.until(lambda: len(page.windows()) >= 6)  # the clip has four
    page.browser.execute_script("sockets.at(-1).close()")
    page.until(lambda: page.text("#status") == "Connected again; the session continues.")
    before = len(page.windows())
    page.until(lambda: len(page.windows()) >= before + 2)
    about = [each for each in all_questions(clip.objects) if each.kind == "seen"]
    assert [page.ask(each.text) for each in about] == [each.answer for each in about]
    page.one("#stop").click()
    page.browser.execute_script("sockets.at(-1).close()")
    page.until(lambda: "the next question opens it again" in page.text("#status"))
    assert page.ask(about[0].text) == about[0].answer


def test_a_camera_that_pauses(page, clip):
    """Without a microphone, as in a hidden tab; errors of the change of method name it."""
    page.browser.execute_script("window.deaf = true")
    page.one(".doors [data-source=camera]").click()
    page.until(lambda: len(page.windows()) >= 5)
    page.browser.execute_script("window.paused = true")
    time.sleep(12)
    before = len(page.windows())
    page.browser.execute_script("window.paused = false")
    page.until(lambda: "The source has paused for 1" in page.text("#status"))
    page.until(lambda: len(page.windows()) >= before + 3)
    times = [each.text for each in page.all("#timeline li[title] time")]
    assert times == sorted(times) and times[-1] > "0:20"
    about = [each for each in all_questions(clip.objects) if each.kind == "seen"]
    assert [page.ask(each.text) for each in about] == [each.answer for each in about]


def test_keyboards_and_screen_readers(page):
    body = page.one("body")
    body.send_keys(Keys.TAB)
    focused = page.browser.switch_to.active_element
    assert focused.text == "Skip to the question" and focused.rect["width"] > 100  # visible
    focused.send_keys(Keys.ENTER)
    assert page.browser.switch_to.active_element.get_attribute("id") == "question"
    page.one(".doors [data-source=sample]").send_keys(Keys.ENTER)
    page.until(lambda: page.windows())
    nodes = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            seen.setdefault(node["role"]["value"], []).append(name)
    for role in ("button", "textbox", "radio", "image", "region", "log", "group"):
        assert seen[role] and all(seen[role]), (role, seen[role])
    assert {"main", "banner", "status", "list", "heading"} <= set(seen), json.dumps(seen)
    tabbed = set()
    body = page.one("body")
    for _ in range(20):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        active = page.browser.switch_to.active_element
        tabbed.add(active.get_attribute("id") or active.get_attribute("name") or active.text)
        outline = active.value_of_css_property("outline-style")
        label = page.browser.execute_script(
            "const span = arguments[0].nextElementSibling;"
            "return span ? getComputedStyle(span).outlineStyle : 'none'",
            active,
        )
        assert active.tag_name == "body" or "solid" in (outline, label), active.tag_name
    assert {
        "Sample",
        "Camera",
        "File",
        "stop",
        "conversation",
        "question",
        "send",
        "method",
    } <= tabbed
