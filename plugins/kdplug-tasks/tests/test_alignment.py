"""Alignment of two tokenizations of the same text."""

from __future__ import annotations

import re
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_scene import LOSSLESS, MAKERS, TEXTS, fast
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

import kdplug
from kdplug_tasks.text.alignment import boundaries, cuts, sizes
from kdplug_tasks.text.dual_tokenization import DualTokens, SideTokens, joined, pieces
from kdplug_tasks.text.spelling import Speller, flaw

NAMES = st.sampled_from(sorted(MAKERS))


def spell(name, text):
    return Speller(fast(name), "tokenizer").spell([text])[0]


def aligned(own, theirs, text):
    """Return both sides' tokens and the cuts of a text that both can encode."""
    mine, other = spell(own, text), spell(theirs, text)
    return mine, other, cuts(mine.spans, other.spans, len(text))


def written(name, ids):
    """Return the bytes of byte-level tokens, to check the spans against."""
    alphabet = {character: byte for byte, character in _BYTES.items()}
    return bytes(alphabet[one] for token in fast(name).convert_ids_to_tokens(ids) for one in token)


def _byte_alphabet():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}


_BYTES = _byte_alphabet()


@given(NAMES, NAMES, TEXTS)
def test_cuts_go_forward_on_both_sides_and_end_with_the_text(own, theirs, text):
    mine, other, found = aligned(own, theirs, text)
    assert all(one < two for one, two in pairwise([cut[0] for cut in found]))
    assert all(one < two for one, two in pairwise([cut[1] for cut in found]))
    assert found[-1:] == [(len(mine.ids), len(other.ids))] or not text.strip()


@given(st.sampled_from(LOSSLESS), st.sampled_from(LOSSLESS), TEXTS)
def test_both_sides_have_written_the_same_whole_characters_at_each_cut(own, theirs, text):
    mine, other, found = aligned(own, theirs, text)
    for i, j in found:
        assert written(own, mine.ids[:i]) == written(theirs, other.ids[:j])
        assert text.startswith(written(own, mine.ids[:i]).decode())


@given(st.sampled_from(LOSSLESS), st.sampled_from(LOSSLESS), TEXTS)
def test_no_place_where_both_have_written_the_same_characters_is_missed(own, theirs, text):
    mine, other, found = aligned(own, theirs, text)
    ends = {text[:end].encode() for end in range(1, len(text) + 1)}
    reached = {written(own, mine.ids[:i]): i for i in range(1, len(mine.ids) + 1)}
    theirs_reached = {written(theirs, other.ids[:j]): j for j in range(1, len(other.ids) + 1)}
    assert set(found) == {(reached[end], theirs_reached[end]) for end in ends & reached.keys() & theirs_reached.keys()}


@given(NAMES, NAMES, TEXTS)
def test_tokens_before_and_after_a_cut_are_of_the_characters_before_and_after_it(own, theirs, text):
    mine, other, found = aligned(own, theirs, text)
    for i, j in found[:-1]:
        end = mine.spans[i - 1][1]
        assert end == other.spans[j - 1][1]
        for spans, place in ((mine.spans, i), (other.spans, j)):
            assert all(span[1] <= end for span in spans[:place])
            assert all(span[0] >= end for span in spans[place:])


@given(NAMES, TEXTS)
def test_equal_tokenizers_give_the_identity(name, text):
    found = aligned(name, name, text)[2]
    assert all(i == j for i, j in found)
    assert len(found) == len(boundaries(spell(name, text).spans, len(text)))


@given(NAMES, NAMES, TEXTS)
def test_sides_changed_are_cuts_changed(own, theirs, text):
    assert [(j, i) for i, j in aligned(own, theirs, text)[2]] == aligned(theirs, own, text)[2]


@given(NAMES, TEXTS)
def test_the_sizes_of_tokens_are_the_bytes_of_the_text(name, text):
    spelled = spell(name, text)
    assert sum(sizes(text, spelled.spans)) == (len(text.encode()) if spelled.ids else 0)


@given(NAMES, TEXTS)
def test_ids_are_those_that_the_tokenizer_gives(name, text):
    assert spell(name, text).ids == fast(name)(text, add_special_tokens=False)["input_ids"]


@given(NAMES, TEXTS)
def test_spans_of_tokenizers_that_drop_nothing_have_no_flaw(name, text):
    assert flaw(text, spell(name, text).spans) is None


def test_a_token_that_ends_inside_a_character_is_no_boundary():
    assert boundaries([(0, 1), (1, 2), (1, 2), (1, 3), (2, 3)], 3) == {1: 1, 3: 5}


def test_white_space_that_a_tokenizer_takes_off_its_spans_is_put_back():
    assert fast("trimmed")("the plot", return_offsets_mapping=True)["offset_mapping"][1][0] == 4
    assert [begin for begin, _ in spell("trimmed", "the plot").spans][1] == 3


def test_common_boundaries_lie_between_words_and_after_characters_of_several_bytes():
    mine, other, found = aligned("coarse", "bytes", "the plot 🙂 was")
    assert len(mine.ids) < len(other.ids) == 17
    assert [other.spans[j - 1][1] for _, j in found] == [mine.spans[i - 1][1] for i, _ in found]
    assert {3, 8, 10, 14} <= {other.spans[j - 1][1] for _, j in found}


