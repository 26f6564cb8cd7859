"""What every distiller has: modes for a block, and observers for its runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack

from torch import nn

from kdplug.config.distillation import DEFAULT_COMBINER, DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.engine.event import Events
from kdplug.engine.mode import modes
from kdplug.engine.pair import Pair
from kdplug.engine.request import Request
from kdplug.engine.run import RunResult
from kdplug.engine.teacher import TeacherSide
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

    def run(self, pair: Pair, teacher: TeacherSide | None, config: TrainingConfig, request: Request) -> RunResult:
        """Train as ``request`` asks."""
        return train(
            pair,
            teacher,
            config,
            request,
            observers=[LifeCycle(), *self._observers],
            strict=self._strict,
            show_progress=self._show_progress,
        )


def refuse_caching(config: DistillationConfig, owner: str) -> None:
    """Raises: ``ConfigError`` where the config asks for a cache of the teacher's logits."""
    if config.is_caching_logits:
        raise ConfigError(f"{owner} asks the teacher anew for every batch; set it to false", field="is_caching_logits")


def tell_unused_combiner(config: DistillationConfig) -> None:
    """Warn where a config combines the logits of one teacher."""
    if config.teacher_combiner != DEFAULT_COMBINER:
        warnings.warn(
            f"teacher_combiner {config.teacher_combiner.name!r} has no effect: there is one teacher", stacklevel=3
        )
