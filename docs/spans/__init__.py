"""What the generated spans of the reference pages hold, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from spans.catalogue import catalogue
from spans.command import help_of
from spans.error import error_tree
from spans.hook import hooks
from spans.key import keys_of
from spans.vocabulary import adaptor_keys, aliases, inputs_by_site, meanings

SPANS: dict[str, Callable[[], str]] = {
    "kd losses": partial(catalogue, "losses", site="kd"),
    "match losses": partial(catalogue, "losses", site="match"),
    "projections": partial(catalogue, "projections"),
    "weight schedulers": partial(catalogue, "weight_schedulers"),
    "temperature schedulers": partial(catalogue, "temperature_schedulers"),
    "tasks": partial(catalogue, "tasks"),
    "adaptor keys": adaptor_keys,
    "aliases": aliases,
    "errors": error_tree,
    "hooks": hooks,
    "inputs": meanings,
    "inputs by site": inputs_by_site,
    "kdplug": help_of,
    "kdplug run": partial(help_of, "run"),
    "kdplug plugins list": partial(help_of, "plugins", "list"),
    "kdplug plugins show": partial(help_of, "plugins", "show"),
    "DistillationConfig": partial(keys_of, "distillation", "DistillationConfig"),
    "IntermediateMatch": partial(keys_of, "match", "IntermediateMatch"),
    "TrainingConfig": partial(keys_of, "training", "TrainingConfig"),
    "Recipe": partial(keys_of, "recipe", "Recipe"),
    "RecipeTraining": partial(keys_of, "recipe", "RecipeTraining"),
}