@pytest.mark.parametrize(
    ("text", "spans", "words"),
    [
        ("abc", [(0, 1), (2, 3)], r"has no token for 'b' \(U\+0062\)"),
        ("ab c!", [(0, 2), (3, 4)], r"has no token for '!'"),
        ("abc", [(0, 2), (0, 1), (2, 3)], "the characters 0 to 1, after a token with 0 to 2"),
        ("abc", [(0, 1), (1, 4)], "the characters 1 to 4"),
    ],
)
def test_spans_that_do_not_tell_what_was_read_are_a_flaw(text, spans, words):
    assert re.search(words, flaw(text, spans))


def test_white_space_alone_may_be_dropped():
    assert flaw(" a  b ", [(1, 2), (4, 5)]) is None
    assert cuts([(1, 2), (4, 5)], [(0, 2), (2, 3), (3, 5), (5, 6)], 6) == [(1, 1), (2, 4)]


def test_a_tokenizer_that_takes_accents_off_is_found_out():
    made = Tokenizer(models.BPE(vocab={"e": 0, "f": 1}, merges=[]))
    made.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    spans = Speller(PreTrainedTokenizerFast(tokenizer_object=made), "tokenizer").spell(["fe\u0301f"])[0].spans
    assert "U+0301" in flaw("fe\u0301f", spans)


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(kdplug.ConfigError, match=r"^student_tokenizer: Slow has no character offsets"):
        Speller(Slow(), "student_tokenizer")


def test_a_tokenizer_that_gives_other_ids_than_it_is_made_of_is_refused():
    class Shifted(PreTrainedTokenizerFast):
        def __call__(self, *args, **kwargs):
            found = super().__call__(*args, **kwargs)
            found["input_ids"] = [[one + 1 for one in row] for row in found["input_ids"]]
            return found

    with pytest.raises(kdplug.ConfigError, match="Shifted changes the ids of its fast tokenizer"):
        Speller(Shifted(tokenizer_object=MAKERS["fine"]()), "tokenizer").spell(["the"])


def test_a_tokenizer_that_cannot_be_copied_is_refused():
    class Own:
        def pre_tokenize(self, pre_tokenized):
            pass

    made = MAKERS["fine"]()
    made.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Own())
    made.decoder = ByteLevel()
    holder = type("Holder", (), {"is_fast": True, "backend_tokenizer": made})
    with pytest.raises(kdplug.ConfigError, match=r"^tokenizer: the tokenizer cannot be copied"):
        Speller(holder(), "tokenizer")


def dual(text, own="coarse", theirs="bytes"):
    mine, other, found = aligned(own, theirs, text)
    halves = [SideTokens(one.ids, [True] * len(one.ids), sizes(text, one.spans)) for one in (mine, other)]
    return DualTokens(*halves, found)


@given(
    st.lists(TEXTS, min_size=1, max_size=4), st.integers(8, 40), st.sampled_from(LOSSLESS), st.sampled_from(LOSSLESS)
)
def test_pieces_cover_the_text_within_the_maximum_length_and_agree_on_both_sides(texts, length, own, theirs):
    whole = joined(dual(text, own, theirs) for text in texts)
    try:
        found = list(pieces(whole, length))
    except ValueError:
        return
    assert list(chain.from_iterable(piece.student.ids for piece in found)) == whole.student.ids
    assert list(chain.from_iterable(piece.teacher.ids for piece in found)) == whole.teacher.ids
    assert all(max(len(piece.student.ids), len(piece.teacher.ids)) <= length for piece in found)
    for piece in found:
        assert written(own, piece.student.ids) == written(theirs, piece.teacher.ids)
        assert sum(piece.student.sizes) == sum(piece.teacher.sizes)
        assert all(
            written(own, piece.student.ids[:i]) == written(theirs, piece.teacher.ids[:j]) for i, j in piece.compared
        )


def test_a_piece_is_as_long_as_can_be():
    whole = DualTokens(
        SideTokens(list(range(6)), [True] * 6, [1] * 6), SideTokens(list(range(9)), [True] * 9, [1] * 9), []
    )
    whole.cuts.extend([(1, 2), (3, 4), (4, 5), (6, 9)])
    assert [piece.cuts for piece in pieces(whole, 4)] == [[(1, 2), (3, 4)], [(1, 1)], [(2, 4)]]
    with pytest.raises(ValueError, match=r"^4 tokens$"):
        list(pieces(whole, 3))


def test_what_is_compared_counts_on_both_sides_and_has_something_before_it():
    halves = (
        SideTokens([1, 2, 3, 4], [False, False, True, True], [1] * 4),
        SideTokens([1, 2, 3], [False, True, True], [1] * 3),
    )
    assert DualTokens(*halves, [(1, 1), (2, 2), (4, 3)]).compared == [(2, 2)]


def test_text_that_one_side_has_no_token_for_is_no_second_item():
    whole = joined(
        [dual("the"), DualTokens(SideTokens([7], [True], [1]), SideTokens([], [], []), [(1, 0)]), dual(" plot")]
    )
    assert len({j for _, j in whole.cuts}) == len(whole.cuts)
    assert whole.cuts[-1] == (len(whole.student.ids), len(whole.teacher.ids))
