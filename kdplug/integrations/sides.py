"""Build teachers and objective from the arguments of the transformers and Lightning integrations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from kdplug.config.distillation import DistillationConfig
from kdplug.distillers.custom_match import CustomMatch
from kdplug.distillers.method import read_teachers
from kdplug.distillers.session import check_not_updated, config_identity, warn_unused_combiner
from kdplug.engine.checkpoint.identity import sides_identity
from kdplug.engine.teacher import Ensemble
from kdplug.errors import ConfigError
from kdplug.objective.objective import Objective, mark_trained

Teachers = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]
"""One teacher, or several in order or by key."""


def make_teachers(teacher: Teachers, adaptors: Any) -> Ensemble:
    """Return the teacher side: one or several teachers, each with its adaptor.

    Raises: ``ConfigError`` if a teacher is not a model, or the adaptors do not match the teachers.
    """
    several = isinstance(teacher, (Mapping, Sequence, nn.ModuleList, nn.ModuleDict))
    try:
        return Ensemble(read_teachers(teacher if several else [teacher], adaptors))
    except ConfigError as error:
        error.field = error.field.replace("model_T", "teacher", 1)
        raise


def make_objective(
    config: DistillationConfig, teachers: Ensemble, student: nn.Module, custom_matches: Iterable[CustomMatch] = ()
) -> Objective:
    """Build the objective of a config and resolve its module paths in the models.

    Raises: ``ConfigError`` if the config contains a name that does not exist, or needs kdplug's own loop.
    """
    if not isinstance(config, DistillationConfig):
        raise ConfigError(
            f"must be a DistillationConfig, got {type(config).__name__}. From a dict: DistillationConfig.from_dict(…)",
            field="distill_config",
        )
    if config.is_caching_logits:
        raise ConfigError(
            "only kdplug's own loop supports a teacher cache. Set is_caching_logits to false, or use GeneralDistiller",
            field="is_caching_logits",
        )
    check_not_updated(config, "this integration")
    if config.plugins.hooks:
        raise ConfigError(
            f"only kdplug's own loop calls hooks that change a run ({', '.join(config.plugins.hooks)}). Remove this key and write "
            "a callback of the trainer, or use GeneralDistiller",
            field="plugins.hooks",
        )
    if config.used_balancer is not None:
        raise ConfigError(
            "only kdplug's own loop updates a balancer. Set balancer to none and write each weight as a number, or use "
            "GeneralDistiller, or your own loop with objective.balance.update",
            field="balancer",
        )
    models = {key: one.model for key, one in teachers.teachers.items()}
    matches = tuple(custom_matches)
    if len(models) == 1:
        warn_unused_combiner(config)
    elif matches:
        raise ConfigError(f"requires exactly one teacher, got {len(models)}", field="custom_matches")
    first = next(iter(models.values()))
    terms = [match.term(place, first, student) for place, match in enumerate(matches)]
    objective = Objective(config, tuple(models), custom_matches=terms)
    objective.connect(student, models)
    mark_trained(objective)
    return objective


def identity_of(
    config: DistillationConfig, student: nn.Module, adaptor: Any, objective: Objective, teachers: Ensemble
) -> dict[str, Any]:
    """Return the identity of a run, as plain data: it must match when resuming, and across processes."""
    return {**config_identity({"": config}), **sides_identity(student, adaptor, objective, teachers)}
