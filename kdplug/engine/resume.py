"""Going on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdplug.engine.checkpoint import latest, load_objective, load_student, read_process, read_run
from kdplug.engine.evaluation import Standing
from kdplug.engine.identity import check_identity
from kdplug.engine.loop import Loop
from kdplug.engine.pair import Pair
from kdplug.engine.shard_state import sharded_like
from kdplug.engine.window import Windows
from kdplug.errors import RunError

AUTO = "auto"
"""Go on from the last checkpoint in ``output_dir``, or start where there is none."""

Resume = str | os.PathLike[str] | None
"""``"auto"``, the folder of a checkpoint, or ``None`` for a fresh start."""


def find_checkpoint(resume: Resume, output_dir: Path) -> Path | None:
    """The checkpoint to go on from, ``None`` for a fresh start.

    Raises: ``RunError`` where a folder is named that holds no checkpoint.
    """
    if resume is None:
        return None
    if resume == AUTO:
        return latest(output_dir)
    folder = Path(resume)
    read_run(folder)
    return folder


def load_weights(pair: Pair, identity: Mapping[str, Any], folder: Path, *, changed_is_meant: bool = False) -> None:
    """Give student and objective the weights in ``folder``, before anything wraps or shards them.

    Raises: ``RunError`` that lists what differs between ``identity`` and that of the run that wrote them, unless
    ``changed_is_meant``; ``RunError`` for a damaged checkpoint, or one that does not fit.
    """
    written = read_run(folder)["identity"]
    if not changed_is_meant:
        check_identity(written, dict(identity), folder)
    elif written.get("processes") != identity.get("processes"):
        warnings.warn("the number of processes changed: the run goes on, but not with the same batches", stacklevel=2)
    load_student(pair.student, folder)
    load_objective(pair.objective, folder)


def go_on(loop: Loop, folder: Path) -> None:
    """Put a run that is about to start where the run that wrote ``folder`` was; its weights are there already.

    Raises: ``RunError`` for a damaged checkpoint, or one that does not fit.
    """
    saved = read_run(folder)
    _load_learning(loop, saved, folder)
    loop.run.step = saved["step"]
    loop.standing = Standing(**saved["standing"])
    loop.checkpoints.spare = loop.standing.step
    patience = None if loop.evaluation is None else loop.evaluation.patience
    loop.stopped_early = patience is not None and loop.standing.since >= patience
    _seek(loop.windows, read_process(folder, _process(loop, saved)))


def _load_learning(loop: Loop, saved: Mapping[str, Any], folder: Path) -> None:
    try:
        loop.run.optimizer.load_state_dict(sharded_like(loop.run.optimizer, saved["optimizer"]))
        if loop.scheduler is not None and saved["scheduler"] is not None:
            loop.scheduler.load_state_dict(saved["scheduler"])
        if loop.accelerator.scaler is not None and saved["scaler"]:
            loop.accelerator.scaler.load_state_dict(saved["scaler"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"{folder} does not fit the optimizer: {error}") from error


def _process(loop: Loop, saved: Mapping[str, Any]) -> int:
    written = saved["identity"].get("processes", 1)
    return loop.run.process_index if loop.run.process_index < written else 0


def _seek(windows: Windows, own: Mapping[str, Any]) -> None:
    windows.seek(own["position"])
