"""The author kit's laws for every task, on tiny files and models."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from task_scene import BERT, GPT2, RESNET, TEXTS, TOKENIZER, TRAINED, VIT, reviews, save_model, tokenizer, write_csv

import kdplug
from kdplug.engine.training_module import split
from kdplug.testing import TaskLaws
from kdplug_tasks.batch import Batch

MORE = [f"{text} {number}" for number in range(4) for text in TEXTS]
SCORES = [{"text": text, "label": len(text) / 10} for text in MORE]
SETS = [{"text": text, "labels": ",".join(word for word in ("film", "bad") if word in text)} for text in MORE]
PAIRS = [
    {"text": one, "text_pair": two, "label": "same" if one == two else "other"} for one in TEXTS for two in TEXTS[:4]
]
QUESTIONS = [
    {"question": "Who?", "context": f"{text}, said Anna", "answer": "Anna", "answer_start": len(text) + 7}
    for text in TEXTS
]
PROMPTS = [{"prompt": f"{text}: ", "completion": text.split()[-1]} for text in MORE[:12]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all files that the settings below name."""
    folder = tmp_path_factory.mktemp("files")
    tables = {"reviews": reviews(24), "pairs": PAIRS, "scores": SCORES, "sets": SETS, "prompts": PROMPTS}
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)
    sentences = "Anna{0} B-PER\nsleeps O\n\nOslo{0} B-LOC\nis O\nold O\n\n"
    (folder / "words.conll").write_text("".join(map(sentences.format, range(6))), encoding="utf-8")
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS * 2)), encoding="utf-8")
    (folder / "text.txt").write_text("\n\n".join(MORE + MORE[::-1]), encoding="utf-8")
    pixels = numpy.random.default_rng(0).integers(0, 255, (16, 8, 8)).astype(numpy.uint8)
    numpy.savez(folder / "pictures.npz", image=pixels, label=numpy.arange(16) % 2)
    brings = tokenizer()
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}, "vocab_size": len(brings)}
    save_model(folder / "bert", "AutoModelForSequenceClassification", BERT, brings=brings, **names)
    return folder


@pytest.fixture(autouse=True)
def _there(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


def settings(file: str, **more: object) -> dict[str, object]:
    """Settings of a task with a teacher from scratch and a student that is the teacher's lowest layer."""
    models = {"teacher": {"config": BERT, **TRAINED}, "student": {"from_teacher": {"layers": [0]}}}
    return {"data": {"train": file, "test": 0.25}, **models, "tokenizer": TOKENIZER, "max_length": 32, **more}


class TestTextClassification(TaskLaws):
    entry = "kdplug-tasks:text-classification"
    settings = settings("reviews.csv")


class TestTextClassificationByATrainedTeacher(TestTextClassification):
    settings = settings("reviews.csv", teacher="bert", student={"config": {"num_hidden_layers": 1}}, tokenizer=None)


class TestTextPairClassification(TaskLaws):
    entry = "kdplug-tasks:text-pair-classification"
    settings = settings("pairs.csv")


class TestRegression(TaskLaws):
    entry = "kdplug-tasks:regression"
    settings = settings("scores.csv")


class TestMultiLabel(TaskLaws):
    entry = "kdplug-tasks:multi-label"
    settings = settings("sets.csv")


class TestTokenClassification(TaskLaws):
    entry = "kdplug-tasks:token-classification"
    settings = settings("words.conll", tokenizer="bytes")


class TestQuestionAnswering(TaskLaws):
    entry = "kdplug-tasks:question-answering"
    settings = settings("questions.jsonl", tokenizer="bytes", stride=8)


class TestCausalLm(TaskLaws):
    entry = "kdplug-tasks:causal-lm"
    settings = settings("text.txt", teacher={"config": GPT2, **TRAINED}, tokenizer="bytes")


class TestCausalLmInFactors(TestCausalLm):
    settings = {**TestCausalLm.settings, "factored": True}


class TestCausalLmOfPrompts(TestCausalLm):
    settings = {**TestCausalLm.settings, "data": {"train": "prompts.csv", "test": 0.25}, "prompts": True}


class TestCausalLmThatWrites(TestCausalLmOfPrompts):
    settings = {**TestCausalLmOfPrompts.settings, "generate": {"fraction": 1.0, "max_new_tokens": 4}}


class TestCausalLmOfTwoTokenizers(TestCausalLm):
    settings = {**TestCausalLm.settings, "student_tokenizer": TOKENIZER, "student": {"config": {"n_layer": 1}}}


class TestImageClassification(TaskLaws):
    entry = "kdplug-tasks:image-classification"
    settings = {
        "data": {"train": "pictures.npz", "test": 0.25},
        "teacher": {"config": VIT, **TRAINED},
        "student": {"config": RESNET},
    }


class TestDigits(TaskLaws):
    entry = "kdplug-tasks:digits"


DECLARED = [
    found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, TaskLaws) and found.entry is not None
]


def test_every_first_party_entry_is_under_laws() -> None:
    offered = {entry.qualified for entry in kdplug.tasks.entries() if entry.dist == "kdplug-tasks"}
    assert offered == {laws.entry for laws in DECLARED}


def in_float64(batch: object) -> object:
    if isinstance(batch, Batch):
        return Batch(in_float64(batch.inputs), batch.targets)
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def label_loss(laws: type[TaskLaws], places: slice) -> tuple[kdplug.LossSum, torch.nn.Module]:
    case = laws()
    task = case.task()
    batch = split(case.batch(task, "baseline", places=places)).student
    torch.manual_seed(0)
    student = task.build_student().double().eval()
    batch = in_float64(batch)
    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_weight=0, hard_label_weight=1))
    report = objective(student=task.student_adaptor(batch, student(**batch)))
    (part,) = report.terms["hard_label_loss"].parts
    return part, student


@pytest.mark.parametrize("laws", DECLARED, ids=lambda laws: laws.__name__)
def test_the_gradient_of_the_labels_is_the_same_however_the_batch_is_cut(laws: type[TaskLaws]) -> None:
    whole, student = label_loss(laws, slice(None))
    pieces = [label_loss(laws, places) for places in (slice(1), slice(1, None))]
    count = sum(part.count for part, _ in pieces)
    assert whole.count == count > pieces[0][0].count > 0
    whole.value.backward()
    for part, _ in pieces:
        (part.total / count).backward()
    parameters = zip(student.parameters(), *(model.parameters() for _, model in pieces), strict=True)
    for expected, *found in parameters:
        grads = [one.grad for one in found if one.grad is not None]
        assert (expected.grad is None) is not bool(grads)
        if grads:
            torch.testing.assert_close(sum(grads), expected.grad, rtol=0, atol=1e-10)
