"""The recipe, the file that ``kdplug run`` reads: task, distillation and training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeGuard, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from kdplug.config.distillation import DistillationConfig
from kdplug.config.key import KeyFacts
from kdplug.config.model import (
    LARGEST,
    ConfigModel,
    Count,
    NonNegative,
    Positive,
    Processes,
    Share,
    Switch,
    TaskComponent,
    Text,
    WholeNumber,
)
from kdplug.config.override import overridden, source_of
from kdplug.config.requirement import Plugins, PluginsConfig
from kdplug.config.stage import Stage, StageConfig, stages_of
from kdplug.config.student import EvaluatorList, StudentConfig
from kdplug.config.teacher import TASK, RecipeTeacher, check_update
from kdplug.config.training import Folder, LoopConfig, TrainingConfig
from kdplug.config.words import shown
from kdplug.errors import ConfigError
from kdplug.host.name import split_qualified

_AT_THE_TOP = "belongs at the top level of a recipe, next to 'training' and not inside it"


def _class_name(name: str) -> str:
    if not name.isidentifier():
        raise ConfigError(f"must be the name of a class in torch.optim, such as AdamW, got {name!r}")
    return name


_Schedule = Literal["none", "linear", "cosine"]
LrSchedule = Annotated[
    _Schedule,
    BeforeValidator(lambda data: "none" if data is None else data),
    WithJsonSchema({"type": ["string", "null"], "enum": [*get_args(_Schedule), None]}),
]


_MOST_SEEDS = 1000


def _read_seeds(data: object) -> int | tuple[int, ...] | None:
    if data is None:
        return None
    if _is_whole(data, 1, _MOST_SEEDS):
        return data
    if not isinstance(data, (list, tuple)) or not 1 <= len(data) <= _MOST_SEEDS:
        raise ConfigError(
            f"must be a number of seeds, such as 3, or a list of seeds, such as [0, 1, 2], with at most {_MOST_SEEDS:,} of "
            f"them, got {shown(data)}"
        )
    for place, seed in enumerate(data):
        if not _is_whole(seed, 0, LARGEST):
            raise ConfigError(f"must be a whole number from 0 to {LARGEST}, got {shown(seed)}").at(place)
    repeated = [seed for place, seed in enumerate(data) if seed in data[:place]]
    if repeated:
        raise ConfigError(
            f"contains {', '.join(map(str, dict.fromkeys(repeated)))} more than once. Name each seed once"
        )
    return tuple(map(int, data))


def _is_whole(data: object, lowest: int, highest: int) -> TypeGuard[int]:
    return isinstance(data, int) and not isinstance(data, bool) and lowest <= data <= highest


Seeds = Annotated[
    int | tuple[int, ...] | None,
    PlainValidator(_read_seeds),
    PlainSerializer(lambda seeds: list(seeds) if isinstance(seeds, tuple) else seeds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": _MOST_SEEDS},
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "maximum": LARGEST},
                    "minItems": 1,
                    "maxItems": _MOST_SEEDS,
                    "uniqueItems": True,
                },
                {"type": "null"},
            ]
        }
    ),
]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ConfigError(f"contains a name more than once: {', '.join(names)}")
    return names


Control = Literal["no_teacher", "shuffled"]
"""A student that the distilled one is compared with."""


Varied = Literal["teacher"]
"""A part of a recipe that a seed determines, in addition to the student."""


class RecipeTraining(LoopConfig):
    """The ``training`` section of a recipe. Exactly one of ``num_epochs`` and ``num_steps`` must be set."""

    retired: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **LoopConfig.retired,
            "output_dir": _AT_THE_TOP,
            "seed": _AT_THE_TOP,
            "epochs": "is called num_epochs here",
            "steps": "is called num_steps here",
            "max_steps": "is called num_steps here",
            "learning_rate": "is called lr here",
        }
    )

    optimizer: Annotated[Text, AfterValidator(_class_name)] = Field(
        default="AdamW",
        description="name of the optimizer's class in `torch.optim`",
        json_schema_extra={"pattern": r"^[A-Za-z_]\w*$"},
    )
    lr: Positive = Field(default=1e-3, description="learning rate of the student's optimizer, reached after `warmup`")
    weight_decay: NonNegative = Field(default=0.0, description="weight decay of the student's optimizer")
    batch_size: Count = Field(default=32, description="examples per training batch")
    eval_batch_size: Annotated[Count | None, KeyFacts(identity=False)] = Field(
        default=None,
        description="examples per evaluation batch; by default 256, or fewer if their logits exceed 1 GiB",
    )
    num_epochs: Count | None = Field(
        default=None, description="passes over the data; set exactly one of this and `num_steps`"
    )
    num_steps: Count | None = Field(
        default=None, description="number of optimizer steps; set exactly one of this and `num_epochs`"
    )
    lr_schedule: LrSchedule = Field(
        default="none",
        description="learning rate after the warmup: constant (`none`), or decaying to 0, `linear` or `cosine`",
    )
    warmup: Share = Field(
        default=0.0, description="fraction of the steps over which the learning rate rises linearly from 0 to `lr`"
    )
    max_grad_norm: Positive | None = Field(
        default=None,
        description="maximum gradient norm of student and projections together, to which gradients are clipped; "
        "none does not clip",
    )
    num_workers: Processes = Field(
        default=0, description="worker processes of the `DataLoader`; 0 loads data in the main process"
    )
    evaluations: WholeNumber = Field(
        default=10,
        description="evaluations of each student on the validation part, spread evenly over the run, the last one after the "
        "last step; with 0 there are none, and the last weights are used",
    )
    evaluation_examples: Count | None = Field(
        default=None,
        description="validation examples of each evaluation, a fixed random sample; none evaluates on all of them",
    )
    early_stopping: Count | None = Field(
        default=None,
        description="number of evaluations without a better `metric` after which a student's training ends; none trains for "
        "all steps",
    )
    best_checkpoint: Switch = Field(
        default=True,
        description="whether a student ends with the weights of its best evaluation; otherwise with those of the last step",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.num_epochs is None) == (self.num_steps is None):
            got = (
                "neither"
                if self.num_epochs is None
                else f"{self.num_epochs} and {self.num_steps}. Set one of the two to null"
            )
            raise ConfigError(f"set exactly one of num_epochs and num_steps, got {got}")
        return self

    @model_validator(mode="after")
    def _evaluations_are_needed(self) -> Self:
        for key in ("early_stopping", "evaluation_examples"):
            if getattr(self, key) is not None and not self.evaluations:
                raise ConfigError(
                    "has no effect: evaluations is 0. Set evaluations to a number of evaluations, or leave this key out"
                ).at(key)
        return self


def _no_default(schema: dict[str, Any]) -> None:
    """Remove the default: it depends on the task."""
    schema.pop("default", None)


class Recipe(ConfigModel):
    """A task, the distillation, the training and the output folder.

    With a ``teacher_cache``, ``is_caching_logits`` defaults to true.

    Raises: ``ConfigError`` or ``EntryError`` with the path of each wrong value.
    """

    task: TaskComponent = Field(
        description="task that provides models, data, adaptors and metric: its name and settings"
    )
    distillation: DistillationConfig = Field(description="losses between student and teacher: a `DistillationConfig`")
    teacher: RecipeTeacher = Field(
        default=TASK,
        description="where the teacher comes from. `task`: the task builds it; an external teacher, such as `{name: …}`; "
        "`self`: the student with its adapters off; `copy`: a copy of the untrained student, for `teacher_update`; none: no term "
        "reads a teacher",
    )
    training: RecipeTraining = Field(
        description="training of the student: optimizer, length, precision, checkpoints and logs"
    )
    output_dir: Annotated[Folder, KeyFacts(identity=False)] = Field(
        default="runs/<task>",
        description="folder for results and checkpoints; defaults to `runs/<task name>`",
        json_schema_extra=_no_default,
    )
    seed: WholeNumber = Field(
        default=0,
        description="seed of all random number generators of the teacher and, without `seeds`, of the students",
    )
    seeds: Annotated[Seeds, KeyFacts(identity=False)] = Field(
        default=None,
        description="seeds of the students: their initial weights, the order of their data, and random numbers that the task "
        "draws. A number n means `seed` to `seed` + n - 1; a list names them; none means `seed` alone. A verdict needs 3",
    )
    controls: Annotated[tuple[Control, ...], AfterValidator(_distinct), KeyFacts(identity=False)] = Field(
        default=("no_teacher",),
        description="students that the distilled one is compared with: `no_teacher` has the same initial weights, steps and "
        "batch size, and learns from labels alone; `shuffled` is distilled with each teacher output given to another example of "
        "the same predicted class in its batch; an empty list trains none",
    )
    vary: Annotated[tuple[Varied, ...], AfterValidator(_distinct)] = Field(
        default=(),
        description="`[teacher]` trains a separate teacher for each seed, so that a verdict concerns the procedure and not one "
        "teacher; only for a teacher that the recipe trains",
    )
    metric: Text | None = Field(
        default=None,
        description="metric of the task that ranks checkpoints and decides the verdict; none means the task's main metric",
    )
    margin: Annotated[Positive | None, KeyFacts(identity=False)] = Field(
        default=None,
        description="smallest difference in the metric that matters; the verdict then states how many seeds are needed to "
        "detect it",
    )
    student: StudentConfig = Field(
        default=StudentConfig(),
        description="what happens to the student of any task: `{transforms: [{name: …}]}`; its model is a setting of `task`",
    )
    evaluators: Annotated[EvaluatorList, KeyFacts(identity=False)] = Field(
        default=(),
        description="evaluators of each trained model, in addition to the task's metrics; they run after the training",
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(),
        description="distillations that run one after another, each on the student of an earlier one or on a new one; the "
        "student of the last one is the distilled student. What a stage leaves out is the recipe's own",
    )
    plugins: Plugins = PluginsConfig()

    @property
    def has_task_teacher(self) -> bool:
        """Return whether the task builds the teacher, so that the results have its metrics."""
        return self.teacher == TASK

    @model_validator(mode="after")
    def _updates_need_a_model(self) -> Self:
        check_update(self.teacher, self.distillation.teacher_update)
        return self

    @property
    def acting(self) -> tuple[str, ...]:
        """The distributions whose hooks act: those of the recipe, then those of its distillation."""
        return tuple(dict.fromkeys((*self.plugins.hooks, *self.distillation.plugins.hooks)))

    @property
    def student_seeds(self) -> tuple[int, ...]:
        """The seeds of the students, in the order of their runs."""
        if self.seeds is None:
            return (self.seed,)
        return tuple(range(self.seed, self.seed + self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def teacher_seeds(self) -> tuple[int, ...]:
        """The seeds of the teachers: ``seed``, or with ``vary: [teacher]`` that of each student."""
        return self.student_seeds if "teacher" in self.vary else (self.seed,)

    @model_validator(mode="after")
    def _a_cache_is_of_one_teacher(self) -> Self:
        if "teacher" in self.vary and self.training.teacher_cache is not None:
            raise ConfigError(
                "contains teacher, but training.teacher_cache holds the outputs of a single teacher. Remove one of the two"
            ).at("vary")
        return self

    @model_validator(mode="after")
    def _seeds_are_in_range(self) -> Self:
        if max(self.student_seeds) > LARGEST:
            raise ConfigError(f"the last seed would be {max(self.student_seeds)}; the largest is {LARGEST}").at("seeds")
        return self

    @model_validator(mode="after")
    def _named_for_the_task(self) -> Self:
        if "output_dir" not in self.model_fields_set:
            self._fill(output_dir=f"runs/{split_qualified(self.task.name)[1]}")
        return self

    @model_validator(mode="after")
    def _a_cache_is_for_caching(self) -> Self:
        """Enable caching if the recipe sets a cache folder."""
        if self.training.teacher_cache is not None and "is_caching_logits" not in self.distillation.model_fields_set:
            self._fill(distillation=self.distillation.with_defaults(is_caching_logits=True))
        return self

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        self.planned_stages()
        return self

    def planned_stages(self) -> tuple[Stage, ...]:
        """Return the stages in order, each with what it inherits; empty for a recipe without stages."""
        return stages_of(self)

    def with_overrides(self, overrides: Iterable[str], *, names_options: bool = False) -> Self:
        """Return the recipe with changes such as ``"training.lr=1e-3"``, as ``--set`` takes them. Values are YAML.

        With ``names_options``, errors name ``--set`` and the key.

        Raises: ``ConfigError`` if a path does not exist or the changed recipe is invalid.
        """
        overrides = list(overrides)
        given = overridden(self.model_dump(mode="json", exclude_unset=True), self.to_dict(), overrides)
        place = partial(source_of, overrides=overrides, with_inner=True) if names_options else None
        return self._checked(given, place=place)

    def training_config(self, output_dir: str | None = None) -> TrainingConfig:
        """Return the training config of a distiller; ``output_dir`` replaces the recipe's."""
        shared = {key: getattr(self.training, key) for key in LoopConfig.model_fields}
        return TrainingConfig(**shared, output_dir=output_dir or self.output_dir, seed=self.seed)
