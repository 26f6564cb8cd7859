"""Initialize a student from its teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import kdplug
from kdplug_tasks.models.setting import FromTeacher

_ALTERNATIVE = "student: {config: …} without from_teacher"


def layers_path(model: nn.Module) -> str:
    """Return the path of the module list that holds a transformers model's layers.

    Raises: ``ConfigError`` if there is no list of as many modules as the config specifies, or more than one.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        size = "1 layer" if count == 1 else f"{count} layers"
        lists = f"{len(outer)} lists of {size} ({', '.join(outer)})" if outer else f"no list of {size}"
        name = type(model).__name__
        what = f"the config of {name} has no num_hidden_layers" if count is None else f"{name} has {lists}"
        raise kdplug.ConfigError(f"{what}, so its layers cannot be identified. Use {_ALTERNATIVE}", field="layers")
    path: str = outer[0]
    return path


def embeddings_path(model: nn.Module) -> str:
    """Return the path of the embedding module, which also holds position embeddings: ``bert.embeddings``.

    This is the parent of the input embeddings, or the input embeddings alone if their parent also holds the layers.
    """
    inputs = model.get_input_embeddings()  # type: ignore[operator]
    path: str = next(name for name, module in model.named_modules() if module is inputs)
    parent, layers = path.rpartition(".")[0], layers_path(model)
    while path and parent and not layers.startswith(f"{parent}."):
        path, parent = parent, parent.rpartition(".")[0]
    return path


_POSITIONS = ("wpe", "position_embeddings")


def check_layers(settings: FromTeacher, teacher: Any, student: Any) -> None:
    """Raise ``ConfigError`` for layers that the teacher does not have, or a number that does not match the student."""
    for side, config in (("teacher", teacher), ("student", student)) if settings.layers else ():
        if not isinstance(getattr(config, "num_hidden_layers", None), int):
            raise kdplug.ConfigError(
                f"the {side}'s {type(config).__name__} has no num_hidden_layers, so its layers cannot be selected. Use "
                f"{_ALTERNATIVE}",
                field="layers",
            )
    for place, layer in enumerate(settings.layers):
        if layer >= teacher.num_hidden_layers:
            raise kdplug.ConfigError(
                f"must be less than {teacher.num_hidden_layers}, the number of the teacher's layers, got {layer}",
                field=f"layers.{place}",
            )
    if settings.layers and student.num_hidden_layers != len(settings.layers):
        count = "1 layer" if len(settings.layers) == 1 else f"{len(settings.layers)} layers"
        raise kdplug.ConfigError(
            f"selects {count}, but the student's config has num_hidden_layers {student.num_hidden_layers}. Remove "
            "the number of layers from student.config, since the list determines it",
            field="layers",
        )


@torch.no_grad()
def start_from_teacher(settings: FromTeacher, student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's weights into the student, in place; other weights keep their initial values.

    With ``layers``, all weights are copied: the selected layers, and the rest by name. Without, only the embeddings, of
    which a narrower student gets the first columns.

    Raises: ``ConfigError`` that names the first weight that does not match.
    """
    mine, theirs = student.state_dict(keep_vars=True), teacher.state_dict()
    embeddings = _embeddings(mine, embeddings_path(student))
    names = _layer_names(settings, mine, layers_path(student), layers_path(teacher)) if settings.layers else {}
    for name, own in mine.items():
        is_embedding = id(own) in embeddings
        if is_embedding and settings.embeddings == "fresh":
            continue
        if not is_embedding and not settings.layers:
            continue
        source = names.get(name, name)
        if source not in theirs:
            raise kdplug.ConfigError(
                f"the teacher has no weight {source!r} for the student's {name!r}. Use {_ALTERNATIVE}", field="layers"
            )
        own.copy_(_fitting(name, own, theirs[source], may_be_cut=is_embedding))
    if settings.embeddings == "frozen":
        for parameter in student.parameters():
            if id(parameter) in embeddings:
                parameter.requires_grad_(False)


def _embeddings(weights: Mapping[str, Tensor], path: str) -> set[int]:
    """Return the ids of embedding weights, including position embeddings and tied heads."""
    return {
        id(weight)
        for name, weight in weights.items()
        if _is_in(name, path) or any(f".{part}." in name for part in _POSITIONS)
    }


def _is_in(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _layer_names(settings: FromTeacher, mine: Mapping[str, Tensor], student: str, teacher: str) -> dict[str, str]:
    """Return the teacher's name of each weight in a layer of the student."""
    found = {}
    for name in mine:
        if _is_in(name, student):
            place, _, rest = name.removeprefix(f"{student}.").partition(".")
            found[name] = f"{teacher}.{settings.layers[int(place)]}.{rest}"
    return found


def _fitting(name: str, own: Tensor, theirs: Tensor, *, may_be_cut: bool) -> Tensor:
    """Return the teacher's weight, truncated to the student's shape if ``may_be_cut``."""
    if own.shape == theirs.shape:
        return theirs
    fits = own.dim() == theirs.dim() and all(a <= b for a, b in zip(own.shape, theirs.shape, strict=True))
    if may_be_cut and fits:
        return theirs[tuple(slice(size) for size in own.shape)]
    fix = (
        f"Embeddings can be truncated, but not enlarged: decrease the student's sizes, or use {_ALTERNATIVE}"
        if may_be_cut
        else "Layers are copied whole: keep the teacher's sizes, or remove layers and copy only the embeddings"
    )
    raise kdplug.ConfigError(
        f"{name!r} has the shape {list(own.shape)} in the student and {list(theirs.shape)} in the teacher. {fix}",
        field="embeddings" if may_be_cut else "layers",
    )
