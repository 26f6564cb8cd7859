"""A third-party plugin from its source to a run: built, installed, found, named in a config and in a recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "examples" / "kdplug-myloss"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's wheel, built from a copy of its source without network."""
    folder = tmp_path_factory.mktemp("build")
    source = shutil.copytree(SOURCE, folder / SOURCE.name, ignore=shutil.ignore_patterns("dist", "__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed plugin and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def prints(site: Path, code: str, **environment: str) -> str:
    return run("-W", "error", "-c", dedent(code), cwd=site, PYTHONPATH=str(site), **environment).strip()


def test_the_wheel_holds_one_module_and_its_entry_point(site: Path) -> None:
    info = site / "kdplug_myloss-0.1.0.dist-info"
    assert sorted(path.name for path in site.iterdir() if path.name not in ("bin", "__pycache__")) == [
        info.name,
        "kdplug_myloss.py",
    ]
    assert (info / "entry_points.txt").read_text().strip() == (
        "[kdplug.losses]\nconfident_kl = kdplug_myloss:confident_kl"
    )


def test_the_plugin_does_not_import_kdplug() -> None:
    assert "import kdplug" not in (SOURCE / "kdplug_myloss.py").read_text()


def test_installing_it_is_all_it_takes_to_find_it_and_nothing_is_imported(site: Path) -> None:
    code = """
        import sys, kdplug
        entry = kdplug.losses.entry("confident_kl")
        print(entry.qualified, entry.owner, entry.origin, {"kdplug_myloss", "torch"} & set(sys.modules))
    """
    assert prints(site, code) == "kdplug-myloss:confident_kl kdplug-myloss 0.1.0 metadata set()"


def test_it_is_left_out_when_the_switch_says_so(site: Path) -> None:
    code = "import kdplug; print('confident_kl' in kdplug.losses)"
    assert prints(site, code, KDPLUG_PLUGINS="-kdplug-myloss") == "False"
    assert prints(site, code, KDPLUG_PLUGINS="") == "False"
    assert prints(site, code, KDPLUG_PLUGINS="kdplug-myloss") == "True"


def test_a_config_names_it_and_the_objective_computes_it(site: Path) -> None:
    code = """
        import torch, kdplug
        config = kdplug.DistillationConfig(temperature=2, kd_loss_type=["confident_kl", 0])
        student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
        report = kdplug.Objective(config)(student={"logits": student}, teacher={"logits": teacher})
        report.total.backward()
        log_student, log_teacher = (torch.log_softmax(logits / 2, -1) for logits in (student, teacher))
        expected = 4 * torch.nn.functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        torch.testing.assert_close(report.total, expected)
        print(config.resolved().to_dict()["terms"][0]["loss"], bool(student.grad.abs().sum() > 0))
    """
    assert prints(site, code) == "{'name': 'kdplug-myloss:confident_kl', 'power': 0.0} True"


def test_its_bounds_are_held_to_with_the_path_of_the_field(site: Path) -> None:
    code = """
        import kdplug
        try:
            kdplug.Objective(kdplug.DistillationConfig(kd_loss_type={"name": "confident_kl", "power": 9}))
        except kdplug.SettingError as error:
            print(error)
    """
    assert prints(site, code) == "kd_loss_type.power: must be <= 8, got 9"


def test_padding_an_empty_mask_and_ruled_out_classes_stay_finite(site: Path) -> None:
    code = """
        import torch, kdplug
        loss = kdplug.losses["confident_kl"]
        student = torch.randn(2, 3, 4, requires_grad=True)
        teacher = torch.randn(2, 3, 4)
        teacher[0, 0, 1], teacher[1, 2] = -torch.inf, torch.nan
        for mask in (torch.tensor([[1, 1, 0], [1, 0, 0]]).bool(), torch.zeros(2, 3).bool()):
            value = loss(student, teacher, torch.full((2, 3), 2.0), mask)
            (gradient,) = torch.autograd.grad(value, student)
            print(bool(value.isfinite() & gradient.isfinite().all() & (gradient[~mask] == 0).all()), float(value.detach()) > 0)
    """
    assert prints(site, code) == "True True\nTrue False"


def test_a_recipe_that_names_it_runs(site: Path, tmp_path: Path) -> None:
    changes = [
        "distillation.kd_loss_type={name: confident_kl, power: 2}",
        "training.num_epochs=1",
        "task.labels_per_class=4",
    ]
    settings = [word for change in changes for word in ("--set", change)]
    recipe = ROOT / "examples" / "digits.yaml"
    command = "import sys; from kdplug.cli.app import main; sys.exit(main())"
    shown = run(
        "-c", command, "run", recipe, "--output-dir", tmp_path / "run", *settings, cwd=site, PYTHONPATH=str(site)
    )
    assert "kdplug-myloss 0.1.0" in shown
    record = json.loads((tmp_path / "run" / "kdplug-run.json").read_text())
    assert "kdplug-myloss" in [plugin["dist"] for plugin in record["plugins"]]
    assert "kdplug-myloss:confident_kl" in json.dumps(record)
    assert (tmp_path / "run" / "student.safetensors").is_file()
