"""Kinds of projects that ``kdplug plugins new`` creates."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.kind import HOOK_GROUP, KINDS


class Scaffold(NamedTuple):
    """One kind of project: template folder, entry-point group, README summary and dependencies."""

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
            "A kdplug loss: KL divergence over the items on which the teacher is confident.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "loss on features": Scaffold(
            "loss_on_features",
            "kdplug.losses",
            "loss",
            "A kdplug loss: Huber distance between hidden states.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "loss with parameters": Scaffold(
            "loss_with_parameters",
            "kdplug.losses",
            "loss",
            "A kdplug loss: Gaussian likelihood of the teacher's features, with trained variances.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "loss with a bank": Scaffold(
            "loss_with_a_bank",
            "kdplug.losses",
            "loss",
            "A kdplug loss: distance to the teacher's mean feature of each example, from a memory bank.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "loss over layers": Scaffold(
            "loss_over_layers",
            "kdplug.losses",
            "loss",
            "A kdplug loss: similarities of examples, over any numbers of layers.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "loss on features and logits": Scaffold(
            "loss_on_features_and_logits",
            "kdplug.losses",
            "loss",
            "A kdplug loss: distances of features and of logits, weighted by the teacher's confidence.",
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
        "projection of maps": Scaffold(
            "projection_of_maps",
            "kdplug.projections",
            "projection",
            "A kdplug projection: a convolution from the student's channels to the teacher's.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "weight_scheduler": Scaffold(
            "weight_scheduler",
            "kdplug.weight_schedulers",
            "weight scheduler",
            "A kdplug weight scheduler: half-cosine decay.",
            (_KDPLUG, _PYDANTIC),
        ),
        "temperature_scheduler": Scaffold(
            "temperature_scheduler",
            "kdplug.temperature_schedulers",
            "temperature scheduler",
            "A kdplug temperature scheduler: higher temperature where the teacher is more confident.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "temperature_scheduler with parameters": Scaffold(
            "temperature_scheduler_with_parameters",
            "kdplug.temperature_schedulers",
            "temperature scheduler",
            "A kdplug temperature scheduler: a temperature that is trained against the student.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "teacher_combiner": Scaffold(
            "teacher_combiner",
            "kdplug.teacher_combiners",
            "teacher combiner",
            "A kdplug teacher combiner: the trimmed mean of the teachers' logits.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            has_recipe=False,
        ),
        "teacher_update": Scaffold(
            "teacher_update",
            "kdplug.teacher_updates",
            "teacher update",
            "A kdplug teacher update: a copy of the student every few steps.",
            (_KDPLUG, _TORCH, _PYDANTIC),
        ),
        "teacher": Scaffold(
            "teacher",
            "kdplug.teachers",
            "teacher",
            "A kdplug teacher: logits from an HTTP server.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
            has_recipe=False,
        ),
        "balancer": Scaffold(
            "balancer",
            "kdplug.balancers",
            "balancer",
            "A kdplug balancer: weights inversely proportional to a moving average of each term's value.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "layer_map": Scaffold(
            "layer_map",
            "kdplug.layer_maps",
            "layer map",
            "A kdplug layer map: each student layer learns from the teacher layer at the same relative depth.",
            (_KDPLUG, _PYDANTIC),
        ),
        "task": Scaffold(
            "task",
            "kdplug.tasks",
            "task",
            "A kdplug task: classify points on spiral arms in the plane.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "task wrapped": Scaffold(
            "wrapped_task",
            "kdplug.tasks",
            "task",
            "A kdplug task: noise on the batches of another task, the same for both models.",
            (_KDPLUG, "kdplug-tasks>=0.1", _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "cache_codec": Scaffold(
            "cache_codec",
            "kdplug.cache_codecs",
            "cache codec",
            "A kdplug cache codec: logits quantized to 8 bits per class.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
            has_recipe=False,
        ),
        "student_transform": Scaffold(
            "student_transform",
            "kdplug.student_transforms",
            "student transform",
            "A kdplug student transform: weights pruned from the start of the training.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "evaluator": Scaffold(
            "evaluator",
            "kdplug.evaluators",
            "evaluator",
            "A kdplug evaluator: the metric with noise on the weights.",
            (_KDPLUG, _TORCH, _PYDANTIC),
            is_class=True,
        ),
        "hooks": Scaffold(
            "hooks", HOOK_GROUP, "hooks", "A kdplug plugin that prints the duration of a run.", (_KDPLUG,)
        ),
        "hooks that act": Scaffold(
            "acting_hooks",
            HOOK_GROUP,
            "hooks",
            "A kdplug plugin that averages the weights of a run, and stops the run when they do not move any more.",
            (_KDPLUG, _TORCH),
            is_class=True,
        ),
    }
)
"""Project kinds by the value of ``--kind``. Further forms of a kind have the keys that ``FORMS`` lists."""

FORMS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "loss": {
            "logits": "loss",
            "features": "loss on features",
            "layers": "loss over layers",
            "features-and-logits": "loss on features and logits",
            "parameters": "loss with parameters",
            "bank": "loss with a bank",
        },
        "projection": {"sequences": "projection", "maps": "projection of maps"},
        "task": {"whole": "task", "wrapped": "task wrapped"},
        "temperature_scheduler": {
            "function": "temperature_scheduler",
            "parameters": "temperature_scheduler with parameters",
        },
        "hooks": {"observing": "hooks", "acting": "hooks that act"},
    }
)
"""The forms of a kind by the value of ``--form``; the first one is the default."""


def read_scaffold(kind: str, form: str | None = None) -> Scaffold:
    """Return the scaffold for ``--kind`` and ``--form``. ``losses`` means ``loss``; ``-`` and ``_`` are equivalent.

    Raises: ``ConfigError`` that suggests the nearest kind or form.
    """
    words = [word for word in SCAFFOLDS if " " not in word]
    spellings = {spelling: word for word in words for spelling in (word, word.rstrip("s"))}
    spellings |= {kind.plural: word for kind in KINDS.values() if (word := kind.noun.replace(" ", "_")) in words}
    folded = kind.casefold().replace("-", "_").replace(" ", "_")
    if folded not in spellings:
        raise ConfigError(
            f"unknown kind {kind!r}.{did_you_mean(kind, spellings)} Kinds: {', '.join(words).replace('_', '-')}",
            field="--kind",
        )
    word = spellings[folded]
    if form is None:
        return SCAFFOLDS[word]
    if word not in FORMS:
        raise ConfigError(
            f"a project of --kind {word.replace('_', '-')} has one form only. Leave out --form", field="--form"
        )
    forms = FORMS[word]
    chosen = form.casefold().replace("_", "-")
    if chosen not in forms:
        raise ConfigError(
            f"unknown form {form!r} of --kind {word.replace('_', '-')}.{did_you_mean(form, forms)} Forms: "
            f"{', '.join(forms)}",
            field="--form",
        )
    return SCAFFOLDS[forms[chosen]]
