"""Outputs of padded examples find their place in batches of other lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdplug.engine.cache.layout import Layout, Length, padding_signatures
from kdplug.engine.cache.repad import Padding, padding_signature, paddings, repad
from kdplug.errors import RunError

TOKENS = st.lists(st.integers(1, 5), min_size=1, max_size=6)
ROWS = Length((1,), ("ids",))


def pad(values, size, side):
    zeros = values.new_zeros(size - len(values), *values.shape[1:])
    return torch.cat([values, zeros] if side is Padding.END else [zeros, values])


@given(tokens=TOKENS, more=st.integers(0, 4), later=st.integers(0, 4), side=st.sampled_from(Padding))
def test_what_a_teacher_said_of_a_token_stays_with_the_token(tokens, more, later, side):
    ids = torch.tensor(tokens)
    said = torch.stack([ids * 1.5, -ids], 1).double()
    stored, now = (pad(ids, len(ids) + extra, side) for extra in (more, later))
    (found,) = paddings({"ids": [*padding_signature(stored.unsqueeze(0))]}, {"ids": now.unsqueeze(0)}, [0])["ids"]
    fitted = repad(pad(said, len(stored), side), ROWS, len(now), found)
    assert torch.equal(fitted, pad(said, len(now), side))


@given(tokens=TOKENS, later=st.integers(0, 4), side=st.sampled_from(Padding))
def test_both_sides_of_an_attention_are_fitted(tokens, later, side):
    scores = torch.tensor(tokens).outer(torch.tensor(tokens)).double()
    size = len(tokens) + later
    fitted = repad(scores.expand(2, -1, -1), Length((2, 3), ("ids",)), size, side)
    wanted = pad(pad(scores, size, side).t(), size, side).t()
    assert torch.equal(fitted, wanted.expand(2, -1, -1))


@pytest.mark.parametrize("now", [[[0, 0, 7, 8]], [[7, 0, 8, 0]], [[8, 7, 0, 0]]])
def test_tokens_that_lie_otherwise_are_an_error(now):
    with pytest.raises(RunError, match="example 4 has different tokens"):
        paddings({"ids": [*padding_signature(torch.tensor([[7, 8, 0]]))]}, {"ids": torch.tensor(now)}, [4])


def test_an_input_that_is_gone_is_an_error():
    with pytest.raises(RunError, match=r"'ids' is missing from this batch"):
        paddings({"ids": [*padding_signature(torch.tensor([[7]]))]}, {}, [0])


def test_whole_numbers_by_example_and_token_guide_and_nothing_else_does():
    inputs = {
        "ids": torch.ones(2, 3).long(),
        "deep": [torch.ones(2, 3).bool(), torch.ones(2, 3)],
        "label": torch.ones(2),
    }
    assert list(padding_signatures(inputs)) == ["ids", "deep.0"]


def test_only_dimensions_over_tokens_follow_the_inputs():
    length, shapes = (
        4,
        {"logits/0": (2, 4, 4), "hidden/0": (2, 4, 4), "attention/0": (2, 4, 4, 4), "captured/x": (2, 4)},
    )
    layout = Layout.of(
        [{}], {f"0/{name}": torch.ones(shape) for name, shape in shapes.items()}, torch.ones(2, length).long()
    )
    assert {name: one.dims for name, one in layout.lengths.items()} == {
        "0/logits/0": (1,),
        "0/hidden/0": (1,),
        "0/attention/0": (2, 3),
    }


def test_a_name_that_is_no_dtype_is_an_error():
    with pytest.raises(ValueError, match="'save' is not a dtype"):
        Layout((), {"0/logits/0": "save"}, {})
