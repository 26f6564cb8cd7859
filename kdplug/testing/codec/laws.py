"""The laws of a cache codec."""

from __future__ import annotations

from kdplug.testing.codec.extreme import CodecExtremeLaws
from kdplug.testing.codec.form import CodecFormLaws
from kdplug.testing.codec.item import CodecItemLaws
from kdplug.testing.codec.seed import CodecSeedLaws
from kdplug.testing.codec.value import CodecValueLaws


class CodecLaws(CodecFormLaws, CodecItemLaws, CodecSeedLaws, CodecValueLaws, CodecExtremeLaws):
    """Laws that a cache codec keeps, as pytest tests. A codec that takes logits in factors is given them so.

    It may refuse what it cannot keep (``-inf``, nan, logits of 1e4) with a ``SettingError`` that says why; the laws pass over that.

    ::

        class TestMyCodec(CodecLaws):
            entry = "mycodec"
            settings = {"bits": 4}
    """
