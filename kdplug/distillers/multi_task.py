"""Distillation of several tasks, each with one or more teachers, into one student."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

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
    warn_misspelt,
)
from kdplug.distillers.session import (
    Session,
    Sides,
    check_not_updated,
    teacher_cache,
    warn_unused_cache,
    warn_unused_combiner,
)
from kdplug.engine.checkpoint.resume import Resume
from kdplug.engine.evaluation import Evaluation
from kdplug.engine.multi_task import MultiTaskLoader, TaskAdaptor, TaskTeachers, example_count, shares_of
from kdplug.engine.observe.event import RunObserver
from kdplug.engine.run import Callback, Request, RunResult
from kdplug.engine.teacher import Ensemble, Teacher, TeacherSide
from kdplug.engine.training_module import Adaptor, TrainingModule
from kdplug.errors import ConfigError, KdplugError, did_you_mean
from kdplug.objective.objective import Objective
from kdplug.objective.task_objective import TaskObjective

T = TypeVar("T")


class MultiTaskDistiller:
    """Distils a teacher for each task into one student.

    ``model_T`` maps each task to its teacher, or to a list or mapping of teachers as in ``MultiTeacherDistiller``. The
    adaptors are mappings by task; a task's ``adaptor_T`` may have one for each of its teachers. ``distill_config`` is
    one for all tasks or a mapping by task. Each task has its own projections, and its own terms, named ``task/term``.

    For adaptors, ``observers``, ``strict`` and ``show_progress`` see ``GeneralDistiller``.

    Raises: ``ConfigError`` if mappings have different tasks; the errors of ``GeneralDistiller``, with the task in the
    path.
    """

    def __init__(  # noqa: PLR0917  TextBrewer's signature
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig | Mapping[str, DistillationConfig],
        model_T: Mapping[str, nn.Module | Models] | nn.ModuleDict,
        model_S: nn.Module,
        adaptor_T: Mapping[str, Adaptors] | None = None,
        adaptor_S: Mapping[str, Adaptor | None] | None = None,
        *,
        observers: Iterable[RunObserver] = (),
        strict: bool = False,
        show_progress: bool = True,
    ) -> None:
        check_training(train_config)
        check_side("model_S", model_S, "adaptor_S", None)
        self.tasks = _tasks(model_T)
        self.train_config = train_config
        self.distill_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        configs = distill_config if isinstance(distill_config, Mapping) else dict.fromkeys(self.tasks, distill_config)
        self._configs = _by_task("distill_config", configs, self.tasks)
        adaptors = _by_task("adaptor_T", adaptor_T, self.tasks, default=None)
        self._adaptor = TaskAdaptor(_by_task("adaptor_S", adaptor_S, self.tasks, default=None))
        teachers, objectives = {}, {}
        for task in self.tasks:
            try:
                teachers[task], objectives[task] = _task(model_T[task], adaptors[task], self._configs[task])
                objectives[task].connect(model_S, _models(teachers[task]))
            except KdplugError as error:
                raise error.at(task) from error.__cause__
        self.objective = TaskObjective(objectives)
        self._teachers = TaskTeachers(teachers)
        caches = {task: teacher_cache(train_config, self._configs[task], task) for task in self.tasks}
        self.teacher_caches = {task: cache for task, cache in caches.items() if cache is not None}
        warn_unused_cache(train_config, *caches.values())
        self._session = Session(observers, strict=strict, show_progress=show_progress)

    __enter__ = enter
    __exit__ = leave

    def train(  # noqa: PLR0917  TextBrewer's signature
        self,
        optimizer: Optimizer,
        dataloaders: Mapping[str, Iterable[Any]],
        num_steps: int,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float | None = None,
        tau: float = 1.0,
        callback: Callback | None = None,
        batch_postprocessors: Mapping[str, Callable[[Any], Any]] | None = None,
        *,
        evaluation: Evaluation | None = None,
        resume: Resume = None,
        resume_changed: bool = False,
        overwrite: bool = False,
        **model_args: Any,
    ) -> RunResult:
        """Train the student for ``num_steps`` optimizer steps.

        Each batch is drawn from the loader of one task. The probability of a task is proportional to its number of
        *examples* to the power of ``tau``: 1 draws each example equally often, 0 each task. If the number of examples
        of a loader is unknown (it is not a ``DataLoader``, or its dataset has no length), all tasks are equally likely.
        Draws come from a separate generator, seeded with the training config's ``seed`` (0 if it has none).

        ``dataloaders`` and ``batch_postprocessors`` are mappings by task; for the other arguments see
        ``GeneralDistiller.train``.

        Raises: ``ConfigError`` for conflicting arguments; ``RunError`` if the run cannot start or continue (a loader
        that is empty, or can be iterated only once and is exhausted, …).
        """
        warn_misspelt(self.train, model_args, self.model_S)
        loaders = _by_task("dataloaders", dataloaders, self.tasks)
        processors = _known("batch_postprocessors", batch_postprocessors or {}, self.tasks)
        shares = _shares(loaders, tau)
        loader = MultiTaskLoader(loaders, shares, self.train_config.seed or 0, processors)
        request = Request(
            optimizer=optimizer,
            dataloader=loader,
            num_steps=num_steps,
            scheduler_class=scheduler_class,
            scheduler_args=scheduler_args,
            scheduler=scheduler,
            max_grad_norm=max_grad_norm,
            callback=callback,
            model_args=model_args,
            evaluation=evaluation,
            resume=resume,
            resume_changed=resume_changed,
            overwrite=overwrite,
            identity={"shares": shares},
        )
        return self._session.run(self.train_config, self._sides(), request)

    def _sides(self) -> Sides:
        pair = TrainingModule(self.model_S, self._adaptor, self.objective)
        return Sides(pair, self._teachers, self._configs, self.teacher_caches)


def _task(models: Any, adaptors: Any, config: DistillationConfig) -> tuple[TeacherSide, Objective]:
    """Return a task's teacher or teachers, and its objective."""
    check_distillation(config)
    check_not_updated(config, "MultiTaskDistiller")
    if isinstance(models, nn.Module) and not isinstance(models, (nn.ModuleList, nn.ModuleDict)):
        warn_unused_combiner(config)
        if adaptors is not None and not callable(adaptors):
            raise ConfigError(
                f"must be a single callable or None, since the task has one teacher, got {type(adaptors).__name__}",
                field="adaptor_T",
            )
        return Teacher(models, adaptors), Objective(config)
    teachers = read_teachers(models, adaptors)
    if len(teachers) == 1:
        warn_unused_combiner(config)
    return Ensemble(teachers), Objective(config, tuple(teachers))


