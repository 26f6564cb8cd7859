"""A model from a folder has all of its weights; only a head that will be trained may be random."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_scene import BERT, GPT2, SIZES, TRAINED, recipe, reviews, save_model, task_of, tokenizer, write_csv

from kdplug import ConfigError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug_tasks.models.family import Family
from kdplug_tasks.models.setting import StudentSettings, TeacherSettings

TEXT, LM = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
SMALL = {**BERT, "vocab_size": 40, "pad_token_id": 0}
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
BODY = {
    "another shape": (lambda weights: weights.update({QUERY: torch.zeros(8, 16)}), rf"{QUERY} \[16, 16\] \(the file has \[8, 16\]\)"),
    "missing": (lambda weights: weights.pop(QUERY), QUERY),
    "embeddings of another vocabulary": (
        lambda weights: weights.update({"bert.embeddings.word_embeddings.weight": torch.zeros(30, 16)}),
        r"word_embeddings.weight \[40, 16\] \(the file has \[30, 16\]\)",
    ),
    "of another model": (
        lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("bert.")],
        "bert.embeddings.LayerNorm.bias, .* more",
    ),
}  # fmt: skip
SIDES = {
    "a trained teacher": lambda path: family(path).build_teacher(),
    "a teacher that is fitted first": lambda path: family(path, train=True).build_teacher(),
    "a student": lambda path: family(path, student=path).build_student(),
}


def family(path, auto=TEXT, *, student=None, train=False, **changes):
    given = StudentSettings(path=str(student)) if student else StudentSettings(config={"num_hidden_layers": 1})
    made = Family(auto, TeacherSettings(path=str(path), train=train), given)
    made.changes = changes
    return made


def altered(folder, change):
    """Return the folder after applying ``change`` to its weights."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", TEXT, SMALL)
    return tmp_path / "model"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", BODY)
def test_weights_that_do_not_fill_the_body_are_refused(folder, side, case):
    change, message = BODY[case]
    with pytest.raises(
        ConfigError, match=rf"^(teacher|student)\.path: .*has no weights for .*{message}.*would be random"
    ):
        SIDES[side](altered(folder, change))


@pytest.mark.parametrize("train", [False, True])
def test_plan_says_so_too(tmp_path, train):
    brings = tokenizer()
    save_model(tmp_path / "model", TEXT, BERT, brings=brings, vocab_size=len(brings), pad_token_id=0)
    altered(tmp_path / "model", lambda weights: weights.update({QUERY: torch.zeros(8, 16)}))
    rows = write_csv(tmp_path / "rows.csv", reviews(16))
    teacher = {"path": str(tmp_path / "model"), "train": train}
    student = {"config": {"num_hidden_layers": 1}}
    data = {"train": rows, "test": 0.5}
    task = {"name": "text-classification", "teacher": teacher, "student": student, "data": data, "max_length": 24}
    if not train:
        task["labels"] = ["neg", "pos"]
    with pytest.raises(ConfigError, match=rf"^task\.teacher\.path: .*{QUERY}"):
        plan_recipe(recipe(task, tmp_path / "out"))


