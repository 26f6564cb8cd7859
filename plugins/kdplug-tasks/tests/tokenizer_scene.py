"""Tokenizers of many kinds, trained on the spot, and texts that are hard to align."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the plot was good and the film was good",
    "  a naïve café,\n\nthe end;  été",
    "日本語の映画は良い 🙂🙂 the end 👩‍👩‍👧",
    "ﬁne office, ½ of it — “quoted”\ttab",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*" \n\t", "the", " plot", "good", "é", "日本", "語", "🙂", "👩‍👩‍👧", "ﬁ", "½", "“", ";\n", "  "]
        ),
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn")), max_size=3),
    ),
    min_size=1,
    max_size=12,
).map("".join)


def _byte_level(vocabulary, *, spaced=False, trims=False):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    if trims:
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(made, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False))


def _fallback(vocabulary, pre_tokenizer, normalizer=None):
    made = Tokenizer(models.BPE(byte_fallback=True))
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    return _trained(made, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=BYTES, show_progress=False))


def _trained(made, trainer):
    made.train_from_iterator(CORPUS, trainer)
    return made


MAKERS = {
    "bytes": lambda: _byte_level(256),
    "coarse": lambda: _byte_level(330),
    "fine": lambda: _byte_level(280),
    "trimmed": lambda: _byte_level(300, spaced=True, trims=True),
    "metaspace": lambda: _fallback(380, pre_tokenizers.Metaspace()),
    "wordpieces": lambda: _fallback(340, pre_tokenizers.BertPreTokenizer()),
    "compatible": lambda: _fallback(340, pre_tokenizers.Metaspace(), normalizers.NFKC()),
}
"""Byte-level tokenizers and some with byte fallback; the last but one drops whitespace, the last rewrites characters."""

LOSSLESS = ("bytes", "coarse", "fine")
"""Tokenizers that encode a text byte for byte."""


@cache
def fast(name):
    """Return a transformers tokenizer."""
    return PreTrainedTokenizerFast(tokenizer_object=MAKERS[name]())
