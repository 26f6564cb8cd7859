"""What a person sees."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from kdplug.engine.observe.progress import display


def shown(total, *, terminal, visible=True, losses=None, start=1, end=None, after_step=lambda: None):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, _environ={"TERM": "xterm"})
    with display(total, shown=visible, console=console) as view:
        for step in range(start, (end or total) + 1):
            if losses:
                view.losses(losses, step)
            view.step(step)
            after_step()
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


def test_a_run_that_goes_on_counts_its_own_steps_alone(clock):
    lines = shown(1000, terminal=False, start=991, after_step=lambda: clock.wait(1)).splitlines()
    assert lines[-1].startswith("step 1000/1000  1.11 steps/s  00:00:00 left")


def test_a_bar_of_a_run_that_goes_on_counts_its_own_steps_alone(clock):
    assert "0.5 steps/s" in shown(1000, terminal=True, start=1000, after_step=lambda: clock.wait(2))


def test_days_that_are_left_are_counted_in_hours(clock):
    text = shown(40, terminal=False, end=1, after_step=lambda: clock.wait(10_000))
    assert "step 1/40  0.0001 steps/s  108:20:00 left" in text


def test_a_slow_run_shows_its_steps_at_least_every_ten_seconds(clock):
    lines = shown(1000, terminal=False, end=30, after_step=lambda: clock.wait(4)).splitlines()
    assert [line.split("/")[0] for line in lines] == [f"step {step}" for step in range(3, 31, 3)]
    assert all("left" in line for line in lines)


def test_a_step_that_takes_minutes_is_reported_while_it_runs(clock):
    lines = shown(1000, terminal=False, end=2, after_step=lambda: [clock.wait(9.5) for _ in range(3)]).splitlines()
    assert lines[:3] == [
        "step 1/1000  0.105 steps/s  02:38:10 left",
        "step 2/1000 is running  00:00:19 elapsed",
        "step 2/1000 is running  00:00:28 elapsed",
    ]


def test_the_first_step_and_the_end_are_reported_too(clock):
    stream = io.StringIO()
    with display(1, shown=True, console=Console(file=stream)) as view:
        clock.wait(11)
        view.step(1)
        clock.wait(11)
    first, step, end = stream.getvalue().splitlines()
    assert first == "the first step is running  00:00:11 elapsed"
    assert step.startswith("step 1/1 ")
    assert end == "finishing  00:00:22 elapsed"


def test_a_bar_is_drawn_during_a_long_step(clock):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=200, _environ={"TERM": "xterm"})
    with display(10, shown=True, console=console) as view:
        view.step(1)
        length = len(stream.getvalue())
        clock.wait(1.5)
        assert len(stream.getvalue()) > length


def test_losses_are_printed_once_and_with_their_step_if_it_is_an_earlier_one():
    stream = io.StringIO()
    with display(50, shown=True, console=Console(file=stream)) as view:
        for step in range(1, 20):
            if step == 5:
                view.losses({"total_loss": 3.0}, step)
            if step == 8:
                view.losses({"total_loss": 2.0, "eval/score": 1.0}, step)
            if step == 9:
                view.losses({"total_loss": 1.0}, step)
            view.step(step)
    at_5, at_10, at_15, last = (line.split("left")[1].strip() for line in stream.getvalue().splitlines())
    assert at_5 == "total_loss 3"
    assert at_10 == "total_loss 1 (step 9)  eval/score 1 (step 8)"
    assert (at_15, last) == ("", "")
