"""Going on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdplug.engine.accumulation_batches import AccumulationBatches
from kdplug.engine.checkpoint.archive import damage
from kdplug.engine.checkpoint.checkpoint import STUDENT, check_whole, latest, load_both, read_process
from kdplug.engine.checkpoint.identity import check_identity
from kdplug.engine.evaluation import Standing
from kdplug.engine.loop import Loop
from kdplug.engine.parallel.fsdp import sharded_like
from kdplug.engine.parallel.process import on_main
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError

_logger = logging.getLogger("kdplug")

AUTO = "auto"
"""Go on from the last checkpoint in ``output_dir``, or start where there is none."""

Resume = str | os.PathLike[str] | None
"""``"auto"``, the folder of a checkpoint, or ``None`` for a fresh start."""


def find_checkpoint(resume: Resume, output_dir: Path) -> Path | None:
    """The checkpoint to go on from, ``None`` for a fresh start. With ``"auto"`` damaged ones are passed over, with a warning.

    Raises: ``RunError`` where a folder is named that is no undamaged checkpoint, or where every checkpoint is damaged.
    """
    if resume is None:
        return None
    if resume == AUTO:
        return latest(output_dir)
    folder = Path(resume)
    check_whole(folder)
    return folder


def load_weights(
    pair: TrainingModule,
    identity: Mapping[str, Any],
    saved: Mapping[str, Any],
    folder: Path,
    *,
    changed_is_meant: bool = False,
) -> None:
    """Give student and objective the weights in ``folder``, before anything wraps or shards them; ``saved`` is read from it.

    Raises: ``RunError`` that lists what differs between ``identity`` and that of the run that wrote them, unless
    ``changed_is_meant``; ``RunError`` for weights that do not fit.
    """
    written = saved["identity"]
    if not changed_is_meant:
        check_identity(written, dict(identity), folder)
    elif written.get("processes") != identity.get("processes"):
        warnings.warn("the number of processes changed: the run goes on, but not with the same batches", stacklevel=2)
    load_both(pair.student, pair.objective, folder)


def go_on(loop: Loop, saved: Mapping[str, Any], folder: Path) -> None:
    """Put a run that is about to start where the run that wrote ``folder`` was; its weights are there already.

    Raises: ``RunError`` for a checkpoint that does not fit.
    """
    _load_learning(loop, saved, folder)
    loop.run.step = saved["step"]
    loop.standing = _undamaged(Standing(**saved["standing"]), loop)
    loop.checkpoints.spare = loop.standing.step
    patience = None if loop.evaluation is None else loop.evaluation.patience
    loop.stopped_early = patience is not None and loop.standing.since >= patience
    _seek(loop.windows, read_process(folder, _process(loop, saved)))
    if loop.run.step < loop.plan.total_steps:
        loop.display.note(f"Resuming from step {loop.run.step} of {loop.plan.total_steps} ({folder})")


def _undamaged(standing: Standing, loop: Loop) -> Standing:
    """The best evaluation so far, or none where its checkpoint cannot be used any more."""

    def found() -> list[str]:
        assert standing.step is not None
        return damage(loop.run.output_dir / f"step-{standing.step}", [STUDENT], only=True)

    if standing.step is None or not (phrases := on_main(loop.accelerator, found)):
        return standing
    if loop.run.is_main:
        _logger.warning(
            "the best checkpoint so far, step-%d, is damaged (%s): the next evaluation counts as the best",
            standing.step,
            ", ".join(phrases),
        )
    return Standing(since=standing.since)


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


def _seek(windows: AccumulationBatches, own: Mapping[str, Any]) -> None:
    windows.seek(own["position"])
