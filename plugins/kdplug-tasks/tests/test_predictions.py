"""Predictions for examples: scores from which the metric follows, units, and the short texts that reports show."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from task_scene import BERT, GPT2, RESNET, TEXTS, TOKENIZER, TRAINED, VIT, save_model, task_of, tokenizer, write_csv
from torch.nn import functional
from two_tokenizer_scene import settings as two_settings
from two_tokenizer_scene import write_two

from kdplug_tasks.data.label import Labels
from kdplug_tasks.targets.category import Category
from kdplug_tasks.targets.score import Score
from kdplug_tasks.targets.tag_set import TagSet

SCRATCH = {"teacher": {"config": BERT, **TRAINED}, "student": {"from_teacher": {"layers": [0]}}, "max_length": 40}


def _predicted(task, *, size=4, part="test", model=None):
    data = task.data(part)
    examples = [data[place] for place in range(len(data))]
    batches = [task.collate(examples[place : place + size]) for place in range(0, len(examples), size)]
    with torch.no_grad():
        torch.manual_seed(0)
        return task.predict(model or task.build_student().eval(), batches)


def _mean(rows):
    weights = [row.get("weight", 1.0) for row in rows]
    return sum(row["score"] * weight for row, weight in zip(rows, weights, strict=True)) / sum(weights)


def test_a_class_is_a_name_with_its_probability():
    category = Category(["no", "yes"])
    category.labels = Labels(("no", "yes"))
    rows = category.rows(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    chances = [pytest.approx(1 / (1 + math.exp(-2))), pytest.approx(1 / (1 + math.exp(-1)))]
    assert rows == [
        {"score": 1.0, "label": "yes", "prediction": "yes", "probability": chances[0]},
        {"score": 0.0, "label": "yes", "prediction": "no", "probability": chances[1]},
    ]
    assert category.predictions(rows).metrics["accuracy"] == 0.5


def test_a_row_without_true_and_predicted_classes_has_no_weight():
    sets = TagSet(None, ",")
    sets.labels = Labels(("a", "b", "c"))
    rows = sets.rows(torch.tensor([[1.0, 1, -1], [-1, -1, -1]]), torch.tensor([[1, 0, 1], [0, 0, 0]]))
    assert rows == [
        {"score": 0.5, "weight": 4.0, "label": ["a", "c"], "prediction": ["a", "b"]},
        {"score": 0.0, "weight": 0.0, "label": [], "prediction": []},
    ]
    found = sets.predictions(rows)
    assert (found.aggregate, found.target) == ("mean", "classes")
    assert found.metrics == {"micro_f1": 0.5, "macro_f1": pytest.approx(1 / 3), "exact_match": 0.5}


def test_a_number_comes_with_the_one_that_is_right():
    score = Score()
    rows = score.rows(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.5, 2.0, 3.0]))
    assert rows[0] == {"score": -0.25, "label": 1.5, "prediction": 1.0}
    found = score.predictions(rows)
    assert (found.aggregate, found.target) == ("pearson", "number")
    expected = float(torch.corrcoef(torch.tensor([[1.0, 2.0, 4.0], [1.5, 2.0, 3.0]]))[0, 1])
    assert found.metrics["pearson"] == pytest.approx(expected)


@pytest.fixture
def words(tmp_path):
    (tmp_path / "words.conll").write_text("Anna B-PER\nLee I-PER\nsleeps O\n\nit O\nrains O\n\nOslo B-LOC\n\n" * 4)
    return {"name": "token-classification", **SCRATCH, "tokenizer": "bytes"} | {
        "data": dict.fromkeys(("train", "validation", "test"), str(tmp_path / "words.conll"))
    }


def _tagged(task, found):
    """A model that gives the tokens of each batch these tags, by their place, and ``O`` to all others."""
    names = list(task.problem.labels.names)
    batches = iter(found)

    def model(**inputs):
        rows = next(batches)
        logits = torch.zeros(*inputs["input_ids"].shape, len(names))
        for row, tags in enumerate(rows):
            logits[row, :, names.index("O")] = 1.0
            for place, tag in tags.items():
                logits[row, place, names.index(tag)] = 9.0
        return SimpleNamespace(logits=logits)

    return model


def test_the_f1_of_sentences_is_weighted_by_their_spans(words):
    task = task_of(**words)
    task.check()
    data = task.data("test")
    batch = task.collate([data[place] for place in range(3)])
    firsts = [marks.nonzero().flatten().tolist() for marks in batch.targets["words"]]
    right = {firsts[0][0]: "B-PER", firsts[0][1]: "I-PER"}
    found = task.predict(_tagged(task, [[right, {firsts[1][0]: "B-LOC"}, {}]]), [batch])
    assert [(row["score"], row["weight"]) for row in found.rows] == [(1.0, 2.0), (0.0, 1.0), (0.0, 1.0)]
    assert found.rows[0]["label"] == found.rows[0]["prediction"] == ["B-PER", "I-PER", "O"]
    assert found.rows[1]["prediction"] == ["B-LOC", "O"]
    assert [len(row["probability"]) for row in found.rows] == [3, 2, 1]
    assert found.rows[0]["input"] == "Anna Lee sleeps"
    assert found.target == "tags"
    assert found.metrics["f1"] == _mean(found.rows) == 0.5


def test_the_accuracy_of_sentences_is_weighted_by_their_words(tmp_path):
    (tmp_path / "a.conll").write_text("a N\nb V\nc N\n\nd V\n\n" * 4)
    data = dict.fromkeys(("train", "validation", "test"), str(tmp_path / "a.conll"))
    found = _predicted(task_of(name="token-classification", **SCRATCH, tokenizer="bytes", data=data))
    assert [row["weight"] for row in found.rows] == [3.0, 1.0] * 4
    assert found.metrics["accuracy"] == pytest.approx(_mean(found.rows))


CONTEXT = "The old town lies by the river. Anna Lee built the red bridge there, and many people liked it."


def test_a_question_counts_once_however_many_windows_it_has(tmp_path):
    rows = [
        {"question": "Who built it?", "context": CONTEXT, "answer": "Anna Lee", "answer_start": 32},
        {"question": "Who?", "context": "Bob.", "answer": "Bob", "answer_start": 0},
    ] * 3
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {**SCRATCH, "tokenizer": "bytes", "stride": 8}
    data = dict.fromkeys(("train", "validation", "test"), str(tmp_path / "q.jsonl"))
    task = task_of(name="question-answering", **settings, data=data)
    found = _predicted(task, size=5)
    assert len(found.rows) == len(task.data("test")) > 6
    first = [row for row in found.rows if row.get("weight", 1.0)]
    assert [row["unit"] for row in first] == list(range(6))
    assert [row["label"] for row in first] == ["Anna Lee", "Bob"] * 3
    assert first[1]["input"] == "Who? | Bob."
    others = [row for row in found.rows if row not in first]
    assert all(set(row) == {"score", "weight", "unit"} for row in others)
    assert found.metrics["f1"] == pytest.approx(_mean(found.rows))
    assert found.target == "text"
    assert all(isinstance(row["prediction"], str) for row in first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts, and language models of one and of two vocabularies."""
    folder = write_two(tmp_path_factory.mktemp("predictions"))
    (folder / "lines.txt").write_text("\n".join(f"{text} {TEXTS[0] * 3}" for text in TEXTS * 3))
    brings = tokenizer(is_framed=False)
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    save_model(folder / "one", "AutoModelForCausalLM", GPT2, brings=brings, vocab_size=len(brings), **ids)
    return folder


