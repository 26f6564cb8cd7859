"""Select the parts of a batch that a model's ``forward`` takes, and recognise the labels among the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import Parameter, signature
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence

from kdplug.contracts.loss import LossSum
from kdplug.contracts.outputs import Outputs, Tagged
from kdplug.contracts.vocabulary import EXAMPLE_IDS, EXTRAS
from kdplug.errors import RunError

_LABELS = ("labels", "label", "targets", "target", "y", "label_ids", "start_positions", "end_positions")
_IGNORED = -100
_logger = logging.getLogger("kdplug")


@dataclass(slots=True, eq=False)
class Forward:
    """The inputs that a model's ``forward`` takes, from its signature.

    ``names`` can be given by keyword (``None``: any), ``positional`` by position, and more with ``any_number``.
    ``required`` have no default.
    """

    shown: str
    names: frozenset[str] | None = None
    positional: tuple[str, ...] = ()
    any_number: bool = True
    required: tuple[str, ...] = ()
    _keys: dict[Any, tuple[tuple[Any, ...], Any]] = field(default_factory=dict)
    _counts: dict[Any, int] = field(default_factory=dict)
    _is_label_logged: bool = False

    def by_keyword(self, batch: Mapping[Any, Any], model_args: Mapping[str, Any]) -> Mapping[Any, Any]:
        """Return the items of ``batch`` that ``forward`` takes; every other item is a label, or is logged once.

        The key ``extras`` is for adaptors: it is neither passed nor logged. ``example_ids`` are passed only if ``forward``
        names them.

        Raises: ``RunError`` if an input is missing, or an item resembles an input that is missing.
        """
        if (
            self.names is None
            and not self.required
            and not model_args
            and EXTRAS not in batch
            and EXAMPLE_IDS not in batch
        ):
            return batch
        passed, _ = self._of_keys(batch, model_args)
        return batch if len(passed) == len(batch) else {key: batch[key] for key in passed}

    def by_position(self, batch: Sequence[Any], model_args: Mapping[str, Any]) -> Sequence[Any]:
        """Return the items of ``batch`` that ``forward`` takes: all, or all but the last, which is then the label.

        Raises: ``RunError`` if an input is missing, or more than one item is left.
        """
        key = (len(batch), tuple(model_args))
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = self._count(batch, model_args)
        return batch if count == len(batch) else batch[:count]

    def label(self, batch: Any, model_args: Mapping[str, Any]) -> Any:
        """Return the label of ``batch`` that ``forward`` does not take, or ``None`` if there is none."""
        if isinstance(batch, Mapping):
            key = None if self.names is None else self._of_keys(batch, model_args)[1]
            return None if key is None else batch[key]
        if is_sequence(batch):
            return None if len(self.by_position(batch, model_args)) == len(batch) else batch[-1]
        return None

    def log_label(self, batch: Any, model_args: Mapping[str, Any], labels: Tensor) -> None:
        """Log once which item of ``batch`` the hard-label loss takes as labels."""
        if self._is_label_logged:
            return
        self._is_label_logged = True
        item = repr(self._of_keys(batch, model_args)[1]) if isinstance(batch, Mapping) else "the last item of the batch"
        _logger.info(
            "%s does not take %s, %s: the hard-label loss uses it as labels", self.shown, item, _shown([labels])
        )

    def _of_keys(self, batch: Mapping[Any, Any], model_args: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
        key = (tuple(batch), tuple(model_args))
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = self._assign(batch, model_args)
        return found

    def _assign(self, batch: Mapping[Any, Any], model_args: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Return the keys to pass, and the key of the only label that is not passed."""
        if twice := [key for key in batch if key in model_args]:
            raise RunError(f"{twice[0]!r} is in the batch and in the model arguments of train(); pass it only once")
        batch = {key: value for key, value in batch.items() if key != EXTRAS}
        missing = [name for name in self.required if name not in batch and name not in model_args]
        if missing == [EXTRAS]:
            text = f"takes {EXTRAS!r}, but that key of a batch is for adaptors and is passed to no model"
            raise self._unclear(text, missing, [*batch])
        if missing:
            held = f"has the keys {', '.join(map(str, batch))}" if batch else "is empty"
            raise self._unclear(f"needs {missing[0]!r}, but the batch {held}", missing, [*batch])
        if self.names is None:
            return tuple(key for key in batch if key != EXAMPLE_IDS), None
        passed = tuple(key for key in batch if key in self.names)
        rest = [key for key in batch if key not in self.names and key != EXAMPLE_IDS]
        free = [name for name in self.names if name not in batch and name not in model_args]
        for key in rest:
            if near := get_close_matches(str(key), free, n=1, cutoff=0.8):
                text = f"does not take {key!r}, a key of the batch; did you mean {near[0]!r}?"
                raise self._unclear(text, [near[0]], [key])
        if batch and not passed:
            text = f"takes none of the keys of the batch: {', '.join(map(str, batch))}"
            raise self._unclear(text, [*self.names][:1] or ["x"], [*batch])
        labels = [key for key in rest if key in _LABELS]
        if unused := [str(key) for key in rest if key not in _LABELS]:
            one = len(unused) == 1
            _logger.warning(
                "%s does not take the batch's %s %s, and %s: only adaptors receive %s",
                self.shown,
                "key" if one else "keys",
                ", ".join(map(repr, unused)),
                "this key is not a label" if one else "these keys are not labels",
                "it" if one else "them",
            )
        return passed, labels[0] if len(labels) == 1 else None

    def _count(self, batch: Sequence[Any], model_args: Mapping[str, Any]) -> int:
        taken = tuple(takewhile(lambda name: name not in model_args, self.positional))
        given = taken[: len(batch)]
        if missing := [name for name in self.required if name not in given and name not in model_args]:
            items = f"{len(batch)} item{'' if len(batch) == 1 else 's'}: {_shown(batch)}" if batch else "no items"
            text = f"needs {missing[0]!r}, but the batch holds {items}"
            raise self._unclear(text, [*given, *missing], batch)
        if self.any_number or len(batch) <= len(taken):
            self._name_optional(batch, taken)
            return len(batch)
        if len(batch) > len(taken) + 1 or not taken:
            inputs = f"{len(taken)} input{'' if len(taken) == 1 else 's'}"
            text = f"takes {inputs}, but the batch holds {len(batch)}: {_shown(batch)}"
            raise self._unclear(text, list(taken) or ["x"], batch)
        last = batch[-1]
        if not (isinstance(last, Tensor) and last.dim() == 1 and is_class(last)):
            _logger.warning(
                "%s does not take the last item of the batch, %s, and this item is not a class label: only adaptors "
                "receive it",
                self.shown,
                _shown([last]),
            )
        return len(taken)

    def _name_optional(self, batch: Sequence[Any], taken: tuple[str, ...]) -> None:
        """Log that the last item, which looks like class labels, is passed to a parameter of another name."""
        if len(batch) < 2 or len(batch) > len(taken):
            return
        last, name = batch[-1], taken[len(batch) - 1]
        if name in self.required or name in _LABELS or not isinstance(last, Tensor):
            return
        if last.dim() == 1 and is_class(last):
            _logger.warning(
                "%s gets the last item of the batch, %s, as %r, by position. If this item is a label, use "
                "batch_postprocessor=lambda batch: %s",
                self.shown,
                _shown([last]),
                name,
                _as_dict([*taken[: len(batch) - 1]], [*range(len(batch) - 1)], len(batch) - 1),
            )

    def _unclear(self, text: str, inputs: Sequence[Any], batch: Sequence[Any]) -> RunError:
        """Return an error that shows the code for two ways to assign the items of a batch by hand."""
        by_key = any(isinstance(item, str) for item in batch)
        places: list[Any] = [key for key in batch if key not in _LABELS] if by_key else [*range(len(batch))]
        places = (places + ["…"] * len(inputs))[: len(inputs)]
        label = next((key for key in batch if key in _LABELS), None) if by_key else len(inputs)
        if not by_key and label is not None and label >= len(batch):
            label = None
        given = "**batch" if by_key else "*batch"
        name = f"batch[{places[0]!r}]" if places else "…"
        return RunError(
            f"{self.shown} {text}. Name the inputs with a batch_postprocessor of train, or in the loader's "
            f"collate_fn:\n    batch_postprocessor=lambda batch: {_as_dict(inputs, places, label)}\nor take the whole "
            f"batch in the model or a wrapper around it:\n    def forward(self, {given}): "
            f"return self.model({name})"
        )


