"""A model folder and data that bring code or pickles, and a plan of a recipe that uses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
from task_scene import reviews, save_model, tokenizer, write_csv
from typer.testing import CliRunner

from kdplug.cli.app import app

NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
TEXT = "AutoModelForSequenceClassification"


class Scene:
    """A folder that holds a teacher, its data, and a file that code in the folder would write."""

    def __init__(self, folder: Path, config: dict, auto: str) -> None:
        self.folder = folder
        self.teacher = folder / "teacher"
        self.mark = folder / "code-was-run"
        brings = None if auto == "AutoModelForImageClassification" else tokenizer()
        sizes = {} if brings is None else {"vocab_size": len(brings), "pad_token_id": 0}
        save_model(self.teacher, auto, {**config, **NAMES}, brings=brings, **sizes)
        if brings is None:
            self.data = folder / "rows.npz"
            numpy.savez(self.data, image=numpy.zeros((16, 8, 8), numpy.uint8), label=numpy.arange(16) % 2)
        else:
            self.data = folder / "rows.csv"
            write_csv(self.data, reviews(16))

    def code(self, folder: Path | None = None, name: str = "evil.py") -> None:
        """Write a module into a model folder that leaves the mark when it runs."""
        file = (folder or self.teacher) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"from pathlib import Path\nPath({str(self.mark)!r}).touch()\nclass Evil: ...\n")

    def change(self, name: str, folder: Path | None = None, **keys: object) -> None:
        """Set keys of a JSON file of a model folder."""
        file = (folder or self.teacher) / name
        data = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**data, **keys}))

    def plan(self, task: str = "text-classification", **settings: object) -> tuple[int, str]:
        """``yes | kdplug plan``: the exit status, and what was printed on the two streams."""
        student = {"config": {"num_hidden_layers": 1}}
        data = {"train": str(self.data), "validation": 0.25, "test": 0.25}
        settings = {"teacher": str(self.teacher), "student": student, "data": data, **settings}
        if task != "image-classification":
            settings.setdefault("max_length", 24)
        recipe = {
            "task": {"name": task, **settings},
            "distillation": {},
            "training": {"num_epochs": 1, "batch_size": 4, "lr": 1e-3, "device": "cpu"},
            "output_dir": str(self.folder / "out"),
        }
        file = self.folder / "recipe.json"
        file.write_text(json.dumps(recipe))
        done = CliRunner().invoke(app, ["plan", str(file)], input="y\n" * 20)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, " ".join((done.stdout + done.stderr).split())

    def refused(self, message: str, **settings: object) -> None:
        """Plan, and see that this was an error with ``message`` and that nothing was run."""
        status, text = self.plan(**settings)
        assert not self.mark.exists()
        assert message in text
        assert status == 1
