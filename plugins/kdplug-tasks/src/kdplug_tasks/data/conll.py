"""CoNLL files: one word to a line, its tag in the last column, sentences divided by blank lines."""

from __future__ import annotations

from typing import Any

from kdplug_tasks.data.table import Table


def conll_columns(text: str, table: Table) -> dict[str, list[Any]]:
    """``tokens`` and ``tags``, one list for each sentence. Comments (``# ``) and ``-DOCSTART-`` lines are left out.

    Columns stand apart by tabs where a line has one, else by spaces.

    Raises: ``ConfigError`` for a line with a word and no tag.
    """
    sentences: list[tuple[list[str], list[str]]] = []
    words: list[str] = []
    tags: list[str] = []
    for place, line in enumerate([*text.splitlines(), ""], 1):
        parts = line.strip().split("\t") if "\t" in line else line.split()
        if not parts:
            if words:
                sentences.append((words, tags))
            words, tags = [], []
        elif parts[0] == "-DOCSTART-" or line.startswith("# "):
            continue
        elif len(parts) < 2:
            raise table.error(f"line {place} holds the word {parts[0]!r} and no tag")
        else:
            words.append(parts[0])
            tags.append(parts[-1])
    return {"tokens": [words for words, _ in sentences], "tags": [tags for _, tags in sentences]}
