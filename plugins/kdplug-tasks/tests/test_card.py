"""A model card is Markdown, whatever the paths and labels in it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

import kdplug
from kdplug_tasks.models.card import model_card

VERDICT = {
    "outcome": "BEATS",
    "reason": "every interval excludes 0",
    "difference": 0.0412,
    "scale": "accuracy",
    "seed_interval": [0.01, 0.07],
    "unit_interval": [0.02, 0.06],
    "half_width": 0.03,
    "limited_by": "seeds",
    "margin": None,
    "seeds_for_margin": None,
    "seeds": 3,
    "units": 597,
    "means": [0.92, 0.88],
}


def results(metric="accuracy", **changes):
    """What a run writes to ``metrics.json``."""
    seeds = [0, 1, 2]
    arms = {
        name: {
            "metrics": {metric: mean, "macro_f1": mean - 0.01},
            "sd": {metric: 0.0125, "macro_f1": 0.02},
            "runs": [{"seed": seed, "metrics": {metric: mean + seed / 1000}} for seed in seeds],
            "parameters": 3148,
        }
        for name, mean in (("no_teacher", 0.88), ("distilled", 0.92))
    }
    arms["teacher"] = {"metrics": {metric: 0.98, "macro_f1": 0.97}, "runs": [], "parameters": 94186}
    return {
        "metric": metric,
        "is_lower_better": False,
        "optimizer_steps": 3,
        "seeds": seeds,
        "saved_seed": 1,
        "arms": arms,
        "verdict": VERDICT,
        "teacher_worse": False,
        **changes,
    }


def card(teacher, *, metric="accuracy", settings=None, **changes):
    family = SimpleNamespace(
        teacher=SimpleNamespace(path=teacher, train=False),
        teacher_config=SimpleNamespace(model_type="bert"),
        student_config=SimpleNamespace(model_type="bert"),
    )
    recipe = kdplug.Recipe.from_dict(
        {"task": {"name": "digits", **(settings or {})}, "distillation": {}, "training": {"num_epochs": 1}}
    )
    record = {
        "kdplug": "0.1.0",
        "torch": "2.13",
        "entries": [],
        "plugins": [],
        "recipe": recipe.to_dict(),
        "results": results(metric, **changes),
    }
    return model_card(record, family, SimpleNamespace(auto="AutoModel"))


PATHS = ["name\nlicense: mit", "x: [y", "a#b", "'", "name\n---\n# Other", "a` <b>bold</b> `c", "``", "true", "é😀"]


@pytest.mark.parametrize("path", PATHS)
def test_the_front_matter_holds_the_teachers_name_and_nothing_else_of_it(path):
    front, _, rest = card(path).removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["kdplug", "knowledge-distillation"],
        "base_model": path,
    }
    assert rest.startswith("\n# Distilled bert model\n")
    assert "\n# Other" not in rest


def test_a_backtick_in_a_path_stays_in_its_code():
    assert "from `` a` <b>bold</b> `c ``." in card("a` <b>bold</b> `c")


def test_a_fence_in_the_recipe_does_not_end_its_block():
    text = card("bert", settings={"note": "```\n# Other"})
    assert text.count("\n````yaml\n") == 1
    assert text.endswith("````\n")


def test_a_metric_name_stays_in_its_cell():
    assert "| model | a\\|b c | macro_f1 | parameters |" in card("bert", metric="a|b\nc")


def test_each_arm_has_a_row_with_mean_and_standard_deviation():
    text = card("bert")
    assert text.split("## Results\n\n")[1].startswith(
        "On the test data of the recipe.\n\n"
        "| model | accuracy | macro_f1 | parameters |\n"
        "|---|---|---|---|\n"
        "| teacher | 0.9800 | 0.9700 | 94,186 |\n"
        "| the same student without distillation | 0.8800 ± 0.0125 | 0.8700 ± 0.0200 | 3,148 |\n"
        "| the distilled student | 0.9200 ± 0.0125 | 0.9100 ± 0.0200 | 3,148 |\n\n"
        "accuracy: higher is better. 3 optimizer steps. Mean and standard deviation over the seeds 0, 1, 2. This model is that of "
        "seed 1, which was the best on the validation data: accuracy 0.9210 on the test data.\n\n"
        "It **BEATS** the same student without distillation: every interval excludes 0. Difference in accuracy: +0.0412, positive "
        "where distillation is better; 95% intervals [+0.01, +0.07] over seeds, [+0.02, +0.06] over test units.\n\n## Made with"
    )


def test_a_single_seed_has_no_spread_and_its_verdict_says_so():
    arms = {name: {**arm, "sd": None} for name, arm in results()["arms"].items()}
    few = {
        "outcome": "CANNOT TELL",
        "reason": "there is only 1 seed, and a verdict needs 3",
        "seed_interval": None,
        "unit_interval": None,
    }
    text = card("bert", seeds=[0], saved_seed=0, arms=arms, verdict={**VERDICT, **few})
    assert "±" not in text
    assert "over the seeds" not in text
    assert (
        "\n\n**CANNOT TELL** it from the same student without distillation: there is only 1 seed, and a verdict needs 3. Difference in"
        in text
    )
    assert "positive where distillation is better.\n" in text


def test_a_student_that_loses_and_a_teacher_that_is_worse_are_said():
    text = card("bert", verdict={**VERDICT, "outcome": "LOSES"}, teacher_worse=True)
    assert "It **LOSES** to the same student without distillation: " in text
    assert "\n\nThe teacher is worse than the student that was trained without it.\n" in text


def test_the_gain_from_example_level_knowledge_is_no_verdict():
    text = card("bert", example_level={**VERDICT, "difference": 0.02})
    gain = text.split("Gain from example-level knowledge")[1]
    assert "+0.02, positive where the distilled student is better" in gain
    assert "This is not the verdict on distillation." in gain
    assert "BEATS" not in gain.partition("\n")[0]


def test_a_run_without_a_control_has_no_verdict():
    arms = {name: arm for name, arm in results()["arms"].items() if name != "no_teacher"}
    text = card("bert", arms=arms, verdict=None)
    assert "The student was not trained without distillation for comparison, so there is no verdict." in text
    assert "| the same student without distillation |" not in text


def test_a_metric_that_is_no_number_is_a_dash():
    arms = results()["arms"]
    arms["distilled"] = {**arms["distilled"], "metrics": {"accuracy": None, "macro_f1": 0.5}, "sd": {"accuracy": None}}
    text = card("bert", arms=arms, verdict={**VERDICT, "outcome": "CANNOT TELL", "difference": None})
    assert "| the distilled student | – | 0.5000 | 3,148 |" in text
    assert "Difference in accuracy: –, positive" in text


def test_the_recipe_has_one_key_on_each_line():
    lines = card("bert", settings={"note": {"a": [1, 2]}}).splitlines()
    assert "{" not in "".join(lines[lines.index("## Recipe") :])
    assert "  num_epochs: 1" in lines
