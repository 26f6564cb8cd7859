"""A very long text is read in linear time."""

from __future__ import annotations

import time

import pytest
from task_scene import TEXTS, tokenizer

from kdplug_tasks.text.frame import sketch

LENGTH = 200_000


def seconds(call):
    """Return the CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@pytest.mark.parametrize("run", ["a", " ", "abc", "\n"])
def test_a_tokenizer_is_made_from_a_text_without_blanks_in_seconds(run):
    text = run * (LENGTH // len(run))
    assert seconds(lambda: tokenizer([text, *TEXTS])) < 5  # 15 to 60 where it takes time quadratic in the length


def test_a_cut_for_training_changes_no_ordinary_text():
    texts = [*TEXTS, "a word of 999 characters: " + "é" * 999 + " and more", "\n" * 999 + "x"]
    from kdplug_tasks.text.tokenizer import _short_runs

    assert [list(_short_runs(text)) for text in texts] == [[text] for text in texts]
    assert "".join(_short_runs("b" * 2500 + " c")) == "b" * 2500 + " c"


def test_a_plan_decodes_only_the_tokens_that_it_shows():
    made = tokenizer()
    shown = []

    class Counting:
        def decode(self, ids):
            shown.extend(ids)
            return made.decode(ids)

    message = sketch(Counting(), [70] * 100_000, [True] * 100_000)
    assert len(shown) == 8
    assert message.endswith("99,999 of 100,000 tokens enter the loss, those in parentheses do not")
