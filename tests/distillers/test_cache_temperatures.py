"""One teacher cache for terms at several temperatures."""

from __future__ import annotations

import pytest
import torch
from cache_scene import Rowwise, loader
from small_run import make_student, sgd, weights

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.cache.report import CacheReport
from kdplug.errors import ConfigError, RunError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan


@pytest.fixture(autouse=True)
def codecs():
    with isolated(scan()):
        kdplug.cache_codecs.register("likeliest")(Likeliest)
        yield


class Likeliest:
    """The two likeliest classes and the rest, without rounding."""

    uses_temperature = True
    takes_factored = False

    def __init__(self) -> None:
        """Nothing to set."""

    def shared(self, logits):
        return {}

    def encode(self, logits, *, temperature, seed):
        top = kdplug.SparseLogits.top(logits, 2, temperature)
        return kdplug.Encoded(
            {"ids": top.ids, "log_probs": top.log_probs, "tail": top.tail}, top.log_probs.exp().sum(-1)
        )

    def decode(self, parts, shared, *, classes, temperature):
        return kdplug.SparseLogits(parts["ids"], parts["log_probs"], classes, parts["tail"], temperature=temperature)


def stored(tmp_path):
    return {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_codec": "likeliest"}


AT_ONE, AT_FOUR = {"loss": "kl", "temperature": 1.0}, {"loss": "kl", "temperature": 4.0, "weight": 0.5}


def first_step(folder, cache, *terms, teacher=True):
    """What one step of gradient descent changes in the student, and the cache's summary."""
    student = make_student()
    before = weights(student)
    config = DistillationConfig(is_caching_logits=True, terms=list(terms))
    training = TrainingConfig(output_dir=str(folder), device="cpu", seed=7, **cache)
    distiller = GeneralDistiller(training, config, Rowwise() if teacher else None, student, show_progress=False)
    distiller.train(sgd(student), loader(shuffle=False), num_steps=1)
    return weights(student) - before, distiller.teacher_cache.summary


@pytest.mark.parametrize("on_disk", [False, True])
def test_terms_at_two_temperatures_read_one_cache_and_add_up(tmp_path, on_disk):
    steps = []
    for name, terms in (("one", [AT_ONE]), ("four", [AT_FOUR]), ("both", [AT_FOUR, AT_ONE])):
        cache = {"teacher_cache_codec": "likeliest"}
        cache |= {"teacher_cache": str(tmp_path / f"cache {name}")} if on_disk else {}
        steps.append(first_step(tmp_path / name, cache, *terms)[0])
    torch.testing.assert_close(steps[2], steps[0] + steps[1], rtol=1e-10, atol=1e-14)
    assert steps[2].abs().max() > 1e-4


def test_temperatures_that_round_to_one_are_stored_once(tmp_path):
    near = {**AT_ONE, "temperature": 1 + 1e-9}
    steps = [
        first_step(tmp_path / name, {"teacher_cache_codec": "likeliest"}, AT_FOUR, AT_ONE, last)[0]
        for name, last in (("same", AT_ONE), ("near", near))
    ]
    torch.testing.assert_close(*steps, rtol=1e-7, atol=1e-14)


def test_a_folder_at_two_temperatures_serves_a_run_without_a_teacher(tmp_path):
    cache = stored(tmp_path)
    first, _ = first_step(tmp_path / "a", cache, AT_ONE, AT_FOUR)
    again, summary = first_step(tmp_path / "b", cache, AT_ONE, AT_FOUR, teacher=False)
    assert torch.equal(first, again)
    assert summary.batches == 0
    report = CacheReport.read(tmp_path / "cache", checks=True)
    assert report.to_data()["temperature"] == [1.0, 4.0]
    with pytest.raises(RunError, match=r"the temperature of stored logits: \[1\.0, 4\.0\] -> 4\.0"):
        first_step(tmp_path / "c", cache, AT_FOUR)
    with pytest.raises(RunError, match=r"the temperature of stored logits: \[1\.0, 4\.0\] -> \[1\.0, 2\.0\]"):
        first_step(tmp_path / "d", cache, AT_ONE, {**AT_FOUR, "temperature": 2.0})


def test_another_temperature_costs_one_number_per_item(tmp_path):
    summaries = [
        first_step(tmp_path / str(len(terms)), {"teacher_cache_codec": {"name": "topk_tail", "k": 2}}, *terms)[1]
        for terms in ([AT_ONE], [AT_ONE, AT_FOUR])
    ]
    assert summaries[1].bytes_per_item - summaries[0].bytes_per_item == 8  # float64, as the teacher
    assert summaries[1].tally.kept_mass < summaries[0].tally.kept_mass


def test_the_kept_mass_is_that_at_the_highest_temperature(tmp_path):
    _, both = first_step(tmp_path / "a", {"teacher_cache_codec": {"name": "topk_tail", "k": 2}}, AT_ONE, AT_FOUR)
    _, alone = first_step(tmp_path / "b", {"teacher_cache_codec": {"name": "topk_tail", "k": 2}}, AT_FOUR)
    assert both.tally.kept_mass == pytest.approx(alone.tally.kept_mass, abs=1e-6)
    assert both.tally.lowest == pytest.approx(alone.tally.lowest, abs=1e-6)


def test_a_sample_has_no_tail_so_its_terms_need_one_temperature(tmp_path):
    term = {"loss": "sampled", "temperature": 1.0}
    with pytest.raises(
        ConfigError,
        match=r"^teacher_cache_codec: sampled stores .* the terms use the temperatures 1 and 4",
    ):
        first_step(tmp_path, {"teacher_cache_codec": "sampled"}, term, {**term, "temperature": 4.0})


def test_a_term_on_features_needs_no_temperature_of_its_own(tmp_path):
    match = {"loss": "hidden_mse", "layer_T": 0, "layer_S": 0, "feature": "hidden", "proj": ["linear", 3, 5]}
    config = DistillationConfig(is_caching_logits=True, terms=[AT_ONE, match], temperature=9.0)
    training = TrainingConfig(output_dir=str(tmp_path), device="cpu", **stored(tmp_path))
    distiller = GeneralDistiller(training, config, Rowwise(), make_student(), show_progress=False)
    assert (distiller.teacher_cache.coding.temperature, distiller.teacher_cache.coding.others) == (1.0, ())


def test_a_term_that_reads_no_logits_needs_no_codec_of_its_own(tmp_path):
    @kdplug.losses.register("decayed")
    def decayed(student_parameters, temperature):
        return student_parameters["head:parameter.weight"].square().mean() / temperature

    paths = {"reads_S": ["head:parameter.weight"]}
    config = DistillationConfig(
        is_caching_logits=True, terms=[AT_ONE, {"loss": "decayed", "temperature": 9.0, **paths}]
    )
    training = TrainingConfig(output_dir=str(tmp_path), device="cpu", **stored(tmp_path))
    made = make_student()
    distiller = GeneralDistiller(training, config, Rowwise(), made, show_progress=False)
    assert (distiller.teacher_cache.coding.temperature, distiller.teacher_cache.coding.others) == (1.0, ())
    distiller.train(sgd(made), loader(shuffle=False), num_steps=1)
