"""What adaptors return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdplug.contracts.loss_sum import LossSum
from kdplug.contracts.vocabulary import ADAPTOR_KEYS
from kdplug.errors import OutputsError, did_you_mean
from kdplug.integrations.textbrewer.log import tell

__all__ = ["BasicAdaptor", "post_adaptor"]

_LISTS = ("logits", "logits_mask", "losses", "labels")


class BasicAdaptor:
    """An adaptor that keeps the batch and the outputs it was called with, for those who build on it."""

    def __init__(self) -> None:
        self.batch: Any = None
        self.model_outputs: Any = None

    def __call__(self, batch: Any, model_outputs: Any) -> Any:
        self.batch = batch
        self.model_outputs = model_outputs


def post_adaptor(dict_object: dict[str, Any]) -> dict[str, Any]:
    """The same mapping, with a bare tensor under ``logits``, ``logits_mask``, ``losses`` or ``labels``, or a ``LossSum``, as
    a list of one.

    Raises: ``OutputsError`` for what is no mapping.
    """
    if not isinstance(dict_object, Mapping):
        raise OutputsError(
            f"an adaptor must return a dict of {', '.join(ADAPTOR_KEYS)}, got {type(dict_object).__name__}"
        )
    for key in _LISTS:
        value = dict_object.get(key)
        if key in dict_object and (isinstance(value, LossSum) or not isinstance(value, (list, tuple))):
            dict_object[key] = [value]
    return dict_object


def adapted(adaptor: Any, batch: Any, outputs: Any, side: str) -> dict[str, Any]:
    """What an adaptor makes of a model's outputs. A key that nothing reads is told once, and ignored as in TextBrewer.

    Raises: ``OutputsError`` for what is no mapping.
    """
    found = post_adaptor(adaptor(batch, outputs))
    for key in found:
        if key not in ADAPTOR_KEYS:
            tell(f"{side} returned {key!r}, which nothing reads.{did_you_mean(str(key), ADAPTOR_KEYS)}")
    return found
