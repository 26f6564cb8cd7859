"""A recipe that runs, and ``kdplug plan`` and ``kdplug run`` with one thing wrong in it."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

from task_scene import BERT, reviews, save_model, tokenizer, write_csv
from typer.testing import CliRunner

from kdplug.cli.app import app

NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
EXIT_CODES = {"plan": 1, "run": 2}
LONGEST = 600
"""Characters of a message about a path of any length."""


class ErrorScene:
    """A folder with a teacher and its data, and what the command line says of a changed recipe.

    The recipe is valid; ``refused`` asserts that one change makes it one line, and returns that line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = folder / "teacher"
        self.data = folder / "rows.csv"
        brings = tokenizer()
        save_model(
            self.teacher,
            "AutoModelForSequenceClassification",
            {**BERT, **NAMES},
            brings=brings,
            vocab_size=len(brings),
            pad_token_id=0,
        )
        write_csv(self.data, reviews(16))

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """Return the recipe with values at dotted paths."""
        found: dict[str, Any] = {
            "task": {
                "name": "text-classification",
                "data": {"train": str(self.data), "test": str(self.data)},
                "teacher": str(self.teacher),
                "student": {"config": {"num_hidden_layers": 1, "hidden_size": 8}},
                "max_length": 16,
            },
            "distillation": {"kd_loss_type": "ce"},
            "training": {"num_epochs": 1, "batch_size": 8, "lr": 1e-3, "device": "cpu", "ckpt_frequency": 0},
            "output_dir": str(self.folder / "out"),
        }
        for path, value in changes.items():
            *above, last = path.split(".")
            place = found
            for key in above:
                place = place.setdefault(key, {})
            place[last] = deepcopy(value)
        return found

    def file(self, name: str, content: bytes | str) -> str:
        """Write a file and return its path."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def model(self, name: str, **files: bytes | None) -> Path:
        """Return a copy of the teacher with other files: ``config_json=b"…"``; ``None`` deletes one."""
        copy = self.folder / name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.teacher, copy)
        for key, content in files.items():
            file = copy / ".".join(key.rsplit("_", 1))
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
        return copy

    def accepted(self, **changes: Any) -> None:
        """Assert that the plan of a changed recipe raises nothing."""
        file = self.file("recipe.json", json.dumps(self.recipe(**changes)))
        done = CliRunner().invoke(app, ["plan", file])
        assert (done.exit_code, _without_announcement(done.stderr)) == (0, [])

    def refused(self, command: str, *, longest: int = LONGEST, **changes: Any) -> str:
        """Return the one line that ``kdplug plan`` or ``kdplug run`` prints for a changed recipe."""
        file = self.file("recipe.json", json.dumps(self.recipe(**changes)))
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        return refusal(command, file, longest=longest)


def _without_announcement(stderr: str) -> list[str]:
    """Return the lines after the one in which ``kdplug plan`` prints what it does."""
    return [line for line in stderr.splitlines() if not line.endswith("…")]


def refusal(command: str, *words: str, code: int | None = None, longest: int = LONGEST) -> str:
    """Return the one line that a command prints before it exits with its code for errors."""
    done = CliRunner().invoke(app, [*command.split(), *words])
    assert isinstance(done.exception, SystemExit), f"{done.exception!r} with {words}"
    lines = _without_announcement(done.stderr)
    assert done.exit_code == (EXIT_CODES.get(command, 2) if code is None else code), done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: "), lines
    assert "Traceback" not in lines[0]
    assert lines[0].isprintable()
    assert len(lines[0]) <= longest, lines[0]
    return lines[0].removeprefix("error: ")
