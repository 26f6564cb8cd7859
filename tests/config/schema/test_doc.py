"""What a docstring says of settings, for schemas and for the comments of a new recipe."""

from __future__ import annotations

from kdplug.config.schema.entry import setting_docs


def documented() -> None:
    """One line.

    Settings: ``data``, where rows are; ``teacher`` and ``student``, which models; ``a``, ``b`` and ``c`` as those of
    ``other``; ``limit`` in tokens. ``odd`` is ``null`` for none.
    """


def test_settings_that_are_named_together_share_what_is_said():
    docs = setting_docs(documented, ["data", "teacher", "student", "a", "b", "c", "limit", "odd"])
    assert docs["data"] == "where rows are"
    assert docs["teacher"] == docs["student"] == "which models"
    assert docs["a"] == docs["b"] == docs["c"] == "as those of ``other``"
    assert (docs["limit"], docs["odd"]) == ("in tokens", "is ``null`` for none")


def test_a_name_that_is_no_setting_is_no_key():
    assert setting_docs(documented, ["data"]) == {"data": "where rows are"}
