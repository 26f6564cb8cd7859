"""``install()`` and ``python -m kdplug.integrations.textbrewer``."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdplug.integrations.textbrewer as dropin
from kdplug.integrations.textbrewer.__main__ import main

SCRIPT = """
import sys
import textbrewer
from textbrewer import GeneralDistiller
from textbrewer.distiller_utils import *
from neighbour import NUMBER

result, _ = textbrewer.utils.display_parameters(torch.nn.Linear(2, 3))
print(textbrewer.__name__, GeneralDistiller.__module__, logger.name, NUMBER, sys.argv[1:], __name__)
"""
STAR_NAMES = [
    "Optional",
    "Dict",
    "Union",
    "OrderedDict",
    "abc",
    "torch",
    "nn",
    "np",
    "os",
    "random",
    "json",
    "logging",
    "tqdm",
    "logger",
    "FEATURES",
    "ADAPTOR_KEYS",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "WEIGHT_SCHEDULER",
    "TEMPERATURE_SCHEDULER",
    "register_new",
    "cycle",
    "TrainingConfig",
    "DistillationConfig",
    "CustomMatch",
    "DistillationContext",
    "AbstractDistiller",
    "BasicAdaptor",
    "get_outputs_from_batch",
    "auto_forward",
    "move_to_device",
    "post_adaptor",
    "select_logits_with_mask",
    "probability_shift_",
    "no_op",
    "mask_dtype",
    "kd_ce_loss",
    "hid_mse_loss",
    "mmd_loss",
]


@pytest.fixture
def installed() -> Iterator[None]:
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "textbrewer"}
    dropin.install()
    yield
    dropin.uninstall()
    assert before == {name: module for name, module in sys.modules.items() if name.split(".")[0] == "textbrewer"}


@pytest.mark.usefixtures("installed")
def test_import_textbrewer_means_the_dropin_and_every_submodule_resolves() -> None:
    assert importlib.import_module("textbrewer") is dropin
    for name in (
        "configurations",
        "data_utils",
        "distiller_basic",
        "losses",
        "presets",
        "projections",
        "schedulers",
        "utils",
    ):
        assert importlib.import_module(f"textbrewer.{name}") is getattr(dropin, name)


@pytest.mark.usefixtures("installed")
def test_installing_twice_changes_nothing_and_is_taken_back_once() -> None:
    dropin.install()
    assert sys.modules["textbrewer"] is dropin


def test_uninstalling_what_is_not_installed_changes_nothing() -> None:
    before = dict(sys.modules)
    dropin.uninstall()
    assert dict(sys.modules) == before


def test_the_star_of_distiller_utils_gives_what_distillers_of_ones_own_use() -> None:
    assert set(STAR_NAMES) <= set(dropin.distiller_utils.__all__)
    assert all(hasattr(dropin.distiller_utils, name) for name in dropin.distiller_utils.__all__)


def test_a_script_runs_unedited_with_its_folder_and_arguments(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("NUMBER = 5\n")
    command = [sys.executable, "-m", "kdplug.integrations.textbrewer", str(tmp_path / "script.py"), "--lr", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == [dropin.__name__, dropin.GeneralDistiller.__module__, "Distillation", "5"]
    assert done.stdout.rstrip().endswith("['--lr', '1'] __main__")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_command_shows_its_usage(option, capsys):
    main([option])
    assert capsys.readouterr().out.startswith("usage: python -m kdplug.integrations.textbrewer script.py [argument…]\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: "),
        (["--lr", "1"], "unknown option '--lr'\nusage: "),
        (["none.py"], "error: there is no file 'none.py'\nusage: "),
    ],
)
def test_the_command_rejects_what_is_no_script(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"^{message}python -m kdplug"):
        main(arguments)
