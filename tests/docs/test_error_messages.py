"""The page of errors has a heading for every message that kdplug and its plugins raise, and no other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import kdplug

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
try:
    from spans.message import messages, raising, read_messages, stale_explanations, unreadable
    from spans.template import Source, Templates
finally:
    sys.path.remove(str(DOCS))

PAGE = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
HEADINGS = [line.removeprefix("### ").strip("` ") for line in PAGE.splitlines() if line.startswith("### `")]
TEMPLATES = [message.template for message in read_messages()]


def templates(text):
    """What an extractor reads out of a module of this text."""
    source = Source(Path("one.py"), text)
    return [found for call in raising(source, {"RunError"}) for found in Templates((source,)).of(call.args[0], source)]


def matches(heading, message):
    """Whether a heading is a message's, values standing where the heading has its holes."""
    parts = [re.escape(part) for part in heading.replace(" Did you mean …?", "…").split("…")]
    return re.fullmatch(".*".join(parts), " ".join(message.split())) is not None


def test_every_message_has_a_heading():
    missing = [text for text in TEMPLATES if text not in HEADINGS]
    assert not missing, f"run python docs/generate.py, which adds to docs/reference/errors.md: {missing}"


def test_every_heading_is_a_message():
    nobody = [heading for heading in HEADINGS if heading not in TEMPLATES]
    assert not nobody, f"run python docs/generate.py, which takes these from docs/reference/errors.md: {nobody}"


def test_there_is_one_heading_for_each_message():
    assert len(HEADINGS) == len(set(HEADINGS)) > 300


def test_every_explanation_is_of_a_message():
    assert stale_explanations() == []


def test_the_words_of_every_message_can_be_read_from_the_source():
    assert unreadable() == [], "write the words where they are raised, or in a function that returns them"


def test_every_explanation_stands_on_the_page():
    assert messages() in PAGE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise RunError('all is lost')", ["all is lost"]),
        ("raise RunError(f'no {name!r}.{did_you_mean(name, names)} Look.')", ["no …. Did you mean …? Look."]),
        ("raise RunError(f'aa{x}' 'bb' + more())", ["aa…bb…"]),
        ("raise RunError('is empty' if empty else f'has {n}')", ["is empty", "has …"]),
        ("def f():\n    text = f'no {x} here'\n    raise RunError(text)", ["no … here"]),
        ("def f():\n    raise RunError(words(1))\ndef words(n):\n    return f'lost {n} times'", ["lost … times"]),
        ("def say(text):\n    raise RunError(text)\ndef f():\n    say('over here')", ["over here"]),
        (
            "class A:\n    def say(self, text):\n        raise RunError(text)\n    def f(self):\n        self.say('me')",
            ["me"],
        ),
        ("def f():\n    have = 'two' if x else 'one'\n    raise RunError(f'{x} {have}')", ["… two", "… one"]),
        ("raise RunError('one\\n  line')", ["one line"]),
        ("raise RunError(x)", []),
    ],
)
def test_a_message_is_read_as_it_will_be_seen(text, expected):
    assert templates(text) == expected


def raised(make):
    with pytest.raises(kdplug.KdplugError) as caught:
        make()
    return caught.value.message


@pytest.mark.parametrize(
    "make",
    [
        lambda: kdplug.losses.entry("hiden_mse"),
        lambda: kdplug.losses.entry("no-such:thing"),
        lambda: kdplug.DistillationConfig(temperatur=4),
        lambda: kdplug.DistillationConfig(temperature=-1),
        lambda: kdplug.DistillationConfig(kd_loss_weight=0),
        lambda: kdplug.DistillationConfig(temperature_scheduler=["flsw", 1, -1]).resolved(),
        lambda: kdplug.DistillationConfig(kd_loss_type=["ce", True, 1, 2, 3]).resolved(),
        lambda: kdplug.losses.register("a loss")(print),
        lambda: kdplug.Outputs(logits=3),
        lambda: kdplug.Objective(kdplug.DistillationConfig())(student={"logit": 1}, teacher={}),
        lambda: kdplug.Recipe.from_yaml("a: [1"),
        lambda: kdplug.Recipe.from_dict({}),
    ],
)
def test_an_error_that_is_raised_is_found_on_the_page(make):
    message = raised(make)
    assert [heading for heading in HEADINGS if matches(heading, message)], message
