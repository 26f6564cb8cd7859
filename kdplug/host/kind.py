"""Kinds of entries that plugins may offer, and the data of one entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Origin = Literal["metadata", "hook", "local"]

_PROGRESS = ("progress", "step", "total_steps")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of entry.

    ``plural`` is the registry attribute and the last part of the entry-point group. ``slots`` maps each place in a
    config that accepts this kind to the inputs that the engine provides there; ``positional`` maps it to the inputs, in
    order, of a callable in a TextBrewer-style map. An entry with ``is_object`` is built once from its settings and used
    through its methods. ``method`` is the method of a class that takes the inputs, ``built_with`` what its ``__init__``
    may take by position, without a default.
    """

    plural: str
    noun: str
    slots: MappingProxyType[str, tuple[str, ...]]
    positional: MappingProxyType[str, tuple[str, ...]]
    is_object: bool = False
    method: str = "forward"
    built_with: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return f"kdplug.{self.plural}"

    @property
    def hook(self) -> str:
        return f"kdplug_{self.plural}"

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(name for names in self.slots.values() for name in names)

    def fits(self, inputs: Iterable[str], slot: str) -> bool:
        """Return whether an entry that requests ``inputs`` can be used in ``slot``: a match has to read a feature."""
        requested = set(inputs)
        reads_a_feature = slot != "match" or bool(requested & set(_FEATURES)) or not requested
        return reads_a_feature and requested <= set(self.slots[slot])


_NONE: dict[str, tuple[str, ...]] = {"": ()}


def _kind(
    plural: str,
    noun: str,
    slots: dict[str, tuple[str, ...]],
    positional: dict[str, tuple[str, ...]],
    **how: Any,
) -> Kind:
    return Kind(plural, noun, MappingProxyType(slots), MappingProxyType(positional), **how)


def _object(plural: str, noun: str) -> Kind:
    return Kind(plural, noun, MappingProxyType(_NONE), MappingProxyType(_NONE), is_object=True)


_KD = ("student_logits", "teacher_logits", "temperature")
_MATCH = ("student_features", "teacher_features", "mask")
_FEATURES = ("student_features", "teacher_features")
_MASKS = ("student_mask", "teacher_mask")
NAMED = ("student_extras", "teacher_extras", "student_parameters", "teacher_parameters")
"""Inputs whose content a term names."""
_COUNTS = ("student_layers", "teacher_layers")

KINDS = MappingProxyType(
    {
        kind.plural: kind
        for kind in (
            _kind(
                "losses",
                "loss",
                {
                    "kd": (
                        *_KD,
                        "teacher_sparse",
                        "mask",
                        "labels",
                        "example_ids",
                        *_PROGRESS,
                        "epoch",
                        "draw_seed",
                        *NAMED,
                    ),
                    "match": (
                        *_MATCH,
                        *_MASKS,
                        "student_logits",
                        "teacher_logits",
                        "labels",
                        "example_ids",
                        "temperature",
                        *_PROGRESS,
                        "epoch",
                        "draw_seed",
                        *NAMED,
                    ),
                },
                {"kd": _KD, "match": _MATCH},
                built_with=("in_dim", "out_dim", "num_examples"),
            ),
            _kind("projections", "projection", {"": ("in_dim", "out_dim")}, {"": ("in_dim", "out_dim")}),
            _kind("weight_schedulers", "weight scheduler", {"": _PROGRESS}, {"": ("progress",)}),
            _kind("temperature_schedulers", "temperature scheduler", {"": (*_KD, *_PROGRESS)}, {"": _KD}),
            _kind(
                "teacher_combiners",
                "teacher combiner",
                {"": ("teacher_logits_list", "student_logits", "labels", "temperature", *_PROGRESS)},
                {"": ("teacher_logits_list",)},
            ),
            _kind("layer_maps", "layer map", {"": _COUNTS}, {"": _COUNTS}),
            _object("tasks", "task"),
            _object("cache_codecs", "cache codec"),
            _kind(
                "balancers",
                "balancer",
                {"": ("values", "gradients", *_PROGRESS, "epoch")},
                {"": ("values",)},
                method="update",
                built_with=("num_terms", "weights", "shares"),
            ),
            _kind(
                "teacher_updates",
                "teacher update",
                {"": ("teacher_tensor", "student_tensor", *_PROGRESS)},
                {"": ("teacher_tensor", "student_tensor", "progress")},
            ),
            _object("student_transforms", "student transform"),
            _object("teachers", "teacher"),
            _object("evaluators", "evaluator"),
        )
    }
)
"""All kinds by their plural."""

HOOK_GROUP = "kdplug.plugins"
"""Entry-point group of modules and objects with hook implementations."""


@dataclass(eq=False)
class EntryInfo:
    """Data of an entry, known before it is imported.

    ``target`` is the callable or ``"module:attribute"``. A ``positional`` callable gets its inputs by position, as in
    TextBrewer's maps, instead of by parameter name; ``slot`` limits a loss to one place in a config.
    """

    kind: Kind
    name: str
    dist: str
    version: str
    target: str | Callable[..., Any]
    origin: Origin = "metadata"
    editable: Callable[[], bool] = field(default=lambda: False, repr=False)
    positional: bool = False
    slot: str | None = None
    error: BaseException | None = field(default=None, repr=False)

    @property
    def qualified(self) -> str:
        """``distribution:name``, which always means this entry."""
        return f"{self.dist}:{self.name}"

    @property
    def owner(self) -> str:
        """The distribution and its version, for messages."""
        return f"{self.dist} {self.version}".strip()
