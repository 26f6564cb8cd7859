"""The Python blocks of every page run as tests, those of one page in order and in one namespace."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, chdir
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from kdplug.host.active import isolated
from kdplug.host.metadata import scan


def _open(namespace: dict[str, Any]) -> None:
    """Open an empty working folder and separate registries for the page."""
    torch.manual_seed(0)
    stack = ExitStack()
    stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))
    stack.enter_context(isolated(scan()))
    namespace.update(__name__="docs_page", _close=stack.close)


def _close(namespace: dict[str, Any]) -> None:
    namespace["_close"]()
    AcceleratorState._reset_state(reset_partial_state=True)  # a Trainer leaves it set to its own precision
    GradientState._reset_state()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    setup=_open,
    teardown=_close,
).pytest()


_LIGHTNING = (
    # pytorch-lightning 2.6 still asks torch 2.13 about trees the old way.
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
    # Tiny data needs no worker processes.
    "ignore:The '.*_dataloader' does not have many workers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lightning's warnings of what its page shows."""
    for item in items:
        if item.path.name == "use-with-lightning.md":
            for text in _LIGHTNING:
                item.add_marker(pytest.mark.filterwarnings(text))
