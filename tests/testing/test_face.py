"""What `kdplug.testing` shows, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import kdplug.testing


def test_every_public_name_is_there() -> None:
    assert [name for name in kdplug.testing.__all__ if getattr(kdplug.testing, name, None) is None] == []
    assert kdplug.testing.__all__ == sorted(kdplug.testing.__all__)


def test_no_public_name_is_hidden_by_a_module_of_its_name() -> None:
    assert not [name for name in kdplug.testing.__all__ if f"kdplug.testing.{name}" in sys.modules]


def test_importing_it_imports_neither_torch_nor_pytest() -> None:
    code = "import kdplug.testing, sys; assert not {'torch', 'pytest', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kdplug_itself_never_imports_it() -> None:
    code = "import kdplug, sys; kdplug.losses.names(); assert 'kdplug.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
