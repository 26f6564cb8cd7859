"""What third parties leave behind and warn of in these tests, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState

_WARNINGS = [
    # pytorch-lightning 2.6 still asks torch 2.13 about trees the old way.
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
    # Tiny data needs no worker processes.
    "ignore:The '.*_dataloader' does not have many workers",
    # A module that can validate may be fitted without validation data.
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if "integrations" in item.path.parts:
            for text in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture(autouse=True)
def _no_state_is_left() -> Iterator[None]:
    """transformers' Trainer leaves accelerate set to its own precision, which a later run in this process could not change."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
