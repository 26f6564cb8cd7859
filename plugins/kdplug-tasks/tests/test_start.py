"""Students initialized from their teacher's weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from task_scene import BERT, GPT2

from kdplug import ConfigError
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings
from kdplug_tasks.models.start import embeddings_path, layers_path

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    "bert": ("AutoModelForSequenceClassification", {**BERT, "vocab_size": 40}),
    "roberta": ("AutoModelForTokenClassification", {"model_type": "roberta", "vocab_size": 40, **SIZES}),
    "distilbert": (
        "AutoModelForSequenceClassification",
        {"model_type": "distilbert", "vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    ),
    "gpt2": ("AutoModelForCausalLM", {**GPT2, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1}),
    "llama": ("AutoModelForCausalLM", {"model_type": "llama", "vocab_size": 40, **SIZES}),
    "qwen2": ("AutoModelForCausalLM", {"model_type": "qwen2", "vocab_size": 40, "num_key_value_heads": 1, **SIZES}),
    "vit": ("AutoModelForImageClassification", {"model_type": "vit", "image_size": 8, "patch_size": 4, **SIZES}),
}


def _family(kind="bert", **student):
    auto, config = KINDS[kind]
    return Family(auto, TeacherSettings(config=config, train=True), StudentSettings(**student))


def _started(family):
    family.check()
    teacher, student = family.build_teacher(), family.build_student()
    family.start_student(student, teacher)
    return teacher, student


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_of_a_student_are_those_of_the_teacher_that_were_named(kind):
    teacher, student = _started(_family(kind, from_teacher={"layers": [2, 0]}))
    for place, layer in enumerate([2, 0]):
        mine = student.get_submodule(f"{layers_path(student)}.{place}").state_dict()
        theirs = teacher.get_submodule(f"{layers_path(teacher)}.{layer}").state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_all_layers_is_the_teacher(kind):
    teacher, student = _started(_family(kind, from_teacher={"layers": [0, 1, 2]}))
    mine, theirs = student.state_dict(), teacher.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(one.data_ptr() != theirs[name].data_ptr() for name, one in mine.items())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama"])
def test_a_narrower_student_gets_the_first_columns_of_the_embeddings(kind):
    width = {"bert": "hidden_size", "distilbert": "dim", "gpt2": "n_embd", "llama": "hidden_size"}[kind]
    teacher, student = _started(_family(kind, config={width: 8}, from_teacher={}))
    mine, theirs = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    assert torch.equal(mine, theirs[:, :8])


def test_what_belongs_to_the_embeddings_goes_with_them():
    teacher, student = _started(_family("bert", config={"hidden_size": 8}, from_teacher={}))
    assert embeddings_path(student) == "bert.embeddings"
    positions = [model.bert.embeddings.position_embeddings.weight for model in (student, teacher)]
    assert torch.equal(positions[0], positions[1][:, :8])


def test_frozen_embeddings_and_those_of_positions_are_not_trained():
    for kind, prefixes in (("bert", ("bert.embeddings.",)), ("gpt2", ("transformer.wte.", "transformer.wpe."))):
        teacher, student = _started(_family(kind, from_teacher={"layers": [0], "embeddings": "frozen"}))
        still = [name for name, one in student.named_parameters() if not one.requires_grad]
        assert all(any(name.startswith(one) for name in still) for one in prefixes)
        assert all(name.startswith(prefixes) for name in still)
    assert all(one.requires_grad for one in teacher.parameters())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_fresh_embeddings_are_not_taken_through_a_tied_head_either(kind):
    teacher, student = _started(_family(kind, from_teacher={"layers": [0], "embeddings": "fresh"}))
    mine, theirs = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    assert not torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            {"from_teacher": {"layers": [0, 3]}},
            "layers.1: must be less than 3, the number of the teacher's layers, got 3",
        ),
        (
            {"from_teacher": {"layers": [0]}, "config": {"num_hidden_layers": 2}},
            "selects 1 layer, but the student's config has num_hidden_layers 2",
        ),
        (
            {"from_teacher": {"layers": [0]}, "config": {"intermediate_size": 12}},
            r"has the shape \[12, 16\] in the student and \[24, 16\] in the teacher. Layers are copied whole",
        ),
        ({"from_teacher": {}, "config": {"hidden_size": 32}}, "embeddings: .* Embeddings can be truncated, but not"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(student, message):
    with pytest.raises(ConfigError, match=rf"student\.from_teacher\.layers.*{message}|{message}"):
        _started(_family(**student))


def test_a_model_that_shares_one_layer_is_refused():
    sizes = {**SIZES, "embedding_size": 8, "vocab_size": 40}
    teacher = TeacherSettings(config={"model_type": "albert", **sizes}, train=True)
    family = Family("AutoModelForSequenceClassification", teacher, StudentSettings(from_teacher={"layers": [0]}))
    with pytest.raises(ConfigError, match=r"AlbertForSequenceClassification has no list of 3 .* Use student: {"):
        _started(family)


def test_a_model_whose_config_counts_no_layers_is_refused():
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"the config of Linear has no num_hidden_layers, .* without from_teacher$"):
        layers_path(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "x", "config": {}}, "config and from_teacher cannot be combined with path"),
        ({}, "set path, config or from_teacher"),
        ({"from_teacher": {"embeddings": "fresh"}}, "copies nothing"),
        ({"from_teacher": {"layers": [0]}, "config": {"model_type": "bert"}}, "has the teacher's model_type"),
    ],
)
def test_conflicting_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        StudentSettings(**settings)
