"""Model outputs in the form that the objective reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.loss import LossSum
from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.contracts.vocabulary import EXTRAS, OUTPUT_KEYS
from kdplug.errors import OutputsError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    Logits = Tensor | FactoredLogits | SparseLogits
    """The logits of one head, in any supported form."""

    Loss = Tensor | LossSum
    """A loss that the student computed itself."""

    Tensors = Tensor | Sequence[Tensor] | None
    Losses = Loss | Sequence[Loss] | None
    LogitsOfHeads = Logits | Sequence[Logits] | None

_KEYS = frozenset(OUTPUT_KEYS)
_COMPACT = (FactoredLogits, SparseLogits)
_MODEL_OUTPUT_KEYS = {"loss": "losses", "logits": "logits", "hidden_states": "hidden", "attentions": "attention"}


@dataclass(frozen=True, slots=True, init=False)
class Outputs:
    """An adaptor's result for one model and one batch. Every field is optional.

    A bare tensor means a list of one; fields that may hold several tensors are always tuples. An empty list is
    equivalent to a missing key, except that an empty ``hidden`` or ``attention`` means that the model returned none on
    request. ``captured`` is not an adaptor key: it holds tensors captured inside the model, by the config's path.

    Labels are class indices, or class probabilities ``[*items, classes]``.

    For large vocabularies, a head's logits may be ``FactoredLogits``, and a teacher's also ``SparseLogits``.

    ``extras`` holds further tensors by name; a term reads those that it names. An empty mapping is a missing key.

    Each of ``losses`` is a ``LossSum``, a tensor with one loss per item, or a scalar, which counts as a mean over one
    item.

    Shapes: ``logits`` ``[*items, classes]`` per head; ``logits_mask`` and ``labels`` ``[*items]`` per head; ``losses``
    any; ``inputs_mask`` ``[batch, length]``; ``hidden`` and ``attention`` one tensor per layer; ``extras`` any.
    Raises: ``OutputsError``, with the key as its field, for a value that does not consist of tensors, or an invalid
    ``LossSum``.
    """

    logits: tuple[Logits, ...] | None
    logits_mask: tuple[Tensor, ...] | None
    losses: tuple[Loss, ...] | None
    inputs_mask: Tensor | None
    labels: tuple[Tensor, ...] | None
    hidden: tuple[Tensor, ...] | None
    attention: tuple[Tensor, ...] | None
    extras: Mapping[str, Tensor] | None
    captured: Mapping[str, Tensor] | None

    def __init__(
        self,
        *,
        logits: LogitsOfHeads = None,
        logits_mask: Tensors = None,
        losses: Losses = None,
        inputs_mask: Tensor | None = None,
        labels: Tensors = None,
        hidden: Tensors = None,
        attention: Tensors = None,
        extras: Mapping[str, Tensor] | None = None,
        captured: Mapping[str, Tensor] | None = None,
    ) -> None:
        put = object.__setattr__
        # fast path for the common case: a type check costs a fraction of a call
        is_tensor = type(logits) is _tensor_type()
        put(self, "logits", None if logits is None else (logits,) if is_tensor else _heads(logits) or None)
        put(self, "logits_mask", None if logits_mask is None else _tensors("logits_mask", logits_mask) or None)
        put(self, "losses", None if losses is None else _losses(losses) or None)
        put(self, "inputs_mask", None if inputs_mask is None else _tensor("inputs_mask", inputs_mask))
        put(self, "labels", None if labels is None else _tensors("labels", labels) or None)
        put(self, "hidden", None if hidden is None else _tensors("hidden", hidden))
        put(self, "attention", None if attention is None else _tensors("attention", attention))
        put(self, EXTRAS, None if extras is None else _named(extras) or None)
        put(self, "captured", captured)

    @classmethod
    def read(cls, value: object, owner: str) -> Outputs:
        """Parse the return value of an adaptor, or of a model without one. Messages call it ``owner``.

        Accepts a mapping with any of ``OUTPUT_KEYS``, a bare logits tensor, a transformers ``ModelOutput`` and an
        ``Outputs``.

        Raises: ``OutputsError`` for an unknown key, or a value of a wrong type.
        """
        if isinstance(value, Outputs):
            return value
        try:
            if type(value) is dict and value.keys() <= _KEYS:
                return cls(**value)
            return cls(**_by_key(value)) if isinstance(value, Mapping) else cls(logits=_logits(value))
        except OutputsError as error:
            raise error.at(owner) from None

    def detached(self) -> Outputs:
        """Return the same outputs without gradient and without ``losses``, for a term that reads the student as a teacher."""
        return Outputs(
            logits=_detached(self.logits),
            logits_mask=self.logits_mask,
            inputs_mask=self.inputs_mask,
            labels=self.labels,
            hidden=_detached(self.hidden),
            attention=_detached(self.attention),
            extras=None if self.extras is None else {name: one.detach() for name, one in self.extras.items()},
            captured=None if self.captured is None else {path: one.detach() for path, one in self.captured.items()},
        )

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that have a value."""
        return tuple(key for key in OUTPUT_KEYS if getattr(self, key) is not None)


