"""Reports of runs with known rows, and every benchmark from its layout to the tables."""

from __future__ import annotations

import json
import re

import pytest

from omnizip_jax.compression import AllTokens, OmniZipConfig
from omnizip_jax.evaluation import paper_comparison as paper
from omnizip_jax.evaluation.dataset_readers import BENCHMARKS, read_benchmark
from omnizip_jax.evaluation.dataset_runner import evaluate
from omnizip_jax.evaluation.markdown_tables import aligned_table
from omnizip_jax.evaluation.paper_comparison import compare_with_paper, merge_runs
from omnizip_jax.evaluation.question_file import read_questions, write_questions
from omnizip_jax.evaluation.run_report import summarise, write_report
from omnizip_jax.testbed.synthetic_clips import make_clip
from tests.evaluation.conftest import make_evaluator
from tests.evaluation.dataset_layouts import LAYOUTS, write_layout

DECODER = {
    "vocabulary": 1000,
    "layers": 2,
    "hidden": 3584,
    "heads": 4,
    "kv_heads": 2,
    "ffn": 8,
    "rope_theta": 1e6,
    "mrope_section": [1, 1, 1],
    "rms_eps": 1e-6,
    "max_positions": 100,
    "tied": False,
}
SESSION = {
    "device": "a device",
    "cores": 2,
    "system": "Linux",
    "versions": {"jax": "0"},
    "memory": "device memory",
    "date": "today",
    "one by one": True,
}
METHODS_OF = {
    "all": {"method": "AllTokens", "keep": None},
    "omnizip": {"method": "OmniZipConfig", "rho_audio": 0.3, "rho_video": 0.6, "merge_size": 3},
}


def collapsed(path):
    """A report with runs of spaces collapsed."""
    return re.sub(" +", " ", path.read_text())


def row(name, method, correct, *, clip, category="Music", seed=0, benchmark="worldsense"):
    kept = 40 if method == "omnizip" else 100
    cost = {
        "audio": kept / 100,
        "video": kept / 100,
        "kept": kept / 100,
        "kept_with_text": 0.5,
        "by_layer": kept / 100,
        "by_layer_with_text": 0.5,
        "operations": 1e12,
        "paper_operations": 2e12,
        "seats_operations": 5e11,
        "cache_bytes": 1000,
    }
    tokens = {"audio": 20, "audio_kept": 8, "video": 80, "video_kept": 32, "text": 10}
    return {
        "id": name,
        "video": clip,
        "benchmark": benchmark,
        "category": category,
        "method": method,
        "seed": seed,
        "reply": "A",
        "correct": correct,
        "tokens": tokens | {"generated": 1, "planned": kept},
        "cost": cost,
        "error": None,
    }


