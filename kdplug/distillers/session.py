"""State of a distiller across its runs: observers, the models' train or eval modes to restore, and teacher caches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import kdplug
from kdplug.config.distillation import DEFAULT_COMBINER, DistillationConfig
from kdplug.config.key import keys_that_need, not_identity
from kdplug.config.term import TermConfig, compares_logits
from kdplug.config.training import TrainingConfig
from kdplug.contracts.cache_codec import CacheCodec
from kdplug.contracts.sparse_logits import SparseLogits, distinct
from kdplug.contracts.teacher import ExternalTeacher
from kdplug.engine.cache.cache import TeacherCache
from kdplug.engine.cache.coding import Coding
from kdplug.engine.cache.fingerprint import OneTeacher
from kdplug.engine.cache.kept_mass import decoded
from kdplug.engine.cache.session import Caches, fill
from kdplug.engine.cache.summary import CacheSummary
from kdplug.engine.checkpoint.fingerprint import data_fingerprint, described
from kdplug.engine.checkpoint.identity import check_ranks, teacher_identity
from kdplug.engine.external_teacher import CalledTeacher
from kdplug.engine.forward_state import modes
from kdplug.engine.observe.activity import busy
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.parallel.process import process
from kdplug.engine.run import Request, RunResult
from kdplug.engine.self_teacher import SELF, SelfTeacher
from kdplug.engine.teacher import CacheOnlyTeacher, Teacher, TeacherSide
from kdplug.engine.train import train
from kdplug.engine.training_module import Adaptor, TrainingModule
from kdplug.errors import ConfigError, KdplugError
from kdplug.host.acting import Acting
from kdplug.host.active import LifeCycle
from kdplug.host.metadata import installed_version
from kdplug.host.name import split_qualified
from kdplug.host.registry import cache_codecs, losses
from kdplug.objective.logit_loss import LogitLoss
from kdplug.objective.objective import Objective
from kdplug.objective.schedule import Temperature
from kdplug.objective.teacher import STUDENT_KEY
from kdplug.objective.teacher_update import build_teacher_update
from kdplug.report.record import used_entries

_FIELD = "teacher_cache_codec"


def coding(training: TrainingConfig, distillation: DistillationConfig) -> Coding | None:
    """Return the codec named by ``teacher_cache_codec``, at the temperatures of the terms; ``None`` if there is none.

    Raises: ``EntryError``, ``SettingError`` for an invalid codec config; ``ConfigError`` if it lacks a method, if the
    distillation has a separate temperature for each item, if terms use several temperatures and the codec stores no
    tail, or if the kd loss cannot be computed from its output.
    """
    if training.teacher_cache_codec is None:
        return None
    try:
        component = cache_codecs.build(training.teacher_cache_codec)
    except KdplugError as error:
        raise error.at(_FIELD) from error.__cause__
    codec = component.target
    if not isinstance(codec, CacheCodec):
        lacking = [name for name in vars(CacheCodec) if not name.startswith("_") and not hasattr(codec, name)]
        raise ConfigError(
            f"{component.entry.qualified} is not a cache codec: it lacks {', '.join(lacking)}", field=_FIELD
        )
    terms = [term for term, _, _ in distillation.written_terms() if term.weight and term.teacher != STUDENT_KEY]
    on_logits = list(filter(_compares_logits, terms))
    temperatures = list(map(distillation.temperature_of, on_logits))
    bases = distinct(temperature.base for temperature in temperatures)
    if codec.uses_temperature and any(temperature.scheduler is not None for temperature in temperatures):
        raise ConfigError(
            f"{component.entry.name} stores teacher outputs at one temperature, and temperature_scheduler gives each "
            "item its own temperature. Remove temperature_scheduler, or set teacher_cache_codec to dense, "
            "which stores all logits, or to hidden if the teacher returns FactoredLogits",
            field=_FIELD,
        )
    first, *others = map(float, bases or [distillation.temperature])
    found = Coding(codec, component.qualified_spec(), first, tuple(others) if codec.uses_temperature else ())
    logits = decoded(found)
    if found.others and not _has_tail(logits, codec):
        raise ConfigError(
            f"{component.entry.name} stores teacher outputs at one temperature, but the terms use the temperatures "
            f"{' and '.join(f'{base:g}' for base in bases)}. Set the same temperature for all terms, or set "
            "teacher_cache_codec to one whose SparseLogits have a tail, such as topk_tail, to dense, which stores all "
            "logits, or to hidden if the teacher returns FactoredLogits",
            field=_FIELD,
        )
    if isinstance(logits, SparseLogits):
        for term in on_logits:
            _check_loss(term, logits, component.entry.qualified, distillation)
    return found


def _compares_logits(term: TermConfig) -> bool:
    try:
        return compares_logits(term, losses.build(term.loss, slot=term.slot).inputs)
    except KdplugError:
        return term.slot == "kd"  # the objective reports this error


def _has_tail(logits: Any, codec: CacheCodec) -> bool:
    """Return whether a codec's decoded logits have a tail, and the engine can decode them while it encodes others."""
    if not isinstance(logits, SparseLogits) or logits.tail is None or codec.takes_factored:
        return False
    return not codec.shared(torch.zeros(1, logits.classes))


