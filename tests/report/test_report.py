"""Tables, curves and records."""

from __future__ import annotations

import json

import pytest
from report_scene import write_run
from rich.console import Console

from kdplug import DistillationConfig
from kdplug.objective.objective import Objective
from kdplug.report.curve import draw_run_curves, short_name
from kdplug.report.file import replacing, write_json
from kdplug.report.record import config_hash
from kdplug.report.table import Line, comparison, duration, temperature_line, terms_table

MATCH = {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "proj": "linear"}


def _printed(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.00456, "4.56 ms"), (1.23e-5, "12.3 µs"), (4e-9, "0.004 µs")]
)
def test_a_duration_is_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_a_comparison_has_a_row_for_each_model():
    lines = [Line("teacher", 0.98765, 12345, 1e-3, 49_380, 1e6), Line("student", 0.5, 10, 1e-6, 40, 2.5)]
    text = _printed(comparison("f1", "tokens", lines))
    assert "0.9877 │     12,345 │             1 ms" in text
    assert "49.4 kB │ 1,000,000" in text
    assert "f1" in text
    assert "tokens/s" in text


@pytest.mark.parametrize("kd", [0, 1])
@pytest.mark.parametrize("hard", [0, 0.5])
def test_the_terms_table_names_the_terms_that_the_objective_sums(kd, hard):
    matches = [{**MATCH, "name": "mine", "weight_scheduler": "linear_decay"}, {**MATCH, "weight": 0}]
    config = DistillationConfig(kd_loss_weight=kd, hard_label_weight=hard, intermediate_matches=matches).resolved()
    names = [term.name for term in Objective(config).terms]
    rows = [line.split("│")[1].strip() for line in _printed(terms_table(config, names)).splitlines() if "│" in line]
    assert [row for row in rows if row] == names


def test_the_terms_table_shows_qualified_names_and_settings():
    config = DistillationConfig(intermediate_matches=[MATCH], temperature_scheduler=["flsw", 1, 1]).resolved()
    text = _printed(terms_table(config, ["kd_loss", "match"]))
    assert "kdplug-presets:ce(t2=False)" in text
    assert "hidden 1 → 1, projected by kdplug-presets:linear(" in text
    assert temperature_line(config).startswith("temperature 4, scheduled by kdplug-presets:flsw(beta=1")


@pytest.mark.parametrize("value", [0.0, -1.0, 2.0])
def test_curves_may_hold_zeros_and_negative_values(value, tmp_path):
    run = write_run(tmp_path / "run", tests=20, steps=20)
    line = {
        "step": 21,
        "terms": {"kd_loss": value, "costs $5 and $6": 1.0},
        "weights": {"kd_loss": 1, "costs $5 and $6": 1},
    }
    with (run / "seed-0/distilled/history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert draw_run_curves(run) == run / "curves.png"
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kept", ["terms", "validation", None])
def test_curves_without_one_of_their_halves_are_drawn(kept, tmp_path):
    run = write_run(tmp_path / "run", tests=20, steps=20)
    for file in run.glob("seed-*/*/history.jsonl"):
        lines = [line for line in file.read_text().splitlines(keepends=True) if kept and f'"{kept}"' in line]
        file.write_text("".join(lines))
    assert draw_run_curves(run).read_bytes().startswith(b"\x89PNG")


def test_a_long_name_of_a_term_is_shortened():
    assert short_name("kdplug-logits:kl") == "kl"
    assert len(short_name("a" * 100)) == 30


def test_a_file_whose_writing_fails_stays_what_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_with_the_permissions_of_any_other(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_the_hash_of_a_config_does_not_depend_on_the_order_of_its_keys():
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