def _language(folder, **more):
    data = {"train": str(folder / "lines.txt"), "test": 0.3}
    models = {"teacher": str(folder / "one"), "student": {"from_teacher": {"layers": [0]}}}
    return task_of(name="causal-lm", data=data, **models, **{"max_length": 16, **more})


def test_perplexity_follows_from_the_loss_of_examples_weighted_by_tokens(folder):
    found = _predicted(_language(folder))
    assert (found.aggregate, found.target) == ("exp_mean", "tokens")
    assert math.exp(_mean(found.rows)) == pytest.approx(found.metrics["perplexity"], rel=1e-9)
    assert all(set(row) == {"score", "weight", "input"} for row in found.rows)


def test_the_pieces_of_a_document_are_one_unit(folder):
    task = _language(folder, documents="line", packing=False, max_length=8)
    found = _predicted(task)
    assert {row["unit"] for row in found.rows} == set(range(5))
    assert len(found.rows) > 5
    for packed in (_language(folder, documents="line"), _language(folder, packing=False)):
        assert not any("unit" in row for row in _predicted(packed).rows)


def test_a_completion_is_a_unit_of_its_own(folder):
    task = task_of(**two_settings(folder, prompts=True))
    found = _predicted(task)
    assert [row["unit"] for row in found.rows] == list(range(len(task.data("test"))))


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("more", [{}, {"packing": False, "documents": "blank_line"}])
def test_bits_per_byte_follow_from_examples_weighted_by_bytes(folder, side, more):
    task = task_of(**two_settings(folder, **more))
    task.check()
    model = (task.build_teacher() if side == "teacher" else task.build_student()).eval()
    found = _predicted(task, model=model)
    assert (found.aggregate, len(found.rows)) == ("mean", len(task.data("test")))
    assert _mean(found.rows) == pytest.approx(found.metrics["bits_per_byte"], rel=1e-9)
    assert any("unit" in row for row in found.rows) is bool(more)


