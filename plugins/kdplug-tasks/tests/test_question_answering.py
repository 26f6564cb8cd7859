"""Question answering: questions, windows and answers."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
import torch
from task_scene import BERT, TRAINED, first_batch, recipe, task_of

from kdplug import ConfigError
from kdplug_tasks.text.question import OUTSIDE, exact_match, overlap

CONTEXT = "The old town lies by the river. Anna Lee built the red bridge there, and many people liked it."
QUESTIONS = [("Who built it?", "Anna Lee"), ("What was built?", "the red bridge"), ("Where?", "by the river")]
PARTS = ("train", "validation", "test")
LONG = {**BERT, "max_position_embeddings": 80}


def _row(question, answer):
    starts = [CONTEXT.index(answer)] if answer else []
    answers = {"text": [answer] if answer else [], "answer_start": starts}
    return {"question": question, "context": CONTEXT, "answers": answers}


def _file(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return _file(tmp_path_factory.mktemp("questions") / "train.jsonl", [_row(*one) for one in QUESTIONS * 4])


def _settings(file, **changes):
    teacher, student = {"config": LONG, **TRAINED}, {"from_teacher": {"layers": [0, 2]}}
    settings = {"name": "question-answering", "data": dict.fromkeys(PARTS, file), "teacher": teacher}
    return {**settings, "student": student, "tokenizer": "bytes", "max_length": 64, "stride": 16, **changes}


def _oracle(batch):
    """A model that knows where the answer is."""
    length = batch["input_ids"].shape[1]
    heads = [torch.nn.functional.one_hot(batch.targets[name], length).float() * 9 for name in ("start", "end")]
    return lambda **inputs: SimpleNamespace(start_logits=heads[0], end_logits=heads[1])


def test_questions_are_learned_and_measured(file, tmp_path):
    from kdplug.recipes.run import run_recipe

    done = run_recipe(recipe(_settings(file), tmp_path))
    assert set(done.distilled.metrics) == {"f1", "exact_match"}


def test_several_seeds_share_no_cache_since_scores_of_positions_cannot_be_padded(tmp_path):
    from rich.console import Console

    from kdplug.recipes.run import run_recipe

    rows = [_row(question, answer) for question, answer in QUESTIONS for _ in range(4)]
    short = [
        {**row, "context": row["context"][:60], "answers": {"text": ["town"], "answer_start": [8]}} for row in rows
    ]
    file = _file(tmp_path / "mixed.jsonl", [*rows, *short])
    made = recipe(_settings(file, stride=0), tmp_path).with_overrides(
        ["seeds=2", "training.batch_size=4", "training.num_epochs=null", "training.num_steps=2"]
    )
    text = io.StringIO()
    done = run_recipe(made, console=Console(file=text, width=1000))
    assert len(done.distilled.runs) == 2
    assert "The teacher runs for each seed, because its logits are scores of positions" in text.getvalue()


def test_a_context_is_covered_by_its_windows_and_each_holds_the_question(file):
    task = task_of(**_settings(file))
    found = [one for one in task.data("distillation").examples.items if one.question == 0]
    brings = task.problem.processor.tokenizer
    assert len(found) > 1
    assert all(brings.decode(one.inputs["input_ids"]).startswith("<s>Who built it?</s>") for one in found)
    covered = {place for one in found for a, b in one.offsets for place in range(a, b)}
    assert covered == set(range(len(CONTEXT)))


def test_the_labels_of_a_window_are_the_answer_or_its_first_token(file):
    task = task_of(**_settings(file))
    answers = {}
    for one in task.data("distillation").examples.items:
        text = CONTEXT[one.offsets[one.start][0] : one.offsets[one.end][1]]
        assert text == QUESTIONS[one.question % 3][1] if one.start else (one.start, one.end) == (0, 0)
        answers[one.question] = answers.get(one.question, False) or one.start > 0
    assert all(answers.values())


def test_no_answer_can_be_in_the_question_or_in_padding(file):
    task = task_of(**_settings(file))
    batch = first_batch(task)
    found = task.student_adaptor(batch, task.build_student()(**batch))
    is_context = batch.targets["to"] > batch.targets["from"]
    for head in found["logits"]:
        outside = head[:, 1:][~is_context[:, 1:]]
        assert outside.eq(OUTSIDE).all()
        assert (head[:, 1:][is_context[:, 1:]] > OUTSIDE).all()


def test_a_model_that_knows_the_answers_scores_one_over_windows_and_batches(file):
    task = task_of(**_settings(file))
    data = task.data("test")
    batches = [task.collate([data[place]]) for place in range(len(data))]
    models = iter([_oracle(batch) for batch in batches])
    assert task.evaluate(lambda **inputs: next(models)(), batches) == {"f1": 1, "exact_match": 1}


def test_questions_without_an_answer_are_understood_where_training_has_some(tmp_path):
    rows = [*[_row(*one) for one in QUESTIONS], _row("Why?", None)]
    task = task_of(**_settings(_file(tmp_path / "some.jsonl", rows)))
    data = task.data("test")
    batches = [task.collate([data[place]]) for place in range(len(data))]
    models = iter([_oracle(batch) for batch in batches])
    assert task.evaluate(lambda **inputs: next(models)(), batches)["exact_match"] == 1


def test_an_answer_that_is_not_where_the_data_say_is_an_error(tmp_path):
    row = _row(*QUESTIONS[0])
    row["answers"]["answer_start"] = [3]
    with pytest.raises(
        ConfigError, match=r"row 1 of .*: the answer 'Anna Lee' does not start at answer_start 3: it starts at 32"
    ):
        task_of(**_settings(_file(tmp_path / "wrong.jsonl", [row]))).check()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"text": "Anna Lee"}], r"answers must be .* got \{'text': 'Anna Lee'\}"),
        ("Anna Lee", r"answers must be .* got 'Anna Lee'"),
        ({"text": ["Anna Lee", "Anna"], "answer_start": [32]}, "text and answer_start differ in length, 2 and 1"),
        ({"text": [7], "answer_start": [32]}, "the text of an answer must be a string, got 7"),
        ({"text": ["Anna Lee"], "answer_start": [32.5]}, "answer_start must be a whole number of at least 0, got 32.5"),
        ({"text": ["Anna Lee"], "answer_start": [None]}, "answer_start must be a whole number of at least 0, got None"),
        ({"text": ["Anna Lee"], "answer_start": [-1]}, "answer_start must be a whole number of at least 0, got -1"),
        ({"text": ["Anna Lee"], "answer_start": [[32]]}, r"answer_start must be a whole number .* got \[32\]"),
    ],
)
def test_answers_in_another_form_are_an_error(tmp_path, answers, message):
    row = {**_row(*QUESTIONS[0]), "answers": answers}
    with pytest.raises(ConfigError, match=rf"row 1 of .*: {message}"):
        task_of(**_settings(_file(tmp_path / "wrong.jsonl", [row]))).check()


@pytest.mark.parametrize(
    "answers",
    [
        {"text": "Anna Lee", "answer_start": 32},
        {"text": ["Anna Lee"], "answer_start": [32.0]},
        [{"text": "Anna Lee", "answer_start": 32}],
    ],
)
def test_one_answer_may_be_written_without_lists(tmp_path, answers):
    rows = [{**_row(*QUESTIONS[0]), "answers": answers}] * 2
    task_of(**_settings(_file(tmp_path / "right.jsonl", rows))).check()


def test_a_question_that_leaves_no_room_is_an_error(tmp_path):
    rows = [_row("Who? " * 12, "Anna Lee")]
    with pytest.raises(ConfigError, match="leaves no room for its context"):
        task_of(**_settings(_file(tmp_path / "long.jsonl", rows))).check()


def test_a_stride_as_long_as_a_window_is_an_error(file):
    with pytest.raises(ConfigError, match="stride: must be less than max_length, 64, got 64"):
        task_of(**_settings(file, stride=64))


@pytest.mark.parametrize(
    ("found", "right"),
    [("The red bridge!", "red bridge"), ("Anna", "Anna Lee"), ("a bridge by Anna", "Anna Lee"), ("x", "y")],
)
def test_the_scores_of_answers_are_those_of_torchmetrics(found, right):
    from torchmetrics.functional.text import squad

    theirs = squad(
        {"prediction_text": found, "id": "1"}, {"answers": {"text": [right], "answer_start": [0]}, "id": "1"}
    )
    assert 100 * exact_match(found, [right]) == float(theirs["exact_match"])
    assert 100 * overlap(found, [right]) == pytest.approx(float(theirs["f1"]), abs=1e-4)


def test_no_answer_is_right_where_there_is_none():
    assert (exact_match("", []), overlap("", []), exact_match("Anna", [])) == (1, 1, 0)
