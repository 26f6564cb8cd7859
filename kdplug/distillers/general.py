"""Distillation of one teacher's logits and intermediate features into one student, with hard labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.custom_match import CustomMatch
from kdplug.distillers.method import (
    check_distillation,
    check_side,
    check_teacher,
    check_training,
    enter,
    leave,
    train,
)
from kdplug.distillers.session import (
    Session,
    Sides,
    TeacherModel,
    given_teacher,
    teacher_cache,
    updated,
    warn_unused_cache,
    warn_unused_combiner,
)
from kdplug.engine.cache.summary import CacheSummary
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.self_teacher import SELF
from kdplug.engine.training_module import Adaptor, Rearrange, TrainingModule
from kdplug.errors import ConfigError
from kdplug.objective.custom_term import CustomTerm
from kdplug.objective.objective import Objective


class GeneralDistiller:
    """Distils ``model_T`` into ``model_S``.

    ``model_T`` is a model; an external teacher, such as ``kdplug.teachers["served"](url=…)``; or ``"self"``, the student
    with its adapters off, if it has ``disable_adapter()`` as peft's models do. It may be ``None`` if no term reads a
    teacher, or if its outputs are in a ``teacher_cache``.

    An adaptor is called as ``adaptor(batch, model_outputs)`` and returns a dict with keys from ``kdplug.ADAPTOR_KEYS``; without
    one, the model's outputs are read directly (a transformers ``ModelOutput``, such a dict, or bare logits).

    Plugin hooks and ``observers`` are called in each run; an exception in an observer ends the run only if ``strict``.
    ``show_progress`` enables the progress display on stderr. ``custom_matches`` are losses between modules, written in
    Python.

    A run raises ``RunError`` if the teacher shares memory with trained parameters, or if its
    forward pass leaves a module in train mode or changes a persistent buffer. A frozen base model may be shared.

    Raises: ``ConfigError`` for a module path that does not exist; ``EntryError`` or ``SettingError`` if the config
    names an unknown entry or an invalid setting.
    """

    def __init__(  # noqa: PLR0917  TextBrewer's signature
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: TeacherModel,
        model_S: nn.Module,
        adaptor_T: Adaptor | None = None,
        adaptor_S: Adaptor | None = None,
        custom_matches: Iterable[CustomMatch] | None = None,
        *,
        observers: Iterable[RunObserver] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        check_training(train_config)
        check_distillation(distill_config)
        check_teacher(model_T, adaptor_T)
        check_side("model_S", model_S, "adaptor_S", adaptor_S)
        warn_unused_combiner(distill_config)
        self.train_config = train_config
        self.distill_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        module = model_T if isinstance(model_T, nn.Module) else model_S if model_T == SELF else None
        terms = _custom_terms(custom_matches, module, model_S)
        self.objective = Objective(distill_config, custom_matches=terms)
        self.objective.connect(model_S, module)
        self.teacher_cache = teacher_cache(train_config, distill_config)
        self.rearrange: Rearrange | None = None
        """Changes the teacher's outputs for each batch before the losses read them; a control of a recipe sets it."""
        self._teacher = given_teacher(model_T, adaptor_T, self.teacher_cache, self.objective, model_S)
        self._update = updated(distill_config, self._teacher)
        warn_unused_cache(train_config, self.teacher_cache)
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    __enter__ = enter
    __exit__ = leave
    train = train

    def fill_teacher_cache(
        self,
        dataloader: Iterable[Any],
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **model_args: Any,
    ) -> CacheSummary:
        """Run the teacher on every example of ``dataloader`` and store its outputs in ``teacher_cache``; no training.

        A later ``train`` does not run the teacher. With a folder, that also holds in another process, where ``model_T``
        may be ``None``. Outputs already in the folder are kept; under ``accelerate launch`` the processes divide the
        missing ones.

        Raises: ``ConfigError`` without ``is_caching_logits``; ``RunError`` for data, outputs or a folder that cannot be
        used.
        """
        if self.teacher_cache is None:
            raise ConfigError("must be true to fill a cache", field="is_caching_logits")
        return self._session.fill(
            self.train_config,
            self._sides(),
            self.teacher_cache,
            dataloader,
            postprocess=batch_postprocessor,
            model_args=model_args,
        )

    def _sides(self) -> Sides:
        pair = TrainingModule(self.model_S, self.adaptor_S, self.objective)
        pair.rearrange = self.rearrange
        return Sides(pair, self._teacher, {"": self.distill_config}, self.teacher_cache, self._update)


def _custom_terms(
    matches: Iterable[CustomMatch] | None, teacher: nn.Module | None, student: nn.Module
) -> Iterator[CustomTerm]:
    for place, match in enumerate(matches or ()):
        if teacher is None:
            raise ConfigError(
                "a CustomMatch needs a module of model_T, but model_T is not a PyTorch module. Pass a model",
                field="custom_matches",
            )
        yield match.term(place, teacher, student)