HEADS = {
    "of other classes": (TEXT, SMALL, {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}),
    "none": ("AutoModel", SMALL, {}),
    "of another task": ("AutoModelForMaskedLM", SMALL, {}),  # without a pooler
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("side", ["a teacher that is fitted first", "a student"])
def test_a_head_that_is_trained_may_be_new_and_the_body_is_the_folder_s(tmp_path, side, case):
    auto, config, changes = HEADS[case]
    save_model(tmp_path / "model", auto, config)
    path = tmp_path / "model"
    if side == "a student":
        model = family(path, student=path, **changes).build_student()
    else:
        model = family(path, train=True, **changes).build_teacher()
    weights = {name.removeprefix("bert."): one for name, one in load_file(path / "model.safetensors").items()}
    for name, one in model.bert.state_dict().items():
        if not name.startswith("pooler") or name in weights:
            torch.testing.assert_close(one, weights[name], rtol=0, atol=0)
    assert model.classifier.out_features == len(changes.get("id2label", "ab"))


@pytest.mark.parametrize("case", ["none", "of another task"])
def test_a_head_that_is_not_trained_may_not_be_new(tmp_path, case):
    auto, config, _ = HEADS[case]
    save_model(tmp_path / "model", auto, config)
    with pytest.raises(ConfigError, match=r"classifier.*so its outputs would be random. Write teacher: .*train: true"):
        family(tmp_path / "model").build_teacher()


def test_a_head_of_another_shape_than_its_config_says(folder):
    altered(folder, lambda weights: weights.update({"classifier.weight": torch.zeros(3, 16)}))
    with pytest.raises(
        ConfigError, match=r"classifier.weight \[2, 16\] \(the file has \[3, 16\]\).* belong to different models"
    ):
        family(folder).build_teacher()


def test_a_head_within_the_body_may_be_new(tmp_path):
    auto = "AutoModelForImageClassification"
    sizes = {"num_latents": 4, "d_latents": 8, "num_self_attends_per_block": 1, "num_blocks": 1, "image_size": 8}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 1}
    names = {"id2label": dict(enumerate("abc")), "label2id": dict(zip("abc", range(3), strict=True))}
    kind = ["PerceiverForImageClassificationLearned"]
    save_model(tmp_path / "model", auto, {"model_type": "perceiver", **sizes, **heads}, architectures=kind)
    model = family(tmp_path / "model", auto, train=True, **names).build_teacher()
    assert model.perceiver.decoder.decoder.final_layer.out_features == 3


@pytest.mark.parametrize("kind", [GPT2, {"model_type": "llama", **SIZES, "tie_word_embeddings": True}])
@pytest.mark.parametrize("auto", [LM, "AutoModel"])
def test_a_head_that_is_tied_to_the_embeddings_is_not_missing(tmp_path, kind, auto):
    save_model(tmp_path / "model", auto, kind, vocab_size=40, bos_token_id=0, eos_token_id=1)
    model = family(tmp_path / "model", LM).build_teacher()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_head_of_a_language_model_that_is_missing(tmp_path):
    kind = {"model_type": "llama", **SIZES, "tie_word_embeddings": False}
    save_model(tmp_path / "model", "AutoModel", kind, vocab_size=40, bos_token_id=0, eos_token_id=1)
    with pytest.raises(ConfigError, match=r"has no weights for lm_head.weight, .* train: true"):
        family(tmp_path / "model", LM).build_teacher()
    family(tmp_path / "model", LM, train=True).build_teacher()


@pytest.mark.parametrize("auto", [TEXT, "AutoModel"])
def test_a_trained_teacher_with_fewer_layers_than_its_folder_is_refused(tmp_path, auto):
    save_model(tmp_path / "model", auto, SMALL)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 2}))
    if auto == "AutoModel":  # with the head of another task
        altered(tmp_path / "model", lambda weights: weights.update(HEAD))
    with pytest.raises(
        ConfigError,
        match=r"has weights that its .* does not use: (bert\.)?encoder\.layer\.2\.attention.* and 13 more",
    ):
        family(tmp_path / "model").build_teacher()


HEAD = {"classifier.weight": torch.zeros(2, 16), "classifier.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.attention.self.query.lora_A.default.weight",
        "bert.encoder.layer.0.output.adapter.down.weight",
        "bert.encoder.layer.0.output.dense.weight_scale",
        "bert.encoder.layer.0.output.dense.weight.SCB",
    ],
)
def test_a_trained_teacher_without_parts_that_its_folder_has_is_refused(folder, name):
    altered(folder, lambda weights: weights.update({name: torch.zeros(4)}))
    with pytest.raises(ConfigError, match=f"has weights that its .* does not use: {name}. Without these weights"):
        family(folder).build_teacher()


@pytest.mark.parametrize(
    "name",
    ["cls.predictions.bias", "lm_head.weight", "bert.pooler.other.weight", "bert.embeddings.position_ids", "bert.embeddings.word_embeddings._weight"],
)  # fmt: skip
def test_heads_and_buffers_that_nothing_needs_are_left_out(folder, name):
    altered(folder, lambda weights: weights.update({name: torch.zeros(4)}))
    family(folder).build_teacher()


