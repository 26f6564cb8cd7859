"""Which layers of a feature a match compares."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from kdplug.config.layer import Layers, is_path
from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, OutputsError

_HOW = {
    "hidden": "Return it from the adaptor; a transformers model gives it with output_hidden_states=True",
    "attention": (
        'Return it from the adaptor; a transformers model gives it with output_attentions=True and attn_implementation="eager"'
    ),
}


def layers(outputs: Outputs, feature: str, layer: Layers, side: str) -> tuple[Tensor, ...]:
    """The tensors at ``layer``, always as a tuple: by index (negative ones count from the end), or captured at a path.

    ``side`` is ``student`` or ``teacher``.

    Raises: ``OutputsError`` where the model gave no such feature, or nothing was captured; ``ConfigError`` where an index is
    out of range.
    """
    if type(layer) is int:
        found = outputs.hidden if feature == "hidden" else outputs.attention
        if found and -len(found) <= layer < len(found):
            return (found[layer],)
    if isinstance(layer, str):
        return (_captured(outputs, layer, side),)
    if isinstance(layer, tuple) and any(map(is_path, layer)):
        return tuple([tensor for one in layer for tensor in layers(outputs, feature, one, side)])
    return _by_index(outputs, feature, cast("int | tuple[int, ...]", layer), side)


def _by_index(outputs: Outputs, feature: str, index: int | tuple[int, ...], side: str) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] | None = outputs.hidden if feature == "hidden" else outputs.attention
    if not found:
        raise _missing(outputs, feature, side, empty=found is not None)
    try:
        if isinstance(index, int):
            return (found[index],)
        return tuple([found[one] for one in index])
    except IndexError:
        raise _out_of_range(len(found), feature, index, side) from None


def _captured(outputs: Outputs, path: str, side: str) -> Tensor:
    if outputs.captured is not None and path in outputs.captured:
        return outputs.captured[path]
    field = "layer_S" if side == "student" else "layer_T"
    if outputs.captured is not None:
        raise OutputsError(f"the {side}'s forward pass did not call {path!r}", field=field)
    raise OutputsError(
        f"nothing was captured at {path!r} in the {side}. A distiller captures while the model runs, which it does not where a "
        "batch brings a teacher_cache; a loop of your own does it with objective.capture(student, teacher)",
        field=field,
    )


def _missing(outputs: Outputs, feature: str, side: str, *, empty: bool) -> OutputsError:
    if empty:
        reason = (
            '. Attention kernels such as sdpa return none: load the model with attn_implementation="eager"'
            if feature == "attention"
            else f". {_HOW[feature]}"
        )
        return OutputsError(f"the {side} returned no layers in {feature!r}{reason}", field="feature")
    given = ", ".join(outputs.given) or "nothing"
    return OutputsError(f"the {side} returned no {feature!r}, only {given}. {_HOW[feature]}", field="feature")


def _out_of_range(count: int, feature: str, index: int | tuple[int, ...], side: str) -> ConfigError:
    indices = (index,) if isinstance(index, int) else index
    wrong = next(one for one in indices if not -count <= one < count)
    return ConfigError(
        f"there is no layer {wrong}: the {side} returned {count} {feature} layer{'s' if count > 1 else ''}, "
        f"0 to {count - 1} (or {-count} to -1)",
        field="layer_S" if side == "student" else "layer_T",
    )
