"""Asking the teacher about every example, and nothing else: what a cache is made by before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from accelerate.utils import set_seed

from kdplug.config.training import TrainingConfig
from kdplug.engine.cache import TeacherCache
from kdplug.engine.cache_session import CacheSession
from kdplug.engine.cache_summary import CacheSummary
from kdplug.engine.materialize import materialize
from kdplug.engine.mode import modes
from kdplug.engine.pair import Pair
from kdplug.engine.process import process
from kdplug.engine.teacher import TeacherSide


def fill(
    pair: Pair,
    teacher: TeacherSide,
    config: TrainingConfig,
    cache: TeacherCache,
    dataloader: Iterable[Any],
    *,
    postprocess: Callable[[Any], Any] | None,
    model_args: Mapping[str, Any],
    shown: bool,
) -> CacheSummary:
    """Fill ``cache`` with what ``teacher`` says of the examples of ``dataloader``, as far as the objective reads it.

    What is there already stays. Several processes divide what is not. The student is asked once where the objective needs its
    widths.

    Raises: ``RunError`` for data, outputs or a folder that cannot be used.
    """
    precision = config.precision if "precision" in config.model_fields_set else None
    with ExitStack() as stack:
        accelerator = stack.enter_context(process(config.device, precision))
        if config.seed is not None:
            set_seed(config.seed, device_specific=True)
        stack.enter_context(modes(evaluating=teacher.model))
        stack.enter_context(teacher.frozen())
        teacher.to(accelerator.device)
        session = CacheSession(cache, teacher, dataloader, postprocess, model_args)
        session.open(accelerator)
        side, prepare = session.teacher, session.postprocess
        assert side is not None
        assert prepare is not None
        if pair.objective.needs_materialize:
            pair.to(accelerator.device)
            with pair.hooked(), side.hooked(pair.objective):
                batch = prepare(next(iter(session.dataloader)))
                materialize(pair, side, batch, model_args, accelerator.device)
        session.fill(pair.objective, shown=shown and accelerator.is_main_process)
        accelerator.wait_for_everyone()
    assert cache.summary is not None
    return cache.summary