def write_run(folder, name, rows, **run):
    """The files of a run; every prefill takes 3 s with all tokens, 1 s otherwise."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    used = {each["method"] for each in rows}
    whole = {
        "weights": "abc",
        "dtype": "float32",
        "protocol": "authors",
        "decoder": DECODER,
        "methods": {method: METHODS_OF[method] for method in METHODS_OF if method in used},
    }
    path.with_suffix(".run.json").write_text(json.dumps(whole | run))
    times = [{"session": SESSION}]
    for each in rows:
        prefill = 3.0 if each["method"] == "all" else 1.0
        seconds = {"media": 1.0, "encoders": 1.0, "prefill": prefill, "first token": 1 + prefill}
        seconds |= {"decoding": 0.5, "latency": 2.5 + prefill}
        peaks = {"encoders": 1e9, "prefill": 2e9, "decoding": 1.5e9}
        key = {name: each[name] for name in ("id", "method", "seed")}
        times.append(key | {"seconds": seconds, "peak bytes": peaks})
    lines = "".join(json.dumps(each) + "\n" for each in times)
    path.with_suffix(".times.jsonl").write_text(lines)
    return path


@pytest.fixture
def path(tmp_path):
    rows = [row(str(i), "all", True, clip=f"{i}.mp4") for i in range(8)]
    rows += [row(str(i), "omnizip", i % 4 > 0, clip=f"{i}.mp4") for i in range(8)]
    return write_run(tmp_path, "results", rows)


def test_a_summary(path):
    summary = summarise(path)
    full, omnizip = summary["methods"]["all"], summary["methods"]["omnizip"]
    assert full["accuracy"]["worldsense"]["mean"] == 1.0
    assert omnizip["accuracy"]["worldsense"]["categories"]["Music"]["mean"] == 0.75
    minus = omnizip["minus first"]["worldsense"]
    assert minus["mean"] == -0.25 and minus["low"] < -0.25 < minus["high"] <= 0
    assert omnizip["kept"]["planned"]["mean"] == omnizip["kept"]["kept"]["mean"] == 0.4
    # Eq. 9 of 100 tokens in 2 layers of width 3584 with 8 in between, 100 tokens decoded.
    d, m, n = 3584, 8, 100
    prefill = 2 * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m)
    decode = 2 * sum(4 * d**2 + 2 * d * m + 2 * d * (n + i) for i in range(1, 101))
    share = omnizip["operations"]["paper_operations"]["share"]["median"]
    assert share == pytest.approx(2e12 / (prefill + decode))
    assert omnizip["seconds"]["latency"]["median"] == 3.5
    assert summary["peak bytes"] == {"encoders": 1e9, "prefill": 2e9, "decoding": 1.5e9}


def test_seeds_are_averaged_question_by_question(tmp_path):
    rows = [
        row("a", "omnizip", right, clip="a.mp4", seed=seed)
        for seed, right in enumerate([True, False])
    ]
    rows += [row("b", "omnizip", True, clip="b.mp4", seed=seed) for seed in range(2)]
    omnizip = summarise(write_run(tmp_path, "r", rows))["methods"]["omnizip"]
    assert omnizip["accuracy"]["worldsense"]["mean"] == 0.75
    assert (omnizip["questions"], omnizip["seeds"]) == (2, 2)


def test_ovobench_is_the_mean_of_groups_of_tasks(tmp_path):
    right = {"EPM": [1, 1, 1, 0], "ASI": [0], "OCR": [1], "REC": [0, 0]}
    group = {"EPM": "backward", "ASI": "backward", "OCR": "realtime", "REC": "forward"}
    rows = [
        row(f"{task}{i}", "all", bool(value), clip=task, category=task, benchmark="ovobench")
        | {"group": group[task]}
        for task, values in right.items()
        for i, value in enumerate(values)
    ]
    accuracy = summarise(write_run(tmp_path, "r", rows))["methods"]["all"]["accuracy"]["ovobench"]
    assert accuracy["mean"] == 0.5
    assert accuracy["mean of groups"] == pytest.approx(((0.75 + 0) / 2 + 1 + 0) / 3)


def test_a_report(path):
    text = collapsed(write_report(path))
    assert "| omnizip | 8 | 75.0 | 75.0 (" in text and "| -25.0 (" in text
    assert "| omnizip | 40.0% | 40.0% |" in text and "a device" in text
    assert "after prefill 2G" in text and "One clip at a time." in text
    again = json.loads(path.with_suffix(".report.json").read_text())
    assert again == json.loads(json.dumps(summarise(path)))


def test_rows_without_their_times(path):
    """The state after a kill."""
    times = path.with_suffix(".times.jsonl")
    times.write_text(times.read_text().splitlines()[0] + "\n")
    assert "| omnizip | - | - |" in collapsed(write_report(path))
    times.unlink()
    assert write_report(path).exists() and compare_with_paper([summarise(path)])


def test_the_tables_of_the_paper(tmp_path):
    domains = paper.WORLDSENSE
    rows = [
        row(f"{name}{i}", method, i == 0, clip=f"{name}.mp4", category=name)
        for method in METHODS_OF
        for name in domains
        for i in range(2)
    ]
    runs = [write_run(tmp_path, "worldsense", rows)]
    rows = [row("v", method, True, clip="v.mp4", benchmark="videomme") for method in METHODS_OF]
    runs.append(write_run(tmp_path, "videomme", rows))
    alone = [each for each in rows if each["method"] == "omnizip"]
    merging = METHODS_OF["omnizip"] | {"merge_size": 15}
    runs.append(write_run(tmp_path, "alone", alone, methods={"omnizip": merging}))
    text = re.sub(" +", " ", compare_with_paper([summarise(run) for run in runs]))
    sections = dict(part.split("\n", 1) for part in text.split("## ")[1:])
    assert list(sections) == [f"Table {i}" for i in (1, 2, 3, 6)] + ["Figure 6", "Figure 7"]
    every = " | ".join(["50.0"] * 9)
    assert "| alone: omnizip |" in sections["Table 1"]
    assert f"| worldsense: omnizip | 40.0% | 2 | {every} |" in sections["Table 2"]
    assert f"| worldsense: omnizip | 40.0% | 0.3 | 0.6 | {every} |" in sections["Table 6"]
    assert "| alone: omnizip | 2G | 1.00 s | 100.0 | 3.50 s |" in sections["Table 3"]
    assert "| worldsense: omnizip | - | 1.00 s |" in sections["Table 3"]
    assert "| paper: OmniZip, 7B | 35% | 21.4 | 48.3 |" in sections["Table 2"]
    assert "3B" not in text  # the decoder has the width of the 7B
    assert "| worldsense: omnizip | videomme | 1.00 s | 3.00x |" in sections["Figure 6"]
    assert "2.7 to 3.8 times" in sections["Figure 6"]
    assert "| alone: omnizip | 15 |" in sections["Figure 7"]


def rows_of(*methods, right=True, benchmark="videomme", questions=8):
    return [
        row(str(i), method, right, clip=f"{i}.mp4", benchmark=benchmark)
        for method in methods
        for i in range(questions)
    ]


@pytest.mark.parametrize(
    "differing",
    [
        {"weights": "def"},
        {"dtype": "bfloat16"},
        {"protocol": "lmms-eval"},
        {"max_frames": 2},
        {"window": {"grid_slots": 36}},
        {"window": {"seconds": 4}},
        {"stream": {"memory": "fading", "capacity": 8192}},
        {"audio": False},
        {"video": False},
        {"seeds": 5},
        {"max_new_tokens": 1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_runs_that_differ_in_a_setting_are_not_merged(tmp_path, differing):
    one = write_run(tmp_path, "one", rows_of("all", "omnizip", right=True))
    other = write_run(tmp_path, "other", rows_of("omnizip", right=False), **differing)
    for runs in ([one, other], [other, one]):
        text = compare_with_paper([summarise(run) for run in runs])
        table = re.sub(" +", " ", text).split("## Table 1\n")[1].split("##")[0]
        cells = {line.split(" | ")[0]: line.strip(" |").split(" | ") for line in table.split("\n")}
        assert cells["| one: omnizip"][10:] == ["100.0", "-", "100.0%"]
        assert cells["| other: omnizip"][10:] == ["0.0", "-", "-"]  # no full run with its settings
        assert "| other: omnizip | 2G | 1.00 s | 0.0 |" in re.sub(" +", " ", text)


def test_runs_about_the_same_benchmark_are_not_merged(tmp_path):
    """A repetition, another part of a benchmark; and files of the same name."""
    for folder, right in (("a", True), ("b", False)):
        (tmp_path / folder).mkdir()
        write_run(tmp_path / folder, "run", rows_of("all", right=right))
    summaries = [summarise(tmp_path / folder / "run.jsonl") for folder in "ab"]
    names = {method.name: method.accuracy_of("videomme") for method in merge_runs(summaries)}
    assert names == {f"{tmp_path}/{x}/run.jsonl: run: all": float(x == "a") for x in "ab"}


def test_costs_and_times_are_those_of_the_runs_in_a_table(tmp_path):
    """Table 2 has the runs about WorldSense; times on two devices have no mean."""
    rows = rows_of("omnizip", benchmark="worldsense")
    one = write_run(tmp_path, "one", rows)
    for each in (rows := rows_of("omnizip", benchmark="videomme")):
        each["cost"]["by_layer"] = 0.8
    other = write_run(tmp_path, "other", rows)
    times = other.with_suffix(".times.jsonl")
    times.write_text(times.read_text().replace("a device", "another"))
    text = re.sub(" +", " ", compare_with_paper([summarise(one), summarise(other)]))
    assert "| omnizip | 40.0% | 2 |" in text.split("## Table 2\n")[1]
    assert "| omnizip | 80.0% |" in text.split("## Table 1\n")[1]
    assert "| omnizip | 2G | - | 100.0 | - |" in text.split("## Table 3\n")[1]


def test_all_tokens_on_other_questions_are_no_reference(tmp_path):
    full = write_run(tmp_path, "full", rows_of("all", questions=4))
    own = write_run(tmp_path, "own", rows_of("omnizip"))
    text = re.sub(" +", " ", compare_with_paper([summarise(full), summarise(own)]))
    assert "| omnizip | 40.0% |" in text and "| 100.0 | - | - |" in text and "Figure 6" not in text


def test_all_tokens_of_one_modality_are_no_reference(tmp_path):
    methods = {"all": METHODS_OF["all"] | {"video": False}, "omnizip": METHODS_OF["omnizip"]}
    path = write_run(tmp_path, "r", rows_of("all", "omnizip"), methods=methods)
    text = re.sub(" +", " ", compare_with_paper([summarise(path)]))
    assert text.count("| 100.0 | - | - |") == 2 and "Figure 6" not in text


def test_a_partial_run_says_so(tmp_path):
    rows = rows_of("all", questions=8) + rows_of("omnizip", questions=6)
    path = write_run(tmp_path, "r", rows, questions=8, runs=2)
    assert "\nPartial: 14 of 16 rows.\n" in write_report(path).read_text()
    text = re.sub(" +", " ", compare_with_paper([summarise(path)]))
    assert "partial: 14 of 16 rows |" in text and "| omnizip (partial) |" in text
    assert "| all (partial) |" not in text
    path = write_run(tmp_path, "r", rows_of("all", questions=8), questions=10, runs=2)
    assert "Partial: 8 of 20 rows." in write_report(path).read_text()  # no row of a second method
    path = write_run(tmp_path, "r", rows_of("all", questions=8), questions=8, runs=1)
    assert "Partial" not in write_report(path).read_text()


def test_a_run_resumed_under_other_versions_says_so(path):
    times = path.with_suffix(".times.jsonl")
    later = SESSION | {"versions": {"jax": "1"}, "date": "tomorrow"}
    times.write_text(times.read_text() + json.dumps({"session": later}) + "\n")
    assert "\nRows of several sessions with jax 0, 1.\n" in write_report(path).read_text()
    assert "rows of several sessions with jax 0, 1 |" in compare_with_paper([summarise(path)])


def test_unread_replies_and_errors_are_counted_by_benchmark(tmp_path):
    rows = rows_of("all", questions=8) + rows_of("all", benchmark="avut")
    for number, each in enumerate(rows):
        each |= {"id": str(number), "read": "A"}
    rows[0] |= {"read": None, "correct": False}
    rows[1] |= {"read": None, "correct": False, "reply": None, "error": "gone", "cost": None}
    path = write_run(tmp_path, "r", rows)
    videomme, avut = collapsed(write_report(path)).split("## Accuracy")[1:3]
    assert "| unread |" in videomme and "| 1 |" in videomme and "1 rows hold an error" in videomme
    assert "unread" not in avut and "error" not in avut
    assert "1 replies unread" in compare_with_paper([summarise(path)])


def test_few_questions_have_no_intervals(tmp_path):
    """Times of fewer than six questions; the accuracy of questions about one clip."""
    rows = [row(str(i), "all", i > 0, clip="a.mp4") for i in range(5)]
    text = collapsed(write_report(write_run(tmp_path, "r", rows)))
    assert "| all | 5 | 80.0 | 80.0 |" in text
    assert "| all | 1.00 s | 1.00 s | 3.00 s | 4.00 s | 500 ms | 5.50 s |" in text


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(paper.TABLES[1], 13), (paper.TABLES[2], 12), (paper.TABLES[3], 5), (paper.TABLES[6], 13)],
)
def test_the_papers_rows_are_complete(rows, columns):
    for size in rows.values():
        assert {len(row) for row in size} == {columns}


def test_the_papers_averages_are_those_of_its_columns():
    """Copied by hand: Table 1's last column follows from the three before it."""
    for rows in paper.TABLES[1].values():
        full = [float(x) for x in rows[0][-4:-1]]
        for row in rows[1:]:
            pairs = [(float(x), y) for x, y in zip(row[-4:-1], full, strict=True) if x != "-"]
            mean = sum(x / y for x, y in pairs) / len(pairs)
            assert 100 * mean == pytest.approx(float(row[-1].rstrip("%")), abs=2.5)


