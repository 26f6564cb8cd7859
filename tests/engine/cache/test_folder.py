"""A teacher cache on disk is whole, or it is an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdplug.engine.cache import folder as cache_folder
from kdplug.engine.cache.coding import CodedHead
from kdplug.engine.cache.folder import CacheFolder, Manifest, _sealed
from kdplug.engine.cache.layout import Layout, ShardPlan
from kdplug.engine.cache.shard import Column, Shard
from kdplug.errors import RunError

MANIFEST = Manifest(
    ShardPlan(4, 4, 1), {"weights": {"teacher": {}}, "temperature": 2.5}, Layout((), {}, {}), shared=False
)


def shard(count=4):
    ragged = Column.join([torch.arange(6.0).view(2, 3), torch.arange(10.0).view(2, 5)])
    return Shard(0, tuple(range(count)), {"0/logits/0": Column(torch.randn(count, 3)), "0/hidden/1": ragged})


@pytest.fixture
def folder(tmp_path):
    made = CacheFolder(tmp_path / "cache")
    made.begin(MANIFEST)
    made.write(0, shard())
    return made


def file_of(folder):
    return folder.path / "shard-00000.safetensors"


def test_what_was_written_is_read_bit_by_bit(tmp_path):
    folder, written = CacheFolder(tmp_path / "cache"), shard()
    folder.begin(MANIFEST)
    folder.write(0, written)
    read = folder.read(0, 0)
    assert read.digests == written.digests
    for name, column in written.columns.items():
        assert all(torch.equal(column.row(place), read.columns[name].row(place)) for place in range(4))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path_factory, share, bit):
    folder = CacheFolder(tmp_path_factory.mktemp("flip") / "cache")
    folder.begin(MANIFEST)
    folder.write(0, shard())
    content = bytearray(file_of(folder).read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    file_of(folder).write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged: its checksum.*Delete shard-00000.json"):
        folder.read(0, 0)


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_a_truncated_shard_is_found(folder, kept):
    file_of(folder).write_bytes(file_of(folder).read_bytes()[:kept])
    with pytest.raises(RunError, match=f"has {kept} bytes, but"):
        folder.read(0, 0)


def note_of(folder):
    return file_of(folder).with_suffix(".json")


def manifest_of(folder):
    return folder.path / "manifest.json"


def test_a_shard_that_is_gone_or_has_a_damaged_note_is_found(folder):
    intact = note_of(folder).read_bytes()
    note_of(folder).write_text("{")
    with pytest.raises(RunError, match=r"shard-00000\.json has no digest.*Delete shard-00000\.json to run the teacher"):
        folder.read(0, 0)
    note_of(folder).write_bytes(intact)
    file_of(folder).unlink()
    with pytest.raises(
        RunError, match=r"cannot read .*shard-00000\.safetensors: No such file.*Delete shard-00000\.json"
    ):
        folder.read(0, 0)


def test_a_manifest_survives_its_file(folder):
    layout = Layout.of([{"hidden": 3}], {"0/hidden/1": torch.ones(2, 4, 8)}, torch.ones(2, 4).long())
    layout = replace(layout, heads={"0/logits/0": CodedHead(3, masked=True, parts={"ids": False, "drawn": True})})
    other, written = CacheFolder(folder.path.with_name("other")), replace(MANIFEST, layout=layout, shared=True)
    other.begin(written)
    assert other.manifest() == written


@pytest.mark.parametrize(("old", "new"), [("2.5", "2.4"), ('"batch": 4', '"batch": 2'), ("\n", "\n\n"), ("}", "} ")])
def test_an_edited_manifest_is_an_error(folder, old, new):
    content = manifest_of(folder).read_text()
    assert old in content
    manifest_of(folder).write_text(content.replace(old, new, 1))
    with pytest.raises(RunError, match=r"manifest\.json was damaged or edited.*Restore manifest\.json, or delete"):
        folder.manifest()


def test_a_manifest_without_a_digest_is_an_error(folder):
    manifest_of(folder).write_text('{"format": 1}')
    with pytest.raises(RunError, match=r"has no digest: .*another version of kdplug wrote it"):
        folder.manifest()


FORGED = {
    "another format": ({"format": 9}, "has cache format 9"),
    "no examples": ({"extent": {"count": 0, "batch": 1, "batches": 1}}, "extent: .*counts must be positive"),
    "a text for a number": ({"extent": {"count": "4", "batch": 1, "batches": 1}}, r"extent\.count: .*valid integer"),
    "no dtype": ({"layout": {"counts": [], "dtypes": {"0/logits/0": "save"}, "lengths": {}}}, "'save' is not a dtype"),
    "a list for all": ({"layout": []}, "layout: "),
}


@pytest.mark.parametrize(("change", "words"), FORGED.values(), ids=FORGED)
def test_a_manifest_that_kdplug_would_not_write_is_an_error(folder, change, words):
    data = json.loads(manifest_of(folder).read_text())
    del data["digest"]
    manifest_of(folder).write_bytes(_sealed(data | change))
    with pytest.raises(RunError, match=words):
        folder.manifest()


def test_the_shard_of_another_cache_is_an_error_with_its_note_and_without(folder):
    other = CacheFolder(folder.path.with_name("other"))
    other.begin(replace(MANIFEST, fingerprint={"weights": "others"}))
    other.write(0, shard())
    shutil.copy(file_of(other), file_of(folder))
    with pytest.raises(RunError, match=r"shard-00000\.safetensors is damaged|bytes, but \d+ were written"):
        folder.read(0, 0)
    shutil.copy(note_of(other), note_of(folder))
    with pytest.raises(
        RunError, match=r"shard-00000\.json belongs to a different cache from the manifest\.json next to it"
    ):
        folder.read(0, 0)


def test_a_note_that_was_renamed_is_an_error(folder):
    for file in (file_of(folder), note_of(folder)):
        shutil.copy(file, str(file).replace("00000", "00001"))
    with pytest.raises(RunError, match=r"shard-00001\.json is a copy of the record of shard-00000"):
        folder.read(1, 4)


def with_note(folder, content):
    """A shard of this content, with a note that fits it."""
    file_of(folder).write_bytes(content)
    data = json.loads(note_of(folder).read_text())
    del data["digest"]
    note_of(folder).write_bytes(_sealed(data | {"bytes": len(content), "crc32": zlib.crc32(content)}))


@pytest.mark.parametrize("length", [0, 2**27, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_header_of_a_forged_length_is_an_error(folder, length):
    with_note(folder, length.to_bytes(8, "little") + file_of(folder).read_bytes()[8:])
    with pytest.raises(RunError, match=r"cannot read .*shard-00000\.safetensors"):
        folder.read(0, 0)


def test_a_shard_of_another_cache_is_an_error_whatever_its_note_says(folder):
    other = CacheFolder(folder.path.with_name("other"))
    other.begin(replace(MANIFEST, fingerprint={"weights": "others"}))
    other.write(0, shard())
    with_note(folder, file_of(other).read_bytes())
    with pytest.raises(RunError, match=r"shard-00000\.safetensors belongs to a different cache"):
        folder.read(0, 0)


def test_tensors_larger_than_the_file_are_an_error(folder):
    content = file_of(folder).read_bytes()
    assert b"[4,3]" in content
    with_note(folder, content.replace(b"[4,3]", b"[4,9]"))
    with pytest.raises(RunError, match=r"cannot read .*shard-00000\.safetensors"):
        folder.read(0, 0)


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.json"])
def test_a_huge_json_file_is_not_read(folder, name):
    os.truncate(folder.path / name, 1 << 33)
    with pytest.raises(RunError, match=f"{name} was not written by kdplug: it has 8,589,934,592 bytes"):
        _ = folder.manifest() and folder.read(0, 0)


def test_files_that_belong_to_no_cache_are_not_read(folder):
    for name in ("notes.txt", "shard-00009.json", "shard-00009.safetensors", "shard-x.json"):
        (folder.path / name).write_text("words")
    assert folder.manifest() == MANIFEST
    assert folder.written(1) == [0]
    assert folder.read(0, 0).digests == (0, 1, 2, 3)


def test_a_shard_that_is_replaced_while_it_is_read_is_an_error(folder, monkeypatch):
    checksum, content = cache_folder._checksum, file_of(folder).read_bytes()

    def replaced_after(file):
        found = checksum(file)
        file.unlink()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return found

    monkeypatch.setattr(cache_folder, "_checksum", replaced_after)
    with pytest.raises(RunError, match=r"shard-00000\.safetensors was replaced while it was read"):
        folder.read(0, 0)


def test_a_shard_that_is_written_to_while_it_is_used_is_an_error(folder):
    source = folder.read(0, 0).source
    source.check()
    content = file_of(folder).read_bytes()
    file_of(folder).unlink()
    source.check()  # still mapped
    file_of(folder).write_bytes(content)
    source = folder.read(0, 0).source
    with file_of(folder).open("r+b") as stream:
        stream.write(content[:9])
    os.utime(file_of(folder), ns=(0, source.modified + 1))
    with pytest.raises(RunError, match=r"shard-00000\.safetensors was changed while this run was reading it"):
        source.check()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(RunError, match="is not a writable folder"):
        CacheFolder(tmp_path / "cache").check_free()


def test_a_cache_that_another_process_began_meanwhile_is_left_alone(folder):
    before = manifest_of(folder).read_bytes()
    with pytest.raises(RunError, match=r"manifest\.json that is not a file, or did not exist when this run started"):
        CacheFolder(folder.path).begin(replace(MANIFEST, fingerprint={}))
    assert manifest_of(folder).read_bytes() == before


def test_nothing_is_written_through_a_link_that_lies_in_the_folder(folder, tmp_path):
    (tmp_path / "mine").write_text("words")
    (folder.path / ".shard-00001.safetensors.tmp").symlink_to(tmp_path / "mine")
    folder.write(1, shard())
    assert (tmp_path / "mine").read_text() == "words"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(RunError, match=r"holds 'thesis\.tex' and no manifest\.json"):
        CacheFolder(tmp_path).begin(MANIFEST)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_shard_counts_once_its_note_is_there(folder):
    assert folder.has(0)
    file_of(folder).with_suffix(".json").unlink()
    assert not folder.has(0)


FULL = """
import resource, sys, torch
from pathlib import Path
from kdplug.engine.cache.layout import ShardPlan
from kdplug.engine.cache.folder import CacheFolder, Manifest
from kdplug.engine.cache.layout import Layout
from kdplug.engine.cache.shard import Column, Shard
folder = CacheFolder(Path(sys.argv[1]))
small, large = (Shard(0, (0,), {"0/logits/0": Column(torch.ones(1, n))}) for n in (10, 100_000))
folder.begin(Manifest(ShardPlan(2, 1, 1), {}, Layout((), {}, {}), shared=False))
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
