from __future__ import annotations

import re

import pytest

from kdplug.config.recipe import Recipe
from kdplug.config.training import TrainingConfig
from kdplug.errors import ConfigError, UnknownKeyError


def test_the_defaults_are_those_of_textbrewer_with_an_automatic_device():
    assert TrainingConfig().to_dict() == {
        "gradient_accumulation_steps": 1,
        "normalization": "global",
        "ckpt_frequency": 1,
        "ckpt_epoch_frequency": 1,
        "ckpt_steps": None,
        "keep_last": 2,
        "log_dir": None,
        "trackers": None,
        "device": "auto",
        "precision": "fp32",
        "logging_steps": 10,
        "on_nonfinite": "stop",
        "shard_teacher": False,
        "teacher_cache": None,
        "teacher_cache_dtype": None,
        "teacher_cache_codec": "none",
        "output_dir": "./saved_models",
        "seed": None,
    }


def test_no_folder_is_made(tmp_path):
    TrainingConfig(output_dir=str(tmp_path / "made"), log_dir=str(tmp_path / "log"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_a_device_is_a_word(device):
    assert TrainingConfig(device=device).device == device


def test_a_torch_device_is_read_as_its_name():
    torch = pytest.importorskip("torch")
    assert TrainingConfig(device=torch.device("cuda", 1)).device == "cuda:1"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("device", "gpu", "must be auto, cpu, cuda, cuda:N or mps, got 'gpu'. Did you mean 'cuda'?"),
        ("device", "cudaa", "must be auto, cpu, cuda, cuda:N or mps, got 'cudaa'. Did you mean 'cuda'?"),
        ("device", 0, "must be auto, cpu, cuda, cuda:N or mps, got 0"),
        ("precision", "fp61", "must be 'fp32', 'bf16' or 'fp16', got 'fp61'. Did you mean 'fp16'?"),
        ("gradient_accumulation_steps", 0, "must be >= 1, got 0"),
        ("gradient_accumulation_steps", 2.0, "must be a whole number, got 2.0. Write it: 2"),
        ("gradient_accumulation_steps", "2", "must be a whole number, got '2'. Write it without quotes: 2"),
        ("gradient_accumulation_steps", True, "must be a whole number, got True. A boolean is not a number"),
        ("gradient_accumulation_steps", 2.5, "must be a whole number, got 2.5"),
        ("ckpt_frequency", -1, "must be >= 0, got -1"),
        ("ckpt_steps", 0, "must be >= 1, got 0"),
        ("logging_steps", 0, "must be >= 1, got 0"),
        ("seed", -1, "must be >= 0, got -1"),
        ("output_dir", 5, "must be text, got 5"),
        ("output_dir", "", "must be text that is not empty, got ''"),
        ("fp16", "yes", "must be true or false, got 'yes'. Write true or false, without quotes"),
    ],
)
def test_a_wrong_value_is_refused_in_words(key, value, says):
    with pytest.raises(ConfigError, match=rf"^{key}: {re.escape(says)}$"):
        TrainingConfig(**{key: value})


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({"fp16": True}, "fp16"),
        ({"fp16": False}, "fp32"),
        ({"fp16": False, "precision": "bf16"}, "bf16"),
        ({"fp16": True, "precision": "fp16"}, "fp16"),
    ],
)
def test_fp16_is_a_precision(given, precision):
    assert TrainingConfig(**given).precision == precision
    assert "fp16" not in TrainingConfig(**given).to_dict()


@pytest.mark.parametrize("given", [{"fp16": True, "precision": "bf16"}, {"fp16": False, "precision": "fp16"}])
def test_fp16_that_contradicts_the_precision_is_refused(given):
    says = f"fp16: is {str(given['fp16']).lower()}, but precision is {given['precision']!r}. Leave out fp16"
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        TrainingConfig(**given)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("fp16_opt_level", "belonged to apex and was removed. Write precision: fp16 or precision: bf16"),
        ("data_parallel", "was removed. For several devices, start the script with 'accelerate launch'"),
        (
            "local_rank",
            "was removed. For several devices, start the script with 'accelerate launch', which sets the rank",
        ),
    ],
)
def test_a_key_that_went_with_apex_says_what_to_do_instead(key, says):
    with pytest.raises(UnknownKeyError, match=f"^{key}: {re.escape(says)}$"):
        TrainingConfig(**{key: 1})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trackers": ["tensorboard"]}, "trackers: tensorboard needs a folder for its files. Set log_dir"),
        (
            {"trackers": ["wandb"], "log_dir": "log"},
            "log_dir: is for TensorBoard, which trackers does not list. Add tensorboard to trackers, or leave out log_dir",
        ),
    ],
)
def test_a_log_dir_goes_with_tensorboard(given, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        TrainingConfig(**given)


FOLDERS = ("output_dir", "log_dir", "teacher_cache")


@pytest.mark.parametrize("key", FOLDERS)
def test_a_leading_tilde_is_the_home_folder(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    config = TrainingConfig(**{key: "~/x"})
    assert getattr(config, key) == "/home/someone/x"
    assert TrainingConfig.from_dict(config.to_dict()) == config
    assert getattr(TrainingConfig(**{key: "./~x/y~"}), key) == "./~x/y~"


@pytest.mark.parametrize("key", FOLDERS)
@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("${HOME}/x", "variables are not expanded. Write the full path"),
        ("runs/$USER", "variables are not expanded. Write the full path"),
        ("~nobody-of-this-name/x", "there is no such user. Write the full path, or start with ./"),
    ],
)
def test_a_folder_that_would_be_taken_literally_is_an_error(key, folder, says):
    with pytest.raises(ConfigError) as raised:
        TrainingConfig(**{key: folder})
    assert str(raised.value) == f"{key}: must be a folder, got {folder!r}: {says}"


def test_the_folder_of_a_recipe_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    recipe = Recipe(task="digits", distillation={}, training={"num_steps": 1}, output_dir="~/x")
    assert (recipe.output_dir, recipe.training_config().output_dir) == ("/home/someone/x", "/home/someone/x")
    with pytest.raises(ConfigError, match=r"^output_dir: must be a folder, got '\$\{HOME\}/x': variables"):
        recipe.with_overrides(["output_dir=${HOME}/x"])
