"""Language models that return the factors of their logits: same results without dense logits."""

from __future__ import annotations

import math

import pytest
import torch
from task_scene import GPT2, SIZES, TEXTS, first_batch, recipe, save_model, task_of, tokenizer

import kdplug
from kdplug.engine.cache.report import CacheReport
from kdplug.recipes.cache import cache_recipe
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe
from kdplug_tasks.model_task import ModelTask

SMALL = {**SIZES, "num_hidden_layers": 1, "num_key_value_heads": 1, "max_position_embeddings": 64}
FAMILIES = {
    "gpt2": {**GPT2, "n_layer": 1},
    "llama": {"model_type": "llama", **SMALL},
    "qwen2": {"model_type": "qwen2", **SMALL},
    "gemma2": {"model_type": "gemma2", **SMALL, "head_dim": 8, "final_logit_softcapping": 0.1},
    "cohere": {"model_type": "cohere", **SMALL, "logit_scale": 0.25},
    "granite": {"model_type": "granite", **SMALL, "logits_scaling": 3.0},
}

UNFIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """Measure throughput only once."""
    monkeypatch.setattr("kdplug.recipes.measure._ROUNDS", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text file and a teacher."""
    folder = tmp_path_factory.mktemp("factored")
    (folder / "text.txt").write_text("\n\n".join(TEXTS * 6), encoding="utf-8")
    brings = tokenizer(is_framed=False)
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    save_model(folder / "teacher", "AutoModelForCausalLM", GPT2, brings=brings, **ids, vocab_size=len(brings))
    return folder


def settings(folder, **changes):
    return {
        "name": "causal-lm",
        "data": {"train": str(folder / "text.txt"), "test": 0.2},
        "teacher": str(folder / "teacher"),
        "student": {"config": {"n_layer": 1}},
        "max_length": 16,
        **changes,
    }


def adapted(folder, **changes):
    """Return a student adaptor's outputs for a batch in float64, and the model."""
    task = task_of(**settings(folder, **changes))
    batch = first_batch(task)
    torch.manual_seed(0)
    model = task.build_student().double().eval()
    return task.student_adaptor(batch, model(**batch)), model


@pytest.mark.parametrize("student", FAMILIES.values(), ids=FAMILIES)
def test_factors_multiplied_out_are_the_logits_of_the_model(folder, student):
    dense, _ = adapted(folder, student={"config": student})
    found, _ = adapted(folder, student={"config": student}, factored=True)
    assert isinstance(found["logits"], kdplug.FactoredLogits)
    torch.testing.assert_close(found["logits"].dense(), dense["logits"])
    torch.testing.assert_close(found["losses"].value, dense["losses"].value)


@pytest.mark.parametrize("student", [FAMILIES["gpt2"], FAMILIES["gemma2"]], ids=["gpt2", "gemma2"])
@pytest.mark.parametrize("loss", ["kl", "dkd"])
def test_losses_and_gradients_are_those_of_the_dense_form(folder, student, loss):
    def gradient(**changes):
        task = task_of(**settings(folder, student={"config": student}, **changes))
        batch, teacher = first_batch(task), task.build_teacher().double().eval()
        torch.manual_seed(0)
        model = task.build_student().double().eval()
        config = kdplug.DistillationConfig(kd_loss_type=loss, hard_label_weight=1, logit_chunk=7)
        with torch.no_grad():
            theirs = task.teacher_adaptor(batch, teacher(**batch))
        report = kdplug.Objective(config)(task.student_adaptor(batch, model(**batch)), theirs)
        report.total.backward()
        return report.total.detach(), [one.grad for one in model.parameters()]

    torch.testing.assert_close(gradient(factored=True), gradient())


def test_a_forward_pass_holds_logits_of_no_token(folder):
    task = task_of(**settings(folder, factored=True))
    model, rows = task.build_student(), []
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, output: rows.append(output.shape[:-1]))
    model(**first_batch(task))
    assert [one.numel() for one in rows] == [0]


