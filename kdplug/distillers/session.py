"""What every distiller has: modes for a block, and observers for its runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from kdplug.config.distillation import DEFAULT_COMBINER, DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.coding import coding
from kdplug.engine.absence import Absent
from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_session import Caches
from kdplug.engine.event import Events
from kdplug.engine.mode import modes
from kdplug.engine.pair import Adaptor, Pair
from kdplug.engine.request import Request
from kdplug.engine.run import RunResult
from kdplug.engine.teacher import Teacher, TeacherSide
from kdplug.engine.train import train
from kdplug.errors import ConfigError
from kdplug.host.life_cycle import LifeCycle


class Session:
    """Runs of one distiller. The hooks of plugins and ``observers`` are told of each."""

    def __init__(self, observers: Iterable[Events], *, strict: bool, show_progress: bool) -> None:
        self._observers = tuple(observers)
        self._strict = strict
        self._show_progress = show_progress
        self._entered: list[ExitStack] = []

    def enter(self, *, training: nn.Module, evaluating: nn.Module | None) -> None:
        """Put the models into the modes of a run until ``leave``."""
        stack = ExitStack()
        stack.enter_context(modes(training=training, evaluating=evaluating))
        self._entered.append(stack)

    def leave(self) -> None:
        """Put the models back into the modes of before."""
        self._entered.pop().close()

    def run(
        self,
        pair: Pair,
        teacher: TeacherSide | None,
        config: TrainingConfig,
        request: Request,
        caches: Caches = None,
    ) -> RunResult:
        """Train as ``request`` asks; a teacher that has a cache is asked once about every example."""
        return train(
            pair,
            teacher,
            config,
            request,
            observers=[LifeCycle(), *self._observers],
            strict=self._strict,
            show_progress=self._show_progress,
            caches=caches,
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
