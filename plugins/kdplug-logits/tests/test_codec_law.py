"""Every cache codec under the laws of the author's kit."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

import kdplug
from kdplug.testing import CodecLaws


class TestDense(CodecLaws):
    entry = "kdplug-logits:dense"


class TestDenseInBfloat16(TestDense):
    settings = {"dtype": "bfloat16"}


class TestDenseInFloat32(TestDense):
    settings = {"dtype": "float32"}


class TestTopkTail(CodecLaws):
    entry = "kdplug-logits:topk_tail"
    settings = {"k": 4}


class TestTopkTailInEightBits(TestTopkTail):
    settings = {"k": 4, "bits": 8}


class TestTopkTailOfOne(TestTopkTail):
    settings = {"k": 1}


class TestTopkTailOfAll(TestTopkTail):
    settings = {}


class TestSampled(CodecLaws):
    entry = "kdplug-logits:sampled"
    settings = {"rounds": 9}
    draws = True


class TestHidden(CodecLaws):
    entry = "kdplug-logits:hidden"


class TestHiddenInFloat16(TestHidden):
    settings = {"dtype": "float16"}


DECLARED = [
    found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, CodecLaws) and found.entry is not None
]


def test_every_first_party_entry_is_under_laws() -> None:
    offered = {entry.qualified for entry in kdplug.cache_codecs.entries() if entry.dist == "kdplug-logits"}
    assert offered == {laws.entry for laws in DECLARED}
