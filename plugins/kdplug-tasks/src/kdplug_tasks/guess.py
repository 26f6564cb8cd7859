"""Infer a recipe from a data file and a teacher, for ``kdplug new --from``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import kdplug
from kdplug_tasks.data.file import delimiter_of, read_file
from kdplug_tasks.data.table import Table
from kdplug_tasks.setting import at_home

EXAMPLE: dict[str, Any] = {
    "data": {"train": "train.csv", "validation": 0.1, "test": "test.csv"},
    "teacher": {"path": "path/to/teacher"},
    "student": {"from_teacher": {"layers": [0, 2, 4]}},
}
"""Settings that a new recipe shows and the user fills in."""

_ROWS = 2000
"""Rows from which the task is inferred."""
_HELD_OUT = {"validation": 0.1, "test": 0.2}
"""Fractions of the training data that are held out if there are no other data."""
_NAMES = ("validation", "valid", "val", "dev")
"""Names of validation data. Without test data they are the test data, whose labels are often not published."""
_MOST_CLASSES = 20
"""More distinct whole numbers than this are a quantity, not classes."""

_TARGETS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "intent",
    "topic",
    "score",
    "rating",
    "stars",
)
_PAIRS = (("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
_WORDS = (("tokens", "words"), ("tags", "ner_tags", "pos_tags", "upos", "labels"))

_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "text-classification": ("ForSequenceClassification",),
    "text-pair-classification": ("ForSequenceClassification",),
    "regression": ("ForSequenceClassification",),
    "multi-label": ("ForSequenceClassification",),
    "token-classification": ("ForTokenClassification",),
    "question-answering": ("ForQuestionAnswering",),
    "causal-lm": ("ForCausalLM", "LMHeadModel"),
    "image-classification": ("ForImageClassification",),
}
"""Ends of the names of model classes whose head is trained for a task."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """The task that reads a table, which columns it reads (task's name to the table's), and why."""

    task: str
    columns: Mapping[str, str]
    reasons: Sequence[str]
    settings: Mapping[str, Any]


def guess_for(task: str, max_length: int | None = None) -> Callable[[Path, str | None], kdplug.RecipeGuess | None]:
    """Return the function that infers the settings of ``task`` from data, ``None`` for data of other tasks.

    ``max_length`` is the default of the task's setting of that name, which a teacher with fewer positions lowers.
    """

    def guess(data: Path, teacher: str | None) -> kdplug.RecipeGuess | None:
        train, held_out, where = _parts(Path(at_home(str(data))))
        delimiter = delimiter_of(train) if _exists(train) else None
        found = _recognized(train, train.stat().st_mtime_ns if _exists(train) else 0, delimiter)
        if found is None or found.task != task:
            return None
        columns = {name: own for name, own in found.columns.items() if name != own}
        settings: dict[str, Any] = {
            "data": {
                "train": str(train),
                **held_out,
                **({"delimiter": delimiter} if delimiter else {}),
                **({"columns": columns} if columns else {}),
            },
            **found.settings,
        }
        reasons = [*found.reasons, *where]
        reasons += [f"columns are separated by {delimiter!r}"] if delimiter else []
        if teacher is not None:
            models, more = _models(at_home(teacher), task, max_length)
            settings |= models
            reasons += more
        return kdplug.RecipeGuess(settings, reasons)

    return guess


def _parts(data: Path) -> tuple[Path, dict[str, str | float], list[str]]:
    """Return the training data, the validation and test data, and the origin of both."""
    if _exists(data) and data.is_dir():
        inside = sorted(one for one in data.iterdir() if one.stem == "train")
        if len(inside) > 1:
            names = ", ".join(one.name for one in inside)
            raise kdplug.ConfigError(
                f"{str(data)!r} has several training files: {names}. Give the path of one of these files",
                field="--from",
            )
        data = inside[0] if inside else data
    found = [_sibling(data, "test"), next(filter(None, (_sibling(data, name) for name in _NAMES)), None)]
    test, validation = found if found[0] else found[::-1]
    held_out: dict[str, str | float] = {}
    where = []
    for part, file in (("validation", validation), ("test", test)):
        if file is not None:
            held_out[part], origin = str(file), f"{file.name}, which is next to {data.name}"
        else:
            share = held_out[part] = _HELD_OUT[part]
            origin = f"{share:.0%} of the rows, since there is no {part} file next to {data.name}"
        where.append(f"data.{part}: {origin}")
    return data, held_out, where


def _sibling(data: Path, name: str) -> Path | None:
    """Return the file or folder whose name has ``name`` in place of ``train``, if it exists."""
    other = data.with_name(data.name.replace("train", name, 1))
    return other if other != data and _exists(other) else None


def _exists(file: Path) -> bool:
    return os.path.exists(file)  # noqa: PTH110 - False if the name is too long


@lru_cache(maxsize=1)
def _recognized(file: Path, changed: int, delimiter: str | None) -> Recognized | None:  # noqa: ARG001 - every task asks; a file is read once
    return recognized(read_file(str(file), None, "--from", delimiter=delimiter))


def recognized(table: Table) -> Recognized | None:
    """Return the task whose columns a table has; ``None`` if no task of this plugin matches."""
    columns = {name: list(islice(column, _ROWS)) for name, column in table.columns.items()}
    if "image" in columns and "label" in columns:
        return Recognized("image-classification", {}, ["columns image and label: one class for each image"], {})
    tokens, tags = (next((name for name in names if name in columns), None) for names in _WORDS)
    if tokens and tags and tokens != tags:
        reason = f"column {tokens!r} holds words and {tags!r} their tags"
        return Recognized("token-classification", {"tokens": tokens, "tags": tags}, [reason], {})
    if "question" in columns and "context" in columns:
        return Recognized("question-answering", {}, ["columns question and context"], {})
    if "prompt" in columns and "completion" in columns:
        return Recognized("causal-lm", {}, ["columns prompt and completion"], {"prompts": True})
    return _texts(columns)


def _texts(columns: Mapping[str, list[Any]]) -> Recognized | None:
    found = {name: mean for name, values in columns.items() if (mean := _mean_words(values)) >= 2}
    texts = {name: mean for name, mean in found.items() if not _holds_long_labels(name, columns[name])}
    if not texts:
        return None
    target = _target({name: values for name, values in columns.items() if name not in texts})
    pair = next((pair for pair in _PAIRS if set(pair) <= set(texts)), None)
    longest = max(texts, key=lambda name: texts[name])
    used = dict(zip(("text", "text_pair"), pair or (longest,), strict=False))
    reasons = [f"column {own!r} holds texts of {texts[own]:.0f} words on average" for own in used.values()]
    unused = [name for name in columns if name not in (*used.values(), target)]
    if unused:
        reasons.append(f"not used: {', '.join(unused)}")
    if target is None:
        return Recognized("causal-lm", {"text": longest}, [*reasons, "no column repeats its values like labels"], {})
    task, reason = _kind(columns[target], is_pair=pair is not None)
    return Recognized(task, {**used, "label": target}, [*reasons, f"column {target!r} {reason}"], {})


def _kind(values: list[Any], *, is_pair: bool) -> tuple[str, str]:
    """Return the task for the values of a target column, and a description of the values."""
    given = [value for value in values if value not in (None, "")]
    if any(isinstance(value, (list, tuple)) for value in given):
        return "multi-label", "holds lists of labels"
    distinct = sorted({str(value).strip() for value in given})
    numbers = _numbers(distinct)
    if numbers and (len(distinct) > _MOST_CLASSES or any(not number.is_integer() for number in numbers)):
        return "regression", f"holds numbers from {min(numbers):g} to {max(numbers):g}"
    shown = ", ".join(distinct[:8]) + (", …" if len(distinct) > 8 else "")
    return f"text-{'pair-' if is_pair else ''}classification", f"holds {len(distinct)} labels: {shown}"


def _target(columns: Mapping[str, list[Any]]) -> str | None:
    """Return the column of the labels: by its name, or the one with the fewest distinct values that repeat."""
    for name in _TARGETS:
        named = next((own for own in columns if own.casefold() == name), None)
        if named is not None:
            return named
    counts = {name: len({str(value) for value in values}) for name, values in columns.items()}
    repeating = {name: count for name, count in counts.items() if 1 < count <= len(columns[name]) // 5}
    return min(repeating, key=lambda name: repeating[name], default=None)


def _holds_long_labels(name: str, values: list[Any]) -> bool:
    """Return whether a column of several words is one of labels, such as "not spam": by its name, and by repetition."""
    return name.casefold() in _TARGETS and len(set(values)) <= len(values) // 5


def _mean_words(values: list[Any]) -> float:
    """Return the mean number of words of a column of texts; 0 for other columns."""
    if not values or not all(isinstance(value, str) for value in values):
        return 0.0
    return sum(len(value.split()) for value in values) / len(values)


def _numbers(values: list[str]) -> list[float]:
    """Return the values as numbers; empty if one of them is not a number."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return []


def _models(teacher: str, task: str, max_length: int | None) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that depend on the teacher, and what they were inferred from."""
    from kdplug_tasks.models.config import is_folder, load_config, positions, text_part

    if is_folder(teacher, "--teacher"):
        config = load_config(teacher, "--teacher")
        reasons = []
    else:
        config = None
        reasons = [f"teacher: {teacher} is not a local folder, so neither its head nor its layers were read"]
    found: dict[str, Any] = {"path": teacher}
    settings: dict[str, Any] = {"teacher": found}
    if config is not None and max_length is not None:
        limit = positions(text_part(config, "--teacher"))
        if limit is not None and limit < max_length:
            settings["max_length"] = limit
            reasons.append(f"max_length: {limit}, the maximum of the teacher")
    built = (getattr(config, "architectures", None) or [""])[0]
    if config is not None and not built.endswith(_ARCHITECTURES[task]):
        found["train"] = True
        reasons.append(f"teacher.train: {built or 'the model'} has no head trained for {task}, so it is trained first")
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return settings, reasons
    settings["student"] = {"from_teacher": {"layers": list(range(0, layers, 2))}}
    reasons.append(f"student: every second of the teacher's {layers} layers")
    return settings, reasons
