"""A model folder or a dataset that brings code of its own: nothing of it runs, whatever somebody answers at the terminal."""

from __future__ import annotations

import json
import shutil

import pytest
from code_scene import TEXT, Scene
from task_scene import BERT, GPT2, RESNET, reviews


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path, {**BERT, "num_hidden_layers": 2}, TEXT)


@pytest.fixture
def pictures(tmp_path):
    return Scene(tmp_path, RESNET, "AutoModelForImageClassification")


NO_CODE = "needs Python code from the model folder, which kdplug does not run"
attack = pytest.mark.attack("a model folder or dataset brings code")


@attack
def test_a_folder_without_code_is_planned(scene):
    status, text = scene.plan()
    assert (status, "no warnings" in text) == (0, True), text


@attack
@pytest.mark.parametrize("side", ["teacher", "student", "tokenizer"])
def test_a_config_of_an_unknown_model_type(scene, side):
    other = scene.folder / "other"
    shutil.copytree(scene.teacher, other)
    scene.code(other)
    scene.change("config.json", other, model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    if side == "tokenizer":  # the files of its tokenizer are enough
        assert scene.plan(tokenizer=str(other))[0] == 0
        assert not scene.mark.exists()
    else:
        scene.refused(NO_CODE, **{side: str(other)})


@attack
def test_a_config_of_a_known_model_type_is_read_without_the_code_next_to_it(scene):
    scene.code()
    scene.change("config.json", auto_map={"AutoConfig": "evil.Evil", TEXT: "evil.Evil", "AutoTokenizer": "evil.Evil"})
    assert scene.plan()[0] == 0
    assert not scene.mark.exists()


@attack
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_model_of_a_type_that_has_no_class_for_the_task(scene, side):
    other = scene.folder / "other"
    shutil.copytree(scene.teacher, other)
    scene.code(other)
    scene.change("config.json", other, model_type="vit", auto_map={TEXT: "evil.Evil"}, vocab_size=300)
    scene.refused("", **{side: str(other)})


@attack
@pytest.mark.slow
def test_a_model_inside_a_model(scene):
    inner = {
        "model_type": "blip_text_model",  # transformers has the config, and no AutoModel for it
        "vocab_size": 300, "pad_token_id": 0, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "auto_map": {"AutoModel": f"{scene.teacher}--evil.Evil"},
    }  # fmt: skip
    scene.code()
    (scene.teacher / "config.json").write_text(
        json.dumps({"model_type": "fuyu", "pad_token_id": 0, "text_config": inner})
    )
    student = {"config": {**GPT2, "n_layer": 1}}
    scene.refused("", task="causal-lm", student=student, max_length=16)


@attack
@pytest.mark.parametrize("own", ["tokenizer", "teacher"])
def test_a_tokenizer_of_an_unknown_class(scene, own):
    other = scene.folder / "other"
    shutil.copytree(scene.teacher, other)
    scene.code(other)
    scene.change(
        "tokenizer_config.json", other, tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": [None, "evil.Evil"]}
    )
    scene.change("config.json", other, model_type="vit")  # a type that transformers has no tokenizer for
    scene.refused(NO_CODE if own == "tokenizer" else "", **{own: str(other)})


@attack
@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("kind", ["AutoProcessor", "AutoModel", "AutoTokenizer", "BertModel"])
def test_a_tokenizer_class_that_is_no_tokenizer(scene, kind, place):
    scene.code()
    scene.change("tokenizer_config.json", tokenizer_class=None)
    scene.change(place, tokenizer_class=kind)
    auto_map = dict.fromkeys(("AutoProcessor", "AutoModel"), "evil.Evil")
    scene.change("processor_config.json", processor_class="Evil", auto_map=auto_map)
    scene.refused(f"its tokenizer_class is {kind!r}, which is not a valid tokenizer")


@attack
def test_a_tokenizer_inside_a_tokenizer(scene):
    scene.code()
    inner = {"model_type": "vit"}  # a type that transformers has no tokenizer for
    scene.change("config.json", question_encoder=inner, generator=inner)
    scene.change("tokenizer_config.json", tokenizer_class="RagTokenizer")
    keys = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (scene.teacher / "question_encoder_tokenizer").mkdir()
    scene.change("question_encoder_tokenizer/tokenizer_config.json", **keys)
    scene.refused(NO_CODE)


@attack
@pytest.mark.parametrize("kind", ["EvilImageProcessor", "AutoProcessor", "AutoModel"])
def test_an_image_processor_of_another_class(pictures, kind):
    pictures.code()
    auto_map = dict.fromkeys(("AutoImageProcessor", "AutoProcessor", "AutoModel"), "evil.Evil")
    pictures.change("preprocessor_config.json", image_processor_type=kind, auto_map=auto_map)
    pictures.refused("task.teacher.path", task="image-classification", student={"config": {"depths": [1, 1]}})


@attack
def test_an_adapter(scene):
    config = {
        "peft_type": "LORA",
        "megatron_config": {},
        "megatron_core": "evil",
        "base_model_name_or_path": "org/evil",
    }
    scene.code()
    scene.change("adapter_config.json", **config)
    scene.refused("is or contains a PEFT adapter")
    (scene.teacher / "config.json").unlink()
    scene.refused("is or contains a PEFT adapter")


@attack
def test_a_chat_template_is_not_rendered(scene):
    (scene.teacher / "chat_template.jinja").write_text("{{ raise_exception('rendered') }}")
    scene.change("tokenizer_config.json", chat_template="{{ cycler.__init__.__globals__.os.system('touch x') }}")
    assert scene.plan()[0] == 0


@attack
def test_a_generate_function(tmp_path):
    scene = Scene(tmp_path, GPT2, "AutoModelForCausalLM")
    scene.code(name="custom_generate/generate.py")
    scene.change("generation_config.json", custom_generate="evil", trust_remote_code=True)
    settings = {"student": str(scene.teacher), "max_length": 16, "packing": False}
    generate = {"fraction": 1, "max_new_tokens": 2, "prompt_length": 2}
    assert scene.plan(task="causal-lm", generate=generate, **settings)[0] == 0
    assert not scene.mark.exists()


@pytest.fixture
def kernels(monkeypatch):
    """What transformers would load from the hub with ``kernels`` installed."""
    import transformers.modeling_utils as modeling

    asked: list[str] = []
    monkeypatch.setattr(modeling, "is_kernels_available", lambda: True)
    monkeypatch.setattr(modeling, "lazy_import_flash_attention", lambda name, **_: asked.append(name))
    return asked


@attack
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_kernel_of_the_hub_for_attention(scene, kernels, key, side):
    other = scene.folder / "other"
    shutil.copytree(scene.teacher, other)
    scene.change("config.json", other, **{key: "org/evil:attention"})
    scene.refused("config.json names the kernel 'org/evil:attention'", **{side: str(other)})
    scene.change("config.json", other, **{key: {"": "eager", "text_config": "org/evil@main"}})
    scene.refused("config.json names the kernel 'org/evil@main'", **{side: str(other)})
    assert kernels == []


@attack
def test_flash_attention_of_a_folder_is_not_taken_from_the_hub(scene, kernels):
    scene.change("config.json", _attn_implementation="flash_attention_2")
    assert scene.plan()[0] == 0
    assert kernels == []


@attack
def test_a_kernel_of_the_hub_for_experts(scene):
    scene.change("config.json", experts_implementation="sonicmoe")
    scene.refused("config.json names the kernel 'sonicmoe'")


@attack
@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes", "evil"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_quantized_folder_reaches_no_other_loader(scene, monkeypatch, method, depth):
    from transformers.quantizers.auto import AutoHfQuantizer

    asked: list[object] = []
    monkeypatch.setattr(AutoHfQuantizer, "from_config", lambda config, **_: asked.append(config))
    keys = {"quantization_config": {"quant_method": method, "load_in_8bit": method == "bitsandbytes", "bits": 4}}
    scene.change("config.json", **(keys if depth == 0 else {"text_config": keys}))
    scene.refused("declares quantized weights")
    assert asked == []


@attack
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_settings_of_a_recipe_are_no_door_either(scene, side):
    settings = {"config": {**BERT, "_attn_implementation": "org/evil", "quantization_config": {}}, "train": True}
    if side == "student":
        settings.pop("train")
    scene.refused(f"task.{side}.config", tokenizer=str(scene.teacher), **{side: settings})


@attack
def test_a_checkpoint_that_timm_would_unpickle(pictures):
    keys = {"model_type": "timm_wrapper", "architecture": "resnet18", "label_names": ["a", "b"]}
    pictures.change("config.json", **keys, model_args={"checkpoint_path": str(pictures.folder / "evil.pth")})
    pictures.refused("checkpoint_path", task="image-classification")


@attack
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_dataset_with_a_loading_script(scene, kind):
    folder = scene.folder / "rows"
    scene.code(folder, "rows.py")
    shutil.copy(scene.data, folder / "train.csv")
    path = folder if kind == "folder" else folder / "rows.py"
    scene.refused("task.data.dataset", data={"dataset": str(path), "train": "train", "test": 0.5})


@attack
def test_a_saved_dataset_next_to_a_loading_script(scene):
    import datasets

    folder = scene.folder / "rows"
    datasets.Dataset.from_list(reviews(16)).save_to_disk(folder)
    scene.code(folder, "rows.py")
    assert scene.plan(data={"dataset": str(folder), "train": "train", "test": 0.5})[0] == 0
    assert not scene.mark.exists()


@attack
def test_the_student_that_a_run_saves_names_no_code(scene):
    import kdplug
    from kdplug.recipes.run import run_recipe

    scene.code()
    scene.change("config.json", auto_map={"AutoConfig": "evil.Evil", TEXT: "org/evil--evil.Evil"})
    scene.plan()
    run_recipe(kdplug.Recipe.from_file(scene.folder / "recipe.json"))
    assert "auto_map" not in json.loads((scene.folder / "out" / "model" / "config.json").read_text())
