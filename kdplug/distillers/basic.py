"""Distillation of one teacher's logits into one student, with hard labels."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.method import check_distillation, check_side, check_training, enter, leave, train
from kdplug.distillers.session import Session, Sides, teacher_cache, updated, warn_unused_cache, warn_unused_combiner
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.teacher import Teacher
from kdplug.engine.training_module import Adaptor, TrainingModule
from kdplug.errors import ConfigError
from kdplug.objective.objective import Objective


class BasicDistiller:
    """Distils the logits of ``model_T`` into ``model_S``, in addition to the student's own losses.

    For adaptors, ``observers``, ``strict`` and ``show_progress`` see ``GeneralDistiller``, which also supports
    intermediate matches, and behaves the same without them.

    Raises: ``ConfigError`` for intermediate matches; ``EntryError`` or ``SettingError`` if the config names an unknown
    entry or an invalid setting.
    """

    def __init__(  # noqa: PLR0917  TextBrewer's signature
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module,
        model_S: nn.Module,
        adaptor_T: Adaptor | None = None,
        adaptor_S: Adaptor | None = None,
        *,
        observers: Iterable[RunObserver] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        check_training(train_config)
        check_distillation(distill_config)
        check_side("model_T", model_T, "adaptor_T", adaptor_T)
        check_side("model_S", model_S, "adaptor_S", adaptor_S)
        if distill_config.intermediate_matches:
            raise ConfigError(
                "BasicDistiller does not support intermediate matches, and the config has "
                f"{len(distill_config.intermediate_matches)}. Use GeneralDistiller, which takes the same arguments",
                field="intermediate_matches",
            )
        for term, _, place in distill_config.written_terms():
            if term.layer_S is not None:
                raise ConfigError(
                    "BasicDistiller compares logits only, and the term has layers. Use GeneralDistiller, which takes the same "
                    "arguments",
                    field=".".join(map(str, place.path)),
                )
        if distill_config.layer_map:
            raise ConfigError(
                "BasicDistiller does not support intermediate matches, and a layer map creates some. Use "
                "GeneralDistiller, which takes the same arguments",
                field="layer_map",
            )
        warn_unused_combiner(distill_config)
        self.train_config = train_config
        self.distill_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self.objective = Objective(distill_config)
        self.teacher_cache = teacher_cache(train_config, distill_config)
        warn_unused_cache(train_config, self.teacher_cache)
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    __enter__ = enter
    __exit__ = leave
    train = train

    def _sides(self) -> Sides:
        pair = TrainingModule(self.model_S, self.adaptor_S, self.objective)
        teacher = Teacher(self.model_T, self.adaptor_T)
        update = updated(self.distill_config, teacher)
        return Sides(pair, teacher, {"": self.distill_config}, self.teacher_cache, update)
