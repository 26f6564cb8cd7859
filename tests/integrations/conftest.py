"""What third parties warn of in these tests, each with its reason."""

from __future__ import annotations

import pytest

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
