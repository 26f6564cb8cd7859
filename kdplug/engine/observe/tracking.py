"""Loss logging: accelerate's trackers and the journal file."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_tensorboard_available

from kdplug.config.training import LoopConfig
from kdplug.contracts.tree import dotted, leaves
from kdplug.errors import RunError
from kdplug.host.bounded_json import json_value
from kdplug.objective.report import LossReport, TermValue

_FLUSH_SECONDS = 10
_PROJECT = "kdplug"
_NAMES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "mlflow": "MLflow"}


class Tracking:
    """The trackers of one run. Only the main process has any."""

    def __init__(self, trackers: Mapping[str, GeneralTracker] | None = None) -> None:
        others = dict(trackers or {})
        tensorboard = others.pop("tensorboard", None)
        self._writer = None if tensorboard is None else tensorboard.tracker
        self._others = tuple(others.values())

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of optimizer step ``step``: TensorBoard names each ``scalar/{name}``, the others ``name``.

        This bypasses ``TensorBoardTracker.log``, which flushes to disk each time; the writer flushes every few seconds.
        """
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"scalar/{name}", value, global_step=step)
        for tracker in self._others:
            tracker.log(dict(values), step=step)


@contextmanager
def tracking(
    config: LoopConfig, *, is_main: bool, name: str = "", about: Mapping[str, Any] | None = None
) -> Iterator[Tracking]:
    """Yield the trackers that ``config`` names, for a run called ``name``; ``about`` is stored with each.

    W&B's project and MLflow's experiment are ``kdplug`` unless ``WANDB_PROJECT`` or ``MLFLOW_EXPERIMENT_NAME`` is set.

    Raises: ``RunError`` if a tracker's package is not installed.
    """
    check_trackers(config)
    wanted = _wanted(config)
    if not is_main:
        yield Tracking()
        return
    with ExitStack() as stack:
        started = {}
        for tracker in wanted:
            made = started[tracker] = _make(tracker, config, name)
            made.start()
            stack.callback(made.finish)
            made.store_init_configuration(flat(about or {}))
        yield Tracking(started)


def _wanted(config: LoopConfig) -> tuple[str, ...]:
    if config.trackers is None:
        return () if config.log_dir is None else ("tensorboard",)
    return tuple(dict.fromkeys(config.trackers))


def check_trackers(config: LoopConfig) -> None:
    """Raise ``RunError`` if the package of a tracker that ``config`` names is not installed."""
    for tracker in _wanted(config):
        if not _is_installed(tracker):
            raise RunError(
                f'tracking with {_NAMES[tracker]} needs its package: pip install "kdplug[{tracker}]"',
                field="log_dir" if config.trackers is None else "trackers",
            )


def _is_installed(tracker: str) -> bool:
    if tracker == "tensorboard":
        return bool(is_tensorboard_available())
    found = importlib.util.find_spec(tracker)
    return found is not None and found.origin is not None  # a folder ./wandb with logs is a namespace package


def _make(tracker: str, config: LoopConfig, name: str) -> GeneralTracker:
    if tracker == "tensorboard":
        return TensorBoardTracker("", config.log_dir or "", flush_secs=_FLUSH_SECONDS)
    if tracker == "wandb":
        return WandBTracker(os.environ.get("WANDB_PROJECT", _PROJECT), name=name or None)
    return MLflowTracker(_PROJECT, run_name=name or None)


def flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested plain data, with ``a.b`` for ``b`` in ``a``, as trackers store it; lists and ``None`` become JSON.

    The empty key, which holds the config of a run without tasks, adds nothing to a name.
    """
    found = leaves(data, is_leaf=lambda value: not isinstance(value, Mapping) or not value)
    return {
        dotted(path): value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for path, value in found
    }


def losses(accelerator: Accelerator, report: LossReport) -> dict[str, float]:
    """Return ``total_loss`` and ``unweighted_{term}`` as numbers, averaged over processes, with one synchronization.

    A term with a balancer also has ``weight_{term}``.
    """
    balanced = {name: term for name, term in report.terms.items() if term.balance is not None}
    names = ["total_loss", *(f"unweighted_{name}" for name in report.terms), *(f"weight_{name}" for name in balanced)]
    alone = accelerator.num_processes == 1
    with torch.no_grad():
        shares = [_share(term, alone=alone) for term in report.terms.values()]
        shares += [(torch.as_tensor(term.factor(report.total)), 1) for term in balanced.values()]
        tensors = [report.total, *(tensor for tensor, _ in shares)]
        dtype = torch.float64 if report.total.dtype is torch.float64 else torch.float32
        values = torch.stack([tensor if tensor.dtype is dtype else tensor.to(dtype) for tensor in tensors])
    if not alone:
        values = accelerator.reduce(values, reduction="mean")
    counts = [1, *(count for _, count in shares)]
    return {name: value / count for name, value, count in zip(names, values.tolist(), counts, strict=True)}


def _share(term: TermValue, *, alone: bool) -> tuple[torch.Tensor, float]:
    """Return a tensor and a divisor that give the term's value; plain numbers are divided without the device."""
    if alone and isinstance(term.count, (int, float)) and term.count > 0:
        return term.total, term.count
    return term.value, 1


NAME = "log.jsonl"


class Journal:
    """Writes ``{"step": …, "total_loss": …, …}`` lines. Only the main process has a file."""

    def __init__(self, file: TextIOWrapper | None = None) -> None:
        self._file = file

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append a line. Raises: ``RunError`` if it cannot be written."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(Path(self._file.name), error) from error


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {str(path)!r}: {error.strerror}", field="output_dir")


@contextmanager
def journal(output_dir: Path, *, is_main: bool, after: int = 0) -> Iterator[Journal]:
    """Yield the journal of a run that resumes after ``after`` steps; lines of later steps are dropped.

    Raises: ``RunError`` if it cannot be written.
    """
    if not is_main:
        yield Journal()
        return
    path = output_dir / NAME
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if _step(line) <= after] if after else []
        temporary = path.with_name(f".{NAME}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield Journal(file)
    finally:
        with suppress(OSError):  # of a line that could not be written, which has raised already
            file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _step(line: str) -> float:
    """Return the step of a line; a line truncated by a kill sorts after all others."""
    try:
        return float(json_value(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
