"""Labels that hold escape sequences of terminals."""

from __future__ import annotations

import csv
import json

import pytest
from typer.testing import CliRunner

from kdplug.cli.app import app

LABEL = "\x1b]0;title\x07\x1b[2Jred"
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.attack("a label of the data sends control characters to the terminal")
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_terminal_gets_none_of_them(tmp_path, command):
    for part in ("train", "test"):
        with (tmp_path / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *[["some words", LABEL], ["other words", "blue"]] * 2])
    config = {"model_type": "bert", "max_position_embeddings": 16, **SIZES}
    recipe = {
        "task": {
            "name": "text-classification",
            "data": {part: str(tmp_path / f"{part}.csv") for part in ("train", "test")},
            "tokenizer": {"train": "bytes-bpe", "vocab": 260},
            "teacher": {"config": config, "train": True, "epochs": 1},
            "student": {"config": SIZES},
            "max_length": 16,
        },
        "distillation": {"kd_loss_type": "kl", "hard_label_weight": 1},
        "training": {"num_epochs": 1, "batch_size": 4},
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    result = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml")])
    assert result.exit_code == 0, result.output
    assert "red" in result.output
    assert "\x1b]" not in result.output
    assert "\x1b[2J" not in result.output
