"""The file that ``kdplug run`` reads: a task, what is distilled, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from kdplug.config.component import TaskComponent
from kdplug.config.distillation import DistillationConfig
from kdplug.config.model import ConfigModel
from kdplug.config.override import overridden
from kdplug.config.requirement import PluginsConfig
from kdplug.config.scalar import Count, NonNegative, Positive, Processes, Share, Text, WholeNumber
from kdplug.config.training import LoopConfig, TrainingConfig
from kdplug.errors import ConfigError
from kdplug.host.name import split_qualified

_AT_THE_TOP = "stands at the top of a recipe, beside 'training' and not inside it"


def _class_name(name: str) -> str:
    if not name.isidentifier():
        raise ConfigError(f"must be the name of a class in torch.optim, such as AdamW, got {name!r}")
    return name


class RecipeTraining(LoopConfig):
    """``training:`` of a recipe.

    ``optimizer`` is a class in ``torch.optim``; exactly one of ``num_epochs`` and ``num_steps`` (optimizer steps) is
    given; ``warmup`` is the share of the steps in which the learning rate rises from 0 to ``lr``.
    """

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

    optimizer: Annotated[Text, AfterValidator(_class_name)] = "AdamW"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    batch_size: Count = 32
    eval_batch_size: Count = 256
    num_epochs: Count | None = None
    num_steps: Count | None = None
    lr_schedule: Annotated[
        Literal["none", "linear", "cosine"], BeforeValidator(lambda data: "none" if data is None else data)
    ] = "none"
    warmup: Share = 0.0
    max_grad_norm: Positive | None = None
    num_workers: Processes = 0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.num_epochs is None) == (self.num_steps is None):
            got = (
                "neither"
                if self.num_epochs is None
                else f"{self.num_epochs} and {self.num_steps}: set the other to null"
            )
            raise ConfigError(f"give exactly one of num_epochs and num_steps, got {got}")
        return self


class Recipe(ConfigModel):
    """A task, a ``DistillationConfig``, how to train, and where results go.

    ``output_dir`` is ``runs/<task>`` unless it is given; with a ``teacher_cache``, ``is_caching_logits`` is true unless it is given.

    Raises: ``ConfigError`` or ``EntryError`` with the path of each wrong value.
    """

    task: TaskComponent
    distillation: DistillationConfig
    training: RecipeTraining
    output_dir: Text = "runs/<task>"
    seed: WholeNumber = 0
    plugins: PluginsConfig = PluginsConfig()

    @model_validator(mode="after")
    def _named_for_the_task(self) -> Self:
        if "output_dir" not in self.model_fields_set:
            self._fill(output_dir=f"runs/{split_qualified(self.task.name)[1]}")
        return self

    @model_validator(mode="after")
    def _a_cache_is_for_caching(self) -> Self:
        """A folder that nothing would be read from is not what anybody means."""
        if self.training.teacher_cache is not None and "is_caching_logits" not in self.distillation.model_fields_set:
            self._fill(distillation=self.distillation.with_defaults(is_caching_logits=True))
        return self

    def with_overrides(self, overrides: Iterable[str]) -> Self:
        """The recipe with ``"training.lr=1e-3"``-like changes, as ``--set`` takes them. Values are YAML.

        Raises: ``ConfigError`` where a path leads nowhere, or the changed recipe is not valid.
        """
        given = self.model_dump(mode="json", exclude_unset=True)
        return type(self).from_dict(overridden(given, self.to_dict(), overrides))

    def training_config(self, output_dir: str | None = None) -> TrainingConfig:
        """What a distiller needs of the recipe; ``output_dir`` stands in for the recipe's own."""
        shared = {key: getattr(self.training, key) for key in LoopConfig.model_fields}
        return TrainingConfig(**shared, output_dir=output_dir or self.output_dir, seed=self.seed)
