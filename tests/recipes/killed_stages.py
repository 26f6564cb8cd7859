"""Run a staged recipe in processes that are killed at given points: ``python killed_stages.py FOLDER``.

It runs the recipe once without a kill into ``FOLDER/whole``, then into ``FOLDER/killed`` with a kill at each of ``POINTS``.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from functools import wraps
from importlib import import_module
from pathlib import Path

import kdplug

RECIPE = {
    "task": {"name": "digits", "labels_per_class": 2, "teacher_epochs": 1},
    "distillation": {"kd_loss_type": {"name": "kl", "t2": True}},
    "training": {"num_steps": 10, "device": "cpu", "ckpt_steps": 3, "evaluations": 3, "lr": 3e-3, "logging_steps": 1},
    "seeds": 2,
    "stages": [
        {
            "name": "features",
            "distillation": {
                "kd_loss_weight": 0,
                "intermediate_matches": [
                    {"feature": "hidden", "layer_S": 1, "layer_T": 1, "loss": "hidden_mse", "weight": 1, "proj": ["linear", 12, 64]}
                ],
            },
            "training": {"num_steps": 8, "best_checkpoint": False},
        },
        {"name": "ta", "student": {"widths": [8, 16, 24]}},
        {"name": "task", "student": {"stage": "features"}, "teacher": {"stage": "ta"}, "freeze": ["blocks.0.*"]},
    ],
}  # fmt: skip

STEPS = [
    "seed-0/distilled/stage-features:1",
    "seed-0/distilled/stage-features:4",
    "seed-0/distilled/stage-features:8",
    "seed-0/distilled/stage-ta:2",
    "seed-0/distilled/stage-ta:5",
    "seed-0/distilled/stage-ta:10",
    "seed-0/distilled/stage-task:1",
    "seed-0/distilled/stage-task:7",
    "seed-0/distilled/stage-task:10",
    "seed-1/no_teacher:11",
    "seed-1/distilled/stage-features:3",
    "seed-1/distilled/stage-ta:9",
    "seed-1/distilled/stage-task:6",
]
"""Kills after an optimizer step of a run."""

CALLS = [
    "kdplug.recipes.stages.shared_cache.fill_cache:1",
    "kdplug.recipes.stages.train.begin:1",
    "kdplug.recipes.stages.result.StageResult.write:1",
    "kdplug.recipes.stages.result.StageResult.write:2",
    "kdplug.recipes.stages.train._joined:1",
    "kdplug.recipes.result.RunFigures.write:1",
    "kdplug.recipes.result.RunFigures.write:2",
]
"""Kills before the n-th call of a function in a process."""

POINTS = [*CALLS[:2], *STEPS[:3], CALLS[2], *STEPS[3:6], CALLS[3], *STEPS[6:9], CALLS[4], CALLS[5], STEPS[9], *STEPS[10:], CALLS[6]]  # fmt: skip


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _deadly(point: str) -> None:
    """Replace the function of ``point`` by one that kills this process."""
    place, _, number = point.rpartition(":")
    if "/" in place:
        from kdplug.engine.loop import Loop

        usual = Loop._step

        def step(self, window):
            usual(self, window)
            if self.run.output_dir.match(f"*/{place}") and self.run.step == int(number):
                _die()

        Loop._step = step
        return
    owner_name, _, name = place.rpartition(".")
    try:
        owner = import_module(owner_name)
    except ModuleNotFoundError:
        module, _, cls = owner_name.rpartition(".")
        owner = getattr(import_module(module), cls)
    function, calls = getattr(owner, name), []

    @wraps(function)
    def counted(*args, **more):
        calls.append(1)
        if len(calls) == int(number):
            _die()
        return function(*args, **more)

    setattr(owner, name, counted)


def run(folder: Path, point: str | None) -> int:
    """Run the recipe in a copy of this process, and return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            if point is not None:
                _deadly(point)
            kdplug.run_recipe(kdplug.Recipe.from_dict({**RECIPE, "output_dir": str(folder)}), resume=True)
        except BaseException:  # the copy must never return to the loop
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    for module in ("accelerate", "kdplug.recipes.run", "kdplug_tasks.digits", "matplotlib.figure"):
        import_module(module)
    statuses = {"whole": run(folder / "whole", None)}
    for point in POINTS:
        statuses[point] = run(folder / "killed", point)
    statuses["end"] = run(folder / "killed", None)
    wrong = {point: status for point, status in statuses.items() if status != (-signal.SIGKILL if ":" in point else 0)}
    if wrong:
        sys.exit(f"these did not end as they should: {wrong}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
