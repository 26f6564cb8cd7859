"""``utils`` and ``data_utils``, against TextBrewer and where it fails."""

from __future__ import annotations

import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from textbrewer_twin import TinyEncoder
from torch import nn

from kdplug.integrations.textbrewer import data_utils, utils

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("textbrewer")
    from textbrewer import data_utils as their_data_utils
    from textbrewer import utils as their_utils


def shared() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)})
    model["b"].weight = model["a"].weight
    return model


@pytest.mark.parametrize("model", [TinyEncoder(6), shared(), nn.Sequential(nn.Sequential(nn.Linear(2, 2)))])
@pytest.mark.parametrize("max_level", [None, 1, 2])
def test_the_table_of_parameters_is_that_of_textbrewer(model: nn.Module, max_level: int | None) -> None:
    ours, node = utils.display_parameters(model, max_level)
    theirs, their_node = their_utils.display_parameters(model, max_level)
    assert (ours, node.value) == (theirs, their_node.value)
    assert node["norm"].fullname == "norm" if "norm" in node else node.children_name


def test_nothing_is_shared_on_the_meta_device_and_no_parameters_are_a_table_too() -> None:
    with torch.device("meta"):
        _, node = utils.display_parameters(nn.Linear(3, 2))
    assert node.value[0] == 8
    assert "model" in utils.display_parameters(nn.ReLU())[0]
    with pytest.raises(TypeError, match="int"):
        utils.display_parameters(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [2, 3, 7, 12])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("masking", {"p": 0.4}),
        ("deleting", {"p": 0.4}),
        ("n_gram_sampling", {"p_ng": [0.5, 0.5], "l_ng": [1, 1]}),
        ("short_disorder", {"p": [0.2, 0.2, 0.2, 0.2, 0.2]}),
        ("long_disorder", {"p": 0.5, "length": 4}),
        ("long_disorder", {"p": 1, "length": 0.9}),
    ],
)
def test_augmentation_draws_what_textbrewer_draws(name: str, options: dict[str, object], length: int) -> None:
    tokens, found = [f"t{place}" for place in range(length)], []
    for library in (data_utils, their_data_utils):
        np.random.seed(length)  # noqa: NPY002
        found.append([list(getattr(library, name)(tokens, **options)) for _ in range(20)])
    assert found[0] == found[1]
    assert tokens == [f"t{place}" for place in range(length)]


def test_augmentation_neither_hangs_nor_fails_nor_edits() -> None:
    array = np.array([1, 2, 3])
    assert data_utils.masking(array, p=1.0, mask=0) == [0, 0, 0]
    assert array.tolist() == [1, 2, 3]
    assert data_utils.n_gram_sampling([1, 2], [1.0], [5]) == [1, 2]
    assert data_utils.long_disorder([], length=0.5) == []
    with pytest.raises(ValueError, match="length must be positive"):
        data_utils.long_disorder([1, 2], length=0)


def test_cycle_ends_where_nothing_is_left() -> None:
    assert list(islice(utils.cycle([1, 2]), 5)) == [1, 2, 1, 2, 1]
    assert list(utils.cycle(iter([1, 2]))) == [1, 2]


def test_the_initializer_draws_weights_and_clears_biases() -> None:
    layer = nn.Linear(200, 50).apply(utils.initializer_builder(0.02))
    assert not layer.bias.any()
    assert 0.018 < layer.weight.std().item() < 0.022
