"""Reports of what takes long."""

from __future__ import annotations

import gc
import io
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from kdplug.engine.observe.activity import PULSE, busy, counted


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "kdplug-progress"]


def test_a_long_block_reports_its_time_every_ten_seconds(clock, capfd):
    with busy("Hashing the data", shown=True):
        for _ in range(70):
            clock.wait(0.5)
    assert capfd.readouterr().err.splitlines() == [f"Hashing the data: {seconds} s" for seconds in (9, 18, 27)]


def test_items_are_reported_with_the_time_left(clock, capfd):
    with busy("Running", shown=True):
        for _ in counted(range(40), "Evaluating", total=40):
            clock.wait(5)
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == ["Evaluating: 1/40 batches, 00:06:30 left", "Evaluating: 3/40 batches, 00:04:06 left"]
    assert len(lines) == 20


def test_without_a_total_the_items_are_counted(clock, capfd):
    with busy("Caching", unit="examples", shown=True) as activity:
        activity.add(7)
        clock.wait(9)
    assert capfd.readouterr().err == "Caching: 7 examples\n"


def test_what_is_quick_reports_nothing(capfd):
    with busy("Running", shown=True):
        assert list(counted(range(40), "Evaluating")) == list(range(40))
    assert capfd.readouterr().err == ""


def test_silence_is_counted_across_short_blocks(clock, capfd):
    with busy("Running", shown=True):
        for place in range(4):
            with busy(f"Part {place}"):
                clock.wait(4)
    assert capfd.readouterr().err == "Part 2: 4 s\n"


@pytest.mark.parametrize(("rank", "shown"), [("0", False), ("1", True)])
def test_what_is_not_shown_starts_no_thread_and_neither_does_what_is_inside(monkeypatch, clock, capfd, rank, shown):
    monkeypatch.setenv("RANK", rank)
    with busy("Running", shown=shown), busy("Inside"):
        clock.wait(100)
        assert not threads()
    assert capfd.readouterr().err == ""


def test_the_thread_ends_with_the_last_block_and_with_an_exception():
    with suppress(KeyError), busy("Running", shown=True), busy("Inside"):
        assert len(threads()) == 1
        raise KeyError
    assert not threads()
    assert not PULSE.is_running


def test_an_abandoned_iterator_is_forgotten():
    with busy("Running", shown=True):
        items = counted(range(3), "Evaluating")
        next(items)
        assert len(PULSE._activities) == 2
        del items
        gc.collect()
        assert len(PULSE._activities) == 1


def test_an_abandoned_iterator_may_end_last(clock, capfd):
    with busy("Running", shown=True):
        items = counted(range(3), "Evaluating")
        next(items)
    assert threads()
    items.close()
    assert not threads()


def test_a_closed_stream_ends_the_thread_without_an_error(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(PULSE, "silence", 0.01)
    with busy("Running", shown=True):
        (thread,) = threads()
        thread.join(10)
        assert not thread.is_alive()


_FORKING = """
import os, threading
os.register_at_fork(before=lambda: print(threading.active_count(), flush=True))  # called after the hooks registered later
from kdplug.engine.observe.activity import PULSE, busy
with busy("Running", shown=True):
    child = os.fork()
    if not child:
        os._exit(3 if PULSE.is_running or threading.active_count() > 1 else 0)
    print(os.waitpid(child, 0)[1], threading.active_count())
"""


def test_the_thread_ends_before_a_fork_and_starts_again_in_the_parent_alone():
    done = subprocess.run([sys.executable, "-c", _FORKING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "0", "2"]


class Counted(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, place):
        return torch.tensor(place + 1000 * PULSE.is_running)


def test_workers_of_a_loader_are_no_activity_and_end(monkeypatch, capfd):
    monkeypatch.setattr(PULSE, "silence", 0.001)
    with busy("Running", shown=True):
        for _ in range(4):
            assert torch.cat(list(DataLoader(Counted(), 8, num_workers=2))).tolist() == list(range(64))
    assert "Running: 0 s" in capfd.readouterr().err


_ENDLESS = """
import sys, time
from kdplug.engine.observe.activity import PULSE, busy
PULSE.silence = 0.01
with busy("Running", shown=True):
    if sys.argv[1] == "raise":
        time.sleep(0.3)
        raise KeyError("ended")
    time.sleep(600)
"""


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, "raise"])
def test_a_process_that_is_killed_ends_at_once(way):
    child = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(way)], stderr=subprocess.PIPE, text=True)
    assert child.stderr.readline().startswith("Running: ")
    if way != "raise":
        child.send_signal(way)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == (1 if way == "raise" else -way)
    assert "Fatal" not in errors


def test_a_reader_that_goes_away_ends_no_process():
    code = _ENDLESS.replace("time.sleep(600)", "time.sleep(0.5)")
    child = subprocess.Popen([sys.executable, "-c", code, "sleep"], stderr=subprocess.PIPE, text=True)
    child.stderr.readline()
    child.stderr.close()
    assert child.wait(20) in (0, 120)  # 120: the interpreter could not flush the stream


def test_the_thread_wakes_rarely():
    wakes = []
    check = PULSE.check
    with pytest.MonkeyPatch.context() as patch, busy("Running", shown=True):
        patch.setattr(PULSE, "check", lambda: wakes.append(1) or check())
        time.sleep(0.5)
    assert len(wakes) <= 1