def test_missing_files_of_a_run(path):
    with pytest.raises(ValueError, match="settings of the run cannot be read"):
        summarise(path.with_name("gone.jsonl"))
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        summarise(path)


def test_a_run_without_rows(path):
    path.write_text("")
    with pytest.raises(ValueError, match="no row in it yet"):
        summarise(path)


@pytest.mark.slow
def test_every_benchmark_from_its_layout_to_the_tables(small, tmp_path):
    methods = {"all": AllTokens(), "omnizip": OmniZipConfig(keep=0.45)}
    summaries = []
    for name in BENCHMARKS:
        folder = tmp_path / name
        folder.mkdir()
        annotations, videos = write_layout(name, folder, make_clip(0).write)
        write_questions(read_benchmark(name, annotations, videos), folder / "q.jsonl")
        results = folder / f"{name}.jsonl"
        evaluate(make_evaluator(small, methods), read_questions(folder / "q.jsonl"), results)
        summary = summarise(results)
        for method in summary["methods"].values():
            assert method["errors"] == 0
            assert method["accuracy"][name]["questions"] == len(LAYOUTS[name].expected)
        assert collapsed(write_report(results))
        summaries.append(summary)
    text = compare_with_paper(summaries)
    for title in ("Table 1", "Table 2", "Table 3", "Table 6", "Figure 6", "Other questions"):
        assert f"## {title}\n" in text


def test_columns_are_aligned():
    rows = [["all", "100.0"], ["omnizip:keep=0.35", "35.1"]]
    assert aligned_table(["method", "kept, %"], rows) == (
        "| method            | kept, % |\n"
        "| ----------------- | ------: |\n"
        "| all               |   100.0 |\n"
        "| omnizip:keep=0.35 |    35.1 |"
    )
