"""``kdplug verdict``: two files of predictions, or the arms of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def write(path: Path, arms: dict[str, float], *, shift: int = 0, **settings: object) -> Path:
    """Write predictions whose scores differ by arm, seed and example, and the run's metrics.json."""
    path.parent.mkdir(exist_ok=True)
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "id": example,
            "score": base + 0.01 * seed * base + 0.001 * (example * (len(arm) + shift) % 7),
        }
        for arm, base in arms.items()
        for seed in range(3)
        for example in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    if settings:
        (path.parent / "metrics.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_the_arms_of_a_run_are_compared(kdplug, tmp_path):
    write(tmp_path / "predictions.jsonl", {"teacher": 0.9, "no_teacher": 0.5, "distilled": 0.8})
    for place in (tmp_path, tmp_path / "predictions.jsonl"):
        done = kdplug("verdict", place)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.startswith(
            "distilled BEATS no_teacher: the intervals over seeds, over test units and over both"
        )
        assert 2 <= len(done.stdout.splitlines()) <= 5


def test_metric_and_direction_are_those_of_the_run(kdplug, tmp_path):
    settings = {"metric": "perplexity", "is_lower_better": True, "aggregate": "exp_mean"}
    write(tmp_path / "predictions.jsonl", {"no_teacher": 0.5, "distilled": 0.8}, **settings)
    done = kdplug("verdict", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert (found["outcome"], found["scale"]) == ("LOSES", "log perplexity")
    assert json.loads(kdplug("verdict", tmp_path, "--aggregate", "mean", "--json").stdout)["scale"] == "perplexity"


def test_two_files_are_compared_in_their_order_and_shown_by_path(kdplug, tmp_path):
    a = write(tmp_path / "a.jsonl", {"distilled": 0.5})
    b = write(tmp_path / "b.jsonl", {"distilled": 0.8}, shift=1)
    done = kdplug("verdict", a, b)
    assert done.stdout.startswith(f"{a} LOSES to {b}: ")
    assert kdplug("verdict", a, b, "--lower-is-better").stdout.startswith(f"{a} BEATS {b}: ")


def test_a_margin_prints_the_seeds_that_it_takes(kdplug, tmp_path):
    a = write(tmp_path / "a.jsonl", {"distilled": 0.8})
    b = write(tmp_path / "b.jsonl", {"no_teacher": 0.5})
    said = kdplug("verdict", a, b, "--margin", "0.02").stdout
    assert "A true difference of 0.02 (the margin) would need about " in said


def test_runs_of_different_metrics_are_not_compared(kdplug, tmp_path):
    a = write(tmp_path / "a/p.jsonl", {"x": 0.8}, metric="accuracy", is_lower_better=False, aggregate="mean")
    b = write(tmp_path / "b/p.jsonl", {"x": 0.5}, metric="f1", is_lower_better=False, aggregate="mean")
    done = kdplug("verdict", a, b)
    assert done.exit_code == 2
    assert "metric: " in done.stderr
    assert "Compare runs with the same metric" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.jsonl"], "missing.jsonl: cannot be read: No such file or directory"),
        (["run.jsonl", "run.jsonl"], "contains several arms: 'no_teacher', 'distilled'. Compare one of them"),
        (["run.jsonl", "--arm-a", "distiled"], "has no row of the arm 'distiled'"),
        (["bad.jsonl", "bad.jsonl"], "bad.jsonl, line 2: unknown key 'scroe'. Did you mean 'score'?"),
        (["run.jsonl", "--confidence", "95"], "confidence: must be at least 0.5 and below 1, got 95.0. Write 0.95"),
        (["run.jsonl", "--margin", "-1"], "margin: must be a finite number above 0, got -1.0"),
    ],
)
def test_a_mistake_is_one_message(kdplug, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write(Path("run.jsonl"), {"no_teacher": 0.5, "distilled": 0.8})
    Path("bad.jsonl").write_text('{"score": 1}\n{"scroe": 1}\n', encoding="utf-8")
    done = kdplug("verdict", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


PERPLEXITY = {"metric": "perplexity", "is_lower_better": True, "aggregate": "exp_mean"}


def recorded(folder: Path, part: object, shift: int = 0) -> Path:
    """Write a run with a record that has this fingerprint of its test part."""
    write(folder / "predictions.jsonl", {"distilled": 0.5}, shift=shift, **PERPLEXITY)
    (folder / "kdplug-run.json").write_text(json.dumps({"data": {"test": part}}), encoding="utf-8")
    return folder


def columns(text: str, **more: object) -> dict[str, object]:
    return {"kind": "Identified", "fingerprint": {"rows": 40, "columns": {"text": text}, **more}}


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (columns("a1"), columns("b2"), False),
        (columns("a1", shown_as="a.txt", examples="1"), columns("a1", shown_as="b.txt", examples="2"), True),
        ({"kind": "Images", "content": {"16": "a1"}}, {"kind": "Images", "content": {"16": "b2"}}, False),
        ({"fingerprint": {"hash": "a1", "shown_as": "x"}}, {"fingerprint": {"hash": "a1"}}, True),
    ],
)
def test_runs_on_different_test_data_are_not_compared(kdplug, tmp_path, one, other, is_same):
    done = kdplug("verdict", recorded(tmp_path / "a", one), recorded(tmp_path / "b", other, shift=1))
    assert done.exit_code == (0 if is_same else 2), done.stderr
    if not is_same:
        assert "were evaluated on different test data. Compare runs on the same test data" in " ".join(
            done.stderr.split()
        )


def test_a_damaged_file_of_metrics_is_an_error_and_no_other_direction(kdplug, tmp_path):
    write(tmp_path / "predictions.jsonl", {"no_teacher": 0.5, "distilled": 0.8}, **PERPLEXITY)
    (tmp_path / "metrics.json").write_text('{"metric": "perpl', encoding="utf-8")
    done = kdplug("verdict", tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path / 'metrics.json'}: cannot be read: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_predictions_of_one_arm_and_seed_have_the_direction_of_their_run(kdplug, tmp_path):
    write(tmp_path / "predictions.jsonl", {"distilled": 0.5}, **PERPLEXITY)
    for arm, score in (("no_teacher", 0.5), ("distilled", 0.8)):
        folder = tmp_path / "seed-0" / arm
        folder.mkdir(parents=True)
        rows = [{"id": example, "score": score + 0.01 * (example % len(arm))} for example in range(40)]
        (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        (folder / "result.json").write_text("{}", encoding="utf-8")
    done = kdplug("verdict", tmp_path / "seed-0" / "distilled", tmp_path / "seed-0" / "no_teacher", "--json")
    found = json.loads(done.stdout)
    assert found["scale"] == "log perplexity"
    assert found["difference"] < 0
