"""Fixtures of the plugin's tests."""

from __future__ import annotations

from kdplug.testing import isolated_plugins  # noqa: F401  a fixture
