"""The transformers models of a task: teacher and student."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

import kdplug
from kdplug_tasks.data.hub import offline_if_unreachable
from kdplug_tasks.models.config import (
    changed_config,
    check_head_class,
    check_path,
    load_config,
    make_config,
    not_loaded,
)
from kdplug_tasks.models.factored import Heads, check_head
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.models.start import check_layers, start_from_teacher
from kdplug_tasks.models.untrusted import check_shards, data_only
from kdplug_tasks.models.weights import check_size, check_sums, check_weights, unread_pickle


@contextmanager
def quiet() -> Iterator[None]:
    """Disable transformers' progress bars and warnings inside the block.

    A run shows its own progress. The report of weights that were not loaded lists a head that is intentionally new;
    ``check_weights`` raises an error for any other new weight.
    """
    from transformers.utils import logging

    were_shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if were_shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


_SHOWN = 80

Side: TypeAlias = Literal["teacher", "student"]


class Family:
    """Teacher and student.

    ``auto`` is the transformers auto class that builds them, such as ``AutoModelForSequenceClassification``.
    ``reads`` are the adaptor keys that the objective reads; it is set before models are built. The data determine
    ``changes``, config values such as class names, and ``from_scratch``, such as the vocabulary size of models from
    scratch. ``of_student`` are config values from the student's own tokenizer. With ``heads``, both models return the
    factors of their logits.
    """

    def __init__(
        self, auto: str, teacher: TeacherSettings, student: StudentSettings, *, heads: Heads | None = None
    ) -> None:
        self.auto = auto
        self.heads = heads
        self.teacher = teacher
        self.student = student
        self.reads: frozenset[str] = frozenset()
        self.changes: Mapping[str, Any] = {}
        self.from_scratch: Mapping[str, Any] = {}
        self.of_student: Mapping[str, Any] = {}
        self._sides: WeakKeyDictionary[nn.Module, Side] = WeakKeyDictionary()

    @cached_property
    def loaded(self) -> Any:
        """The teacher's config as loaded, ``None`` if it is built from scratch."""
        return None if self.teacher.path is None else load_config(self.teacher.path, "teacher.path")

    @property
    def trained(self) -> Any:
        """The config of a teacher with a trained head, else ``None``. Raises: ``ConfigError`` for a head of another task."""
        if self.teacher.train:
            return None
        check_head_class(self.loaded, self.auto)
        return self.loaded

    @cached_property
    def teacher_config(self) -> Any:
        """The teacher's config, adapted to the data if the teacher is trained on them.

        Raises: ``ConfigError``.
        """
        if self.teacher.config is not None:
            return make_config({**self.from_scratch, **self.changes, **self.teacher.config}, "teacher.config")
        if not self.teacher.train:
            return self.loaded
        return changed_config(self.loaded, self.changes, "teacher")

    @cached_property
    def student_config(self) -> Any:
        """The student's config, with the teacher's classes.

        Raises: ``ConfigError``.
        """
        config = self.student.config or {}
        if self.student.path is not None:
            return changed_config(load_config(self.student.path, "student.path"), self.changes, "student")
        if "model_type" in config:
            return make_config({**self.from_scratch, **self.of_student, **self.changes, **config}, "student.config")
        if self.student.from_teacher is None:
            changes = {**self.changes, **self.of_student, **config}
            return changed_config(self.teacher_config, changes, "student.config")
        return self._shortened(config, self.student.from_teacher.layers)

    def check(self) -> None:
        """Build both models without weights, and initialize the student from the teacher.

        Raises: ``ConfigError`` if a model cannot be built, or the student cannot be initialized from the teacher.
        """
        configs = {"teacher": self.teacher_config, "student": self.student_config}
        if self.student.from_teacher is not None:
            with _below("student", "from_teacher"):
                check_layers(self.student.from_teacher, *configs.values())
        with torch.device("meta"):
            models = {side: self._from_config(config, side) for side, config in configs.items()}
        for side, path in (("teacher", self.teacher.path), ("student", self.student.path)):
            if path is not None:
                check_size(models[side], path, f"{side}.path")
            self._check_changes(configs[side], side)
        for side, model in models.items() if self.heads is not None else ():
            check_head(model, side)
        self.start_student(models["student"], models["teacher"])

    def _check_changes(self, config: Any, side: str) -> None:
        """Raise ``ConfigError`` if a config in the recipe contradicts the task or its data."""
        if side == "teacher" and not self.teacher.train:
            return  # the task has compared it with the data
        for key, wanted in self.changes.items():
            if (found := getattr(config, key, None)) != wanted:
                raise kdplug.ConfigError(
                    f"is {str(found)[:_SHOWN]}, but the task needs {str(wanted)[:_SHOWN]}. Remove {key}, since its value "
                    "follows from the data",
                    field=f"{side}.config.{key}",
                )

    def build_teacher(self) -> nn.Module:
        """Return the teacher, loaded or from scratch.

        Raises: ``ConfigError`` if it cannot be loaded, or some weights would be random, except a head that will be
        trained.
        """
        if self.teacher.path is None:
            return self._ready(self._from_config(self.teacher_config, "teacher"), "teacher")
        config, is_trained = self.teacher_config, self.teacher.train
        return self._ready(self._from_folder(self.teacher.path, config, "teacher.path", is_trained), "teacher")

    def build_student(self) -> nn.Module:
        """Return the student before training.

        Raises: ``ConfigError`` if it cannot be loaded, or its folder lacks weights other than those of its head.
        """
        if self.student.path is None:
            return self._ready(self._from_config(self.student_config, "student"), "student")
        config = self.student_config
        return self._ready(self._from_folder(self.student.path, config, "student.path", is_trained=True), "student")

    def start_student(self, student: nn.Module, teacher: nn.Module) -> None:
        """Copy weights from the teacher according to the settings. Raises: ``ConfigError`` for a weight of another shape."""
        if self.student.from_teacher is None:
            return
        with _below("student", "from_teacher"):
            start_from_teacher(self.student.from_teacher, student, teacher)

    def side_of(self, model: nn.Module) -> Side:
        """Return the side of a model that was built here."""
        return self._sides[model]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write config and weights, with the switches set for the objective reset."""
        config: Any = model.config
        switches = {name: getattr(config, name) for name in _SWITCHES if hasattr(config, name)}
        for name in switches:
            setattr(config, name, _SWITCHES[name])
        with quiet():
            model.save_pretrained(folder)  # type: ignore[operator]
        for name, value in switches.items():
            setattr(config, name, value)

    @property
    def needs_eager(self) -> bool:
        """True if attention weights are read, which only eager attention returns."""
        return "attention" in self.reads

    def _shortened(self, config: Mapping[str, Any], layers: list[int]) -> Any:
        """Return the teacher's config with the selected layers."""
        changes = {**self.changes, **config}
        if layers and "num_hidden_layers" not in config:
            changes["num_hidden_layers"] = len(layers)
        kinds = getattr(self.teacher_config, "layer_types", None)
        if layers and kinds and max(layers) < len(kinds):
            changes.setdefault("layer_types", [kinds[layer] for layer in layers])
        return changed_config(self.teacher_config, changes, "student.config")

    def _from_config(self, config: Any, side: str) -> Any:
        try:
            with data_only():
                return self._class.from_config(deepcopy(config), trust_remote_code=False, **self._attention)
        except Exception as error:  # checks in model constructors, KeyError for an unknown name
            kind, first = type(error).__name__, (str(error).strip().splitlines() or ["no message"])[0]
            raise kdplug.ConfigError(
                f"{self.auto} cannot be built from this {type(config).__name__}: {kind}: {first}. Correct the model's config",
                field=side,
            ) from error

    def _from_folder(self, path: str, config: Any, field: str, is_trained: bool) -> Any:
        check_path(path, field)
        with offline_if_unreachable(path):
            check_shards(path, field)
        check_sums(path, field)
        try:
            with quiet(), data_only(), offline_if_unreachable(path):
                model, info = self._class.from_pretrained(
                path, config=deepcopy(config), trust_remote_code=False, use_safetensors=True, ignore_mismatched_sizes=True,
                output_loading_info=True, dtype="float32", **self._attention,
            )  # fmt: skip
        except Exception as error:  # from safetensors, json or the model constructor
            raise (unread_pickle(path, field, self.auto, error) or not_loaded(path, field, error)) from error
        check_weights(model, info, path, field, is_trained=is_trained)
        return model

    @contextmanager
    def multiplied_out(self) -> Iterator[None]:
        """Make both models return ordinary logits within the block."""
        with nullcontext() if self.heads is None else self.heads.multiplied_out():
            yield

    def _ready(self, model: Any, side: Side) -> nn.Module:
        """Configure a model to return what the objective reads and to ignore inputs that it does not accept."""
        self._sides[model] = side
        for config in {id(one.config): one.config for one in model.modules() if hasattr(one, "config")}.values():
            config.return_dict = True  # adaptors read outputs by name, regardless of the saved config
        model.config.output_hidden_states = "hidden" in self.reads
        model.config.output_attentions = "attention" in self.reads
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        if "token_type_ids" not in inspect.signature(model.forward).parameters:
            model.register_forward_pre_hook(_without_token_types, with_kwargs=True)
        if self.heads is not None:
            self.heads.leave_out(model, side)
        return model  # type: ignore[no-any-return]

    @property
    def _attention(self) -> dict[str, Any]:
        """The attention implementation: eager, or transformers' default; a saved config's is ignored."""
        return {"attn_implementation": "eager" if self.needs_eager else None}

    @property
    def _class(self) -> Any:
        import transformers

        return getattr(transformers, self.auto)


@contextmanager
def _below(*path: str) -> Iterator[None]:
    """Prepend ``path`` to the setting that an error in the block names."""
    try:
        yield
    except kdplug.ConfigError as error:
        raise error.at(*path) from error.__cause__


_SWITCHES = {"output_hidden_states": False, "output_attentions": False, "use_cache": True}
"""Config keys that a run sets, and the values with which they are saved."""


def _without_token_types(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    """Drop ``token_type_ids``, which one of the two models may accept and the other not."""
    return args, {name: value for name, value in kwargs.items() if name != "token_type_ids"}
