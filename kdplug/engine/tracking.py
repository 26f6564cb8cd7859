"""What a run writes down about its losses, through accelerate's trackers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import is_tensorboard_available

from kdplug.errors import RunError
from kdplug.objective.report import LossReport

_FLUSH_SECONDS = 10


class Tracking:
    """The trackers of one run. Only the main process has any."""

    def __init__(self, tensorboard: TensorBoardTracker | None = None) -> None:
        self._writer = None if tensorboard is None else tensorboard.tracker

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write each value under ``scalar/{name}`` at optimizer step ``step``.

        Past the tracker's own ``log``, which waits for the disk each time; the writer flushes every few seconds.
        """
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"scalar/{name}", value, global_step=step)


@contextmanager
def tracking(log_dir: str | os.PathLike[str] | None, *, is_main: bool) -> Iterator[Tracking]:
    """TensorBoard files in ``log_dir`` for the length of a run, or nothing where that is ``None``.

    Raises: ``RunError`` where TensorBoard is not installed.
    """
    if log_dir is not None and not is_tensorboard_available():
        raise RunError(f'log_dir={str(log_dir)!r} needs TensorBoard: pip install "kdplug[tensorboard]"')
    if log_dir is None or not is_main:
        yield Tracking()
        return
    tensorboard = TensorBoardTracker("", log_dir, flush_secs=_FLUSH_SECONDS)
    tensorboard.start()
    try:
        yield Tracking(tensorboard)
    finally:
        tensorboard.finish()


def losses(accelerator: Accelerator, report: LossReport) -> dict[str, float]:
    """``total_loss`` and ``unweighted_{term}`` as numbers, with one synchronisation; the mean over the processes."""
    tensors = {"total_loss": report.total}
    tensors.update((f"unweighted_{name}", term.value) for name, term in report.terms.items())
    dtype = torch.float64 if report.total.dtype is torch.float64 else torch.float32
    values = torch.stack([tensor.detach().to(dtype) for tensor in tensors.values()])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    return dict(zip(tensors, values.tolist(), strict=True))
