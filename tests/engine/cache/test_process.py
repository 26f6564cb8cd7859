"""A teacher cache among several processes."""

from __future__ import annotations

import json

import torch
from two_processes import run_in_two_processes

SCRIPT = """
import sys
import torch
from pathlib import Path
from kdplug.engine.cache import layout
from cache_scene import Rowwise, loader, run

layout.SHARD_BATCHES = 1
folder, rank = Path(sys.argv[1]), int(__import__("os").environ["RANK"])
calls, ends = [], []
for name, options in (("plain", None), ("memory", {}), ("disk", {"teacher_cache": str(folder / "cache")}), ("again", {"teacher_cache": str(folder / "cache")})):
    teacher = Rowwise()
    ends.append(run(folder / name, teacher, loader(24), caching=options is not None, training=options or {}))
    calls.append(teacher.calls)
torch.save((calls, ends), folder / f"{rank}.pt")
"""


def test_two_processes_share_the_work_on_disk_and_learn_the_same(tmp_path):
    run_in_two_processes(tmp_path, SCRIPT)
    for rank in (0, 1):
        calls, ends = torch.load(tmp_path / f"{rank}.pt")
        assert calls == [9, 6, 3, 0]
        assert all(torch.equal(ends[0], end) for end in ends[1:])
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 6
    assert json.loads((tmp_path / "cache" / "manifest.json").read_text())["extent"]["count"] == 24