def forward_of(model: Callable[..., Any]) -> Forward:
    """Return the inputs that ``model`` takes; the signature of each model is read once."""
    if not isinstance(model, nn.Module):
        return _read(model, getattr(model, "__name__", type(model).__name__))
    found = _OF_MODELS.get(model)
    if found is None:
        inner = model
        while (wrapped := _wrapped(inner)) is not None:
            inner = wrapped
        found = _OF_MODELS[model] = _read(inner.forward, f"{type(inner).__name__}.forward")
    return found


_OF_MODELS: WeakKeyDictionary[nn.Module, Forward] = WeakKeyDictionary()


def _wrapped(model: nn.Module) -> nn.Module | None:
    """Return the module in a wrapper whose own ``forward`` takes anything, or ``None``."""
    found = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else None
    found = getattr(model, "_orig_mod", None) if found is None else found  # torch.compile
    return found if isinstance(found, nn.Module) else None


def _read(function: Callable[..., Any], name: str) -> Forward:
    try:
        found = list(signature(function).parameters.values())
    except (TypeError, ValueError):  # without a signature, everything is passed
        return Forward(name)
    kinds = {one.kind for one in found}
    by_key = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    by_place = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return Forward(
        f"{name}({', '.join(_parameter(one) for one in found)})",
        None if Parameter.VAR_KEYWORD in kinds else frozenset(one.name for one in found if one.kind in by_key),
        tuple(one.name for one in found if one.kind in by_place),
        Parameter.VAR_POSITIONAL in kinds,
        tuple(one.name for one in found if one.default is Parameter.empty and one.kind in {*by_key, *by_place}),
    )


