"""Distillation of several teachers into one student."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.method import (
    Adaptors,
    Models,
    check_distillation,
    check_side,
    check_training,
    enter,
    leave,
    read_teachers,
    train,
)
from kdplug.distillers.session import (
    Session,
    Sides,
    check_not_updated,
    teacher_cache,
    warn_unused_cache,
    warn_unused_combiner,
)
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.teacher import Ensemble
from kdplug.engine.training_module import Adaptor, TrainingModule
from kdplug.objective.objective import Objective


class MultiTeacherDistiller:
    """Distils the teachers in ``model_T`` into ``model_S``.

    ``model_T`` is a list, or a mapping whose keys matches may use to name a teacher. ``adaptor_T`` is one for all
    teachers, or one for each in the same form. Each teacher's logits and features are read with its own ``logits_mask``
    and ``inputs_mask``. The config's ``teacher_combiner`` combines the unmasked logits (their mean, by default), which
    are then shifted (``probability_shift``) and compared. A match reads the teacher named by its ``teacher``. With one
    teacher this is ``GeneralDistiller``.

    Each teacher gets the same batch, or the ``teacher`` part of it. A ``teacher_cache`` in a batch is a list with the
    outputs of each teacher, or a mapping by key.

    For adaptors, ``observers``, ``strict`` and ``show_progress`` see ``GeneralDistiller``.

    Raises: ``ConfigError`` for a match that does not name its teacher, or adaptors that do not match the teachers;
    ``EntryError`` or ``SettingError`` if the config names an unknown entry or an invalid setting.
    """

    def __init__(  # noqa: PLR0917  TextBrewer's signature
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Models,
        model_S: nn.Module,
        adaptor_T: Adaptors = None,
        adaptor_S: Adaptor | None = None,
        *,
        observers: Iterable[RunObserver] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        check_training(train_config)
        check_distillation(distill_config)
        check_side("model_S", model_S, "adaptor_S", adaptor_S)
        check_not_updated(distill_config, "MultiTeacherDistiller")
        teachers = read_teachers(model_T, adaptor_T)
        if len(teachers) == 1:
            warn_unused_combiner(distill_config)
        self.train_config = train_config
        self.distill_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self.objective = Objective(distill_config, tuple(teachers))
        self.objective.connect(model_S, {key: teacher.model for key, teacher in teachers.items()})
        self._ensemble = Ensemble(teachers)
        self.teacher_cache = teacher_cache(train_config, distill_config)
        warn_unused_cache(train_config, self.teacher_cache)
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    __enter__ = enter
    __exit__ = leave
    train = train

    def _sides(self) -> Sides:
        pair = TrainingModule(self.model_S, self.adaptor_S, self.objective)
        return Sides(pair, self._ensemble, {"": self.distill_config}, self.teacher_cache)
