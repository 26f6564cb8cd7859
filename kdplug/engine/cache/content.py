"""Convert the teacher outputs that an objective reads to named tensors and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.contracts.vocabulary import EXTRAS
from kdplug.errors import OutputsError
from kdplug.objective.named_inputs import read_extras

if TYPE_CHECKING:
    from kdplug.objective.objective import Objective


_LAYERED = ("hidden", "attention")
_HEADED = ("logits", "logits_mask")


@dataclass(frozen=True, slots=True)
class RequiredOutputs:
    """The parts of one teacher's outputs that enter a loss. Layers are indices as written in a config.

    ``parameters`` are the paths of the teacher's parameters and buffers that losses read, which are stored once.
    """

    logits: bool
    inputs_mask: bool
    layers: Mapping[str, frozenset[int]]
    captured: tuple[str, ...]
    extras: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, objective: Objective, place: int = 0) -> RequiredOutputs:
        """Return what ``objective`` reads from the teacher at ``place``, except for layer maps that are not expanded yet."""
        terms = [term for term in objective.configured.terms() if term.teacher in (None, place)]
        layers: dict[str, set[int]] = {key: set() for key in _LAYERED}
        for term in terms:
            layers[term.config.feature].update(layer for layer in term.layers("teacher") if isinstance(layer, int))
        written: set[Any] = {layer for term in terms for layer in term.layers("teacher")}
        written |= {term.layer_teacher for term in objective.custom_matches}
        return cls(
            logits=any(term.reads_logits for term in terms),
            inputs_mask=any(term.features is not None for term in terms) or bool(len(objective.custom_matches)),
            layers={key: frozenset(found) for key, found in layers.items()},
            captured=tuple(path for path in objective.paths("teacher", place) if path in written),
            extras=tuple(dict.fromkeys(name for term in terms for name in term.named.extras_of("teacher"))),
            parameters=tuple(dict.fromkeys(path for term in terms for path in term.named.paths["teacher"])),
        )

    @classmethod
    def union(cls, parts: Iterable[RequiredOutputs]) -> RequiredOutputs:
        """Return everything that any of ``parts`` has."""
        found = list(parts)
        layers = {key: frozenset(layer for one in found for layer in one.layers.get(key, ())) for key in _LAYERED}
        return cls(
            logits=any(one.logits for one in found),
            inputs_mask=any(one.inputs_mask for one in found),
            layers=layers,
            captured=tuple(dict.fromkeys(path for one in found for path in one.captured)),
            extras=tuple(dict.fromkeys(name for one in found for name in one.extras)),
            parameters=tuple(dict.fromkeys(path for one in found for path in one.parameters)),
        )

    def names(self, counts: Mapping[str, int]) -> set[str]:
        """Return layers, paths and extras under the names that ``flatten`` uses; ``counts`` holds the number of layers."""
        found = {f"captured/{path}" for path in self.captured} | {f"{EXTRAS}/{name}" for name in self.extras}
        for key, indices in self.layers.items():
            count = counts.get(key, 0)
            found |= {f"{key}/{index % count}" for index in indices if count and -count <= index < count}
        return found


@dataclass(frozen=True, slots=True)
class Content:
    """Named tensors, the number of layers of the teacher, and the keys it returned."""

    tensors: dict[str, Tensor]
    counts: dict[str, int] = field(default_factory=dict)


def flatten(outputs: Outputs, wanted: RequiredOutputs) -> Content:
    """Return the required parts of ``outputs`` under names such as ``logits/0`` and ``hidden/3``; skip absent ones.

    Raises: ``OutputsError`` for a required extra that is absent.
    """
    tensors: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    if wanted.logits:
        for key in _HEADED:
            tensors |= {f"{key}/{head}": _kept(one) for head, one in enumerate(getattr(outputs, key) or ())}
    if wanted.inputs_mask and outputs.inputs_mask is not None:
        tensors["inputs_mask"] = outputs.inputs_mask
    for key, indices in wanted.layers.items():
        found = getattr(outputs, key)
        if indices and found is not None:
            counts[key] = len(found)
            inside = {index % len(found) for index in indices if -len(found) <= index < len(found)}
            tensors |= {f"{key}/{index}": found[index] for index in sorted(inside)}
    if wanted.captured and outputs.captured is not None:
        counts["captured"] = len(wanted.captured)
        tensors |= {f"captured/{path}": outputs.captured[path] for path in wanted.captured if path in outputs.captured}
    if wanted.extras:
        tensors |= {f"{EXTRAS}/{name}": one for name, one in read_extras(outputs, wanted.extras, "teacher").items()}
    return Content(tensors, counts)


def _kept(logits: Any) -> Any:
    """Return logits that are or represent a full tensor; factored ones are multiplied out or encoded later.

    Raises: ``OutputsError`` for sparse logits from the teacher.
    """
    if isinstance(logits, SparseLogits):
        raise OutputsError(
            "stores full logits, or encodes them with a codec, but the teacher returned SparseLogits. Return full "
            "logits from the teacher's adaptor, or set is_caching_logits to false",
            field="is_caching_logits",
        )
    return logits


def rebuild(content: Content) -> Outputs:
    """Return ``Outputs`` with the tensors that ``flatten`` took. Layers that were not required are empty tensors."""
    tensors, counts = content.tensors, content.counts
    parts: dict[str, Any] = {}
    for key in _HEADED:
        heads = [name for name in tensors if name.rpartition("/")[0] == key]
        parts[key] = tuple(tensors[f"{key}/{head}"] for head in range(len(heads))) or None
    for key in _LAYERED:
        if key in counts:
            parts[key] = tuple(tensors.get(f"{key}/{index}", _NOT_KEPT) for index in range(counts[key]))
    if "captured" in counts:
        prefix = "captured/"
        parts["captured"] = {
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
    prefix = f"{EXTRAS}/"
    extras = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return Outputs(extras=extras, inputs_mask=tensors.get("inputs_mask"), **parts)


_NOT_KEPT = torch.empty(0)


def length_dims(name: str, shape: torch.Size) -> tuple[int, ...]:
    """Return the dimensions of a batch's tensor that may be the token dimension; dimension 0 is the batch."""
    key, dims = name.partition("/")[0], len(shape)
    if key == "logits":
        return tuple(range(1, dims - 1))
    if key in ("logits_mask", "inputs_mask"):
        return tuple(range(1, dims))
    if key == "attention" or dims == 4:
        return (dims - 2, dims - 1) if dims > 2 and shape[-1] == shape[-2] else ()
    return (1,) if dims == 3 else ()
