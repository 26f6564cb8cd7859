"""What each config key means. A key without a meaning, or a meaning without a key, fails the generator."""

from __future__ import annotations

from kdplug.config.schema.doc import MEANINGS

__all__ = ["MEANINGS"]
