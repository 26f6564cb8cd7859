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

_SEED_0, _SEED_1 = "seed-0/distilled/stage-", "seed-1/distilled/stage-"
_RESULT = "kdplug.recipes.stages.result.StageResult.write:1"
POINTS = [
    "kdplug.recipes.arms_run.fill_cache:1",
    "kdplug.recipes.stages.train.begin:1",
    *(f"{_SEED_0}features:{step}" for step in (1, 4, 8)),
    _RESULT,
    *(f"{_SEED_0}ta:{step}" for step in (2, 5, 10)),
    _RESULT,
    *(f"{_SEED_0}task:{step}" for step in (1, 7, 10)),
    _RESULT,
    "kdplug.recipes.stages.train._joined:1",
    "kdplug.recipes.result.RunFigures.write:1",
    "seed-1/no_teacher:11",
    f"{_SEED_1}features:3",
    f"{_SEED_1}ta:9",
    f"{_SEED_1}task:6",
]
"""Kills in order: after an optimizer step of a run, or before the n-th call of a function in a process."""


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
    points = [None, *POINTS, None]
    statuses = [run(folder / ("killed" if place else "whole"), point) for place, point in enumerate(points)]
    wrong = [
        (point, status)
        for point, status in zip(points, statuses, strict=True)
        if status != (0 if point is None else -signal.SIGKILL)
    ]
    if wrong:
        sys.exit(f"these did not end as they should: {wrong}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
