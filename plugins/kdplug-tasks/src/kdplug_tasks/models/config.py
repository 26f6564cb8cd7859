"""Load transformers configs, build them from scratch, and copy them with changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kdplug
from kdplug_tasks.data.hub import check_hub, offline_if_unreachable
from kdplug_tasks.data.table import did_you_mean
from kdplug_tasks.models.untrusted import check_settings, data_only, forget_code, read_settings
from kdplug_tasks.models.weights import check_complete
from kdplug_tasks.regular_file import NOT_REGULAR, is_broken_link, is_special

_ALWAYS = {"num_labels", "id2label", "label2id", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id"}


def load_config(path: str, field: str) -> Any:
    """Load the config of a folder or hub name without running code from the folder.

    Raises: ``ConfigError`` if there is none, or it needs code that transformers does not have.
    """
    from transformers import AutoConfig

    check_path(path, field)
    try:
        with data_only(), offline_if_unreachable(path):
            read_settings(path, field)
            return forget_code(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except kdplug.ConfigError:
        raise
    except Exception as error:  # checks inside configs raise many types of exceptions
        raise not_loaded(path, field, error) from error


def check_path(path: str, field: str) -> None:
    """Reject an incomplete folder, and a path that is neither a folder nor a name that transformers can find.

    Raises: ``ConfigError``.
    """
    if is_folder(path, field):
        check_complete(path, field)
    else:
        check_hub(path, field, "model")


def is_folder(path: str, field: str) -> bool:
    """Return whether a model is in a folder; if not, it may have this name on the hub.

    Raises: ``ConfigError`` for the path of a folder that does not exist, or that holds what cannot be read.
    """
    folder = Path(path)
    try:
        if folder.is_dir():
            _check_readable(folder, field)
            return True
        there = folder.exists()
        near = did_you_mean(
            folder.name, [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
        )
    except OSError as error:  # name too long, no permission
        raise kdplug.ConfigError(
            f"cannot read the folder {path[:_SHOWN]!r}: {error.strerror}. Set it to a folder that contains config.json, or to a hub name",
            field=field,
        ) from error
    if is_broken_link(folder):
        raise kdplug.ConfigError(f"{path!r} is a broken link, not the folder of a model", field=field)
    if there:
        raise kdplug.ConfigError(
            f"{path!r} is not a folder. Give the folder that contains the model's config.json", field=field
        )
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path:
        scratch = " To train a teacher from scratch, set config and train: true" if field.startswith("teacher") else ""
        raise kdplug.ConfigError(f"there is no folder {path!r}.{near}{scratch}", field=field)
    return False


def _check_readable(folder: Path, field: str) -> None:
    for file in sorted(folder.iterdir()):
        if is_special(file):
            raise kdplug.ConfigError(f"{str(folder)!r}: its {file.name} {NOT_REGULAR}", field=field)
        if file.suffix in _READ and is_broken_link(file):
            raise kdplug.ConfigError(f"{str(folder)!r}: its {file.name} is a broken link", field=field)


_READ = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Endings of the files that transformers reads from a folder."""

_SHOWN = 200


def not_loaded(path: str, field: str, error: Exception, part: str = "") -> kdplug.ConfigError:
    """Return the error for a folder or hub name that transformers could not load, with the first line of its message.

    ``part`` names the part that failed: ``"the tokenizer of "``.
    """
    if "trust_remote_code" in str(error):
        return kdplug.ConfigError(
            f"{path!r} needs Python code from the model folder, which kdplug does not run. Use a model with a class in "
            "transformers, or load this one in your own program and pass it to a distiller",
            field=field,
        )
    return kdplug.ConfigError(f"transformers cannot load {part}{path!r}: {_first_sentence(error)}", field=field)