def _check_loss(term: TermConfig, logits: SparseLogits, codec: str, distillation: DistillationConfig) -> None:
    """Check, before the teacher runs, that a loss can be computed from the decoded logits."""
    try:
        component = losses.build(term.loss, slot="kd")
    except KdplugError:
        return  # the objective reports this error
    temperature = Temperature(distillation.temperature_of(term).base, None)
    loss = LogitLoss(component, temperature, shifts=distillation.probability_shift)
    try:
        loss.check(logits, torch.zeros(1, dtype=torch.int64))
    except KdplugError as error:
        reason = error.message if error.field == "teacher.logits" else str(error)
        raise ConfigError(f"{codec} returns SparseLogits. {reason}", field=_FIELD) from error


def identity(training: TrainingConfig, distillation: Mapping[str, DistillationConfig]) -> dict[str, Any]:
    """Return the configs, and the versions of kdplug, torch and each plugin that they name, as plain data."""
    found = config_identity(distillation)
    if training.teacher_cache_codec is not None:
        package = cache_codecs.entry(training.teacher_cache_codec.name).dist
        found["plugins"] = dict(sorted({**found["plugins"], package: installed_version(package)}.items()))
    free = not_identity(TrainingConfig)
    return {**found, "training": {key: value for key, value in training.to_dict().items() if key not in free}}