def _detached(found: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return None if found is None else tuple([one.detach() for one in found])


@lru_cache(maxsize=1)
def _tensor_type() -> type[Tensor]:
    from torch import Tensor

    return Tensor


def _tensor(key: str, value: Tensor) -> Tensor:
    if isinstance(value, _tensor_type()):
        return value
    raise OutputsError(f"must be a tensor, got {_kind(value)}", field=key)


def _tensors(key: str, value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    tensor = _tensor_type()
    if isinstance(value, tensor):
        return (value,)
    if not isinstance(value, (tuple, list)):
        raise OutputsError(f"must be a tensor or a list of tensors, got {_kind(value)}", field=key)
    for place, item in enumerate(value):
        if not isinstance(item, tensor):
            # Models that cannot return attentions fill the tuple with None.
            if item is None and all(one is None for one in value):
                return ()
            raise OutputsError(f"must be a tensor, got {_kind(item)}", field=f"{key}.{place}")
    return tuple(value)


def _named(value: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        raise OutputsError(f"must be a mapping from names to tensors, got {_kind(value)}", field=EXTRAS)
    for name, tensor in value.items():
        if not isinstance(name, str) or not name.strip():
            raise OutputsError(f"must have names as keys, got {_kind(name)}", field=EXTRAS)
        _tensor(f"{EXTRAS}.{name}", tensor)
    return dict(value)


def _losses(value: Loss | Sequence[Loss]) -> tuple[Loss, ...]:
    if isinstance(value, LossSum):  # before lists: a named tuple is a tuple of two as well
        return (_loss_sum("losses", value),)
    if isinstance(value, (tuple, list)) and any(isinstance(loss, LossSum) for loss in value):
        fields = [f"losses.{place}" for place in range(len(value))]
        return tuple(
            _loss_sum(field, loss) if isinstance(loss, LossSum) else _tensor(field, loss)
            for field, loss in zip(fields, value, strict=True)
        )
    return _tensors("losses", value)  # type: ignore[arg-type]  # _tensors rejects other types


def _loss_sum(field: str, loss: LossSum) -> LossSum:
    total: Any = loss.total
    count: Any = loss.count
    tensor = _tensor_type()
    if not isinstance(total, tensor) or total.dim():
        raise OutputsError(f"the total of a LossSum must be a scalar tensor, got {_shown(total)}", field=field)
    if isinstance(count, tensor) and count.dim():
        raise OutputsError(
            f"the count of a LossSum must be a number or a scalar tensor, got {_shown(count)}", field=field
        )
    if not isinstance(count, (int, float, tensor)) or not is_valid_count(count):
        raise OutputsError(f"the count of a LossSum must be a finite number >= 0, got {_shown(count)}", field=field)
    return loss


def _shown(value: object) -> str:
    if not isinstance(value, _tensor_type()):
        return _kind(value)
    return f"a tensor of shape {list(value.shape)}" if value.dim() else f"a tensor that holds {value.item():g}"


def _heads(logits: Logits | Sequence[Logits]) -> tuple[Logits, ...]:
    if isinstance(logits, (_tensor_type(), _COMPACT)):
        return (logits,)
    if isinstance(logits, (tuple, list)) and any(isinstance(head, _COMPACT) for head in logits):
        return tuple(
            head if isinstance(head, _COMPACT) else _tensor(f"logits.{n}", head) for n, head in enumerate(logits)
        )
    return _tensors("logits", logits)  # type: ignore[arg-type]  # _tensors rejects other types


def _kind(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 else type(value).__name__


def _by_key(value: Mapping[Any, Any]) -> dict[str, Any]:
    if _is_model_output(type(value)):
        return _from_model_output(value)
    for key in value:
        if key not in _KEYS:
            raise OutputsError(
                f"is not an adaptor key.{did_you_mean(str(key), OUTPUT_KEYS)} Valid keys: {', '.join(OUTPUT_KEYS)}",
                field=str(key),
            )
    return dict(value)


@lru_cache
def _is_model_output(cls: type) -> bool:
    """Return whether ``cls`` is shaped like a transformers ``ModelOutput``: a mapping that is a dataclass."""
    return is_dataclass(cls)


def _from_model_output(value: Mapping[str, Any]) -> dict[str, Any]:
    """Drop fields that no term uses (``past_key_values``, ``last_hidden_state``…)."""
    found = {mine: value[theirs] for theirs, mine in _MODEL_OUTPUT_KEYS.items() if theirs in value}
    if "logits" not in found and "start_logits" in value and "end_logits" in value:
        found["logits"] = (value["start_logits"], value["end_logits"])
    return found


def _logits(value: object) -> Any:
    if isinstance(value, (_tensor_type(), *_COMPACT)):
        return value
    raise OutputsError(
        f"cannot read {_kind(value)}. An adaptor must return the logits as one tensor, or a dict whose keys are "
        f"among {', '.join(OUTPUT_KEYS)}"
    )


@dataclass(frozen=True, slots=True)
class Tagged:
    """A batch or model outputs, with the task they belong to; a batch with the epoch of the task's own data."""

    task: str
    value: Any
    epoch: int = 0


def is_valid_count(count: Tensor | float, *, waits: bool = False) -> bool:
    """Return whether ``count`` is finite and at least 0.

    A tensor on an accelerator is checked only if ``waits`` is set; while torch compiles, tensors are never checked.
    """
    if not isinstance(count, (int, float)):
        import torch

        if torch.compiler.is_compiling() or count.is_meta or not (count.is_cpu or waits):
            return True
        count = float(count)
    return 0 <= count < math.inf
