"""Tests of tasks never contact the hub, and measure and draw little: tests/recipes and tests/report do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """The environment variable is not enough: accelerate may have imported the hub's client already."""
    import datasets.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(autouse=True)
def _quick_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small recipe's time is spent on the speed of its models and on its curves."""
    from kdplug.recipes.measure import measure_speed

    def touch(folder: Path) -> None:
        (folder / "curves.png").touch()

    monkeypatch.setattr(f"{measure_speed.__module__}._ROUND_SECONDS", 0)
    monkeypatch.setattr("kdplug.recipes.run.draw_run_curves", touch)
