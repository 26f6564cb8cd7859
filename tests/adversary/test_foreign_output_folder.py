"""An output folder with links and files of others in it, or with two runs at once."""

from __future__ import annotations

import pytest
import torch
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.errors import RunError


def train(folder, callback=None):
    student = make_student()
    training = {"ckpt_steps": 1, "keep_last": 1}
    distiller = make_distiller(folder, student, training=training)
    return distiller.train(sgd(student), make_batches(4), num_steps=4, callback=callback)


@pytest.mark.attack("links and files in the place of checkpoint folders")
@pytest.mark.parametrize("name", ["step-1", ".step-2.tmp", ".step-9.old"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_they_are_replaced_and_what_they_point_to_stays(tmp_path, name, kind):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "precious").write_text("kept", encoding="utf-8")
    if kind == "file":
        (folder / name).write_text("a file", encoding="utf-8")
    else:
        (folder / name).symlink_to(elsewhere)
    assert train(folder).step == 4
    assert (elsewhere / "precious").read_text(encoding="utf-8") == "kept"


@pytest.mark.attack("an output folder that cannot be made")
def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(RunError, match="output_dir: cannot write to"):
        train(tmp_path / "out")


@pytest.mark.attack("two runs in one output folder at once")
def test_the_first_one_does_not_overwrite_the_second(tmp_path):
    other = []

    def start_another(model, step):
        if not other:
            torch.manual_seed(1)
            other.append(None)
            other[0] = train(tmp_path).checkpoints[-1]

    with pytest.raises(RunError, match="another run has started in"):
        train(tmp_path, start_another)
    assert other[0].is_file()
