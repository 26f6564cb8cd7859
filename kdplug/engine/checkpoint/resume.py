"""Resume a run exactly from a checkpoint."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from kdplug.engine.checkpoint.archive import damage
from kdplug.engine.checkpoint.checkpoint import check_whole, latest, load_both, read_plain, read_process
from kdplug.engine.checkpoint.folder import check_replaceable, places, steps
from kdplug.engine.checkpoint.identity import Difference, check_identity, differences
from kdplug.engine.checkpoint.weights import check_frozen, frozen_weights, load_buffers, student_file, uncompiled
from kdplug.engine.evaluation import Evaluation, Standing
from kdplug.engine.parallel.fsdp import sharded_like
from kdplug.engine.parallel.process import on_main
from kdplug.engine.run import Plan, Request
from kdplug.engine.training_module import TrainingModule
from kdplug.errors import RunError

if TYPE_CHECKING:
    from kdplug.engine.loop import Loop

_logger = logging.getLogger("kdplug")

AUTO = "auto"
"""Resume from the last checkpoint in ``output_dir``, or start a new run if there is none."""

Resume = str | os.PathLike[str] | None
"""``"auto"``, a checkpoint folder, or ``None`` for a new run."""


def find_checkpoint(resume: Resume, output_dir: Path) -> Path | None:
    """Return the checkpoint to resume from, or ``None`` for a new run. ``"auto"`` skips damaged ones with a warning.

    Raises: ``RunError`` if a given folder is not an intact checkpoint, or if every checkpoint is damaged.
    """
    if resume is None:
        return None
    if resume == AUTO:
        return latest(output_dir)
    folder = Path(resume)
    check_whole(folder, output_dir)
    return folder


def check_unused(output_dir: Path, folder: Path | None, request: Request) -> None:
    """Check that ``output_dir`` holds no checkpoints, unless the run resumes from one of them or overwrites them.

    ``folder`` is the checkpoint to resume from.

    Raises: ``RunError``.
    """
    found = steps(output_dir)
    resumes = folder is not None and folder.absolute().parent.resolve() == output_dir.resolve()
    if not found or resumes or request.overwrite:
        return
    way = "Choose" if request.resume == AUTO else "Resume that run with resume='auto', choose"
    instead = "" if request.resume is None else " instead of resume"
    raise RunError(
        f"{str(output_dir)!r} contains {found[-1][1].name!r} of an earlier run. {way} another output_dir, or delete its "
        f"checkpoints with overwrite=True{instead}",
        field="output_dir",
    )


def check_places(output_dir: Path, folder: Path | None, plan: Plan, evaluation: Evaluation | None) -> None:
    """Check that the planned checkpoints, and those of best evaluations, replace nothing that no run wrote.

    ``folder`` is the checkpoint to resume from.

    Raises: ``RunError``.
    """
    start = 0 if folder is None else read_plain(folder)["step"]
    ranked = None if evaluation is None or evaluation.best is None else evaluation
    for step, path in places(output_dir):
        if not start < step <= plan.total_steps:
            continue
        saves = plan.is_save(step)
        if saves or (ranked is not None and ranked.is_due(step, plan.total_steps, saves=saves)):
            check_replaceable(path)


def load_weights(
    pair: TrainingModule,
    identity: Mapping[str, Any],
    saved: Mapping[str, Any],
    folder: Path,
    accelerator: Accelerator,
    *,
    changed_is_meant: bool = False,
) -> dict[str, str]:
    """Load the weights in ``folder``, whose ``run.json`` is ``saved``, before student and objective are wrapped.

    Returns digests of the student's frozen weights, which are not in the checkpoint. They are compared with the
    weights of the main process, which all processes will use.

    Raises: ``RunError`` that lists the differences between ``identity`` and that of the run that wrote the checkpoint,
    or names a frozen weight that differs, unless ``changed_is_meant``; ``RunError`` for incompatible weights.
    """
    written = saved["identity"]
    if not changed_is_meant:
        check_identity(written, dict(identity), folder)
    elif written.get("processes") != identity.get("processes"):
        warnings.warn("the number of processes changed: the run resumes, but with different batches", stacklevel=2)
    frozen = load_both(pair.student, pair.objective, folder)
    try:
        on_main(accelerator, lambda: check_frozen(pair.student, frozen, student_file(folder)))
    except RunError as error:
        if not changed_is_meant:
            error.message += ". resume_changed=True (--resume-changed) resumes with the weights of this student"
            raise
        warnings.warn(f"the run resumes with weights that differ from those it started with: {error}", stacklevel=2)
        return {name: digest for name, digest in frozen_weights(pair.student).items() if name in frozen}
    return frozen


def go_on(loop: Loop, saved: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Restore everything but the weights from the checkpoint ``folder`` into a run that is about to start.

    Returns the state of the acting plugins, which is loaded after the start of the run.

    Raises: ``RunError`` for an incompatible checkpoint.
    """
    _load_learning(loop, saved, folder)
    _set_required(uncompiled(loop.run.model), saved.get("requires_grad", {}), folder)
    loop.run.step = saved["step"]
    loop.standing = _undamaged(Standing(**saved["standing"]), loop)
    loop.checkpoints.spare = loop.standing.step
    patience = None if loop.evaluation is None else loop.evaluation.patience
    loop.run.stop_reason = saved.get("stop_reason")
    is_patience_over = patience is not None and loop.standing.since >= patience
    loop.stopped_early = is_patience_over or loop.run.stop_reason is not None
    own = read_process(folder, _process(loop, saved))
    load_buffers(loop.run.objective, own.get("buffers", {}))
    loop.windows.seek(own["position"])
    if loop.run.step < loop.plan.total_steps:
        loop.display.note(f"Resuming from step {loop.run.step} of {loop.plan.total_steps} ({folder})")
    if loop.stopped_early:
        loop.note_stop()
    found: Mapping[str, Any] = own.get("hooks", {})
    return found


