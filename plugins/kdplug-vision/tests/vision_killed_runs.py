"""Run each recipe in a process of its own, which ends without cleaning up: ``python vision_killed_runs.py FOLDER STEP``."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from vision_recipe import KILLED, train
from vision_recipes import RECIPES


def main(folder: Path, step: int) -> None:
    """Start a copy of this process for each recipe, so that what a run imports is imported once."""
    for module in ("accelerate", "torch._dynamo", "kdplug.engine.train"):
        import_module(module)
    for name, recipe in RECIPES.items():
        process = os.fork()
        if process == 0:
            try:
                train(recipe, folder / name, killed_at=step)
            except BaseException:  # the copy must never return to the loop
                traceback.print_exc()
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != KILLED:
            sys.exit(f"{name} ended with {status} before step {step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
