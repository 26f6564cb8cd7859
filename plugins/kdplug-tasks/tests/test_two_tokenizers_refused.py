"""Settings that cannot be used with two tokenizers are rejected, even if the vocabularies have the same size."""

from __future__ import annotations

import pytest
from task_scene import recipe, task_of
from tokenizer_scene import fast
from two_tokenizer_scene import make, settings, write_two

import kdplug
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_two(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("student", ["student", "equal"])
@pytest.mark.parametrize("go", [run_recipe, plan_recipe, lambda made: cache_recipe(made, "nowhere")])
def test_a_loss_that_compares_class_by_class_is_refused_though_the_classes_be_as_many(folder, tmp_path, student, go):
    made = recipe(settings(folder, student=str(folder / student)), tmp_path, kd_loss_type="kl")
    with pytest.raises(
        kdplug.ConfigError, match=r"^distillation\.kd_loss_type: kdplug-logits:kl compares class by class"
    ):
        go(made)


MATCH = "[{layer_T: 1, layer_S: 1, feature: hidden, loss: hidden_mse}]"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            f"distillation.intermediate_matches={MATCH}",
            r"^distillation\.intermediate_matches\.0: compares features token by",
        ),
        ("distillation.probability_shift=true", r"^distillation\.probability_shift: needs the teacher's logit"),
        (
            "distillation.temperature_scheduler=[flsw, 1, 1]",
            r"^distillation\.temperature_scheduler: may compare logits",
        ),
        (
            "distillation.padded_vocabulary=drop",
            r"^distillation\.padded_vocabulary: treats classes that only one side has as padding",
        ),
        (
            "training.teacher_cache_codec={name: topk_tail, k: 4}",
            r"'topk_tail' may store single classes",
        ),
    ],
)
def test_what_takes_a_class_or_a_position_of_one_side_for_that_of_the_other_is_refused(folder, tmp_path, change, words):
    with pytest.raises(kdplug.ConfigError, match=words):
        run_recipe(make(folder, tmp_path, "training.teacher_cache=nowhere", change))


GENERATE = {"fraction": 1.0, "max_new_tokens": 4, "prompt_length": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generate": GENERATE}, "^generate: cannot be used with two tokenizers"),
        (
            {"max_length": 3},
            r"^data\.train: .*: \d+ tokens lie between two common token boundaries .*\(max_length 3\)\. Increase max_length",
        ),
        ({"student_tokenizer": "bytes"}, "^student_tokenizer: has a different vocabulary from the tokenizer of "),
        (
            {"student": {"from_teacher": {"layers": [0]}}, "student_tokenizer": "bytes"},
            r"^student\.from_teacher: copies embeddings and head of the teacher",
        ),
        (
            {"student": {"config": {"vocab_size": 100}}, "student_tokenizer": "bytes"},
            r"^student: the model has 100 embeddings \(vocab_size\), but the tokenizer has 260 tokens",
        ),
    ],
)
def test_settings_that_do_not_go_with_two_tokenizers_are_refused(folder, changes, words):
    with pytest.raises(kdplug.ConfigError, match=words):
        task_of(**settings(folder, **changes)).check()


def brought(path, made, **tokens):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, **tokens).save_pretrained(path)
    return {"student": {"config": {"n_layer": 1}}, "student_tokenizer": str(path)}


def test_a_tokenizer_without_end_token_is_rejected_if_the_other_has_one(folder, tmp_path):
    changes = brought(tmp_path / "endless", fast("fine"), pad_token="!", unk_token="!")
    with pytest.raises(kdplug.ConfigError, match=r"^student_tokenizer: only the teacher's tokenizer has an end token"):
        task_of(**settings(folder, **changes)).check()


def test_a_text_of_which_a_tokenizer_drops_something_is_named(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab={one: place for place, one in enumerate("abcdefghiklmnoprstuvwy")}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>"])
    holder = type("Holder", (), {"backend_tokenizer": made})
    changes = brought(tmp_path / "dropping", holder, pad_token="</s>", eos_token="</s>")
    with pytest.raises(
        kdplug.ConfigError, match=r"row \d+ of .*: the student's tokenizer has no token for '(ï|日本)' \(U\+"
    ):
        task_of(**settings(folder, documents="blank_line", **changes)).check()


def test_a_cache_for_another_tokenizer_of_the_student_is_refused(folder, tmp_path):
    cached = make(folder, tmp_path / "run", f"training.teacher_cache={tmp_path / 'cache'}")
    cache_recipe(cached, tmp_path / "cache")
    other = cached.with_overrides(["task.student={config: {n_layer: 1}}", "task.student_tokenizer=bytes"])
    with pytest.raises(kdplug.RunError, match=r"which logits belong to which token: .*tokens 280 -> 260"):
        run_recipe(other)