def test_a_damaged_file_is_one_message(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 16)
    with pytest.raises(ConfigError, match=r"^teacher\.path: transformers cannot load"):
        family(folder).build_teacher()


def test_an_index_without_its_files_is_one_message(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {QUERY: "model-1.safetensors"}}))
    with pytest.raises(ConfigError, match=r"^teacher\.path: transformers cannot load"):
        family(folder).build_teacher()
    index.write_text("[]")
    with pytest.raises(ConfigError, match=r"index.json is damaged"):
        family(folder).build_teacher()


def test_a_folder_in_shards_is_read(folder, tmp_path):
    import transformers

    model = getattr(transformers, TEXT).from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    read = family(tmp_path / "shards").build_teacher().state_dict()
    assert all(torch.equal(one, read[name]) for name, one in model.state_dict().items())


def test_the_command_that_the_error_shows_converts_a_pickle(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, a pickle") as raised:
        family(folder).build_teacher()
    command = str(raised.value).partition("python -c ")[2].strip('"')
    exec(command)  # in this process, since importing transformers takes seconds
    read = family(folder).build_teacher().state_dict()
    assert all(torch.equal(one, read[name]) for name, one in weights.items())


def test_a_name_on_the_hub_without_safetensors(folder, monkeypatch):
    import transformers.modeling_utils as modeling

    def convert(*_, **__):
        raise AssertionError("a conversion on the hub was asked for")

    made = family(folder)
    made.teacher_config  # noqa: B018  it is read from the folder
    made.teacher = TeacherSettings(path="org/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    (folder / "models--org--model").mkdir()
    monkeypatch.setattr(modeling, "cached_file", lambda *_, **__: None)
    monkeypatch.setattr(modeling, "is_offline_mode", lambda: False)
    monkeypatch.setattr(modeling, "auto_conversion", convert)
    message = r"python -c .*M\.from_pretrained\('org/model'\)\.save_pretrained\('\./model'\)\" Save the model's tokenizer .* replace org/model by"
    with pytest.raises(ConfigError, match=message):
        made.build_teacher()


def test_both_files_in_a_folder_are_no_error(folder):
    torch.save({}, folder / "pytorch_model.bin")
    family(folder).build_teacher()


def sums(folder):
    """Write ``SHA256SUMS`` as a recipe does next to its student."""
    lines = [f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize("build", SIDES.values(), ids=SIDES)
def test_a_file_that_differs_from_its_checksum_is_refused_and_named(folder, build):
    sums(folder)
    build(folder)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is damaged: the SHA-256 of model\.safetensors does not match SHA256SUMS"):
        build(folder)
    (folder / "SHA256SUMS").unlink()
    build(folder)


def test_checksums_of_files_that_are_not_there_and_an_edited_card_do_not_matter(folder):
    (folder / "README.md").write_text("a model")
    sums(folder)
    (folder / "README.md").write_text("a better model")
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  not-there.bin\n{'0' * 64}  ../outside\n")
    family(folder).build_teacher()


def test_checksums_that_cannot_be_read_are_refused(folder):
    (folder / "SHA256SUMS").write_bytes(b"\xff\x00 no checksum")
    with pytest.raises(ConfigError, match=r"SHA256SUMS has the line .* which is not a SHA-256 and a file name"):
        family(folder).build_teacher()


def test_a_head_that_is_new_on_purpose_is_loaded_without_a_report(tmp_path, caplog, capfd):
    from transformers.utils import logging

    brings = tokenizer()
    path = save_model(tmp_path / "body", "AutoModel", BERT, brings=brings, vocab_size=len(brings), pad_token_id=0)
    rows = write_csv(tmp_path / "rows.csv", reviews(8))
    level = logging.get_verbosity()
    settings = {"name": "text-classification", "data": {"train": rows, "test": rows}, "max_length": 24}
    task_of(**settings, teacher={"path": path, **TRAINED}, student=path).build_teacher()
    assert "LOAD REPORT" not in caplog.text + "".join(capfd.readouterr())
    assert logging.get_verbosity() == level