def test_throughput_is_that_of_the_whole_model(folder):
    task = task_of(**settings(folder, factored=True))
    model, batch = task.build_student(), first_batch(task)
    assert task.answer(model, batch).logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)
    assert isinstance(model(**batch).logits, kdplug.FactoredLogits)


def test_perplexity_is_the_same_in_pieces(folder, monkeypatch):
    monkeypatch.setattr("kdplug_tasks.text.next_token._PIECE", 1)
    found = []
    for factored in (False, True):
        task = task_of(**settings(folder, factored=factored))
        with torch.no_grad():
            found.append(task.evaluate(task.build_teacher().eval(), [first_batch(task, "test")]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0]["perplexity"] == pytest.approx(math.exp(found[0]["loss"]))


def test_padded_vocabularies_are_read_up_to_the_tokenizer(folder):
    student = {"config": {"vocab_size": 320, "n_layer": 1}}
    dense, found = (adapted(folder, student=student, factored=factored)[0] for factored in (False, True))
    assert found["logits"].shape == dense["logits"].shape


def test_a_head_that_does_more_is_refused(folder, monkeypatch):
    monkeypatch.setattr("kdplug_tasks.models.factored.numbers_of", lambda _config: (None, None))
    task = task_of(**settings(folder, student={"config": FAMILIES["cohere"]}, factored=True))
    with pytest.raises(kdplug.ConfigError, match="factored: the student, a CohereForCausalLM, does more between"):
        task.build_student()


def test_a_model_whose_head_cannot_be_left_out_is_refused_before_anything_is_built(folder):
    with pytest.raises(kdplug.ConfigError, match=r"factored: the student, a \w+, has no"):
        task_of(**settings(folder, student={"config": {"model_type": "xlstm", **UNFIT}}, factored=True)).check()


def test_a_student_learns_from_hidden_states_in_a_cache(folder, tmp_path, monkeypatch):
    def made(*changes):
        return recipe(settings(folder, factored=True), tmp_path / "run", *changes, kd_loss_type="kl")

    cache = [f"training.teacher_cache={tmp_path / 'cache'}", "training.teacher_cache_codec=hidden"]
    plain = run_recipe(made())
    cache_recipe(made(*cache), tmp_path / "cache")
    monkeypatch.setattr(ModelTask, "build_teacher", lambda _self: pytest.fail("a teacher was built"))
    cached = run_recipe(made(*cache, "distillation.is_caching_logits=true"), overwrite=True)
    assert cached.distilled.metrics == pytest.approx(plain.distilled.metrics, rel=1e-5)


def test_the_head_of_a_cache_of_hidden_states_is_not_counted_by_item(folder, tmp_path):
    given = settings(folder, factored=True)
    cache_recipe(
        recipe(given, tmp_path / "run", "training.teacher_cache_codec=hidden", kd_loss_type="kl"), tmp_path / "cache"
    )
    report = CacheReport.read(tmp_path / "cache")
    (width, vocabulary) = (GPT2["n_embd"], report.classes[0])
    assert report.shared_bytes == pytest.approx(4 * width * vocabulary, rel=0.1)
    shards = sum(file.stat().st_size for file in (tmp_path / "cache").glob("shard-*.safetensors"))
    assert report.bytes_per_item == shards / report.tally.items


def test_a_plan_counts_the_teachers_hidden_states_and_not_its_head(folder, tmp_path):
    plan = plan_recipe(recipe(settings(folder, factored=True), tmp_path, kd_loss_type="kl"))
    found = next(item.bytes for item in plan.memory if item.name == "teacher's outputs")
    dense = plan_recipe(recipe(settings(folder), tmp_path, kd_loss_type="kl"))
    whole = next(item.bytes for item in dense.memory if item.name == "teacher's outputs")
    share = GPT2["n_embd"] / 300
    assert whole * share < found < 3 * whole * share


def test_a_factored_student_is_saved_as_any_other(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    run_recipe(recipe(settings(folder, factored=True), tmp_path))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert isinstance(loaded(input_ids=torch.tensor([[1, 2]])).logits, torch.Tensor)
