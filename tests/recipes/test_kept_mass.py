"""What a sparse teacher keeps at the temperature of the loss: plan and run report it, and warn where it is little."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from plan_scene import BATCH, WORDS, Net, Scene
from rich.console import Console

import kdplug
from kdplug import ConfigError, Recipe, SparseLogits
from kdplug.cli.plan import plan_lines
from kdplug.engine.cache.kept_mass import KeptMass, decoded
from kdplug.engine.cache.report import CacheReport
from kdplug.host.active import isolated
from kdplug.host.metadata import scan
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe

WARNED = "the stored classes hold"


class Trained(Scene):
    """Its teacher is trained already, and fairly sure."""

    teacher = staticmethod(lambda batch, outputs: {"logits": 40 * outputs["logits"]})

    def build_teacher(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return Net(6)

    def teacher_fit(self):
        return None


class Fitted(Trained):
    def teacher_fit(self):
        return {"epochs": 1, "batch_size": 10, "learning_rate": 1e-3}


@pytest.fixture
def recipe(tmp_path):
    with isolated(scan()):
        kdplug.tasks.register("scene")(Trained)
        kdplug.tasks.register("fitted")(Fitted)

        def make(temperature=1.0, codec=None, loss="kl", task="scene", **training):
            return Recipe.from_dict(
                {
                    "task": task,
                    "distillation": {"kd_loss_type": loss, "temperature": temperature, "is_caching_logits": True},
                    "training": {
                        "num_epochs": 1,
                        "batch_size": BATCH,
                        "device": "cpu",
                        "teacher_cache_codec": codec or {"name": "topk_tail", "k": 2},
                        **training,
                    },
                    "output_dir": str(tmp_path / "run"),
                }
            )

        yield make


@torch.no_grad()
def true_mass(temperature):
    """The mean over the task's items, by hand."""
    task = Trained()
    logits = 40 * task.build_teacher()(task.data("distillation"))["logits"] / temperature
    return float(logits.softmax(-1).topk(2).values.sum(-1).mean())


def mass_warnings(plan):
    return [one for one in plan.warnings if one.check == "kept_mass"]


def test_the_same_classes_keep_less_at_a_higher_temperature(recipe):
    masses = []
    for temperature in (1.0, 4.0, 16.0):
        plan = plan_recipe(recipe(temperature))
        assert plan.kept_mass.temperature == temperature
        assert plan.kept_mass.mean == pytest.approx(true_mass(temperature), abs=0.05)  # of a first batch
        assert 0 < plan.kept_mass.lowest <= plan.kept_mass.mean
        assert plan.to_data()["kept_mass"]["mean"] == plan.kept_mass.mean
        masses.append(plan.kept_mass.mean)
    assert masses[0] > 0.9 > masses[1] > masses[2] > 2 / WORDS


def test_a_plan_warns_of_little_mass_and_not_of_much(recipe):
    assert not mass_warnings(plan_recipe(recipe(1.0)))
    (found,) = mass_warnings(plan_recipe(recipe(4.0)))
    assert found.field == "training.teacher_cache_codec"
    assert f"{WARNED} 0." in found.message
    assert "at temperature 4;" in found.message


def test_a_plan_prints_it(recipe):
    out = io.StringIO()
    console = Console(file=out, width=200)
    for line in plan_lines(plan_recipe(recipe(4.0))):
        console.print(line)
    assert "teacher logits: kept mass 0." in out.getvalue()
    assert "at temperature 4 (minimum 0." in out.getvalue()


def test_an_untrained_teacher_says_nothing_about_it(recipe):
    plan = plan_recipe(recipe(4.0, task="fitted"))
    assert plan.kept_mass is None
    assert not mass_warnings(plan)


@pytest.mark.parametrize("codec", [{"name": "dense"}, {"name": "sampled", "rounds": 5}])
def test_a_codec_that_leaves_nothing_out_or_draws_a_sample_is_not_warned_of(recipe, codec):
    loss = "sampled" if codec["name"] == "sampled" else "kl"
    plan = plan_recipe(recipe(16.0, codec=codec, loss=loss))
    assert plan.kept_mass is None


def test_a_cache_that_is_there_is_reported_as_it_is(recipe, tmp_path):
    made = recipe(4.0, teacher_cache=str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match=WARNED):
        cache_recipe(made, tmp_path / "cache")
    report = CacheReport.read(tmp_path / "cache")
    assert plan_recipe(made).kept_mass == KeptMass(4.0, report.tally.kept_mass, report.tally.lowest)
    assert report.tally.kept_mass == pytest.approx(true_mass(4.0), abs=1e-6)
    assert report.to_data()["temperature"] == 4.0


