"""Nested plain data with tensors: what is read back is what was written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten

from kdplug.engine.checkpoint.archive import read_archive, write_archive
from kdplug.errors import RunError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TENSORS = st.builds(
    lambda values, dtype: torch.tensor(values).to(dtype),
    st.lists(st.integers(-100, 100), max_size=4),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
KEYS = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
TREES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=10,
)


def same(left, right):
    """Return whether two trees have the same structure and equal leaves, bit by bit."""
    (ours, structure), (theirs, other) = tree_flatten(left), tree_flatten(right)
    return structure == other and all(map(same_leaf, ours, theirs))


def same_leaf(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@settings(max_examples=100, deadline=None)
@given(tree=TREES)
def test_what_is_read_is_what_was_written(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, "state", tree)
    assert same(read_archive(folder, "state"), tree)


def test_an_optimizer_s_state_survives(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    write_archive(tmp_path, "state", optimizer.state_dict())
    assert same(read_archive(tmp_path, "state"), optimizer.state_dict())


def test_tensors_that_share_memory_are_each_there_in_full(tmp_path):
    base = torch.arange(12.0)
    tree = [
        torch.arange(9.0)[3:5],
        base,
        base,
        base[3:5],
        base.reshape(3, 4).T,
        base[:1].expand(4),
        torch.empty(0),
        torch.empty(0),
    ]
    write_archive(tmp_path, "state", tree)
    assert same(read_archive(tmp_path, "state"), tree)


def test_code_is_refused_by_the_path_that_holds_it(tmp_path):
    with pytest.raises(RunError, match=r"state\.scheduler\.0 holds a function, which cannot be saved"):
        write_archive(tmp_path, "state", {"scheduler": [lambda step: 1]})


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_file_is_an_error_that_names_the_checkpoint(tmp_path, name):
    write_archive(tmp_path, "state", {"a": torch.ones(3)})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="cannot read the checkpoint"):
        read_archive(tmp_path, "state")
