"""One teacher, one student: logits and hard labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.identity import identity
from kdplug.distillers.session import Session, teacher_cache, tell_unused_cache, tell_unused_combiner
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.event import Events
from kdplug.engine.pair import Adaptor, Pair
from kdplug.engine.request import Callback, Request
from kdplug.engine.resume import Resume
from kdplug.engine.run import RunResult
from kdplug.engine.teacher import Teacher
from kdplug.errors import ConfigError
from kdplug.objective.objective import Objective


class BasicDistiller:
    """Distils the logits of ``model_T`` into ``model_S``, beside the student's own losses.

    What an adaptor, ``observers``, ``strict`` and ``show_progress`` are stands with ``GeneralDistiller``, which has
    intermediate matches as well and does the same where there are none.

    Raises: ``ConfigError`` for intermediate matches; ``EntryError`` or ``SettingError`` where the
    config names what is not there.
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
        observers: Iterable[Events] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        if distill_config.intermediate_matches:
            raise ConfigError(
                f"BasicDistiller has no intermediate matches, and the config has {len(distill_config.intermediate_matches)}. "
                "Use GeneralDistiller, which takes the same arguments",
                field="intermediate_matches",
            )
        if distill_config.layer_map:
            raise ConfigError(
                "BasicDistiller has no intermediate matches, and a layer map makes some. Use GeneralDistiller, which takes the "
                "same arguments",
                field="layer_map",
            )
        tell_unused_combiner(distill_config)
        self.train_config = train_config
        self.distill_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self.objective = Objective(distill_config)
        self.teacher_cache = teacher_cache(train_config, distill_config)
        tell_unused_cache(train_config, self.teacher_cache)
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    def __enter__(self) -> Self:
        """Teacher in eval mode, student in train mode, until the block ends. ``train`` does the same by itself."""
        self._session.enter(training=self.model_S, evaluating=self.model_T)
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
        """Train the student. The arguments are those of ``GeneralDistiller.train``.

        Raises: ``ConfigError`` for arguments that cannot be meant together; ``RunError`` where the run cannot start or go
        on; ``OutputsError`` where a model returns no logits, or the student no losses that a weight asks for.
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
            identity=identity(self.train_config, {"": self.distill_config}),
        )
        pair = Pair(self.model_S, self.adaptor_S, self.objective)
        return self._session.run(
            pair, Teacher(self.model_T, self.adaptor_T), self.train_config, request, self.teacher_cache
        )
