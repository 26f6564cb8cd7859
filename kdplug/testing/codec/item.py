"""Tests that a cache codec encodes each item independently of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdplug.errors import KdplugError
from kdplug.testing.codec.case import CodecCase
from kdplug.testing.codec.content import content
from kdplug.testing.codec.sample import at, each, parts_at, tensors_of
from kdplug.testing.law import advise, broken, is_close, where


class CodecItemLaws(CodecCase):
    """Items are stored in the batches of one epoch, and read in those of another."""

    @advise("Compute the parts of each item from its own logits, and return items in their order")
    @where(lambda laws: not laws.draws)
    def test_what_is_kept_of_several_is_what_is_kept_of_each(self) -> None:
        """Catches a range or a mean over the whole batch; sorted rows; a dropped last item."""
        codec = self.codec()
        given = self.given(codec)
        whole = self.keep(codec, given).parts
        for place in range(self.items):
            one = self.keep(codec, at(given, [place])).parts
            name = _differing(parts_at(whole, [place]), one)
            if name is not None:
                broken(f"part {name!r} of item {place} differs if the item is encoded alone")

    @advise("Compute the parts of each item from its own logits")
    @where(lambda laws: laws.draws)
    def test_what_is_kept_of_an_item_does_not_depend_on_the_others(self) -> None:
        """Catches a range or a mean over the whole batch."""
        codec = self.codec()
        given = self.given(codec)
        first = self.keep(codec, given).parts
        for place in range(self.items):
            others = [other if other == place else (other + 1) % self.items for other in range(self.items)]
            again = self.keep(codec, at(given, others)).parts
            name = _differing(parts_at(first, [place]), parts_at(again, [place]))
            if name is not None:
                broken(f"part {name!r} of item {place} differs if the item is encoded with other items")

    @advise("Decode each item from its own parts, and split ragged rows by their counts")
    def test_items_are_read_in_any_order(self) -> None:
        """Catches logits of the next item; ragged rows split at the wrong places; differences to the previous item."""
        codec = self.codec()
        trip = self.trip(codec, self.given(codec))
        shared = self.shared(codec, trip.given)
        last = self.items - 1
        for order in ([*range(self.items)][::-1], [last], [1, 0, 0, last]):
            found = self.read(codec, parts_at(trip.kept.parts, order), shared)
            if tuple(found.shape) != (len(order), self.classes):
                broken(f"parts of {len(order)} items decode to logits {list(found.shape)}")
            if not is_close(content(found), content(trip.found)[order], 1e-6):
                broken(f"items read in the order {order} do not get their own logits")

    @advise("Accept logits that are all 0, and decode an empty batch to empty logits")
    def test_a_batch_of_which_nothing_counts_can_be_kept(self) -> None:
        """Catches a maximum over nothing; rejected logits of 0, from which the engine determines the parts."""
        codec = self.codec()
        given = self.given(codec, 1)
        try:
            parts = parts_at(self.keep(codec, each(given, torch.zeros_like)).parts, [])
        except KdplugError as error:
            broken(f"rejects logits that are all 0 ({error}), so a batch of padding cannot be stored")
        found = self.read(codec, parts, self.shared(codec, given))
        if tuple(found.shape) != (0, self.classes):
            broken(f"parts of an empty batch must decode to logits [0, {self.classes}], got {list(found.shape)}")


def _differing(one: Any, two: Any) -> str | None:
    """Return the name of a part that differs: integers must be equal, other numbers may differ by rounding."""
    first, second = tensors_of(one), tensors_of(two)
    for name in (*first, *second):
        if name not in first or name not in second or not _agree(first[name], second[name]):
            return name.partition(".")[0]
    return None


def _agree(one: Tensor, two: Tensor) -> bool:
    if one.dtype is not two.dtype or one.shape != two.shape:
        return False
    return is_close(one, two, 1e-6) if one.is_floating_point() else torch.equal(one, two)