def config_identity(distillation: Mapping[str, DistillationConfig]) -> dict[str, Any]:
    """Return the configs by task, and the versions of kdplug, torch and each plugin that they name, as plain data."""
    resolved = {task: config.resolved() for task, config in distillation.items()}
    entries = [entry for config in resolved.values() for entry in used_entries(config)]
    packages = {split_qualified(entry["name"])[0] for entry in entries}
    packages.update(*(config.plugins.hooks for config in resolved.values()))
    return {
        "kdplug": kdplug.__version__,
        "torch": installed_version("torch"),
        "plugins": {package: installed_version(package) for package in sorted(packages)},
        "distillation": {task: config.to_dict() for task, config in resolved.items()},
    }


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The models, objective and configs of a run. ``configs`` are by task; without tasks, the only key is ``""``."""

    pair: TrainingModule
    teacher: TeacherSide | None
    configs: Mapping[str, DistillationConfig]
    caches: Caches = None
    update: DistillationConfig | None = None
    """The config whose ``teacher_update`` changes the teacher during the run."""


class Session:
    """Runs of one distiller. Plugin hooks and ``observers`` are called in each."""

    def __init__(self, observers: Iterable[RunObserver], *, strict: bool, show_progress: bool) -> None:
        self._observers = tuple(observers)
        self._strict = strict
        self._show_progress = show_progress
        self._entered: list[ExitStack] = []

    def enter(self, sides: Sides) -> None:
        """Set the train and eval modes of a run, until ``leave``."""
        teacher = None if sides.teacher is None else sides.teacher.model
        stack = ExitStack()
        stack.enter_context(modes(training=sides.pair.student, evaluating=teacher))
        self._entered.append(stack)

    def leave(self) -> None:
        """Restore the modes that the models had before ``enter``."""
        self._entered.pop().close()

    def fill(
        self,
        config: TrainingConfig,
        sides: Sides,
        cache: TeacherCache,
        dataloader: Iterable[Any],
        *,
        postprocess: Callable[[Any], Any] | None,
        model_args: Mapping[str, Any],
    ) -> CacheSummary:
        """Run the teacher on every example and store its outputs, without training.

        Raises: ``RunError`` on every process if teacher, data or config differ between processes.
        """
        assert sides.teacher is not None
        with process(
            config.device, config.precision if "precision" in config.model_fields_set else None
        ) as accelerator:
            if accelerator.num_processes > 1:
                with busy(
                    "Hashing the data and the teacher", shown=self._show_progress and accelerator.is_main_process
                ):
                    own = {
                        **identity(config, sides.configs),
                        "data": data_fingerprint(dataloader),
                        "teacher": teacher_identity(sides.teacher),
                        "model_args": described(model_args),
                    }
                check_ranks(own, accelerator.num_processes)
        return fill(
            sides.pair,
            sides.teacher,
            config,
            cache,
            dataloader,
            postprocess=postprocess,
            model_args=model_args,
            shown=self._show_progress,
        )

    def run(self, config: TrainingConfig, sides: Sides, request: Request) -> RunResult:
        """Train according to ``request``; a teacher that has a cache runs once on every example."""
        hooks = dict.fromkeys(name for one in sides.configs.values() for name in one.plugins.hooks)
        return train(
            sides.pair,
            sides.teacher,
            config,
            replace(request, identity={**identity(config, sides.configs), **request.identity}),
            observers=[LifeCycle(hooks), *self._observers],
            actor=Acting(hooks) if hooks else None,
            strict=self._strict,
            show_progress=self._show_progress,
            caches=sides.caches,
            update=sides.update,
        )


def teacher_cache(training: TrainingConfig, distillation: DistillationConfig, task: str = "") -> TeacherCache | None:
    """Return the cache that the configs request, or ``None`` without caching. Each task has its own folder.

    Raises: ``EntryError``, ``SettingError``, ``ConfigError`` for a codec that cannot be used.
    """
    if not distillation.is_caching_logits:
        return None
    path = None if training.teacher_cache is None else Path(training.teacher_cache) / task
    dtype = training.teacher_cache_dtype
    return TeacherCache(path, None if dtype is None else getattr(torch, dtype), coding(training, distillation))


TeacherModel = nn.Module | ExternalTeacher | Literal["self"] | None
"""A teacher: a model, an external teacher, the student without its adapters, or none."""


def given_teacher(
    model: TeacherModel,
    adaptor: Adaptor | None,
    cache: TeacherCache | None,
    objective: Objective,
    student: nn.Module,
) -> OneTeacher | None:
    """Return the teacher; without one, a placeholder if its outputs are in a folder, or ``None`` if no term reads it.

    Raises: ``ConfigError`` if a term reads a teacher and there is neither a teacher nor a folder, or reads what this one
    does not have.
    """
    if isinstance(model, nn.Module):
        return Teacher(model, adaptor)
    if model == SELF:
        return SelfTeacher(student, adaptor)
    if isinstance(model, ExternalTeacher):
        if adaptor is not None:
            raise ConfigError(
                f"has no effect: {type(model).__name__} is not a PyTorch module, and returns what an adaptor returns. Remove it",
                field="adaptor_T",
            )
        found = CalledTeacher(model)
        found.check(objective)
        return found
    if cache is not None and cache.path is not None:
        return CacheOnlyTeacher(adaptor)
    if read := objective.reads_of_teachers():
        terms = ", ".join(f"{name} ({', '.join(inputs)})" for name, inputs in read.items())
        raise ConfigError(
            f"is missing, and these terms read a teacher: {terms}. Pass a model; or set is_caching_logits: true and the "
            "teacher_cache that holds its outputs; or use losses that request nothing of a teacher, or teacher: student",
            field="model_T",
        )
    if cache is not None:
        raise ConfigError(
            "has no effect without a teacher: model_T is None, and no term reads one. Set it to false",
            field="is_caching_logits",
        )
    return None


def updated(config: DistillationConfig, teacher: TeacherSide | None) -> DistillationConfig | None:
    """Return the config if its ``teacher_update`` changes the teacher.

    Raises: ``ConfigError`` if there is no model to update; the errors of a wrong entry or setting.
    """
    if build_teacher_update(config) is None:
        return None
    if not isinstance(teacher, Teacher):
        raise ConfigError(
            "needs a teacher of the student's architecture as model_T, such as copy.deepcopy(model_S)",
            field="teacher_update",
        )
    return config


def check_not_updated(config: DistillationConfig, user: str) -> None:
    """Raise ``ConfigError`` if the config has a ``teacher_update``, which ``user`` does not support."""
    if config.teacher_update is not None:
        raise ConfigError(
            f"is not supported by {user}. Remove it, or use GeneralDistiller; in your own loop, call kdplug.TeacherUpdate after "
            "each optimizer step",
            field="teacher_update",
        )


def warn_unused_cache(training: TrainingConfig, *caches: TeacherCache | None) -> None:
    """Warn about storage options in the training config if teacher outputs are not cached."""
    for key in keys_that_need(TrainingConfig, "is_caching_logits"):
        if getattr(training, key) is not None and not any(caches):
            warnings.warn(
                f"{key} has no effect: is_caching_logits is false. Set is_caching_logits to true to use the cache",
                stacklevel=3,
            )


def warn_unused_combiner(config: DistillationConfig) -> None:
    """Warn if a config combines the logits of a single teacher."""
    if config.teacher_combiner != DEFAULT_COMBINER:
        warnings.warn(
            f"teacher_combiner {config.teacher_combiner.name!r} has no effect: there is only one teacher", stacklevel=3
        )
