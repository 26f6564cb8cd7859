"""Token classification: words, sub-words and tags."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from task_scene import BERT, TRAINED, first_batch, recipe, task_of

from kdplug import ConfigError
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.text.word import Span, has_spans, span_scores, spans

SENTENCES = [
    ("Anna", "B-PER"), ("Lee", "I-PER"), ("lives", "O"), ("in", "O"), ("Oslo", "B-LOC"), ("", ""),
    ("Oslo", "B-LOC"), ("sleeps", "O"), ("", ""), ("Bob", "B-PER"), ("went", "O"), ("home", "O"), ("", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    lines = [f"{word}\tX\t{tag}" if word else "" for word, tag in SENTENCES * 6]
    (folder / "train.conll").write_text("-DOCSTART- -X- O\n\n" + "\n".join(lines), encoding="utf-8")
    (folder / "plain.jsonl").write_text('{"tokens": ["Oslo", "sleeps"]}\n{"tokens": "Anna lives"}\n', encoding="utf-8")
    return folder


def _settings(folder, **changes):
    data = {"train": str(folder / "train.conll"), "test": 0.25}
    teacher, student = {"config": BERT, **TRAINED}, {"from_teacher": {"layers": [0, 1]}}
    settings = {"name": "token-classification", "data": data, "teacher": teacher, "student": student}
    return {**settings, "tokenizer": "bytes", "max_length": 40, **changes}


def test_entities_are_learned_and_measured(folder, tmp_path):
    from kdplug.recipes.run import run_recipe

    done = run_recipe(recipe(_settings(folder), tmp_path))
    assert done.metric == "f1"
    assert set(done.distilled.metrics) == {"f1", "precision", "recall", "accuracy"}


def test_the_first_sub_word_of_each_word_counts_and_no_other(folder):
    task = task_of(**_settings(folder))
    batch, brings = first_batch(task), task.problem.processor.tokenizer
    found = task.student_adaptor(batch, task.build_student()(**batch))
    assert found["logits_mask"].equal(found["labels"] != NO_LABEL)
    for ids, mask, labels in zip(batch["input_ids"], found["logits_mask"], found["labels"], strict=True):
        words = brings.decode(ids, skip_special_tokens=True).split()
        assert int(mask.sum()) == len(words) < int((ids > 3).sum())
        tags = [task.problem.labels.names[one] for one in labels[mask].tolist()]
        assert [tag.endswith("LOC") for tag in tags] == [word == "Oslo" for word in words]


def test_sentences_without_tags_are_distilled_on_word_by_word(folder):
    data = {**_settings(folder)["data"], "distillation": str(folder / "plain.jsonl")}
    task = task_of(**_settings(folder, data=data))
    batch = first_batch(task)
    found = task.student_adaptor(batch, task.build_student()(**batch))
    assert found["logits_mask"].sum(dim=1).tolist() == [2, 2]
    assert found["labels"].eq(NO_LABEL).all()
    assert found["losses"] == (0, 0)


@pytest.mark.parametrize("word", ["null", "NaN", '["a"]'])
def test_a_token_that_is_no_text_is_an_error(folder, tmp_path, word):
    (tmp_path / "wrong.jsonl").write_text(f'{{"tokens": ["Oslo", {word}]}}\n', encoding="utf-8")
    data = {**_settings(folder)["data"], "distillation": str(tmp_path / "wrong.jsonl")}
    with pytest.raises(ConfigError, match=r"row 1 of .*: each token must be text, got "):
        task_of(**_settings(folder, data=data)).check()


def test_words_that_are_cut_are_counted(folder):
    task = task_of(**_settings(folder, max_length=12))
    assert "Words beyond the first 12 sub-words" in task.about()


def test_a_right_model_has_an_f1_of_one(folder):
    task = task_of(**_settings(folder))
    batch = first_batch(task, "test", 6)

    def right(**inputs):
        from types import SimpleNamespace

        return SimpleNamespace(logits=torch.nn.functional.one_hot(batch.targets["labels"].clamp(min=0), 4).float())

    assert task.evaluate(right, [batch])["f1"] == 1


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-A I-A O B-B", [("A", 0, 1), ("B", 3, 3)]),
        ("B-A B-A", [("A", 0, 0), ("A", 1, 1)]),
        ("B-A I-B", [("A", 0, 0), ("B", 1, 1)]),
        ("I-A I-A O I-A", [("A", 0, 1), ("A", 3, 3)]),
        ("O I-A", [("A", 1, 1)]),
        ("S-A B-B I-B E-B S-A", [("A", 0, 0), ("B", 1, 3), ("A", 4, 4)]),
        ("U-A B-B I-B L-B I-B", [("A", 0, 0), ("B", 1, 3), ("B", 4, 4)]),
        ("B-A E-A I-A", [("A", 0, 1), ("A", 2, 2)]),
        ("B-my-kind I-my-kind", [("my-kind", 0, 1)]),
    ],
)
def test_tags_mean_these_spans(tags, found):
    assert spans(tags.split()) == [Span(*one) for one in found]


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=12))
def test_spans_cover_each_marked_word_once_and_no_other(tags):
    covered = [place for span in spans(tags) for place in range(span.start, span.end + 1)]
    assert covered == [place for place, tag in enumerate(tags) if tag != "O"]


def test_scores_are_over_all_sentences_together():
    true = [["B-A", "I-A", "O"], ["B-B"]]
    found = [["B-A", "I-A", "B-B"], ["O"]]
    assert span_scores(true, found) == {"f1": 0.5, "precision": 0.5, "recall": 0.5}
    assert span_scores([["O"]], [["O"]])["f1"] == 0


def test_parts_of_speech_are_no_spans():
    assert not has_spans(["NOUN", "VERB", "O"])
    assert not has_spans(["B-A", "I-A"][:0])
    assert has_spans(["O", "B-A"])


def test_a_plan_shows_the_first_sentence_with_its_tags_and_how_many_sub_words_count(folder, tmp_path):
    from kdplug.recipes.preview.plan import plan_recipe

    about = plan_recipe(recipe(_settings(folder), tmp_path)).about
    assert "The first sentence is Anna (B-PER), Lee (I-PER), lives (O), in (O), Oslo (B-LOC): 5 of its " in about
    assert "sub-words enter the loss, the first of each word." in about


def test_a_plan_says_which_tags_are_tested_and_not_trained_on(folder, tmp_path):
    (tmp_path / "test.jsonl").write_text(
        '{"tokens": ["Oslo"], "tags": ["B-LOC"]}\n{"tokens": ["x"], "tags": ["B-ORG"]}\n'
    )
    data = {"train": str(folder / "train.conll"), "test": str(tmp_path / "test.jsonl")}
    task = task_of(**_settings(folder, data=data, labels=["B-LOC", "B-ORG", "B-PER", "I-PER", "O"]))
    task.check()
    assert "5 tags. Classes in the validation or test data but not in the training data: B-ORG." in task.about()
