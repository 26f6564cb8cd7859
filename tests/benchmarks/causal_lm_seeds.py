"""What distillation is worth on ``examples/causal_lm.yaml``, over several seeds.

    python tests/benchmarks/causal_lm_seeds.py --text FILE [--seeds 11 12 13] [--out FOLDER] [--set key=value ...]

One teacher is fitted (seed 0) and asked once; its cache then serves every seed, which stands for other first weights of the
student and another order of the data. Text, split and tokenizer stay. ``FOLDER`` keeps the teacher, the cache and the figures
of each seed: what is there is not done again, and a run that was killed goes on. Prints the validation perplexity of the
teacher, and for each seed that of the student distilled and not, after equally many optimizer steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import kdplug
from kdplug import Recipe
from kdplug.cli.cache import cache_lines
from kdplug.engine.cache.report import CacheReport
from kdplug.host.manifest import header_line
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import run_recipe

RECIPE = Path(__file__).parents[2] / "examples" / "causal_lm.yaml"
MODELS = {"distilled": "student, distilled", "no_teacher": "student, without distillation"}


def fitted_teacher(recipe: Recipe, folder: Path) -> Path:
    """The folder of the recipe's teacher as transformers loads it, fitted where it is not there yet."""
    found = folder / "teacher"
    if not (found / "config.json").is_file():
        task = kdplug.tasks.build(recipe.task).target
        task.check()
        model = RecipeRunner(recipe, task, print, show_progress=False, resume=True).teacher(folder / "fit")
        task.problem.save(found)
        task.family.save(model, found)
    return found


def figures(recipe: Recipe, folder: Path) -> dict:
    """``metrics.json`` of a run in ``folder``."""
    file = folder / "metrics.json"
    if not file.is_file():
        run_recipe(recipe.with_overrides([f"output_dir='{folder}'"]), resume=True)
    return json.loads(file.read_text())


def perplexities(found: list[dict], model: str) -> list[float]:
    """Of one of the models, seed by seed."""
    return [one["arms"][model]["metrics"]["perplexity"] for one in found]


def summary(name: str, values: list[float], parameters: int | None) -> list[str]:
    """A row of the table."""
    figures = [*values, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")]
    return [name, f"{parameters:,}" if parameters else "", *(f"{value:.2f}" for value in figures)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Validation perplexity of examples/causal_lm.yaml over seeds.")
    parser.add_argument("--text", type=Path, help="a text file, in place of the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--out", type=Path, default=Path("runs/causal_lm_seeds"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    console = Console(width=120)
    console.print(header_line(), highlight=False)
    text = [f"task.data.train={asked.text}"] if asked.text else []
    recipe = Recipe.from_file(RECIPE).with_overrides([*text, *asked.changes])

    begin = time.process_time()
    teacher = fitted_teacher(recipe, asked.out)
    cache = asked.out / "cache"
    recipe = recipe.with_overrides(
        [f"task.teacher={teacher}", "task.tokenizer=null", f"training.teacher_cache={cache}"]
    )
    cache_recipe(recipe, cache)
    for line in cache_lines(CacheReport.read(cache)):
        console.print(line, highlight=False)
    found = [figures(recipe.with_overrides([f"seed={seed}"]), asked.out / f"seed-{seed}") for seed in asked.seeds]

    table = Table(title=f"validation perplexity after {found[0]['optimizer_steps']} optimizer steps")
    for head in ("model", "parameters", *(f"seed {seed}" for seed in asked.seeds), "mean", "sd"):
        table.add_column(head, justify="left" if head == "model" else "right")
    columns = {model: perplexities(found, model) for model in MODELS}
    table.add_row(*summary("teacher", perplexities(found, "teacher"), found[0]["arms"]["teacher"]["parameters"]))
    for model, name in MODELS.items():
        table.add_row(*summary(name, columns[model], found[0]["arms"][model]["parameters"]))
    differences = [plain - distilled for distilled, plain in zip(*columns.values(), strict=True)]
    table.add_row(*summary("undistilled - distilled", differences, None))
    console.print(table)
    console.print(f"{time.process_time() - begin:.0f} s of CPU time", highlight=False)


if __name__ == "__main__":
    main()
