"""One teacher, one student: logits, hard labels and intermediate features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.custom_match import CustomMatch
from kdplug.distillers.identity import identity
from kdplug.distillers.session import given_teacher, teacher_cache, tell_unused_cache, tell_unused_combiner
from kdplug.engine.cache_fill import fill
from kdplug.engine.cache_summary import CacheSummary
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.event import Events
from kdplug.engine.mode import modes
from kdplug.engine.pair import Adaptor, Pair
from kdplug.engine.request import Callback, Request
from kdplug.engine.resume import Resume
from kdplug.engine.run import RunResult
from kdplug.engine.train import train
from kdplug.errors import ConfigError
from kdplug.host.life_cycle import LifeCycle
from kdplug.objective.custom_term import CustomTerm
from kdplug.objective.objective import Objective


class GeneralDistiller:
    """Distils ``model_T`` into ``model_S``.

    An adaptor is called as ``adaptor(batch, model_outputs)`` and returns a dict of ``kdplug.ADAPTOR_KEYS``; without one the
    model's outputs are read directly (a transformers ``ModelOutput``, such a dict, or bare logits).

    The hooks of plugins and ``observers`` are told of each run; an observer that raises ends it only if ``strict``.
    ``show_progress`` is about the bar, or the lines, on the error stream. ``custom_matches`` are losses between modules that
    are written in Python. Without a ``model_T`` its outputs come from a ``teacher_cache`` that is complete.

    Raises: ``ConfigError`` for a module path that leads nowhere; ``EntryError`` or ``SettingError`` where the config names what is not
    there.
    """

    def __init__(  # noqa: PLR0917  TextBrewer's signature
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module | None,
        model_S: nn.Module,
        adaptor_T: Adaptor | None = None,
        adaptor_S: Adaptor | None = None,
        custom_matches: Iterable[CustomMatch] | None = None,
        *,
        observers: Iterable[Events] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        tell_unused_combiner(distill_config)
        self.train_config = train_config
        self.distill_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        terms = _custom_terms(custom_matches, model_T, model_S)
        self.objective = Objective(distill_config, custom_matches=terms)
        self.objective.connect(model_S, model_T)
        self.teacher_cache = teacher_cache(train_config, distill_config)
        self._teacher = given_teacher(model_T, adaptor_T, self.teacher_cache)
        tell_unused_cache(train_config, self.teacher_cache)
        self._observers = tuple(observers)
        self._strict = strict
        self._show_progress = show_progress
        self._entered: list[ExitStack] = []

    def __enter__(self) -> Self:
        """Teacher in eval mode, student in train mode, until the block ends. ``train`` does the same by itself."""
        stack = ExitStack()
        stack.enter_context(modes(training=self.model_S, evaluating=self.model_T))
        self._entered.append(stack)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().close()

    def fill_teacher_cache(
        self,
        dataloader: Iterable[Any],
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **model_args: Any,
    ) -> CacheSummary:
        """Ask the teacher about every example of ``dataloader`` and keep what it says in ``teacher_cache``, without training.

        ``train`` then asks nothing, in this process or, with a folder, in another one, where ``model_T`` may be ``None``. What is in
        the folder already stays; under ``accelerate launch`` the processes divide what is not.

        Raises: ``ConfigError`` without ``is_caching_logits``; ``RunError`` for data, outputs or a folder that cannot be used.
        """
        if self.teacher_cache is None:
            raise ConfigError("must be true for a cache to be filled", field="is_caching_logits")
        return fill(
            Pair(self.model_S, self.adaptor_S, self.objective),
            self._teacher,
            self.train_config,
            self.teacher_cache,
            dataloader,
            postprocess=batch_postprocessor,
            model_args=model_args,
            shown=self._show_progress,
        )

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
        """Train the student for ``num_epochs`` passes over the loader (fractions count) or ``num_steps`` optimizer steps.

        A batch that is a mapping is passed to the models by keyword, a list or tuple by position, anything else as one
        argument; a batch ``{"teacher": …, "student": …}`` gives each side its own. ``model_args`` go to both models.

        * ``optimizer`` holds the student's parameters; the objective's own (projections) join it as further groups.
        * ``dataloader`` is any iterable of batches; under ``accelerate launch`` a ``DataLoader``, which is divided.
        * ``scheduler_class`` is called as ``scheduler_class(optimizer=optimizer, **scheduler_args)`` and stepped once per
          optimizer step. ``scheduler`` is an object built before, which ``scheduler_class`` makes unnecessary.
        * ``max_grad_norm`` clips the norm over student and projections together; ``None`` or -1 is off.
        * ``callback`` is called as ``callback(model=student, step=step)`` after each checkpoint, on every process.
        * ``batch_postprocessor`` maps each batch before it moves to the device.
        * ``evaluation`` says what the run looks at on the way, which checkpoint is the best and when to stop early.
        * ``resume="auto"`` goes on from the last checkpoint in ``output_dir``, to the same bits as a run that was not
          interrupted, and starts where there is none; the folder of a checkpoint goes on from that one. A changed config, or
          another version of a plugin that it names, is an error that lists what differs, unless ``resume_changed``.
          Between checkpoints, SIGTERM and SIGINT save and end the run.

        Raises: ``ConfigError`` for arguments that cannot be meant together; ``RunError`` where the run cannot start
        (an optimizer without the student's parameters, an empty loader, …) or go on (a loss that is not finite).
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
        return train(
            Pair(self.model_S, self.adaptor_S, self.objective),
            self._teacher,
            self.train_config,
            request,
            observers=[LifeCycle(), *self._observers],
            strict=self._strict,
            show_progress=self._show_progress,
            caches=self.teacher_cache,
        )


def _custom_terms(
    matches: Iterable[CustomMatch] | None, teacher: nn.Module | None, student: nn.Module
) -> Iterator[CustomTerm]:
    for place, match in enumerate(matches or ()):
        if teacher is None:
            raise ConfigError(
                "a match written in Python looks its module up in model_T, and there is none", field="custom_matches"
            )
        yield match.term(place, teacher, student)
