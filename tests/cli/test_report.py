"""``kdplug report``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from report_scene import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", tests=40, steps=60)


def test_the_page_of_a_run_is_written_again(run, kdplug):
    result = kdplug("report", run)
    assert result.exit_code == 0
    assert result.stdout == f"Written: {run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_another_file_may_be_named(run, kdplug, tmp_path):
    assert kdplug("report", run, "--out", tmp_path / "deep" / "page.html").exit_code == 0
    assert (tmp_path / "deep" / "page.html").is_file()
    assert not (run / "report.html").exists()


def test_several_runs_make_one_page_in_a_named_file(run, kdplug, tmp_path):
    other = write_run(tmp_path / "other", outcome="LOSES", tests=40, steps=60)
    assert kdplug("report", run, other, "--out", tmp_path / "both.html").exit_code == 0
    assert "2 runs compared" in (tmp_path / "both.html").read_text(encoding="utf-8")
    without = kdplug("report", run, other)
    assert without.exit_code == 2
    assert "--out: is required to compare 2 runs" in without.stderr


def test_a_folder_as_out_is_an_error(run, kdplug, tmp_path):
    result = kdplug("report", run, "--out", tmp_path)
    assert result.exit_code == 2
    assert "is a folder. Name a file" in result.stderr


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_run_is_an_error_without_a_traceback(name, kdplug, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    result = kdplug("report", tmp_path / name)
    assert result.exit_code == 2
    assert "is not the folder of a completed run" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_page_needs_neither_torch_nor_matplotlib(run):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from kdplug.report.page.write import write_report\n"
        "print(write_report(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