def test_the_text_of_an_example_is_short_and_on_one_line(folder):
    task = _language(folder, documents="line", packing=False, max_length=64)
    texts = [row["input"] for row in _predicted(task).rows]
    lines = (folder / "lines.txt").read_text().splitlines()
    assert all(len(text) <= 200 and "\n" not in text for text in texts)
    assert any(line.startswith(texts[0][:20]) for line in lines)


def test_rows_of_language_models_hold_no_logits(folder):
    """What is kept of a batch is a few numbers and a text, however large the vocabulary is."""
    task = _language(folder)
    kept = []
    plain = functional.cross_entropy

    def counted(logits, *arguments, **more):
        kept.append(logits.numel())
        return plain(logits, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "cross_entropy", counted)
        found = _predicted(task, size=1)
    assert len(kept) == len(found.rows)
    assert max(kept) <= 15 * len(task.problem.processor.tokenizer)


def test_a_picture_is_named_by_its_file_or_its_row(tmp_path):
    from PIL import Image

    pixels = numpy.random.default_rng(0).integers(0, 255, (12, 8, 8)).astype(numpy.uint8)
    labels = numpy.arange(12) % 2
    numpy.savez(tmp_path / "a.npz", image=pixels, label=labels)
    for place, picture in enumerate(pixels):
        (tmp_path / "images" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "images" / "ab"[place % 2] / f"{place}.png")
    models = {"teacher": {"config": VIT, **TRAINED}, "student": {"config": RESNET}}
    arrays, files = (
        task_of(name="image-classification", data={"train": str(tmp_path / name), "test": 0.25}, **models)
        for name in ("a.npz", "images")
    )
    rows = _predicted(arrays).rows
    numbers = [int(row["input"].split()[1]) - 1 for row in rows]
    assert [row["input"] for row in rows] == [f"row {place + 1} of {tmp_path / 'a.npz'}" for place in numbers]
    assert [row["label"] for row in rows] == [str(labels[place]) for place in numbers]
    for row in _predicted(files).rows:
        assert row["input"] == str(tmp_path / "images" / row["label"] / row["input"].rpartition("/")[2])


def test_a_pair_is_shown_with_a_bar(tmp_path):
    rows = [{"text": one, "text_pair": two, "label": one == two} for one in TEXTS for two in TEXTS[:3]]
    data = {"train": write_csv(tmp_path / "pairs.csv", rows), "test": 0.3}
    task = task_of(name="text-pair-classification", **SCRATCH, tokenizer=TOKENIZER, data=data)
    table = task.data("test").table
    expected = [" | ".join(pair) for pair in zip(table.columns["text"], table.columns["text_pair"], strict=True)]
    assert [row["input"] for row in _predicted(task).rows] == expected
