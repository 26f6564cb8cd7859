"""What a distiller keeps between the runs that it is asked for: observers, and the modes of a block."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdplug.config.distillation import DEFAULT_COMBINER, DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.coding import coding
from kdplug.distillers.identity import identity
from kdplug.engine.absence import Absent
from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_fill import fill
from kdplug.engine.cache_session import Caches
from kdplug.engine.cache_summary import CacheSummary
from kdplug.engine.data_fingerprint import data_fingerprint, described
from kdplug.engine.event import Events
from kdplug.engine.identity import check_ranks, teacher_identity
from kdplug.engine.mode import modes
from kdplug.engine.pair import Adaptor, Pair
from kdplug.engine.process import process
from kdplug.engine.request import Request
from kdplug.engine.run import RunResult
from kdplug.engine.teacher import Teacher, TeacherSide
from kdplug.engine.train import train
from kdplug.errors import ConfigError
from kdplug.host.life_cycle import LifeCycle


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """What a run trains and what it reads. ``configs`` are by task; a distiller without tasks has one under ``""``."""

    pair: Pair
    teacher: TeacherSide | None
    configs: Mapping[str, DistillationConfig]
    caches: Caches = None


class Session:
    """Runs of one distiller. The hooks of plugins and ``observers`` are told of each."""

    def __init__(self, observers: Iterable[Events], *, strict: bool, show_progress: bool) -> None:
        self._observers = tuple(observers)
        self._strict = strict
        self._show_progress = show_progress
        self._entered: list[ExitStack] = []

    def enter(self, sides: Sides) -> None:
        """Put the models into the modes of a run until ``leave``."""
        teacher = None if sides.teacher is None else sides.teacher.model
        stack = ExitStack()
        stack.enter_context(modes(training=sides.pair.student, evaluating=teacher))
        self._entered.append(stack)

    def leave(self) -> None:
        """Put the models back into the modes of before."""
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
        """Ask the teacher about every example and keep what it says, without training.

        Raises: ``RunError`` on every process where they do not have the same teacher, data and config.
        """
        assert sides.teacher is not None
        with process(
            config.device, config.precision if "precision" in config.model_fields_set else None
        ) as accelerator:
            if accelerator.num_processes > 1:
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
        """Train as ``request`` asks; a teacher that has a cache is asked once about every example."""
        return train(
            sides.pair,
            sides.teacher,
            config,
            replace(request, identity={**identity(config, sides.configs), **request.identity}),
            observers=[LifeCycle(), *self._observers],
            strict=self._strict,
            show_progress=self._show_progress,
            caches=sides.caches,
        )


def teacher_cache(training: TrainingConfig, distillation: DistillationConfig, task: str = "") -> TeacherCache | None:
    """The cache that the configs ask for, ``None`` where the teacher is asked for every batch. Each task has its own folder.

    Raises: ``EntryError``, ``SettingError``, ``ConfigError`` for a codec that cannot be used.
    """
    if not distillation.is_caching_logits:
        return None
    path = None if training.teacher_cache is None else Path(training.teacher_cache) / task
    dtype = training.teacher_cache_dtype
    return TeacherCache(path, None if dtype is None else getattr(torch, dtype), coding(training, distillation))


def given_teacher(model: nn.Module | None, adaptor: Adaptor | None, cache: TeacherCache | None) -> Teacher | Absent:
    """The teacher, or what stands for it where there is none and its outputs are in a folder.

    Raises: ``ConfigError`` where there is neither.
    """
    if model is not None:
        return Teacher(model, adaptor)
    if cache is None or cache.path is None:
        raise ConfigError(
            "without a model_T, is_caching_logits: true and the teacher_cache that holds its outputs are needed",
            field="model_T",
        )
    return Absent(adaptor)


def tell_unused_cache(training: TrainingConfig, *caches: TeacherCache | None) -> None:
    """Warn where the training config says how to keep outputs that are not kept."""
    for key in ("teacher_cache", "teacher_cache_dtype", "teacher_cache_codec"):
        if getattr(training, key) is not None and not any(caches):
            warnings.warn(f"{key} has no effect: is_caching_logits is false", stacklevel=3)


def tell_unused_combiner(config: DistillationConfig) -> None:
    """Warn where a config combines the logits of one teacher."""
    if config.teacher_combiner != DEFAULT_COMBINER:
        warnings.warn(
            f"teacher_combiner {config.teacher_combiner.name!r} has no effect: there is one teacher", stacklevel=3
        )
