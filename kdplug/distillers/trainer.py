"""One model and no teacher: training on labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.outputs import Outputs
from kdplug.distillers.identity import identity
from kdplug.distillers.session import Session
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.event import Events
from kdplug.engine.pair import Adaptor, Pair
from kdplug.engine.request import Callback, Request
from kdplug.engine.resume import Resume
from kdplug.engine.run import RunResult
from kdplug.errors import OutputsError
from kdplug.objective.objective import Objective

_LABELS_ALONE = {"kd_loss_weight": 0.0, "hard_label_weight": 1.0}


def supervised(model: nn.Module, adaptor: Adaptor | None) -> Pair:
    """A model whose loss is the sum of the means of the ``losses`` that its adaptor returns.

    Raises: ``OutputsError``, when it is called, where there are none.
    """
    return Pair(model, _with_losses(adaptor), Objective(DistillationConfig(**_LABELS_ALONE)))


def _with_losses(adaptor: Adaptor | None) -> Adaptor:
    def read(batch: Any, outputs: Any) -> Outputs:
        found = Outputs.read(outputs if adaptor is None else adaptor(batch, outputs), "model")
        if found.losses is None:
            given = ", ".join(found.given) or "nothing"
            raise OutputsError(
                f"the model returned no losses, only {given}. Training on labels needs them: return the model's own loss from "
                "its adaptor",
                field="losses",
            )
        return found

    return read


class BasicTrainer:
    """Trains ``model`` on the ``losses`` that its adaptor returns: a teacher to be, or a student to compare with.

    The adaptor is called as ``adaptor(batch, model_outputs)``; several losses are summed, each reduced to its mean. Without
    an adaptor the model's own outputs are read (a transformers ``ModelOutput`` with its ``loss``). ``observers``, ``strict``
    and ``show_progress`` are those of ``GeneralDistiller``.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        model: nn.Module,
        adaptor: Adaptor | None = None,
        *,
        observers: Iterable[Events] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        self.train_config = train_config
        self.model = model
        self.adaptor = adaptor
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    def __enter__(self) -> Self:
        """The model in train mode until the block ends. ``train`` does the same by itself."""
        self._session.enter(training=self.model, evaluating=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.leave()

    def train(  # noqa: PLR0917  TextBrewer's signature
        self,
        optimizer: Optimizer,
        dataloader: Iterable[Any],
        num_epochs: float | None = None,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float | None = None,
        num_steps: int | None = None,
        callback: Callback | None = None,
        batch_postprocessor: Callable[[Any], Any] | None = None,
        *,
        evaluation: Evaluation | None = None,
        resume: Resume = None,
        resume_changed: bool = False,
        **model_args: Any,
    ) -> RunResult:
        """Train the model for ``num_epochs`` or ``num_steps``. The arguments are those of ``GeneralDistiller.train``.

        Logged is ``total_loss``; the one term beside it, ``hard_label_loss``, is the same number.

        Raises: ``ConfigError`` for arguments that cannot be meant together; ``RunError`` where the run cannot start or go
        on; ``OutputsError`` where there are no losses.
        """
        request = Request(
            optimizer=optimizer,
            dataloader=dataloader,
            num_epochs=num_epochs,
            num_steps=num_steps,
            scheduler_class=scheduler_class,
            scheduler_args=scheduler_args,
            scheduler=scheduler,
            max_grad_norm=max_grad_norm,
            callback=callback,
            batch_postprocessor=batch_postprocessor,
            model_args=model_args,
            evaluation=evaluation,
            resume=resume,
            resume_changed=resume_changed,
            identity=identity(self.train_config, {}),
        )
        return self._session.run(supervised(self.model, self.adaptor), None, self.train_config, request)