def test_a_run_reports_it_and_warns_below_nine_tenths(recipe, capsys):
    with pytest.warns(
        UserWarning, match=rf"^teacher_cache_codec: {WARNED} 0\.\d+ of the teacher's .* at temperature 4;"
    ):
        run_recipe(recipe(4.0), console=Console(file=io.StringIO()))
    assert "; kept mass 0." in capsys.readouterr().err


def test_a_run_at_a_low_temperature_warns_of_nothing(recipe, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_recipe(recipe(1.0), console=Console(file=io.StringIO()))
    assert not [one for one in caught if WARNED in str(one.message)]
    assert "; kept mass 0.9" in capsys.readouterr().err


def test_a_teacher_that_is_sparse_itself_is_planned_too(recipe):
    class Served(Trained):
        teacher = staticmethod(
            lambda batch, outputs: {"logits": SparseLogits.top(40 * outputs["logits"].detach(), 2, 4.0)}
        )

    kdplug.tasks.register("served")(Served)
    made = recipe(4.0, task="served").with_overrides(
        ["distillation.is_caching_logits=false", "training.teacher_cache_codec=null"]
    )
    plan = plan_recipe(made)
    assert plan.kept_mass.mean == pytest.approx(true_mass(4.0), abs=0.05)
    assert mass_warnings(plan)[0].field == "task"


@pytest.mark.parametrize("loss", ["dist", "logit_std", "uld", "bce", "ranking", "regression", "mse"])
def test_a_loss_that_is_no_lesser_version_on_categories_is_refused_before_the_teacher_runs(recipe, loss, monkeypatch):
    monkeypatch.setattr(Trained, "build_teacher", lambda self: pytest.fail("built the teacher"))
    made = recipe(1.0, loss=loss)
    for start in (plan_recipe, run_recipe, lambda one: cache_recipe(one, "nowhere")):
        with pytest.raises(
            ConfigError, match=r"^training\.teacher_cache_codec: kdplug-logits:topk_tail returns SparseLogits"
        ):
            start(made)


@pytest.mark.parametrize(("codec", "loss"), [("sampled", "kl"), ("sampled", "dkd"), ("topk_tail", "nkd")])
def test_other_losses_that_a_codec_keeps_too_little_for_are_refused_as_early(recipe, codec, loss):
    with pytest.raises(
        ConfigError, match=rf"^training\.teacher_cache_codec: kdplug-logits:{codec} returns SparseLogits"
    ):
        plan_recipe(recipe(1.0, codec={"name": codec}, loss=loss))


def test_a_codec_is_asked_for_what_it_gives_back_with_logits_that_any_can_keep():
    with isolated(scan()):
        from kdplug.engine.cache.coding import Coding

        forms = {
            name: type(decoded(Coding(kdplug.cache_codecs.build(name).target, name, 2.0))).__name__
            for name in ("dense", "topk_tail", "sampled", "hidden")
        }
    assert forms == {
        "dense": "Tensor",
        "topk_tail": "SparseLogits",
        "sampled": "SparseLogits",
        "hidden": "FactoredLogits",
    }


def at_two_temperatures(recipe, **training):
    made = recipe(**training).to_dict()
    terms = [{"loss": "kl", "temperature": 1.0}, {"loss": "kl", "temperature": 4.0}]
    return Recipe.from_dict({**made, "distillation": {"terms": terms, "is_caching_logits": True}})


def test_a_plan_of_two_temperatures_reports_the_higher_one(recipe):
    plan = plan_recipe(at_two_temperatures(recipe))
    assert plan.kept_mass.temperature == 4.0
    assert plan.kept_mass.mean == pytest.approx(true_mass(4.0), abs=0.05)
    assert len(mass_warnings(plan)) == 1


def test_a_cache_of_two_temperatures_is_built_and_read_by_a_run(recipe, tmp_path, capsys):
    made = at_two_temperatures(recipe, teacher_cache=str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match=WARNED):
        cache_recipe(made, tmp_path / "cache")
    report = CacheReport.read(tmp_path / "cache", checks=True)
    assert report.to_data()["temperature"] == [1.0, 4.0]
    assert report.tally.kept_mass == pytest.approx(true_mass(4.0), abs=1e-6)
    with pytest.warns(UserWarning, match="at temperature 4;"):
        result = run_recipe(made, console=Console(file=io.StringIO()))
    assert "complete; teacher not run" in capsys.readouterr().err
    assert result is not None
