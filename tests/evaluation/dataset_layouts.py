"""Files in the layouts of published benchmarks, with our own questions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOUR = ["A. red", "B. green", "C. blue", "D. yellow"]
COLOUR = "Which colour was seen first?"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Annotations, the folder of their videos, and the expected questions.

    Attributes:
        file: with the annotations, which are ``data``.
        videos: folder of the videos.
        expected: video, options, answer, end and category of every question.
    """

    file: str
    data: Any
    videos: str
    expected: list[tuple[str, int, str, float | None, str]]


LAYOUTS = {
    "worldsense": Layout(
        "worldsense_qa.json",
        {
            "abc": {
                "video_id": "abc",
                "video_caption": "",
                "domain": "Music",
                "duration": "8s",
                "audio_class": ["Music"],
                "task0": {
                    "task_type": "Recognition",
                    "task_domain": "Colour",
                    "question": COLOUR,
                    "answer": "C",
                    "candidates": FOUR,
                },
                "task1": {
                    "task_type": "Recognition",
                    "task_domain": "Colour",
                    "question": COLOUR,
                    "answer": "A",
                    "candidates": FOUR[:3],
                },
            },
        },
        "videos",
        [
            ("abc.mp4", 4, "C", None, "Music"),
            ("abc.mp4", 3, "A", None, "Music"),
        ],
    ),
    "avut": Layout(
        "AV_Human_data.json",
        [
            {
                "video_path": "data/part1/clip1.mp4",
                "question": COLOUR,
                "option_A": "red",
                "option_B": "green",
                "option_C": "blue",
                "option_D": None,
                "answer": "b",
                "task_type": task,
                "video_id": 1,
                "QA_id": 1,
            }
            for task in ("Event Localization", "OM")
        ],
        "videos",
        [
            ("part1/clip1.mp4", 3, "B", None, "EL"),
            ("part1/clip1.mp4", 3, "B", None, "OM"),
        ],
    ),
    "shortvid": Layout(
        "ShortVid-Bench-1k.json",
        [
            {
                "video": "clip1.mp4",
                "question": COLOUR,
                "candidates": FOUR,
                "answer": "D",
                "problem_type": "Humour",
                "data_type": "short",
            }
        ],
        "videos",
        [("clip1.mp4", 4, "D", None, "Humour")],
    ),
    "videomme": Layout(
        "test.json",
        [
            {
                "video_id": "001",
                "videoID": "fFjv93ACGo8",
                "question_id": f"001-{number}",
                "duration": "short",
                "domain": "Knowledge",
                "sub_category": "Geography",
                "task_type": "Counting Problem",
                "question": COLOUR,
                "options": FOUR,
                "answer": answer,
            }
            for number, answer in enumerate("CA", 1)
        ],
        "data",
        [
            ("fFjv93ACGo8.mp4", 4, "C", None, "short"),
            ("fFjv93ACGo8.mp4", 4, "A", None, "short"),
        ],
    ),
    "dailyomni": Layout(
        "qa.json",
        [
            {
                "Question": COLOUR,
                "Choice": FOUR,
                "Answer": "C",
                "video_id": "xyz",
                "Type": "AV Event Alignment",
                "video_category": "Family",
                "video_duration": "30s",
            }
        ],
        "Videos",
        [("xyz/xyz_video.mp4", 4, "C", None, "AV Event Alignment")],
    ),
    "streamingbench": Layout(
        "questions_omni.json",
        [
            {
                "time": "[0:00:00 - 0:01:00]",
                "video_categories": "talk_show",
                "video_path": "./videos/sample_2.mp4",
                "questions": [
                    {
                        "task_type": "Emotion Recognition",
                        "question": COLOUR,
                        "time_stamp": stamp,
                        "answer": "A",
                        "options": FOUR,
                        "required_ability": "working memory",
                    }
                    for stamp in ("00:00:04", "00:00:08")
                ],
            }
        ],
        "streaming/videos",
        [
            ("sample_2.mp4", 4, "A", 4.0, "Emotion Recognition"),
            ("sample_2.mp4", 4, "A", 8.0, "Emotion Recognition"),
        ],
    ),
    "ovobench": Layout(
        "ovo_bench.json",
        [
            {
                "id": 0,
                "task": "EPM",
                "video": "/mnt/data/Ego4D/clips/one.mp4",
                "realtime": 4,
                "question": COLOUR,
                "answer": "blue",
                "options": ["red", "blue"],
                "gt": 1,
            },
            {
                "id": 1,
                "task": "REC",
                "video": "clips/one.mp4",
                "activity": "jump",
                "test_info": [{"realtime": 4, "count": 0}, {"realtime": 6, "count": 2}],
            },
            {
                "id": 2,
                "task": "SSR",
                "video": "clips/one.mp4",
                "test_info": [{"realtime": 6, "step": "stir", "type": 1}],
            },
            {
                "id": 3,
                "task": "CRR",
                "video": "clips/one.mp4",
                "question": COLOUR,
                "answer": "blue",
                "ask_time": 2,
                "test_info": [{"realtime": 6, "type": 0}],
            },
        ],
        "Ego4D",
        [
            ("clips/one.mp4", 2, "B", 4.0, "EPM"),
            ("clips/one.mp4", 0, "0", 4.0, "REC"),
            ("clips/one.mp4", 0, "2", 6.0, "REC"),
            ("clips/one.mp4", 0, "Yes", 6.0, "SSR"),
            ("clips/one.mp4", 0, "No", 6.0, "CRR"),
        ],
    ),
}


def write_layout(
    name: str, folder: Path, write_video: Callable[[Path], object]
) -> tuple[Path, Path]:
    """Write a benchmark; returns its annotation file and its folder of videos."""
    layout = LAYOUTS[name]
    annotations, videos = folder / layout.file, folder / layout.videos
    annotations.write_text(json.dumps(layout.data))
    for video in {video for video, *_ in layout.expected}:
        path = videos / video
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path)
    return annotations, videos