def _models(side: TeacherSide) -> nn.Module | dict[str, nn.Module]:
    """Return a task's teacher, or its teachers by key."""
    return {key: one.model for key, one in side.teachers.items()} if isinstance(side, Ensemble) else side.model


def _tasks(models: Any) -> tuple[str, ...]:
    """Return the tasks, which are the keys of ``model_T``."""
    if not isinstance(models, (Mapping, nn.ModuleDict)) or not len(models):
        raise ConfigError(f"must map each task to its teacher, got {type(models).__name__}", field="model_T")
    for task in models:
        if not isinstance(task, str) or not task or "." in task or "/" in task:
            raise ConfigError(f"a task's name must be a string without '.' and '/', got {task!r}", field="model_T")
    return tuple(models)


def _by_task(field: str, values: Mapping[str, T] | None, tasks: tuple[str, ...], **default: T) -> dict[str, T]:
    """Return one value for each task, in the order of the tasks. ``default`` is the value of tasks that have none.

    Raises: ``ConfigError`` for an unknown task, or one without a value.
    """
    known = _known(field, {} if values is None and default else values, tasks)
    missing = [task for task in tasks if task not in known]
    if missing and not default:
        raise ConfigError(f"has no value for the task {missing[0]!r}. The tasks are {', '.join(tasks)}", field=field)
    return {task: known[task] if task in known else default["default"] for task in tasks}


def _known(field: str, values: Any, tasks: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"must be a mapping by task ({', '.join(tasks)}), got {type(values).__name__}", field=field)
    for key in values:
        if key not in tasks:
            raise ConfigError(
                f"there is no task {key!r}.{did_you_mean(str(key), tasks)} The tasks are {', '.join(tasks)}",
                field=field,
            )
    return dict(values)


def _shares(loaders: Mapping[str, Iterable[Any]], tau: float) -> dict[str, float]:
    if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not math.isfinite(tau):
        raise ConfigError(f"must be a finite number, got {tau!r}", field="tau")
    counts = {task: example_count(loader) for task, loader in loaders.items()}
    unknown = [task for task, count in counts.items() if count is None]
    if unknown and tau:
        warnings.warn(
            f"the number of examples in the loader of {', '.join(map(repr, unknown))} is unknown, so tasks are drawn "
            "equally often, and tau has no effect. Use a DataLoader over a dataset with a length",
            stacklevel=3,
        )
    return shares_of(counts, tau)
