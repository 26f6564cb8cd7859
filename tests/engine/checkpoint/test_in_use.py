"""A folder is locked while a run writes to it."""

from __future__ import annotations

import errno
import fcntl
import logging

from kdplug.engine.checkpoint.in_use import in_use


def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with caplog.at_level(logging.WARNING, logger="kdplug"), in_use(tmp_path):
        pass
    assert "does not support file locks, so a second run in this folder would not be detected" in caplog.text
