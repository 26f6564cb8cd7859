"""Kill a run at random moments, go on with it each time, and compare its bits with a run that was left alone.

    python tests/fault_injection.py --kills 200
    python tests/fault_injection.py --kills 20 --with hook

``--with`` adds a plugin whose hooks change the run and keep state, a low-rank transform of the student,
or a teacher that is the student's moving average.

Each attempt is a process of its own that gets SIGKILL. Every other one gets it at a moment drawn from all of its life,
the rest in the midst of writing a checkpoint: before or after one of the files, flushes, renames and deletions that make
one. Prints what happened as one line of JSON; exits with 1 where the bits differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from acting_plugin import NAME, install, installed
from small_run import PROJECTED, Net, make_distiller, make_student, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdplug
from kdplug.engine.checkpoint import checkpoint

STEPS = 40


ADDED = ("nothing", "hook", "transform", "ema")
EMA: dict[str, Any] = {"teacher_update": {"name": "ema", "decay": 0.8, "final_decay": 1.0}}


class LowRank:
    """Train a random low-rank difference to each linear layer, which stays as it is."""

    def prepare(self, student):
        for name in ("inner", "head"):
            setattr(student, name, _Low(getattr(student, name)))
        return student

    def finish(self, student):
        for name in ("inner", "head"):
            setattr(student, name, getattr(student, name).merged())
        return student


class _Low(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.zeros(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T

    def merged(self):
        with torch.no_grad():
            self.base.weight += self.up @ self.down
        return self.base


def train(folder: Path, added: str = "nothing") -> None:
    """One attempt: go on with the run in ``folder``, or start it, and leave its final bits in ``final.pt``."""
    with added_to(folder, added) as (options, transforms):
        _train(folder, options, transforms)


@contextmanager
def added_to(folder: Path, added: str):
    """Install what is added; the keys of the distillation that name it, and the student's transforms."""
    if added == "hook":
        install(folder.parent / "site")
        with installed():
            yield {"matches": [PROJECTED], "plugins": {"hooks": [NAME]}}, kdplug.StudentTransforms([])
    elif added == "transform":
        kdplug.student_transforms.register("low_rank")(LowRank)
        yield {"matches": [PROJECTED]}, kdplug.StudentTransforms(["low_rank"])
    elif added == "ema":
        yield EMA, kdplug.StudentTransforms([])
    else:
        yield {"matches": [PROJECTED]}, kdplug.StudentTransforms([])


def _train(folder: Path, options: dict, transforms: kdplug.StudentTransforms) -> None:
    torch.manual_seed(0)
    student = transforms.prepare(make_student(dropout=0.2))
    distiller = make_distiller(
        folder,
        student,
        Net(3, seed=2) if "teacher_update" in options else None,
        training={"gradient_accumulation_steps": 2, "ckpt_steps": 1, "logging_steps": 1, "seed": 7, "keep_last": 3},
        **options,
    )
    data = TensorDataset(torch.randn(26, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    distiller.train(optimizer, loader, num_steps=STEPS, max_grad_norm=1.0, resume="auto")
    models = [
        model for model in (transforms.finish(student), distiller.objective, distiller.model_T) if model.state_dict()
    ]
    torch.save(torch.cat(list(map(weights, models))), folder / "final.pt")


def die_inside_a_write(countdown: int) -> None:
    """Let this process kill itself at the ``countdown``-th operation of those that write checkpoints."""
    left = [countdown]

    def mortal(function):
        def call(*arguments, **options):
            count_down()
            result = function(*arguments, **options)
            count_down()
            return result

        return call

    def count_down():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in (
        "write_archive",
        "write_checksums",
        "write_student",
        "save_weights",
        "_flush",
        "_rename",
        "discard",
        "begin",
    ):
        setattr(checkpoint, name, mortal(getattr(checkpoint, name)))


def attempt(
    folder: Path, kill_after: float | None = None, die_at: int | None = None, *, added: str = "nothing"
) -> tuple[int, float]:
    """Run ``train`` in a process of its own, and kill it; its exit status and its seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            if die_at is not None:
                die_inside_a_write(die_at)
            train(folder, added)
            os._exit(0)
        except SystemExit as leaving:
            os._exit(int(leaving.code or 0))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(99)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


def bits(folder: Path) -> tuple[bytes, str]:
    """The final weights and the journal."""
    final = torch.load(folder / "final.pt", weights_only=True)
    return final.numpy().tobytes(), (folder / "log.jsonl").read_text()


def main() -> int:
    """Inject the kills and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--with", dest="added", choices=ADDED, default="nothing")
    arguments = parser.parse_args()
    added = arguments.added
    moments = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp())
    try:
        code, whole_seconds = attempt(root / "whole", added=added)
        assert code == 0, f"the run that was left alone ended with {code}"
        reference, kills, in_write, half_written, runs, unequal = bits(root / "whole"), 0, 0, 0, 0, 0
        while kills < arguments.kills:
            folder = root / f"run-{runs}"
            runs += 1
            code = -signal.SIGKILL
            while code == -signal.SIGKILL:
                inside = kills % 2 == 1
                if kills >= arguments.kills:
                    code, _ = attempt(folder, added=added)
                elif inside:
                    code, _ = attempt(folder, die_at=moments.randint(1, 120), added=added)
                else:
                    code, _ = attempt(folder, kill_after=moments.uniform(0.0, whole_seconds / 2), added=added)
                killed = code == -signal.SIGKILL
                kills, in_write = kills + killed, in_write + (killed and inside)
                half_written += killed and any(folder.glob(".step-*"))
            assert code == 0, f"an attempt ended with {code}"
            unequal += bits(folder) != reference
        report = {"kills": kills, "inside a write": in_write, "left half written": half_written}
        print(json.dumps({**report, "runs": runs, "unequal": unequal}))
        return int(unequal > 0)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
