from __future__ import annotations

from plain_english import PLACES, ROOT, hits


def test_sources_docs_and_help_hold_no_word_of_the_former_dialect() -> None:
    assert list(hits([ROOT / place for place in PLACES if (ROOT / place).exists()])) == []


def test_a_word_of_it_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("plain_english.ROOT", tmp_path)
    (tmp_path / "page.md").write_text("The plan stands.\n\nThe standard plan.\n")
    assert list(hits([tmp_path / "page.md"])) == ["page.md:1: 'stands' (use: is, is listed, replaces, means)"]
