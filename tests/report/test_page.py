"""The page of a run: what it holds, what it leaves out, and that it needs nothing else."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import pytest
import report_scene
from report_scene import HARMFUL, SCENES, write_run

from kdplug import RunError
from kdplug.report.page.chart import Scale, number, padded
from kdplug.report.page.history import read_history
from kdplug.report.page.results import DistillationRecord, read_results
from kdplug.report.page.section.arms import figure
from kdplug.report.page.section.verdict import seed_differences
from kdplug.report.page.write import write_comparison, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, checked to be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str]:
        return [str(one["id"]) for one in self.all("section")]


@pytest.fixture(scope="module", params=SCENES)
def scene(request, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / request.param, **SCENES[request.param])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose files a test may change, if it writes them again."""
    return write_run(tmp_path_factory.mktemp("run") / "run", tests=80, steps=60, shuffled=True)


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run."""
    import shutil

    return shutil.copytree(run, tmp_path / "run")


def page_of(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def change(folder, file, *path, to):
    """Set one value of a JSON file."""
    found = json.loads((folder / file).read_text())
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    (folder / file).write_text(json.dumps(found))


def test_the_page_is_well_formed_and_reads_nothing_from_elsewhere(scene):
    text = write_report(scene).read_text(encoding="utf-8")
    page = Page(text)
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not {"script", "img", "link", "iframe", "object", "form", "use", "image"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "srcset", "action", "data", "xlink:href", "background"} & set(attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_ids_are_unique_and_every_reference_has_its_element(scene):
    page = page_of(scene)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {one["href"][1:] for one in page.all("a")}
    for _, attributes in page.tags:
        wanted |= set(str(attributes.get("aria-labelledby", "")).split())
    assert wanted <= set(ids)


def test_headings_tables_and_charts_can_be_read_by_a_screen_reader(scene):
    page = page_of(scene)
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(one.get("scope") for one in page.all("th"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-labelledby"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_is_small(scene):
    assert write_report(scene).stat().st_size < 400_000


def test_the_same_files_make_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


@pytest.mark.parametrize(
    ("scene", "missing"),
    [
        ({"target": "class"}, set()),
        ({"target": "tags", "tests": 60}, set()),
        ({"target": "number"}, {"agreement", "confusion", "calibration", "classes"}),
        ({"target": "tokens"}, {"agreement", "confusion", "calibration", "classes", "examples"}),
    ],
)
def test_sections_without_data_are_left_out(scene, missing, tmp_path):
    every = ["verdict", "arms", "curves", "agreement", "confusion", "calibration", "classes", "examples", "run"]
    page = page_of(write_run(tmp_path / "run", **{"tests": 80, "steps": 60, **scene}))
    assert page.sections == [name for name in every if name not in missing]
    assert {one["href"][1:] for one in page.all("a")} == set(page.sections)


@pytest.mark.parametrize("outcome", ["BEATS", "LOSES", "CANNOT TELL"])
def test_the_verdict_comes_first_with_its_sentence(outcome, copy):
    change(copy, "metrics.json", "verdict", "outcome", to=outcome)
    text = page_of(copy).text
    sentence = {"BEATS": "Distillation helped", "LOSES": "Distillation hurt", "CANNOT TELL": "does not show whether"}
    assert text.index(outcome) < text.index(sentence[outcome]) < text.index("Arms All arms")


def test_a_run_without_a_control_says_that_nothing_was_compared(tmp_path):
    text = page_of(write_run(tmp_path / "run", control=False, tests=40, steps=60)).text
    assert "NO VERDICT" in text
    assert "set controls: [no_teacher]" in text


def test_a_control_that_failed_is_not_one_that_was_not_wanted(copy):
    data = json.loads((copy / "metrics.json").read_text())
    del data["arms"]["no_teacher"]
    data |= {"verdict": None, "gap_closed": None, "failed": {"no_teacher, seed 0": "out of memory"}}
    (copy / "metrics.json").write_text(json.dumps(data))
    text = page_of(copy).text
    assert "The control did not complete. Run the recipe again with --resume" in text
    assert "Set controls:" not in text
    assert "out of memory" in text


def test_a_test_part_of_one_example_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run", tests=2, steps=60)
    kept = [line for line in (folder / "predictions.jsonl").read_text().splitlines(keepends=True) if '"id": 0' in line]
    (folder / "predictions.jsonl").write_text("".join(kept))
    change(folder, "metrics.json", "parts", "test", to=1)
    for key in ("unit_interval", "interval", "half_width"):
        change(folder, "metrics.json", "verdict", key, to=None)
    assert "Test part (1 example)" in page_of(folder).text


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("teacher_worse", True, "On the validation part the teacher is worse than the student"),
        ("seeds_added", True, "Seeds were added after results"),
        ("failed", {"no_teacher, seed 1": "out of memory"}, "no_teacher, seed 1 failed: out of memory"),
    ],
)
def test_what_weakens_a_verdict_is_next_to_it(key, value, warning, copy):
    assert warning not in page_of(copy).text
    change(copy, "metrics.json", key, to=value)
    assert warning in page_of(copy).text


def test_one_seed_has_its_point_and_no_interval(tmp_path):
    text = page_of(write_run(tmp_path / "run", seeds=1, outcome="CANNOT TELL", tests=60, steps=60)).text
    assert "over seeds (no interval: 1 seed)" in text
    assert "95 % interval over seeds" not in text
    assert "±" not in text.replace("Mean over seeds ± standard", "")


@pytest.mark.parametrize("target", ["class", "number", "tokens"])
def test_the_seeds_differences_are_on_the_scale_of_the_verdict(target, tmp_path):
    results = read_results(write_run(tmp_path / "run", target, tests=60, steps=60))
    found = seed_differences(results, results.verdict, "no_teacher")
    assert sum(found.values()) / 3 == pytest.approx(results.verdict.difference)


def test_points_that_are_not_the_verdicts_are_not_drawn(run):
    results = read_results(run)
    other = results.verdict.model_copy(update={"difference": results.verdict.difference + 0.5})
    assert seed_differences(results, other, "no_teacher") == {}


def test_text_from_data_is_escaped_and_made_visible(tmp_path):
    folder = write_run(tmp_path / "run", classes=[HARMFUL, "\u202egnol", "a\x00b"], tests=60, steps=60)
    change(folder, "kdplug-run.json", "recipe", "task", "data", "train", to=HARMFUL)
    change(folder, "metrics.json", "verdict", "reason", to="</style>" + HARMFUL)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "\\u202egnol" in Page(text).text


def test_a_page_in_the_folder_of_a_lone_surrogate_is_written(copy):
    change(copy, "metrics.json", "verdict", "reason", to="\ud800")
    assert "\\ud800" in page_of(copy).text


def test_at_most_200_differing_examples_are_listed_and_all_are_counted(tmp_path):
    folder = write_run(tmp_path / "run", "number", tests=300, steps=60)
    page = page_of(folder)
    assert "They differ on 300 of 300 test examples; 200 are shown, largest difference first." in page.text


def test_differing_examples_are_those_of_the_saved_student(copy):
    lines = [json.loads(line) for line in (copy / "predictions.jsonl").read_text().splitlines()]
    pick = {
        arm: [line["prediction"] for line in lines if line["arm"] == arm and line["seed"] == seed]
        for arm, seed in (("teacher", 0), ("distilled", 2))
    }
    differing = sum(one != other for one, other in zip(pick["teacher"], pick["distilled"], strict=True))
    assert f"They differ on {differing} of 80 test examples" in page_of(copy).text


def test_labels_of_several_classes_do_not_depend_on_their_order(copy):
    change(copy, "metrics.json", "target", to="classes")
    rows = [
        {"arm": "teacher", "seed": 0, "id": 0, "score": 1, "label": ["a", "b"], "prediction": ["a", "b"]},
        {"arm": "distilled", "seed": 2, "id": 0, "score": 1, "label": ["a", "b"], "prediction": ["b", "a"]},
        {"arm": "teacher", "seed": 0, "id": 1, "score": 1, "label": ["a"], "prediction": ["a"]},
        {"arm": "distilled", "seed": 2, "id": 1, "score": 0, "label": ["a"], "prediction": []},
    ]
    (copy / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page_of(copy).text
    assert "They differ on 1 of 2 test examples" in text
    assert "1 a a none teacher" in text


def test_a_run_without_histories_has_no_curves(copy):
    for file in copy.glob("seed-*/*/history.jsonl"):
        file.unlink()
    assert "curves" not in page_of(copy).sections


def test_a_run_of_a_task_without_predictions_needs_no_file_of_them(copy):
    (copy / "predictions.jsonl").unlink()
    with pytest.raises(RunError, match=r"predictions\.jsonl does not exist"):
        write_report(copy)
    change(copy, "metrics.json", "target", to=None)
    assert "examples" not in page_of(copy).sections


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("metrics.json", ["arms", "distilled", "runs", 0, "seed"], "x", "arms.distilled.runs.0.seed"),
        ("metrics.json", ["arms", "distilled", "metrics"], {}, r"damaged: arms\.distilled\.metrics must contain the metric 'accuracy'"),
        ("metrics.json", ["arms", "baseline"], {"metrics": {"accuracy": 1}, "runs": [{"seed": 0, "metrics": {}}]}, "damaged: arms.baseline is unknown"),
        ("metrics.json", ["arms"], {}, "arms must contain 'distilled'"),
        ("metrics.json", ["arms", "distilled", "confusion", "counts"], [[1]], "6 rows and columns"),
        ("metrics.json", ["verdict", "outcome"], "WINS", "verdict.outcome"),
        ("kdplug-run.json", ["recipe", "task"], None, "recipe.task"),
    ],
)  # fmt: skip
def test_an_error_names_file_key_and_fix(file, path, value, message, copy):
    change(copy, file, *path, to=value)
    with pytest.raises(RunError, match=message) as caught:
        write_report(copy)
    assert str(copy / file) in str(caught.value)
    assert "--resume" in str(caught.value)
    assert not (copy / "report.html").exists() or (copy / "report.html").stat().st_size


@pytest.mark.parametrize("file", ["metrics.json", "kdplug-run.json"])
def test_a_folder_that_is_no_completed_run_is_said_to_be_none(file, copy):
    (copy / file).unlink()
    with pytest.raises(RunError, match=rf"{file} does not exist, so .* is not the folder of a completed run"):
        write_report(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1, "terms": {"a": "x"}}\n', "line 1: terms must be an object whose values are numbers"),
        ('{"step": 1, "terms": {}}\n{"step": 2, "ter', "line 2: "),
        ('{"step": "1"}\n', "line 1: step must be a whole number"),
        ("[]\n", "line 1 must be a JSON object"),
    ],
)
def test_a_damaged_history_names_its_line(text, message, tmp_path):
    (tmp_path / "history.jsonl").write_text(text)
    with pytest.raises(RunError, match=message):
        read_history(tmp_path / "history.jsonl", "accuracy", {})


def test_terms_are_weighted_by_each_line_or_else_by_the_recipe(tmp_path):
    file = tmp_path / "history.jsonl"
    lines = [
        {"step": 1, "terms": {"a": 2.0, "b": 1.0}, "weights": {"a": 3.0, "b": 0.5}},
        {"step": 2, "terms": {"a": 2.0, "b": 1.0}},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_history(file, "accuracy", {"a": 10.0, "b": 1.0})
    assert found.terms == {"a": [(1, 6.0), (2, 20.0)], "b": [(1, 0.5), (2, 1.0)]}
    assert found.is_weighted
    assert not read_history(file, "accuracy", {"a": 10.0}).is_weighted


def test_only_weights_without_a_schedule_are_constant():
    terms = [{"name": "a", "weight": 2}, {"name": "b", "weight": 3, "weight_scheduler": "kdplug-presets:linear_decay"}]
    config = {"terms": terms, "hard_label_weight": 0.5, "hard_label_weight_scheduler": "none"}
    assert DistillationRecord.model_validate(config).constant_weights() == {"a": 2, "hard_label_loss": 0.5}


def test_with_a_balancer_no_weight_is_constant():
    config = {"terms": [{"name": "a", "weight": {"share": 0.5}}], "balancer": {"name": "kdplug-presets:share"}}
    assert DistillationRecord.model_validate(config).constant_weights() == {}


def test_a_long_history_is_averaged_in_groups_and_its_nan_counted(tmp_path):
    lines = [{"step": step, "terms": {"a": float("nan") if step == 7 else float(step)}} for step in range(1, 1001)]
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_history(file, "accuracy", {"a": 1.0})
    assert (found.group, found.left_out, len(found.terms["a"])) == (4, 1, 250)
    assert found.terms["a"][0] == (2.5, 2.5)
    assert found.terms["a"][1] == (6.5, pytest.approx((5 + 6 + 8) / 3))


def test_a_comparison_has_the_verdict_table_and_curves_of_each_run(tmp_path):
    folders = [
        write_run(tmp_path / name, outcome=outcome, tests=80, steps=60)
        for name, outcome in (("one", "BEATS"), ("two", "LOSES"))
    ]
    page = Page(write_comparison(folders, tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "2 runs compared" in page.text
    assert page.text.count("accuracy on validation") == 2
    assert "Warning: The runs" not in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_runs_on_different_test_parts_or_metrics_are_not_comparable(tmp_path):
    folders = [write_run(tmp_path / target, target, tests=60, steps=60) for target in ("class", "number")]
    change(folders[1], "kdplug-run.json", "data", "test", "fingerprint", "rows", to=61)
    text = Page(write_comparison(folders, tmp_path / "both.html").read_text(encoding="utf-8")).text
    assert "different metrics" in text
    assert "different test parts" in text


def test_two_runs_of_one_name_are_labelled_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / name / "run", tests=40, steps=60) for name in ("a", "b")]
    text = Page(write_comparison(folders, tmp_path / "both.html").read_text(encoding="utf-8")).text
    assert str(folders[0]) in text
    assert str(folders[1]) in text


def test_ticks_are_round_and_inside():
    assert [tick.label for tick in Scale(0, 600, 0, 100).ticks()] == ["0", "200", "400", "600"]
    assert [tick.label for tick in Scale(0.811, 0.936, 0, 100).ticks()] == ["0.825", "0.85", "0.875", "0.9", "0.925"]
    assert [tick.label for tick in Scale(0.5, 20, 0, 100, is_log=True).ticks()] == ["1", "10"]
    assert number(-0.05) == "−0.05"
    low, high = padded([3.0, 3.0])
    assert low < 3 < high


def test_a_figure_and_its_deviation_have_the_same_decimals():
    assert figure(0.9, 0.00291) == ("0.9000", "± 0.0029")
    assert figure(62.914, 1.5) == ("62.91", "± 1.50")
    assert figure(None, None) == ("", "")


def test_the_scenes_hold_each_kind_of_verdict():
    assert {scene.get("outcome", "BEATS") for scene in SCENES.values()} == set(report_scene.SKILL)
