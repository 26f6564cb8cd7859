"""What distillation is worth on ``examples/digits.yaml``, over several seeds.

    python tests/benchmarks/digits_seeds.py [--seeds 11 12 13 14 15] [--set key=value ...]

A seed stands for another teacher, another initial student, another order of the data and other labels that the student
may see; the test images stay. The settings of the recipe were chosen on the validation images, with seeds 101 and 102. Prints, for each model, the mean
test accuracy, its standard deviation and the standard error of the mean, and the same for the difference between the
distilled and the undistilled student of each seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdplug import Recipe
from kdplug.host.manifest import header_line
from kdplug.recipes.run import run_recipe

RECIPE = Path(__file__).parents[2] / "examples" / "digits.yaml"
MODELS = ("teacher", "student, distilled", "student, without distillation")


def accuracies(seed: int, changes: list[str]) -> list[float]:
    """Test accuracy of teacher, distilled student and undistilled student."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"seed={seed}", "seeds=null", f"task.label_seed={seed}", f"output_dir='{folder}'"]
        result = run_recipe(Recipe.from_file(RECIPE).with_overrides([*own, *changes]))
    return [figures.metrics["accuracy"] for figures in (result.teacher, result.distilled, result.no_teacher)]


def summary(values: list[float]) -> list[str]:
    """Mean, standard deviation and standard error, in per cent."""
    deviation = statistics.stdev(values)
    return [f"{100 * value:.2f}" for value in (statistics.mean(values), deviation, deviation / math.sqrt(len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Mean test accuracy of examples/digits.yaml over seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    console = Console(width=120)
    console.print(header_line(), highlight=False)
    start = time.monotonic()
    runs = [accuracies(seed, asked.changes) for seed in asked.seeds]
    columns = dict(zip(MODELS, map(list, zip(*runs, strict=True)), strict=True))
    columns["distilled - undistilled"] = [distilled - plain for _, distilled, plain in runs]
    table = Table(title="test accuracy in per cent")
    table.add_column("model")
    for head in (*(f"seed {seed}" for seed in asked.seeds), "mean", "sd", "se"):
        table.add_column(head, justify="right")
    for model, values in columns.items():
        table.add_row(model, *(f"{100 * value:.2f}" for value in values), *summary(values))
    console.print(table)
    console.print(f"{(time.monotonic() - start) / len(runs):.1f} s for each seed", highlight=False)


if __name__ == "__main__":
    main()
