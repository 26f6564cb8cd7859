"""Generate small data sets for the recipes in this folder.

    python examples/data.py [FOLDER]        # default: runs/data

Every file is the same each time. Nothing is downloaded: sentences come from the templates below, pictures from formulas,
and the running text is the reference manual that ships with Python.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from typing import Any

import numpy

SUBJECTS = ("film", "book", "meal", "hotel", "song", "game", "trip", "phone", "coat", "play")
GOOD = ("good", "lovely", "bright", "clever", "warm", "superb", "honest", "gentle")
BAD = ("bad", "dull", "ugly", "stupid", "cold", "awful", "false", "rude")
OPENINGS = ("I think", "we found that", "my friend says", "to be fair", "last week", "as they told us", "in the end")
DEGREES = ("", "very", "quite", "rather", "really")

SYLLABLES = ("ba", "do", "fi", "ka", "lu", "me", "no", "pa", "ri", "so", "tu", "va", "we", "zo")
JOBS = ("baker", "driver", "nurse", "painter", "singer", "teacher")
FOODS = ("bread", "cheese", "apples", "soup", "rice", "plums")


def reviews(count: int, random: Random) -> list[dict[str, Any]]:
    """Return one-sentence opinions; a ``not`` inverts the label."""
    rows = []
    for _ in range(count):
        is_good, is_turned = random.random() < 0.5, random.random() < 0.4
        word = random.choice(GOOD if is_good != is_turned else BAD)
        said = ("is", "not" if is_turned else "", random.choice(DEGREES), word)
        words = (random.choice(OPENINGS), "the", random.choice(SUBJECTS), *said)
        rows.append({"text": " ".join(filter(None, words)), "label": "positive" if is_good else "negative"})
    return rows


def name(random: Random) -> str:
    """Return a random name, most likely unique."""
    return "".join(random.choice(SYLLABLES) for _ in range(random.randint(2, 3))).capitalize()


def tagged_sentences(count: int, random: Random) -> list[list[tuple[str, str]]]:
    """Return words with tags for persons, places and companies, distinguished by context only."""
    templates = (
        "PER lives in LOC", "PER PER went to LOC yesterday", "ORG of LOC hired PER PER", "she met PER in LOC",
        "PER works for ORG ORG", "the people of LOC like ORG", "nothing happened in LOC today", "they say that it rained",
    )  # fmt: skip
    sentences = []
    for _ in range(count):
        last, sentence = "", []
        for word in random.choice(templates).split():
            is_entity = word in {"PER", "LOC", "ORG"}
            tag = f"{'I' if word == last else 'B'}-{word}" if is_entity else "O"
            sentence.append((name(random) if is_entity else word, tag))
            last = word
        sentences.append(sentence)
    return sentences


def questions(count: int, random: Random) -> list[dict[str, Any]]:
    """Return contexts of three facts about a person, each with a question about one of them."""
    rows = []
    for _ in range(count):
        person = name(random)
        facts = [
            (f"where does {person} live", "lives in", name(random)),
            (f"what is the work of {person}", "works as a", random.choice(JOBS)),
            (f"what does {person} eat", "likes to eat", random.choice(FOODS)),
        ]
        asked, verb, answer = random.choice(facts)
        random.shuffle(facts)
        context = f"{person} " + " and ".join(f"{does} {what}" for _, does, what in facts)
        start = context.index(f"{verb} {answer}") + len(verb) + 1
        rows.append({"question": asked, "context": context, "answers": {"text": [answer], "answer_start": [start]}})
    return rows


def pictures(count: int, seed: int) -> dict[str, numpy.ndarray]:
    """Return noisy 16 by 16 pictures of a ring, disc, cross or square at a random place."""
    draw = numpy.random.default_rng(seed)
    label = draw.integers(4, size=count)
    x, y = (draw.uniform(5, 11, (count, 1, 1)) - place for place in numpy.mgrid[:16, :16][:, None])
    size, round_, square = draw.uniform(3, 5, (count, 1, 1)), numpy.hypot(x, y), numpy.maximum(abs(x), abs(y))
    is_thin = numpy.minimum(abs(x), abs(y)) < 1
    shapes = [abs(round_ - size) < 1, round_ < size, is_thin & (square < size), square < size]
    drawn = numpy.choose(label[:, None, None], shapes)
    pixels = 255 * (0.25 + 0.4 * drawn + draw.normal(0, 0.15, drawn.shape))
    return {"image": pixels.clip(0, 255).astype(numpy.uint8), "label": label}


def running_text() -> str:
    """Return Python's reference manual, half a million characters."""
    return "\n\n".join(topics[topic] for topic in sorted(topics))


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_all(folder: Path) -> None:
    """Write the data of every recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    write_csv(folder / "reviews.train.csv", reviews(400, random))
    write_csv(folder / "reviews.unlabelled.csv", [{"text": row["text"]} for row in reviews(2000, random)])
    write_csv(folder / "reviews.test.csv", reviews(500, random))
    for part, count in (("train", 400), ("test", 400)):
        sentences = ["\n".join(f"{word} {tag}" for word, tag in one) for one in tagged_sentences(count, random)]
        (folder / f"entities.{part}.conll").write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    words = [{"tokens": [word for word, _ in one]} for one in tagged_sentences(1600, random)]
    write_lines(folder / "entities.unlabelled.jsonl", words)
    for part, count in (("train", 1200), ("test", 400)):
        write_lines(folder / f"questions.{part}.jsonl", questions(count, random))
        numpy.savez(folder / f"shapes.{part}.npz", **pictures(count, seed=count))
    (folder / "text.txt").write_text(running_text(), encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/data")
    write_all(folder)
    print(f"Written to {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