def _parameter(one: Parameter) -> str:
    stars = "*" if one.kind is Parameter.VAR_POSITIONAL else "**" if one.kind is Parameter.VAR_KEYWORD else ""
    return f"{stars}{one.name}{'' if one.default is Parameter.empty else '=…'}"


def is_sequence(batch: Any) -> bool:
    """Return whether the items of ``batch`` are separate inputs; a ``PackedSequence`` is one, although a tuple."""
    return isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence)


def is_class(labels: Tensor) -> bool:
    """Return whether a tensor may hold class indices."""
    return not labels.is_floating_point() and not labels.is_complex() and labels.dtype is not torch.bool


def _shown(items: Sequence[Any]) -> str:
    return ", ".join(
        f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
        for one in items
    )


def _as_dict(inputs: Sequence[Any], places: Sequence[Any], label: Any) -> str:
    pairs = [f"{name!r}: batch[{place!r}]" for name, place in zip(inputs, places, strict=False)]
    if label is not None:
        pairs.append(f"'labels': batch[{label!r}]")
    return "{" + ", ".join(pairs) + "}"


def with_labels(
    outputs: Any, model: nn.Module, batch: Any, model_args: Mapping[str, Any], *, needs_loss: bool = False
) -> Any:
    """Add the labels that ``forward`` does not take to the ``outputs`` of a student without adaptor.

    Only one class index per example, for logits ``[batch, classes]``: anything else may be aligned differently and
    needs an adaptor. If ``needs_loss`` and the model returned no losses, their cross-entropy is added; examples with
    the label -100 are ignored.
    """
    batch = batch.value if isinstance(batch, Tagged) else batch
    forward = forward_of(model)
    labels = forward.label(batch, model_args)
    if not isinstance(labels, Tensor) or not is_class(labels):
        return outputs
    read = Outputs.read(outputs, "student")
    logits = read.logits[0] if read.logits is not None and len(read.logits) == 1 else None
    if (
        read.labels is not None
        or not isinstance(logits, Tensor)
        or logits.dim() != 2
        or labels.shape != logits.shape[:1]
    ):
        return outputs
    if not needs_loss or read.losses is not None:
        return replace(read, labels=(labels.long(),))
    forward.log_label(batch, model_args, labels)
    labels = labels.long()
    losses = nn.functional.cross_entropy(logits.float(), labels, ignore_index=_IGNORED, reduction="sum")
    return replace(read, labels=(labels,), losses=(LossSum(losses, (labels != _IGNORED).sum()),))
