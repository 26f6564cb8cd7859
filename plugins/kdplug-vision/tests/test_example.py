"""The recipe with eleven losses on features, with a small budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdplug.cli.app import app

RECIPE = Path(__file__).parents[3] / "examples" / "feature_losses.yaml"


@pytest.mark.skipif(not RECIPE.exists(), reason="needs a checkout")
def test_it_runs_and_uses_the_losses_of_this_package(tmp_path):
    changes = ["training.num_epochs=1", "task.teacher_epochs=1", "task.labels_per_class=4", "controls=[]"]
    settings = [word for change in changes for word in ("--set", change)]
    result = CliRunner().invoke(app, ["run", str(RECIPE), "--output-dir", str(tmp_path / "run"), *settings])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "kdplug-run.json").read_text())
    terms = [term["loss"] for term in record["recipe"]["distillation"]["terms"]]
    names = [one["name"] if isinstance(one, dict) else one for one in terms]
    assert sum(name.startswith("kdplug-vision:") for name in names) == 11
