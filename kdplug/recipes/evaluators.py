"""Run a recipe's evaluators on each trained model, after the training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdplug.config.recipe import Recipe
from kdplug.contracts.evaluator import Evaluator
from kdplug.engine.checkpoint.identity import model_identity
from kdplug.engine.forward_state import modes, random_state_kept
from kdplug.engine.observe.activity import busy
from kdplug.engine.parallel.process import process
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.bounded_json import read_json
from kdplug.host.component import Component
from kdplug.host.isolation.plugin_code import described, run_plugin_code
from kdplug.host.registry import evaluators
from kdplug.recipes.arm import Arm, ArmRun, student_runs, teacher_run
from kdplug.recipes.arms_run import ArmsRun
from kdplug.recipes.result import finite
from kdplug.report.file import write_json
from kdplug.report.page.results import LARGEST_FIGURE
from kdplug.report.table import component_text

FILE = "evaluators.json"
"""The figures of the evaluators for one run, in its folder."""


@dataclass(frozen=True, slots=True)
class NamedEvaluator:
    """An evaluator of a recipe. ``label`` is its name in results, and ``key`` identifies it with its settings."""

    label: str
    key: str
    component: Component


def build_evaluators(recipe: Recipe) -> list[NamedEvaluator]:
    """Build the recipe's evaluators.

    Raises: ``EntryError``, ``SettingError`` for a wrong name or setting; ``ConfigError`` if one cannot be called.
    """
    found = []
    names = [spec.name for spec in recipe.evaluators]
    for place, spec in enumerate(recipe.evaluators):
        try:
            component = evaluators.build(spec)
            if not isinstance(component.target, Evaluator):
                raise ConfigError(f"{component.entry.qualified} is not an evaluator: it lacks __call__")
        except KdplugError as error:
            raise error.at("evaluators", place) from error.__cause__
        label = spec.name if names.count(spec.name) == 1 else component_text(spec)
        key = json.dumps([component.qualified_spec(), component.entry.version], sort_keys=True)
        found.append(NamedEvaluator(label, key, component))
    return found


@dataclass(slots=True)
class Evaluations:
    """The evaluators of a recipe on the models of its runs. ``failed`` holds the error of each that failed."""

    arms: ArmsRun
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Add the figures of every evaluator to each run of ``arms``. Figures that an earlier process stored are kept."""
        recipe = self.arms.runner.recipe
        wanted = build_evaluators(recipe)
        for run in (teacher_run(recipe), *student_runs(recipe)) if wanted else ():
            if run in self.arms.done:
                self._complete(run, wanted)

    def _complete(self, run: ArmRun, wanted: list[NamedEvaluator]) -> None:
        file = run.folder(Path(self.arms.runner.recipe.output_dir)) / FILE
        known = _read(file, self.arms.identity)
        missing = [one for one in wanted if one.key not in known]
        if missing:
            for one, figures in self._measured(run, missing):
                known[one.key] = figures
                write_json(file, {"identity": self.arms.identity, "figures": known})
        figures = {one.label: _numbers(known[one.key]) for one in wanted if one.key in known}
        self.arms.done[run] = replace(self.arms.done[run], evaluators=figures)

    def _measured(self, run: ArmRun, missing: list[NamedEvaluator]) -> Iterator[tuple[NamedEvaluator, dict[str, Any]]]:
        """Yield the figures of each evaluator; one that fails is noted, and the others run on the model as it was."""
        runner = self.arms.runner
        with process(runner.recipe.training.device, None) as accelerator:
            model = self._model(run).to(accelerator.device)
            before = model_identity(model)
            for one in missing:
                runner.say(f"Evaluating {run} with {one.label}")
                try:
                    figures = _figures(one, model, runner.task)
                    if model_identity(model) != before:
                        raise ConfigError("it changed the weights of the model")
                except Exception as error:  # the results of the training are worth having
                    self.failed[f"{one.label}: {run}"] = f"{type(error).__name__}: {error}"
                    runner.say(f"Warning: evaluator {one.label} failed for {run}: {type(error).__name__}: {error}")
                    if model_identity(model) != before:
                        model = self._model(run).to(accelerator.device)
                else:
                    yield one, figures

    def _model(self, run: ArmRun) -> nn.Module:
        """Return the model of a complete run."""
        arms = self.arms
        if run.arm is not Arm.TEACHER:
            return arms.load(arms.done[run])
        if arms.origin is not None:
            return arms.runner.cached_teacher()
        teacher = arms.runner.loaded_teacher(Path(arms.runner.recipe.output_dir))
        assert teacher is not None  # its run is in ``done``
        return teacher


def _figures(one: NamedEvaluator, model: nn.Module, task: Any) -> dict[str, float | None]:
    entry, target = one.component.entry, cast("Evaluator", one.component.target)
    with busy(f"Evaluating with {one.label}"), random_state_kept(), modes(evaluating=model), torch.no_grad():
        done = run_plugin_code(lambda: target(model, task), f"evaluator {entry.qualified!r}", entry.dist, "build")
    if isinstance(done.error, Exception):
        raise done.error
    if done.error is not None:
        raise ConfigError(described(done.error)) from done.error
    found: Any = done.value
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"must return figures by name, got {type(found).__name__}")
    for name, value in found.items():
        is_number = isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        if not isinstance(name, str) or not is_number or isinstance(value, bool):
            raise ConfigError(f"must return a number for each name, got {name!r}: {type(value).__name__}")
    figures = finite({name: float(value) for name, value in found.items()})
    for name, value in figures.items():
        if value is not None and abs(value) > LARGEST_FIGURE:
            raise ConfigError(f"{name} is {value:g}: figures of at most {LARGEST_FIGURE:g} can be shown")
    return figures


def _read(file: Path, identity: str) -> dict[str, dict[str, Any]]:
    """Return the stored figures by key; none if they are of another run or the file is damaged."""
    try:
        found = read_json(file)
        stored = found["figures"] if found["identity"] == identity else {}
        return {key: _stored(one) for key, one in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _stored(figures: Mapping[str, Any]) -> dict[str, float | None]:
    return {str(name): None if value is None else float(value) for name, value in figures.items()}


def _numbers(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in figures.items()}
