"""The kinds of project that ``kdplug plugins new`` makes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.kind import HOOK_GROUP, KINDS


class Scaffold(NamedTuple):
    """What sets the project of one kind apart: its templates, its entry-point group, and what its README says."""

    folder: str
    group: str
    noun: str
    summary: str
    needs: tuple[str, ...]
    is_class: bool = False
    has_recipe: bool = True


_KDPLUG, _TORCH, _PYDANTIC = "kdplug", "torch>=2.13", "pydantic>=2.9,<3"

SCAFFOLDS: Mapping[str, Scaffold] = MappingProxyType(
    {
        "loss": Scaffold(
            "loss_on_logits",
            "kdplug.losses",
            "loss",
            "A kdplug loss: KL divergence over the items of which the teacher is sure.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "loss on features": Scaffold(
            "loss_on_features",
            "kdplug.losses",
            "loss",
            "A kdplug loss: Huber distance between hidden states.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "projection": Scaffold(
            "projection",
            "kdplug.projections",
            "projection",
            "A kdplug projection: two layers from the student's width to the teacher's.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "weight_scheduler": Scaffold(
            "weight_scheduler",
            "kdplug.weight_schedulers",
            "weight scheduler",
            "A kdplug weight scheduler: half a cosine.",
            (_KDPLUG, _PYDANTIC),
        ),
        "temperature_scheduler": Scaffold(
            "temperature_scheduler",
            "kdplug.temperature_schedulers",
            "temperature scheduler",
            "A kdplug temperature scheduler: the surer the teacher, the softer.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "teacher_combiner": Scaffold(
            "teacher_combiner",
            "kdplug.teacher_combiners",
            "teacher combiner",
            "A kdplug teacher combiner: the mean of the teachers' logits without the extremes.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            has_recipe=False,
        ),
        "layer_map": Scaffold(
            "layer_map",
            "kdplug.layer_maps",
            "layer map",
            "A kdplug layer map: layers learn from those at the same relative depth.",
            (_KDPLUG, _PYDANTIC),
        ),
        "task": Scaffold(
            "task",
            "kdplug.tasks",
            "task",
            "A kdplug task: spiral arms in the plane.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "cache_codec": Scaffold(
            "cache_codec",
            "kdplug.cache_codecs",
            "cache codec",
            "A kdplug cache codec: logits in 8 bits, and how far each item's reach.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
            has_recipe=False,
        ),
        "hooks": Scaffold("hooks", HOOK_GROUP, "hooks", "A kdplug plugin that says how long a run took.", (_KDPLUG,)),
    }
)
"""Every kind of project, by the word that ``--kind`` takes; a loss on features is a loss under ``--on features``."""


def read_scaffold(kind: str, on: str | None = None) -> Scaffold:
    """What ``--kind`` and ``--on`` mean: ``loss`` or ``losses``, ``weight-scheduler`` or ``weight_schedulers``, …

    Raises: ``ConfigError`` with the nearest kind.
    """
    words = [word for word in SCAFFOLDS if " " not in word]
    spellings = {spelling: word for word in words for spelling in (word, word.rstrip("s"))}
    spellings |= {kind.plural: word for kind in KINDS.values() if (word := kind.noun.replace(" ", "_")) in words}
    folded = kind.casefold().replace("-", "_").replace(" ", "_")
    if folded not in spellings:
        raise ConfigError(
            f"no kind {kind!r}.{did_you_mean(kind, spellings)} The kinds: {', '.join(words).replace('_', '-')}",
            field="--kind",
        )
    word = spellings[folded]
    if on is not None and on not in ("logits", "features"):
        raise ConfigError(f"must be 'logits' or 'features', got {on!r}", field="--on")
    if on is not None and word != "loss":
        raise ConfigError(
            f"says what a loss compares, and this is no loss but a {word.replace('_', ' ')}", field="--on"
        )
    return SCAFFOLDS["loss on features" if on == "features" else word]
