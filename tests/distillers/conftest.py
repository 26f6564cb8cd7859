"""What tests of several distillers share."""

from __future__ import annotations

import pytest
from cache_scene import Rowwise


@pytest.fixture
def teacher():
    """A teacher that counts how often it is asked."""
    return Rowwise()
