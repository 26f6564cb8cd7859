"""What a model gave, as the objective reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdplug.contracts.vocabulary import ADAPTOR_KEYS, FEATURES
from kdplug.errors import OutputsError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

_KEYS = frozenset(ADAPTOR_KEYS)
_LISTS = tuple(key for key in ADAPTOR_KEYS if key != "inputs_mask")
_MODEL_OUTPUT_KEYS = {"loss": "losses", "logits": "logits", "hidden_states": "hidden", "attentions": "attention"}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What an adaptor returned for one model and one batch. Everything is optional.

    A bare tensor stands for a list of one, so the fields that may hold several tensors are always tuples. An empty list
    is as good as no key, except that an empty ``hidden`` or ``attention`` says that the model was asked and gave nothing.

    Shapes: ``logits`` ``[*items, classes]`` per head; ``logits_mask`` and ``labels`` ``[*items]`` per head; ``losses``
    any; ``inputs_mask`` ``[batch, length]``; ``hidden`` and ``attention`` one tensor per layer.
    Raises: ``OutputsError`` for a value that is not made of tensors; its field is the key.
    """

    logits: tuple[Tensor, ...] | None = None
    logits_mask: tuple[Tensor, ...] | None = None
    losses: tuple[Tensor, ...] | None = None
    inputs_mask: Tensor | None = None
    labels: tuple[Tensor, ...] | None = None
    hidden: tuple[Tensor, ...] | None = None
    attention: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        tensor = _tensor_type()
        for key in _LISTS:
            value = getattr(self, key)
            if value is not None:
                found = (value,) if isinstance(value, tensor) else _tensors(key, value, tensor)
                object.__setattr__(self, key, found if found or key in FEATURES else None)
        if self.inputs_mask is not None and not isinstance(self.inputs_mask, tensor):
            raise OutputsError(f"must be a tensor, got {_kind(self.inputs_mask)}", field="inputs_mask")

    @classmethod
    def read(cls, value: object, owner: str) -> Outputs:
        """Read what an adaptor, or a model without one, returned. ``owner`` names whose it is, for messages.

        Understood are a mapping with ``ADAPTOR_KEYS`` in any order, a bare logits tensor, a transformers ``ModelOutput``
        and an ``Outputs``.

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

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that hold something."""
        return tuple(key for key in ADAPTOR_KEYS if getattr(self, key) is not None)


@lru_cache(maxsize=1)
def _tensor_type() -> type[Tensor]:
    from torch import Tensor

    return Tensor


def _tensors(key: str, value: Any, tensor: type[Tensor]) -> tuple[Tensor, ...]:
    if not isinstance(value, (tuple, list)):
        raise OutputsError(f"must be a tensor or a list of tensors, got {_kind(value)}", field=key)
    for place, item in enumerate(value):
        if not isinstance(item, tensor):
            # Models that cannot return attentions fill the tuple with None.
            if item is None and all(one is None for one in value):
                return ()
            raise OutputsError(f"must be a tensor, got {_kind(item)}", field=f"{key}.{place}")
    return tuple(value)


def _kind(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 else type(value).__name__


def _by_key(value: Mapping[Any, Any]) -> dict[str, Any]:
    if _is_model_output(type(value)):
        return _from_model_output(value)
    for key in value:
        if key not in _KEYS:
            raise OutputsError(
                f"an adaptor may not return this key.{did_you_mean(str(key), ADAPTOR_KEYS)} "
                f"The keys are {', '.join(ADAPTOR_KEYS)}",
                field=str(key),
            )
    return dict(value)


@lru_cache
def _is_model_output(cls: type) -> bool:
    """Whether ``cls`` is shaped like a transformers ``ModelOutput``: a mapping that is a dataclass."""
    return is_dataclass(cls)


def _from_model_output(value: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that no term could use (``past_key_values``, ``last_hidden_state``…) are left out."""
    found = {mine: value[theirs] for theirs, mine in _MODEL_OUTPUT_KEYS.items() if theirs in value}
    if "logits" not in found and "start_logits" in value and "end_logits" in value:
        found["logits"] = (value["start_logits"], value["end_logits"])
    return found


def _logits(value: object) -> Any:
    if isinstance(value, _tensor_type()):
        return value
    raise OutputsError(
        f"cannot read {_kind(value)}. An adaptor returns a dict with some of {', '.join(ADAPTOR_KEYS)}, "
        "or the logits as one tensor"
    )
