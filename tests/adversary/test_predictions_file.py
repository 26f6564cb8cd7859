"""Files of predictions that a disk, an editor or an attacker changed: read as data, or one error with the line."""

from __future__ import annotations

import json
import random
import warnings

import pytest

import kdplug

ROWS = [
    {
        "arm": "a",
        "seed": seed,
        "id": example,
        "score": example * (seed + 1) % 7 / 7,
        "weight": 1 + example % 3,
        "unit": example // 2,
    }
    for seed in range(3)
    for example in range(12)
]
TEXT = "\n".join(map(json.dumps, ROWS)).encode()
PIECES = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"null",
    b'"',
    b"{",
    b"]",
    b"\xff",
    b"\x00",
    b"\n",
    b"9" * 200,
    b"true",
    b"-1",
    b"[[[[",
]


@pytest.mark.attack("a damaged file of predictions")
def test_a_damaged_file_is_a_verdict_or_one_error(tmp_path, attempts):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    other.write_bytes(TEXT)
    draw = random.Random(0)
    for _ in range(300):
        place = draw.randrange(len(TEXT))
        path.write_bytes(TEXT[:place] + draw.choice(PIECES) + TEXT[place + draw.randrange(8) :])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = kdplug.verdict(path, other)
            attempts.record(found.outcome in ("BEATS", "LOSES", "CANNOT TELL"))
            json.dumps(found.to_data(), allow_nan=False)
        except kdplug.ConfigError as error:
            attempts.record(bool(str(error)))
    assert attempts.held == attempts.tried


@pytest.mark.attack("scores of any size")
@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-300, 1e59, 1e150, 3e307])
@pytest.mark.parametrize("aggregate", ["mean", "exp_mean", "root_mean", "pearson", "spearman"])
def test_scores_of_any_size_are_a_verdict_without_a_warning(size, aggregate):
    rows = [
        {**row, "score": row["score"] * size, "label": row["id"] % 5 * size, "prediction": row["id"] * size}
        for row in ROWS
    ]
    rows = [{key: value for key, value in row.items() if key != "weight"} for row in rows]
    other = [{**row, "score": row["score"] / 2, "prediction": -row["prediction"]} for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kdplug.verdict(rows, other, aggregate=aggregate, margin=0.1)
    json.dumps(found.to_data(), allow_nan=False)
    assert str(found)
