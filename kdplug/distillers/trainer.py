"""Supervised training of one model, without a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from functools import update_wrapper
from typing import Any

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.outputs import Outputs
from kdplug.distillers.method import check_side, check_training, enter, leave, train
from kdplug.distillers.session import Session, Sides
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.training_module import Adaptor, TrainingModule
from kdplug.errors import OutputsError
from kdplug.objective.objective import Objective

_LABELS_ALONE = {"kd_loss_weight": 0.0, "hard_label_weight": 1.0}


def supervised(model: nn.Module, adaptor: Adaptor | None) -> TrainingModule:
    """Return a model whose loss is the sum of the means of the ``losses`` that its adaptor returns.

    Raises: ``OutputsError``, when it is called, if there are none.
    """
    return TrainingModule(model, _with_losses(adaptor), Objective(DistillationConfig(**_LABELS_ALONE)))


def _with_losses(adaptor: Adaptor | None) -> Adaptor:
    def read(batch: Any, outputs: Any) -> Outputs:
        found = Outputs.read(outputs if adaptor is None else adaptor(batch, outputs), "model")
        if found.losses is None:
            given = ", ".join(found.given) or "nothing"
            raise OutputsError(
                f"the model returned no losses, only {given}. Supervised training needs them: return the model's own "
                "loss from its adaptor",
                field="losses",
            )
        return found

    if adaptor is not None:
        update_wrapper(read, adaptor, (), ())  # the run identity covers the code of both
    return read


class BasicTrainer:
    """Trains ``model`` on the ``losses`` that its adaptor returns: a future teacher, or a student for comparison.

    The adaptor is called as ``adaptor(batch, model_outputs)``. Several losses are summed, each averaged over its own
    items. Without an adaptor the model's own outputs are read (a transformers ``ModelOutput`` with its ``loss``). For
    ``observers``, ``strict`` and ``show_progress`` see ``GeneralDistiller``.

    It logs ``total_loss``, which equals the only term, ``hard_label_loss``. In the documentation of ``train``,
    the student is ``model``.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        model: nn.Module,
        adaptor: Adaptor | None = None,
        *,
        observers: Iterable[RunObserver] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        check_training(train_config)
        check_side("model", model, "adaptor", adaptor)
        self.train_config = train_config
        self.model = model
        self.adaptor = adaptor
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    __enter__ = enter
    __exit__ = leave
    train = train

    def _sides(self) -> Sides:
        return Sides(supervised(self.model, self.adaptor), None, {})