def _first_sentence(error: Exception) -> str:
    """Return the first line of a message, and those that it announces with a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines)[:_LONGEST] if lines[0].endswith(":") else lines[0]


_LONGEST = 300
"""Characters of a message of several lines that an error repeats."""


def make_config(settings: Mapping[str, Any], field: str) -> Any:
    """Build a config from scratch: ``model_type`` and the values that differ from its defaults.

    Raises: ``ConfigError`` for an unknown model type or key, or for inconsistent values.
    """
    from transformers import CONFIG_MAPPING

    rest = dict(settings)
    kind = str(rest.pop("model_type"))
    if kind not in CONFIG_MAPPING:
        near = did_you_mean(kind, list(CONFIG_MAPPING))
        raise kdplug.ConfigError(f"transformers has no model_type {kind!r}.{near}", field=f"{field}.model_type")
    return _made(CONFIG_MAPPING[kind], {}, rest, field)


def changed_config(config: Any, changes: Mapping[str, Any], field: str) -> Any:
    """Return ``config`` with ``changes``. ``layer_types`` are recomputed if the number of layers changes.

    Raises: ``ConfigError`` as ``make_config`` does.
    """
    kept = config.to_dict()
    names = getattr(config, "attribute_map", {})
    given = {names.get(key, key): value for key, value in changes.items()}
    count = names.get("num_hidden_layers", "num_hidden_layers")
    if given.get(count, kept.get(count)) != kept.get(count) and "layer_types" not in given:
        kept.pop("layer_types", None)
    for key in ("model_type", "transformers_version", "_name_or_path"):
        kept.pop(key, None)
    if "num_labels" in given or "id2label" in given:
        kept = {key: value for key, value in kept.items() if key not in ("id2label", "label2id", "num_labels")}
    return _made(type(config), kept, given, field)


def _made(kind: Any, kept: Mapping[str, Any], given: Mapping[str, Any], field: str) -> Any:
    known = kind()
    names = [*known.to_dict(), *getattr(kind, "attribute_map", {}), *_ALWAYS]
    for key in given:
        if key not in names:
            near = did_you_mean(str(key), names)
            raise kdplug.ConfigError(f"{kind.__name__} has no such key.{near}", field=f"{field}.{key}")
    check_settings(given, "it", field)
    # For model types with several classes per task, transformers searches this list and fails if it is None.
    classes = kept.get("architectures") or []
    try:
        return kind(**{**kept, "architectures": classes, **given})
    except Exception as error:  # from config checks of transformers and huggingface_hub
        first = " ".join(str(error).split())
        raise kdplug.ConfigError(f"{kind.__name__} rejects these values: {first}", field=field) from error


def check_problem(teacher: Any, wanted: str) -> None:
    """Check a trained teacher's config (``None`` if its head is not trained) against a transformers ``problem_type``.

    Raises: ``ConfigError`` if the head was trained for another problem, so that its outputs have a different meaning.
    """
    found = getattr(teacher, "problem_type", None)
    if found is not None and found != wanted:
        raise kdplug.ConfigError(
            f"was trained for {found!r} (problem_type in its config.json), but the task is {wanted!r}. Use the task of the teacher, "
            "or set teacher.train: true to train the teacher for this task",
            field="teacher.path",
        )


_HEADS = tuple(
    f"For{kind}"
    for kind in (
        "SequenceClassification",
        "TokenClassification",
        "QuestionAnswering",
        "ImageClassification",
        "MultipleChoice",
    )
)


def check_head_class(teacher: Any, auto: str) -> None:
    """Check the ``architectures`` of a trained teacher's config against ``auto``, the auto class of the task.

    The weights of heads for texts and for tokens have the same names and shapes, so one would load as the other.

    Raises: ``ConfigError`` if they name a head of another task.
    """
    names = [str(one) for one in getattr(teacher, "architectures", None) or ()]
    wanted = auto.removeprefix("AutoModel")
    others = [name for name in names if any(head in name for head in _HEADS)]
    if others and not any(wanted in name for name in names):
        raise kdplug.ConfigError(
            f"was trained as {others[0]} (architectures in its config.json), but the task uses {auto}. Use the task of the "
            "teacher, or set teacher.train: true to train the teacher for this task",
            field="teacher.path",
        )


def text_part(config: Any, side: str) -> Any:
    """Return the text config: ``config`` itself, or the one nested in a multimodal model's config.

    Raises: ``ConfigError`` if there is none, or more than one.
    """
    try:
        found = config.get_text_config()
    except ValueError as error:
        raise kdplug.ConfigError(
            f"the {type(config).__name__} does not have exactly one text model: {error}", field=side
        ) from error
    if not isinstance(getattr(found, "vocab_size", None), int):
        raise kdplug.ConfigError(
            f"the {type(config).__name__} has no vocab_size, so the model does not read text. Use a text model",
            field=side,
        )
    return found


def positions(text: Any) -> int | None:
    """Return the maximum sequence length of a model; ``None`` if its text config sets no limit."""
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    padding = getattr(text, "pad_token_id", None)
    first = padding + 1 if text.model_type in _PAST_PADDING and padding is not None else 0
    return limit - first


_PAST_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "roberta-prelayernorm", "xmod")
"""Model types whose position ids start after the padding id."""
