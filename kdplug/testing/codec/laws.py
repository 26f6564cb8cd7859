"""``CodecLaws``: all tests for cache codecs."""

from __future__ import annotations

from kdplug.testing.codec.extreme import CodecExtremeLaws
from kdplug.testing.codec.form import CodecFormLaws
from kdplug.testing.codec.item import CodecItemLaws
from kdplug.testing.codec.seed import CodecSeedLaws
from kdplug.testing.codec.value import CodecValueLaws


class CodecLaws(CodecFormLaws, CodecItemLaws, CodecSeedLaws, CodecValueLaws, CodecExtremeLaws):
    """Tests that every cache codec must pass, for pytest. A codec that takes factored logits gets factored ones.

    It may reject what it cannot store (``-inf``, nan, logits of 1e4) with a ``SettingError`` that gives the reason; the
    laws skip those cases.

    ::

        class TestMyCodec(CodecLaws):
            entry = "mycodec"
            settings = {"bits": 4}
    """
