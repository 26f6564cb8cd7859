"""The file that ``kdplug run`` reads: a task, what is distilled, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from kdplug.config.distillation import DistillationConfig
from kdplug.config.model import (
    ConfigModel,
    Count,
    NonNegative,
    Positive,
    Processes,
    Share,
    TaskComponent,
    Text,
    WholeNumber,
)
from kdplug.config.requirement import PluginsConfig
from kdplug.config.text import yaml_value
from kdplug.config.training import LoopConfig, TrainingConfig
from kdplug.config.words import shown
from kdplug.errors import ConfigError, UnknownKeyError, did_you_mean
from kdplug.host.name import split_qualified

_LONGEST_PATH = 1000


def overridden(given: dict[str, Any], full: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``given`` with the changes; ``full`` holds every key with its default, so that any of them may be set.

    Raises: ``ConfigError`` where an override is no ``path=value``; ``UnknownKeyError`` where its path leads nowhere.
    """
    given, full = deepcopy(given), deepcopy(full)
    for override in overrides:
        path, value = _split(override)
        for tree in (full, given):
            _put(tree, path, deepcopy(value), known=full)
    return given


def _split(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{shown(override)} is no change of a config. Write path=value, such as training.lr=1e-3")
    if len(path) > _LONGEST_PATH:
        raise ConfigError(f"the path of {shown(override)} has {len(path):,} characters; it may have {_LONGEST_PATH:,}")
    parts = path.strip().split(".")
    return parts, yaml_value(text, f"the value in {shown(override)}")


def _put(tree: dict[str, Any], path: list[str], value: Any, known: dict[str, Any]) -> None:
    """Set the value at ``path`` in ``tree``, checking each step against ``known``."""
    here: Any = tree
    there: Any = known
    for depth, part in enumerate(path):
        place = _step(there, part, path[:depth], last=depth == len(path) - 1)
        if depth == len(path) - 1:
            here[place] = value
            return
        there = there[place]
        if isinstance(here, dict):  # a key that was left at its default is in known alone
            here.setdefault(place, [] if isinstance(there, list) else {})
        here = here[place]


def _step(node: Any, part: str, above: list[str], *, last: bool) -> str | int:
    """The key or index that ``part`` means in ``node``."""
    where = ".".join(above)
    if isinstance(node, dict):
        if part not in node and not last:
            message = f"unknown key.{did_you_mean(part, node)} The keys here are: {', '.join(node)}"
            raise UnknownKeyError(message).at(*above, part)
        return part
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return int(part)
        others = f" to {len(node) - 1}" if len(node) > 1 else ""
        have = f"has the elements 0{others}" if node else "is empty"
        raise UnknownKeyError(f"{where} {have}").at(*above, part)
    raise UnknownKeyError(f"{where} is {shown(node)}, which holds no keys. Set {where} as a whole").at(*above, part)


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
