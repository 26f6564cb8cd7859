"""What a person sees."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from kdplug.engine.observe.progress import display, heartbeat


def shown(total, *, terminal, visible=True, losses=None, start=1, end=None):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, _environ={"TERM": "xterm"})
    with display(total, shown=visible, console=console) as view:
        for step in range(start, (end or total) + 1):
            if losses:
                view.losses(losses)
            view.step(step)
    return stream.getvalue()


def test_plain_lines_come_ten_to_a_run():
    lines = shown(1000, terminal=False).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 100/1000")
    assert lines[-1].startswith("step 1000/1000")


@pytest.mark.parametrize("total", [1, 9, 10, 11, 19, 38, 41, 999])
def test_there_are_never_more_than_ten_lines_and_never_fewer_than_the_steps_allow(total):
    assert len(shown(total, terminal=False).splitlines()) == min(total, 10)


@pytest.mark.parametrize("total", [1, 7, 21])
def test_the_last_step_has_a_line(total):
    assert shown(total, terminal=False).splitlines()[-1].startswith(f"step {total}/{total}")


@pytest.mark.parametrize(("end", "steps"), [(9, ["9"]), (34, ["10", "20", "30", "34"]), (40, ["10", "20", "30", "40"])])
def test_a_run_that_ends_early_shows_its_last_step_once(end, steps):
    lines = shown(100, terminal=False, end=end).splitlines()
    assert [re.match(r"step (\d+)/100", line)[1] for line in lines] == steps


def test_a_run_without_a_step_shows_nothing():
    assert shown(100, terminal=False, end=-1) == ""


def test_a_line_carries_the_last_losses_by_their_terms():
    line = shown(1, terminal=False, losses={"total_loss": 1.23456, "unweighted_kd_loss": 0.5})
    assert line.rstrip().endswith("total_loss 1.235  kd_loss 0.5")


def test_a_line_holds_no_control_characters():
    assert "\x1b" not in shown(20, terminal=False)


def test_a_terminal_gets_a_bar_that_ends_where_the_run_does():
    text = shown(400, terminal=True, losses={"total_loss": 2.0}, end=300)
    assert "300/400" in text
    assert "total_loss 2" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_where_nothing_is_wanted(terminal):
    assert shown(5, terminal=terminal, visible=False, losses={"total_loss": 1.0}) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_the_rate_and_the_time_left_are_shown(terminal):
    text = shown(400, terminal=terminal, losses={"total_loss": 2.0})
    assert re.search(r"\d steps/s", text)
    assert re.search(r"\d:\d\d:\d\d", text)


def test_a_run_that_goes_on_counts_its_own_steps_alone(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert "step 1000/1000  1 steps/s  00:00:00 left" in shown(1000, terminal=False, start=1000)


def test_a_bar_of_a_run_that_goes_on_counts_its_own_steps_alone(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert "0.5 steps/s" in shown(1000, terminal=True, start=1000)


def test_days_that_are_left_are_counted_in_hours(monkeypatch):
    clock = iter([0.0, 100_000.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert "step 1/4  1e-05 steps/s  83:20:00 left" in shown(4, terminal=False, end=1)


def test_a_slow_run_shows_a_line_at_least_every_ten_seconds(monkeypatch):
    clock = iter(range(0, 100_000, 4))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    lines = shown(1000, terminal=False, end=30).splitlines()
    assert len(lines) >= 5
    assert all("left" in line for line in lines)


def test_a_slow_evaluation_or_cache_reports_every_ten_seconds_with_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    said = []
    for _ in heartbeat(range(40), "Evaluating", said.append, total=40):
        now[0] += 5
    assert said[0] == "Evaluating: 2/40 batches, 00:03:10 left"
    assert len(said) == 20


def test_a_quick_one_says_nothing():
    said = []
    assert list(heartbeat(range(40), "Evaluating", said.append, total=None)) == list(range(40))
    assert not said
