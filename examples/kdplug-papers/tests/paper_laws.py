"""The laws that a method of this package is held to."""

from __future__ import annotations

from typing import ClassVar

from kdplug.testing import LossLaws

IN_FLOAT32 = "the engine passes features in float32, and computes losses without autocast"
DRAWN = "each example has its own draws, which follow its place in the batch"
COMPILED_DRAWS = "torch.compile cannot trace a torch.Generator"


class PaperLaws(LossLaws):
    """``LossLaws`` without those on half-precision inputs. A subclass with its own exceptions merges them."""

    except_for: ClassVar = {
        "test_bfloat16_autocast_agrees_with_float32": IN_FLOAT32,
        "test_float16_autocast_agrees_with_float32": IN_FLOAT32,
        "test_a_float16_batch_of_many_items_is_counted": IN_FLOAT32,
    }