def _undamaged(standing: Standing, loop: Loop) -> Standing:
    """Return the best evaluation so far, or none if its checkpoint is damaged."""

    def found() -> list[str]:
        assert standing.step is not None
        best = loop.run.output_dir / f"step-{standing.step}"
        return damage(best, [student_file(best).name], only=True)

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
    optimizer, owner = loop.run.optimizer, "optimizer"
    is_scheduled = loop.scheduler is not None and saved["scheduler"] is not None
    changed = list(differences(saved["identity"].get("optimizer", {}), loop.identity.get("optimizer", {})))
    names = {name for one in changed if (name := _setting(one.path)) and not (is_scheduled and name == "lr")}
    settings = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(sharded_like(optimizer, saved["optimizer"]))
        for group, own in zip(optimizer.param_groups, settings, strict=True):
            group.update(own)
        owner = "learning-rate scheduler"
        if is_scheduled:
            loop.scheduler.load_state_dict(saved["scheduler"])
        owner = "gradient scaler"
        if loop.accelerator.scaler is not None and saved["scaler"]:
            loop.accelerator.scaler.load_state_dict(saved["scaler"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise RunError(
            f"{folder} does not match the {owner} of this run: {error}. Construct the {owner} as in the run that "
            "saved the checkpoint, or start a new run in another output_dir"
        ) from error
    if is_scheduled:
        _warn_schedule([one for one in changed if not one.is_digest], optimizer)


def _setting(path: str) -> str:
    """Return the setting of a parameter group that a path in the optimizer's identity names, or an empty string."""
    parts = path.split(".")
    is_setting = parts[0] == "groups" and len(parts) > 2 and parts[2] not in ("parameters", "names")
    return parts[2] if is_setting else ""


def _warn_schedule(changed: Iterable[Difference], optimizer: Optimizer) -> None:
    """Warn of changes of the learning rate and its schedule, which the state of the scheduler replaces."""
    own = [one for one in changed if _setting(one.path) == "lr" or one.path.startswith("scheduler_args")]
    if own:
        lines = ", ".join(f"optimizer.{one.path}: {one.first!r} -> {one.second!r}" for one in own)
        rates = ", ".join(dict.fromkeys(f"{float(group['lr']):g}" for group in optimizer.param_groups))
        warnings.warn(
            f"{lines}: the learning-rate scheduler resumes with the settings that the checkpoint holds, so this change may have "
            f"no effect. The learning rate is {rates}. To train with another schedule, start a new run",
            stacklevel=2,
        )


def _set_required(student: nn.Module, changed: Mapping[str, bool], folder: Path) -> None:
    """Set ``requires_grad`` where it had changed since the start of the run."""
    own = dict(student.named_parameters())
    for name, value in changed.items():
        if name not in own:
            raise RunError(
                f"{folder} does not match: the student has no parameter {name!r}. Construct the student as in "
                "the run that saved the checkpoint"
            )
        own[name].requires_grad_(value)


def _process(loop: Loop, saved: Mapping[str, Any]) -> int:
    written = saved["identity"].get("processes", 1)
    return loop.run.process_index if loop.run.process_index < written else 0
