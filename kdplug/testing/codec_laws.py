"""The laws of a cache codec."""

from __future__ import annotations

from kdplug.testing.codec_extreme_laws import CodecExtremeLaws
from kdplug.testing.codec_form_laws import CodecFormLaws
from kdplug.testing.codec_item_laws import CodecItemLaws
from kdplug.testing.codec_seed_laws import CodecSeedLaws
from kdplug.testing.codec_value_laws import CodecValueLaws


class CodecLaws(CodecFormLaws, CodecItemLaws, CodecSeedLaws, CodecValueLaws, CodecExtremeLaws):
    """Laws that a cache codec keeps, as pytest tests. A codec that takes logits in factors is given them so.

    It may refuse what it cannot keep (``-inf``, nan, logits of 1e4) with a ``SettingError`` that says why; the laws pass over that.

    ::

        class TestMyCodec(CodecLaws):
            entry = "mycodec"
            settings = {"bits": 4}
    """
