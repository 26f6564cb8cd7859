"""Every test runs on both routes: few operations, as small tensors take, and few passes over memory, as large ones do."""

from __future__ import annotations

import pytest

from kdplug.testing import isolated_plugins  # noqa: F401  a fixture
from kdplug_presets import numerics


@pytest.fixture(params=["few operations", "few passes"], autouse=True)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "few passes":
        monkeypatch.setattr(numerics, "SMALL", -1)
    return str(request.param)
