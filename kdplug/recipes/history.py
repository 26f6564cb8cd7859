"""Record the loss terms and evaluations of a training run in ``history.jsonl``, for its curves and report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeGuard

import torch
from torch import Tensor, nn

from kdplug.host.bounded_json import json_value
from kdplug.recipes.arm import HISTORY
from kdplug.recipes.task import OnPolicyCounts

if TYPE_CHECKING:
    from kdplug.engine.run import Run
    from kdplug.objective.report import LossReport

_HELD = 100


class _Held(NamedTuple):
    """A step that is not written yet: each term's value, weight, and its balancer's factor."""

    step: int
    values: Mapping[str, Tensor]
    weights: Mapping[str, float]
    balance: Mapping[str, Tensor]
    made: OnPolicyCounts | None


class History:
    """Observer that records each unweighted term, and the metrics of each evaluation that ``evaluate`` makes.

    ``terms`` contains pairs of optimizer step and value, ``validation`` pairs of step and metrics. ``counted`` returns
    the on-policy counts of the batches since its last call, and ``made`` is their sum. The history is written to
    ``history.jsonl`` in the run's folder, so a resumed run keeps the earlier part. On an accelerator, losses stay on
    the device for up to 100 steps, until ``is_save`` announces a checkpoint, or until the run ends.
    """

    def __init__(
        self,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        is_save: Callable[[int], bool] | None = None,
        counted: Callable[[], OnPolicyCounts] | None = None,
    ) -> None:
        self.made = OnPolicyCounts(0, 0)
        self.validation: list[tuple[int, dict[str, float]]] = []
        self.terms: dict[str, list[tuple[int, float]]] = {}
        self._evaluate = evaluate
        self._is_save = is_save
        self._counted = counted
        self._held: list[_Held] = []
        self._file: TextIO | None = None
        self._run: Run | None = None

    @classmethod
    def read(cls, folder: Path) -> History:
        """Return the history of a complete run in ``folder``."""
        found = cls()
        for line in _lines(folder / HISTORY):
            found._take(line)
        return found

    def run_start(self, run: Run) -> None:
        """Load the history of the completed steps."""
        self._run = run
        path = run.output_dir / HISTORY
        lines = [line for line in _lines(path) if line["step"] <= run.step] if run.step else []
        if run.step and self._counted is not None:
            self._counted()  # drop the counts of the batch that the resumed run read but did not train on
        self.validation, self.terms, self.made = [], {}, OnPolicyCounts(0, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{HISTORY}.tmp")
        temporary.write_text("".join(map(_text, lines)), encoding="utf-8")
        temporary.replace(path)
        for line in lines:
            self._take(line)
        self._file = path.open("a", encoding="utf-8")

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """Evaluate the student of the run and record its metrics."""
        assert self._evaluate is not None
        assert self._run is not None
        self._settle()
        found = self._evaluate(model)
        values = {name: value if math.isfinite(value) else None for name, value in found.items()}
        self._keep({"step": self._run.step, "validation": values})
        return found

    def step_end(self, run: Run, step: int, report: LossReport) -> None:  # noqa: ARG002
        """Record the terms of the step."""
        values = {name: term.value.detach() for name, term in report.terms.items()}
        weights = {name: float(term.weight) for name, term in report.terms.items()}
        balance = {name: term.balance for name, term in report.terms.items() if term.balance is not None}
        made = None if self._counted is None else self._counted()
        self._held.append(_Held(step, values, weights, balance, made))
        waits = any(value.device.type != "cpu" for value in values.values())
        if not waits or len(self._held) >= _HELD or (self._is_save is not None and self._is_save(step)):
            self._settle()

    def run_end(self, run: Run, error: BaseException | None) -> None:  # noqa: ARG002
        """Write the losses still held and close the file."""
        self._settle()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _settle(self) -> None:
        """Write the held losses, with one device synchronization."""
        held, self._held = self._held, []
        flat = [one.double() for of in held for one in (*of.values.values(), *of.balance.values())]
        numbers: Iterator[float] = iter(torch.stack(flat).tolist() if flat else ())
        for of in held:
            counts = {} if of.made is None else {"made": list(of.made)}
            terms = {name: next(numbers) for name in of.values}
            weights = {**of.weights, **{name: of.weights[name] * next(numbers) for name in of.balance}}
            self._keep({"step": of.step, "terms": terms, "weights": weights, **counts})

    def _keep(self, line: dict[str, Any]) -> None:
        self._take(line)
        if self._file is not None:
            self._file.write(_text(line))
            self._file.flush()

    def _take(self, line: Mapping[str, Any]) -> None:
        step = line["step"]
        if "validation" in line:
            values = {name: math.nan if value is None else value for name, value in line["validation"].items()}
            self.validation.append((step, values))
        generated, batches = line.get("made", (0, 0))
        self.made = OnPolicyCounts(self.made[0] + generated, self.made[1] + batches)
        for name, value in line.get("terms", {}).items():
            self.terms.setdefault(name, []).append((step, value))


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a history, up to the first truncated or invalid one."""
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        try:
            line = json_value(text)
        except ValueError:
            return
        if not text.endswith("\n") or not _is_line(line):
            return
        yield line


def _is_line(line: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(line, dict) or not isinstance(line.get("terms", {}), dict):
        return False
    counts, validation = line.get("made", [0, 0]), line.get("validation", {})
    return (
        isinstance(counts, list)
        and len(counts) == 2
        and all(type(count) is int for count in (*counts, line.get("step")))
        and all(isinstance(value, (int, float)) for value in line.get("terms", {}).values())
        and isinstance(validation, dict)
        and all(value is None or isinstance(value, (int, float)) for value in validation.values())
    )
