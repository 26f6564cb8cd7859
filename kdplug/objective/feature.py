"""Which layers of a feature a match compares."""

from __future__ import annotations

from torch import Tensor

from kdplug.contracts.outputs import Outputs
from kdplug.errors import ConfigError, OutputsError

_HOW = {
    "hidden": "Return it from the adaptor; a transformers model gives it with output_hidden_states=True",
    "attention": (
        'Return it from the adaptor; a transformers model gives it with output_attentions=True and attn_implementation="eager"'
    ),
}


def layers(outputs: Outputs, feature: str, index: int | tuple[int, ...], side: str) -> tuple[Tensor, ...]:
    """The tensors at ``index``, always as a tuple. Negative indices count from the end.

    ``side`` is ``student`` or ``teacher``.

    Raises: ``OutputsError`` where the model gave no such feature; ``ConfigError`` where an index is out of range.
    """
    found: tuple[Tensor, ...] | None = outputs.hidden if feature == "hidden" else outputs.attention
    if not found:
        raise _missing(outputs, feature, side, empty=found is not None)
    try:
        if isinstance(index, int):
            return (found[index],)
        return tuple([found[one] for one in index])
    except IndexError:
        raise _out_of_range(len(found), feature, index, side) from None


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
