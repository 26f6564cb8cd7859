"""A teacher cache on disk is whole, or it is an error."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdplug.engine.cache_folder import CacheFolder
from kdplug.engine.cache_shard import Column, Shard
from kdplug.errors import RunError


def shard(count=4):
    ragged = Column.join([torch.arange(6.0).view(2, 3), torch.arange(10.0).view(2, 5)])
    return Shard(0, tuple(range(count)), {"0/logits/0": Column(torch.randn(count, 3)), "0/hidden/1": ragged})


@pytest.fixture
def folder(tmp_path):
    made = CacheFolder(tmp_path / "cache")
    made.begin({"count": 4})
    made.write(0, shard())
    return made


def file_of(folder):
    return folder.path / "shard-00000.safetensors"


def test_what_was_written_is_read_bit_by_bit(tmp_path):
    folder, written = CacheFolder(tmp_path / "cache"), shard()
    folder.begin({})
    folder.write(0, written)
    read = folder.read(0, 0)
    assert read.digests == written.digests
    for name, column in written.columns.items():
        assert all(torch.equal(column.row(place), read.columns[name].row(place)) for place in range(4))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path_factory, share, bit):
    folder = CacheFolder(tmp_path_factory.mktemp("flip") / "cache")
    folder.begin({})
    folder.write(0, shard())
    content = bytearray(file_of(folder).read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    file_of(folder).write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged: its checksum.*Delete shard-00000.json"):
        folder.read(0, 0)


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_a_truncated_shard_is_found(folder, kept):
    file_of(folder).write_bytes(file_of(folder).read_bytes()[:kept])
    with pytest.raises(RunError, match=f"has {kept} bytes and had"):
        folder.read(0, 0)


def test_a_shard_that_is_gone_or_has_a_damaged_note_is_found(folder):
    file_of(folder).with_suffix(".json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*shard-00000\.json"):
        folder.read(0, 0)
    file_of(folder).unlink()
    with pytest.raises(RunError, match="cannot read"):
        folder.read(0, 0)


@pytest.mark.parametrize(("content", "words"), [("{", "cannot read"), ('{"format": 9}', "of format 1")])
def test_a_damaged_or_foreign_manifest_is_an_error(folder, content, words):
    (folder.path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=words):
        folder.manifest()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(RunError, match=r"holds 'thesis\.tex' and no manifest\.json"):
        CacheFolder(tmp_path).begin({})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_shard_counts_once_its_note_is_there(folder):
    assert folder.has(0)
    file_of(folder).with_suffix(".json").unlink()
    assert not folder.has(0)


FULL = """
import resource, sys, torch
from pathlib import Path
from kdplug.engine.cache_folder import CacheFolder
from kdplug.engine.cache_shard import Column, Shard
folder = CacheFolder(Path(sys.argv[1]))
small, large = (Shard(0, (0,), {"0/logits/0": Column(torch.ones(1, n))}) for n in (10, 100_000))
folder.begin({})
folder.write(0, small)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    folder.write(1, large)
except Exception as error:
    print(type(error).__name__, error)
print(folder.has(0), folder.has(1), folder.read(0, 0).digests, sorted(file.name for file in folder.path.iterdir()))
"""


def test_a_disk_that_is_full_is_an_error_and_leaves_no_half_shard(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "c")], check=True, capture_output=True, text=True)
    said, left = done.stdout.splitlines()
    assert said.startswith("RunError cannot write the teacher cache")
    assert left == "True False (0,) ['manifest.json', 'shard-00000.json', 'shard-00000.safetensors']"
