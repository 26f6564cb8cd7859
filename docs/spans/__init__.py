"""Generators of the spans in the reference pages, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from spans.catalogue import catalogue
from spans.command import commands
from spans.error import error_tree
from spans.group import groups
from spans.hook import hooks
from spans.key import keys_of
from spans.law import declarations, usual_shapes
from spans.vocabulary import adaptor_keys, aliases, inputs_by_site, meanings

SPANS: dict[str, Callable[[], str]] = {
    "kd losses": partial(catalogue, "losses", site="kd"),
    "match losses": partial(catalogue, "losses", site="match"),
    "projections": partial(catalogue, "projections"),
    "weight schedulers": partial(catalogue, "weight_schedulers"),
    "temperature schedulers": partial(catalogue, "temperature_schedulers"),
    "teacher combiners": partial(catalogue, "teacher_combiners"),
    "teacher updates": partial(catalogue, "teacher_updates"),
    "layer maps": partial(catalogue, "layer_maps"),
    "tasks": partial(catalogue, "tasks"),
    "cache codecs": partial(catalogue, "cache_codecs"),
    "balancers": partial(catalogue, "balancers"),
    "task groups": partial(groups, "tasks"),
    "adaptor keys": adaptor_keys,
    "aliases": aliases,
    "errors": error_tree,
    "hooks": hooks,
    "law declarations": declarations,
    "usual shapes": usual_shapes,
    "inputs": meanings,
    "inputs by site": inputs_by_site,
    "commands": commands,
    "DistillationConfig": partial(keys_of, "distillation", "DistillationConfig"),
    "IntermediateMatch": partial(keys_of, "match", "IntermediateMatch"),
    "TermConfig": partial(keys_of, "term", "TermConfig"),
    "LayerMap": partial(keys_of, "layer_map", "LayerMap"),
    "TrainingConfig": partial(keys_of, "training", "TrainingConfig"),
    "Recipe": partial(keys_of, "recipe", "Recipe"),
    "StageConfig": partial(keys_of, "recipe", "StageConfig"),
    "StudentConfig": partial(keys_of, "student", "StudentConfig"),
    "RecipeTraining": partial(keys_of, "recipe", "RecipeTraining"),
}
