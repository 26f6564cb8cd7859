"""Several teachers, one student."""

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
from kdplug.distillers.teacher import Adaptors, Models, read_teachers
from kdplug.engine.ensemble import Ensemble
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.event import Events
from kdplug.engine.pair import Adaptor, Pair
from kdplug.engine.request import Callback, Request
from kdplug.engine.resume import Resume
from kdplug.engine.run import RunResult
from kdplug.objective.objective import Objective


class MultiTeacherDistiller:
    """Distils the teachers in ``model_T`` into ``model_S``.

    ``model_T`` is a list, or a mapping by which matches may name a teacher by key. ``adaptor_T`` is one for all teachers or
    holds one for each, in the same form. Each teacher's ``logits_mask`` and ``inputs_mask`` are its own. The logits that
    are left are combined by the config's ``teacher_combiner`` (their mean, by default), then shifted (``probability_shift``)
    and compared. A match reads the teacher that its ``teacher`` names. With one teacher this is ``GeneralDistiller``.

    What an adaptor, ``observers``, ``strict`` and ``show_progress`` are stands with ``GeneralDistiller``.

    Raises: ``ConfigError`` for a match that does not say which teacher it reads, or adaptors that do
    not go with the teachers; ``EntryError`` or ``SettingError`` where the config names what is not there.
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
        observers: Iterable[Events] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        teachers = read_teachers(model_T, adaptor_T)
        if len(teachers) == 1:
            tell_unused_combiner(distill_config)
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
        tell_unused_cache(train_config, self.teacher_cache)
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    def __enter__(self) -> Self:
        """Teachers in eval mode, student in train mode, until the block ends. ``train`` does the same by itself."""
        self._session.enter(training=self.model_S, evaluating=self._ensemble.model)
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

        Each teacher gets the same batch, or the ``teacher`` part of it. A ``teacher_cache`` in a batch is a list with the
        outputs of each teacher, or a mapping by key.

        Raises: ``ConfigError`` for arguments that cannot be meant together; ``RunError`` where the run cannot start or go
        on; ``OutputsError`` where a model returns no logits, or masks that cannot be meant together.
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
        return self._session.run(pair, self._ensemble, self.train_config, request, self.teacher_cache)
