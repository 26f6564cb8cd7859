"""What a command imports before it needs it."""

from __future__ import annotations

import pytest

HEAVY = "{'torch', 'accelerate', 'numpy', 'kdplug_presets', 'kdplug_tasks', 'ruamel'}"
"""Not pydantic: newer versions of typer import it themselves to read the value of an option."""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plugins", "list"], ["plugins", "list", "--json"]])
def test_help_and_lists_import_nothing_heavy(fake_site, words):
    code = f"""
        import sys
        from kdplug.cli.app import app
        app({words}, standalone_mode=False)
        print({HEAVY} & set(sys.modules))
    """
    assert fake_site.prints(code).endswith("set()")


def test_listing_imports_no_plugin(fake_site):
    fake_site.add("kdplug-a", losses={"mykd": "kdplug_a:mykd"}, files={"kdplug_a.py": "raise SystemExit('imported')"})
    code = "from kdplug.cli.app import app; app(['plugins', 'list'], standalone_mode=False)"
    assert "mykd" in fake_site.prints(code)
