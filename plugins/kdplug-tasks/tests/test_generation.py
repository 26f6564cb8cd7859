"""Batches that the student writes itself: what is in them, what counts, and that a run goes on with the same ones."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from task_scene import GPT2, TEXTS, first_batch, recipe, save_model, task_of, tokenizer, write_csv

import kdplug
from kdplug.engine.loop import Loop
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.text.generation import GenerateSettings, Sampler

PAIRS = [{"prompt": f"{text}: ", "completion": text.split()[-1]} for text in TEXTS * 4]
ALWAYS = {"fraction": 1.0, "max_new_tokens": 6}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Nothing here is about speed."""
    monkeypatch.setattr("kdplug.recipes.result._ROUNDS", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts of unequal lengths, a text, and a teacher."""
    folder = tmp_path_factory.mktemp("generation")
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 6), encoding="utf-8")
    write_csv(folder / "pairs.csv", PAIRS)
    brings = tokenizer(is_framed=False)
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    save_model(folder / "teacher", "AutoModelForCausalLM", GPT2, brings=brings, **ids, vocab_size=len(brings))
    return folder


def settings(folder, generate, *, prompts=True, **changes):
    data = {"train": str(folder / ("pairs.csv" if prompts else "text.txt")), "test": 0.3}
    student = {"config": {"n_layer": 1}}
    given = {"data": data, "teacher": str(folder / "teacher"), "student": student, "max_length": 24, **changes}
    return {"name": "causal-lm", "prompts": prompts, "generate": generate, **given}


def written(folder, generate=ALWAYS, **changes):
    """A batch, what a student made of it, the student and the task."""
    task = task_of(**settings(folder, generate, **changes))
    batch = first_batch(task)
    torch.manual_seed(0)
    student = task.build_student().eval()
    with torch.no_grad():
        return batch, task.prepare_batch(batch, student), student, task


def rows(batch, kept):
    return [row[keep].tolist() for row, keep in zip(batch["input_ids"], kept, strict=True)]


def test_prompts_stay_and_only_what_is_written_counts(folder):
    batch, found, _, _ = written(folder)
    counts, real = found.targets["counts"], found["attention_mask"].bool()
    starts = (batch.targets["labels"] != -100).int().argmax(dim=1)
    before = torch.arange(batch["input_ids"].shape[1]) < starts.unsqueeze(1)
    assert len({int(start) for start in starts}) > 1
    assert rows(found, real & ~counts) == rows(batch, before)
    assert all(1 <= len(row) <= 6 for row in rows(found, counts))
    assert not (counts & ~real).any()


def test_text_ends_with_its_first_end_token(folder):
    _, _, student, task = written(folder)
    end = task.problem.processor.tokenizer.eos_token_id
    student.generation_config.eos_token_id = list(
        range(end + 1, 200)
    )  # what the model takes for an end ends a text as well
    with torch.no_grad():
        found = task.prepare_batch(first_batch(task), student)
    for row in rows(found, found.targets["counts"]):
        assert not any(end <= token < 200 for token in row[:-1])


def test_what_one_row_says_does_not_depend_on_the_others(folder):
    sharp = {"config": {"n_layer": 1, "initializer_range": 1.0}}
    _, together, student, task = written(folder, {**ALWAYS, "top_k": 1}, student=sharp)
    for place, row in enumerate(task.data("distillation").examples.items[:4]):
        with torch.no_grad():
            alone = task.prepare_batch(task.collate([row]), student)
        assert rows(alone, alone.targets["counts"])[0] == rows(together, together.targets["counts"])[place]


def test_the_text_is_what_the_student_says_and_not_what_it_was_saved_to_say(folder):
    _, found, student, task = written(folder, {**ALWAYS, "top_k": 1})
    student.generation_config.suppress_tokens = found["input_ids"][found.targets["counts"]].tolist()
    before = student.generation_config
    with torch.no_grad():
        again = task.prepare_batch(first_batch(task), student)
    assert torch.equal(found["input_ids"], again["input_ids"])
    assert student.generation_config is before


def test_without_prompts_the_beginning_of_a_text_is_one(folder):
    batch, found, _, _ = written(folder, {**ALWAYS, "prompt_length": 3}, prompts=False)
    assert torch.equal(found["input_ids"][:, :3], batch["input_ids"][:, :3])
    assert found.targets["counts"][:, :3].sum() == 0
    assert found.targets["counts"][:, 3].all()


def test_an_example_is_never_longer_than_max_length(folder):
    _, found, _, _ = written(folder, {**ALWAYS, "max_new_tokens": 20})
    assert found["input_ids"].shape[1] <= 24


def test_the_loss_is_of_written_tokens_alone_and_there_are_no_labels(folder):
    _, found, student, task = written(folder)
    adapted = [task.student_adaptor(found, model(**found)) for model in (student, task.build_teacher().eval())]
    report = kdplug.Objective(kdplug.DistillationConfig(kd_loss_type="reverse_kl", hard_label_weight=1))(*adapted)
    assert report.terms["kd_loss"].parts[0].count == int(found.targets["counts"].sum())
    assert report.terms["hard_label_loss"].value == 0
    assert (adapted[0]["labels"] == -100).all()


def test_the_share_of_batches_is_the_fraction_and_a_matter_of_the_seed(folder):
    sampler = Sampler(GenerateSettings(fraction=0.3, max_new_tokens=1), 8)

    def drawn():
        torch.manual_seed(1)
        return [sampler.is_due() for _ in range(2000)]

    assert drawn() == drawn()
    assert sum(drawn()) / 2000 == pytest.approx(0.3, abs=0.03)


def _made(folder, out, *changes, **more):
    generate = {"fraction": 0.5, "max_new_tokens": 4}
    changes = ("training.batch_size=4", "training.num_epochs=2", "training.ckpt_frequency=2", *changes)
    return recipe(settings(folder, generate, **more), out, *changes, kd_loss_type="jsd")


@pytest.mark.filterwarnings(
    "ignore:hard_label_loss:UserWarning"
)  # the first batches may all be generated, without labels
@pytest.mark.parametrize("more", [(), ("training.gradient_accumulation_steps=2",)], ids=["plain", "accumulated"])
def test_a_run_that_goes_on_writes_the_same_batches(folder, tmp_path, monkeypatch, more):
    whole = run_recipe(_made(folder, tmp_path / "whole", *more))
    usual = Loop._step

    def mortal(self, window):
        usual(self, window)
        if self.run.output_dir.name == "student" and self.run.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", mortal)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(_made(folder, tmp_path / "killed", *more))
    torch.manual_seed(99)
    resumed = run_recipe(_made(folder, tmp_path / "killed", *more), resume=True)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert whole.made == resumed.made
    assert 0 < whole.made.anew < whole.made.batches == 10


def test_a_run_says_how_many_batches_the_student_wrote(folder, tmp_path):
    said = io.StringIO()
    done = run_recipe(_made(folder, tmp_path, factored=True), console=Console(file=said, width=200))
    assert f"the task generated {done.made.anew} of 10 batches" in said.getvalue()
    assert json.loads((tmp_path / "metrics.json").read_text())["batches_made_anew"] == {
        "anew": done.made.anew,
        "batches": 10,
    }


def test_a_plan_says_what_share_is_to_be_written_and_that_it_has_no_labels(folder, tmp_path):
    plan = plan_recipe(recipe(settings(folder, ALWAYS), tmp_path, kd_loss_type="jsd"))
    assert "generates 100% of the batches, up to 6 tokens after each prompt" in plan.about
    assert [warning.message.split()[0] for warning in plan.warnings if warning.check == "dead_term"] == [
        "hard_label_loss"
    ]


@pytest.mark.parametrize("go", [run_recipe, plan_recipe, lambda recipe: cache_recipe(recipe, "nowhere")])
def test_a_cache_of_the_teacher_is_refused(folder, tmp_path, go):
    made = _made(folder, tmp_path, "distillation.is_caching_logits=true")
    with pytest.raises(kdplug.ConfigError, match="is_caching_logits: task 'causal-lm' makes batches with the student"):
        go(made)


@pytest.mark.parametrize(
    ("generate", "more", "words"),
    [
        (ALWAYS, {"prompts": False}, r"generate\.prompt_length: is required if rows have no prompts"),
        ({**ALWAYS, "prompt_length": 2}, {}, r"generate\.prompt_length: has no effect with prompts"),
        ({**ALWAYS, "max_new_tokens": 24}, {}, r"generate\.max_new_tokens: is 24"),
        (ALWAYS, {"packing": True}, "packing: puts several prompts into one example"),
        ({**ALWAYS, "fraction": 0}, {}, "fraction"),
    ],
)
def test_settings_that_give_the_student_nothing_to_go_on_from_are_refused(folder, generate, more, words):
    with pytest.raises(ValueError, match=words):
        task_of(**settings(folder, generate, **more))


def test_an_empty_prompt_is_refused(folder, tmp_path):
    file = write_csv(tmp_path / "pairs.csv", [*PAIRS, {"prompt": "", "completion": "x"}])
    with pytest.raises(kdplug.ConfigError, match="the prompt is empty"):
        task_of(**settings(folder, ALWAYS, data={"train": file, "test": 0.3})).check()
