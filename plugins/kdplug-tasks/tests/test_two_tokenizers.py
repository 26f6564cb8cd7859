"""Language models with two tokenizers: compared positions, and training."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from task_scene import first_batch, task_of, tokenizer
from torch.nn import functional
from two_tokenizer_scene import ALL_TEXTS, make, save, settings, write_two

import kdplug
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.model_task import ModelTask


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Measure throughput only once."""
    monkeypatch.setattr("kdplug.recipes.measure._ROUNDS", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_two(tmp_path_factory.mktemp("two"))


def asked(folder, **changes):
    """A task, a batch, both models and their adaptor outputs."""
    task = task_of(**settings(folder, **changes))
    batch = first_batch(task, size=6)
    models = {"student": task.build_student().eval(), "teacher": task.build_teacher().eval()}
    adaptors = {"student": task.student_adaptor, "teacher": task.teacher_adaptor}
    with torch.no_grad():
        return task, batch, models, {side: adaptors[side](batch[side], models[side](**batch[side])) for side in models}


def prefixes(task, batch, found, side):
    """Return the ids that each compared row has read, in order."""
    rows = zip(batch[side]["input_ids"], found[side]["logits_mask"], strict=True)
    return [ids[: place + 1] for ids, mask in rows for place in mask.nonzero().flatten().tolist()]


FORMS = [{}, {"packing": False}, {"prompts": True}, {"prompts": True, "packing": True}, {"factored": True}]


@pytest.mark.parametrize("form", FORMS, ids=["packed", "alone", "prompts", "packed prompts", "factored"])
def test_what_is_compared_predicts_the_next_token_after_the_same_characters(folder, form):
    task, batch, models, found = asked(folder, **form)
    reads = {side: prefixes(task, batch, found, side) for side in models}
    texts = {side: [task.problem.processor_of(side).tokenizer.decode(ids) for ids in reads[side]] for side in models}
    assert texts["student"] == texts["teacher"]
    assert len(texts["student"]) >= (6 if form.get("prompts") else 20)
    assert not any("�" in text for text in texts["student"])
    for side, model in models.items():
        kept = found[side]["logits"]
        kept = kept.dense() if form.get("factored") else kept
        rows = kept[found[side]["logits_mask"]]
        with torch.no_grad(), task.family.multiplied_out():
            alone = [model(input_ids=ids.unsqueeze(0)).logits[0, -1, : rows.shape[-1]] for ids in reads[side]]
        torch.testing.assert_close(rows, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_each_side_is_read_up_to_its_own_tokens(folder):
    _, _, _, found = asked(folder)
    assert (found["student"]["logits"].shape[-1], found["teacher"]["logits"].shape[-1]) == (280, 320)


def test_each_side_has_all_of_its_own_labels(folder):
    _, batch, models, found = asked(folder)
    for side, model in models.items():
        with torch.no_grad():
            logits = model(**batch[side]).logits[:, :-1, : found[side]["logits"].shape[-1]]
        labels = batch[side]["input_ids"].where(batch[side]["attention_mask"].bool(), -100)[:, 1:]
        torch.testing.assert_close(found[side]["losses"].value, functional.cross_entropy(logits.mT, labels))
        assert labels.ne(-100).sum() > (side == "student") * found[side]["logits_mask"].sum()


def test_a_run_says_how_many_tokens_are_compared(folder):
    task = task_of(**settings(folder))
    parts = ("distillation", "validation", "test")
    duals = [dual for part in parts for dual in task.data(part).examples.items]
    batches = [task.collate([dual])["student"].targets for dual in duals]
    compared = sum(int(one["counts"].sum()) for one in batches)
    predicted = sum(int((one["labels"][:, 1:] != -100).sum()) for one in batches)
    assert 0 < compared < predicted
    assert f"end at the same character: {compared:,} of {predicted:,} predictions" in task.about()


def test_only_completions_are_compared(folder):
    task, batch, _, found = asked(folder, prompts=True)
    texts = [
        task.problem.processor_of("student").tokenizer.decode(ids) for ids in prefixes(task, batch, found, "student")
    ]
    assert all(": " in text for text in texts)
    assert sum(text.endswith(": ") for text in texts) == 6


@pytest.mark.parametrize("form", FORMS[:4], ids=["packed", "alone", "prompts", "packed prompts"])
def test_both_sides_are_given_all_texts(folder, form):
    task = task_of(**settings(folder, **form))
    for part in ("distillation", "test"):
        for dual in task.data(part).examples.items:
            own, theirs = (
                task.problem.processor_of(side).tokenizer.decode(getattr(dual, side).ids)
                for side in ("student", "teacher")
            )
            assert own == theirs
            assert sum(dual.student.sizes) == sum(dual.teacher.sizes)
            assert max(len(dual.student.ids), len(dual.teacher.ids)) <= 40


def test_bits_per_byte_are_those_of_the_text_and_the_same_in_any_batches(folder):
    task = task_of(**settings(folder, packing=False))
    data, model = task.data("test").examples.items, task.build_student().eval()
    with torch.no_grad():
        whole = task.evaluate(model, [task.collate(data)])
        single = task.evaluate(model, [task.collate([one]) for one in data])
        nats = sum(_nats(model, dual.student.ids) for dual in data)
    size = sum(sum(dual.student.sizes[1:]) for dual in data)
    assert whole["bits_per_byte"] == pytest.approx(single["bits_per_byte"], rel=1e-5)
    assert whole["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert (task.metric, task.unit, task.is_lower_better) == ("bits_per_byte", "bytes", True)


def _nats(model, ids):
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1, :280]
    return float(functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


def test_a_student_of_the_same_vocabulary_is_given_the_same_tokens(folder, tmp_path):
    save(tmp_path / "student", tokenizer(ALL_TEXTS, is_framed=False, vocab=320))
    task = task_of(**settings(folder, student=str(tmp_path / "student")))
    task.check()
    assert not task.vocabulary_difference
    assert task.metric == "perplexity"
    assert "input_ids" in first_batch(task)


def test_the_loss_goes_down_and_the_student_ends_nearer_to_the_teacher_than_without(folder, tmp_path):
    teacher = {"path": str(folder / "teacher"), "train": True, "epochs": 12, "lr": 5e-3}
    changes = ("training.num_epochs=6", "training.lr=5e-3", "training.batch_size=4")
    made = make(
        folder, tmp_path, *changes, teacher=teacher, student={"config": {"n_layer": 1}}, student_tokenizer="bytes"
    )
    done = run_recipe(made)
    lines = map(json.loads, (tmp_path / "seed-0" / "distilled" / "history.jsonl").read_text().splitlines())
    values = [line["terms"]["kd_loss"] for line in lines if "terms" in line]
    assert done.metric == "bits_per_byte"
    assert sum(values[-4:]) < 0.6 * sum(values[:4])
    task = kdplug.tasks.build(made.task).target
    distances = [_distance(task, tmp_path, arm) for arm in ("distilled", "no_teacher")]
    assert distances[0] < 0.5 * distances[1]


def _distance(task, folder, arm):
    """Return the distance of an arm's student from the trained teacher on the test part."""
    (teacher, student), batch = (task.build_teacher().eval(), task.build_student().eval()), first_batch(task, "test", 9)
    for model, place in ((teacher, folder / "teacher"), (student, folder / "seed-0" / arm)):
        last = max(place.glob("step-*"), key=lambda one: int(one.name[5:])) / "student.safetensors"
        model.load_state_dict(load_file(last), strict=False)
        model.tie_weights()
    objective = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type="uld", temperature=1))
    sides = [
        adapt(batch[side], model(**batch[side]))
        for side, adapt, model in (
            ("student", task.student_adaptor, student),
            ("teacher", task.teacher_adaptor, teacher),
        )
    ]
    return float(objective(*sides).total.detach())


def test_the_student_is_saved_with_its_own_tokenizer(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_recipe(make(folder, tmp_path, "training.num_steps=1", "training.num_epochs=null"))
    brings = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert len(brings) == 280 < model.config.vocab_size == 287


def test_a_plan_shows_the_first_batches_to_both(folder, tmp_path):
    plan = plan_recipe(make(folder, tmp_path))
    assert "280 tokens (teacher: 320)" in plan.about
    assert {term.name: term.value > 0 for term in plan.terms} == {"kd_loss": True, "hard_label_loss": True}


@pytest.mark.parametrize(
    "more",
    [(), ("task.factored=true", "training.teacher_cache_codec={name: hidden, dtype: float32}")],
    ids=["plain", "hidden"],
)
def test_a_run_from_a_cache_is_the_run_with_the_teacher(folder, tmp_path, monkeypatch, more):
    plain = run_recipe(make(folder, tmp_path / "plain", *more[:1], packing=False))
    cached = make(folder, tmp_path / "run", f"training.teacher_cache={tmp_path / 'cache'}", *more, packing=False)
    cache_recipe(cached, tmp_path / "cache")
    monkeypatch.setattr(ModelTask, "build_teacher", lambda self: 1 / 0)
    done = run_recipe(cached)
    mine, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "run"))
    assert done.teacher.metrics == plain.teacher.metrics
    assert all(torch.allclose(mine[name], other[name], atol=1e-5) for name in mine)
