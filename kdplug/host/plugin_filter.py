"""``KDPLUG_PLUGINS`` and ``KDPLUG_STRICT``: select plugins, and turn plugin warnings into errors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from kdplug.errors import PluginError, did_you_mean
from kdplug.host.first_party import FIRST_PARTY
from kdplug.host.name import fold_distribution


@dataclass(frozen=True, slots=True)
class PluginFilter:
    """Selection of enabled distributions.

    If ``only`` is ``None``, all distributions except ``without`` are enabled. Otherwise those in ``only`` and the
    first-party plugins are.
    """

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    strict: bool = False
    text: str | None = None

    @classmethod
    def from_environment(cls) -> PluginFilter:
        """Read ``KDPLUG_PLUGINS`` and ``KDPLUG_STRICT``.

        Raises: ``PluginError`` if ``KDPLUG_PLUGINS`` mixes names to keep with names to leave out.
        """
        text = os.environ.get("KDPLUG_PLUGINS")
        strict = os.environ.get("KDPLUG_STRICT", "") not in ("", "0")
        if text is None:
            return cls(strict=strict)
        words = [word.strip() for word in text.split(",") if word.strip()]
        without = frozenset(fold_distribution(word[1:].strip()) for word in words if word.startswith("-"))
        only = frozenset(fold_distribution(word) for word in words if not word.startswith("-"))
        if without and only:
            raise PluginError(
                f"KDPLUG_PLUGINS={text!r} mixes plugins to keep with plugins to leave out. "
                "Write either 'a,b' (only these and first-party plugins) or '-a,-b' (all except these)."
            )
        return cls(None if without else only, without, strict, text)

    def lets_in(self, dist: str) -> bool:
        """Return whether the distribution named ``dist`` is enabled."""
        name = fold_distribution(dist)
        if self.only is None:
            return name not in self.without
        return name in self.only or name in FIRST_PARTY

    def unknown(self, installed: Iterable[str]) -> list[str]:
        """Return a message for each name in the filter that matches no installed plugin."""
        names = {fold_distribution(name): name for name in installed}
        return [
            f"KDPLUG_PLUGINS names {name!r}, but no such plugin is installed.{did_you_mean(name, names.values())}"
            for name in sorted((self.only or frozenset()) | self.without)
            if name not in names
        ]
