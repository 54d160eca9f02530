"""The web page: its files, their headers, and the sample clip."""

from __future__ import annotations

import io
import re
import tomllib
from pathlib import Path

import av
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

import omnizip_jax
from omnizip_jax.serve.auth import AuthMiddleware
from omnizip_jax.serve.errors import RequestError
from omnizip_jax.serve.page import (
    SAMPLE_WINDOWS,
    STATIC,
    TYPES,
    assets,
    page_routes,
    sample,
    sample_questions,
)
from omnizip_jax.testbed.clip_questions import all_questions

KEY = "a key of some length"
LOCAL = "http://127.0.0.1:8000"


async def refused(_, error):
    return JSONResponse(error.body, error.status)


@pytest.fixture
def client():
    """The page alone, behind authentication."""
    app = Starlette(routes=page_routes(), exception_handlers={RequestError: refused})
    return TestClient(AuthMiddleware(app, key=KEY), base_url=LOCAL)


def test_files_have_their_type_and_a_strict_policy(client):
    assert {Path(name).suffix for name in assets()} == set(TYPES)
    for path in ["/", *(f"/page/{name}" for name in assets())]:
        answer = client.get(path)
        assert answer.status_code == 200
        suffix = Path(path).suffix or ".html"
        assert answer.headers["content-type"] == TYPES[suffix]
        whole = answer.headers["content-security-policy"]
        policy = dict(part.strip().split(" ", 1) for part in whole.split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in whole
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_files_refer_to_each_other_only(client):
    """Every file that is referred to exists, and every file is referred to."""
    named = {"index.html"}
    for name in assets():
        text = client.get(f"/page/{name}").text
        for found in re.findall(r"""["'](?:/page/|\./)([\w.]+)["']""", text):
            assert client.get(f"/page/{found}").status_code == 200, (name, found)
            named.add(found)
    assert set(assets()) <= named


def test_files_refer_to_no_other_site():
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"\b(https?|wss?|ftp):|[\"'(]//|@import|\burl\(", text), path


def test_scripts_write_no_markup():
    writers = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\("
    for path in STATIC.glob("*.js"):
        assert not re.search(writers, path.read_text()), path
    page = (STATIC / "index.html").read_text()
    assert not re.search(r" style=| on\w+=|<script(?! type=\"module\" src)|<style", page)


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/..%2f..%2fpage.py", "/page/page.py"]
)
def test_other_files_are_not_served(client, path):
    assert client.get(path).status_code in (401, 404)


def test_other_hosts_and_origins_are_refused(client):
    assert client.get("/", headers={"Host": "rebound.example"}).status_code == 403
    assert client.get("/", headers={"Origin": "https://evil.example"}).status_code == 403


def test_the_sample_has_audio_and_video(client):
    answer = client.get("/page/sample.mp4")
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.streams.video and container.streams.audio
        assert container.duration / av.time_base == pytest.approx(2 * SAMPLE_WINDOWS, abs=0.1)


def test_answers_about_the_sample_hold_from_their_time_on(client):
    questions = client.get("/page/sample.json").json()["questions"]
    assert questions == sample_questions() and len(questions) == 5
    assert len({question["text"] for question in questions}) == 5
    for question in questions:
        earlier = tuple(obj for obj in sample().objects if obj.second < question["since"])
        truth = {each.text: each.answer for each in all_questions(earlier)}
        assert truth[question["text"]] == question["answer"]
        whole = {each.text: each.answer for each in all_questions(sample().objects)}
        assert whole[question["text"]] == question["answer"]


def test_the_wheel_contains_the_page():
    """The wheel packs the whole folder of the package."""
    root = Path(omnizip_jax.__path__[0]).parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert packed == {"packages": ["omnizip_jax"]}
    assert STATIC.is_relative_to(root / "omnizip_jax")
