"""What a teacher cache may not be used with: another teacher or other data, and data that are new each time."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from cache_scene import data, loader, run
from small_run import PROJECTED, make_batches, make_student, sgd
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdplug import DistillationConfig, GeneralDistiller, TrainingConfig
from kdplug.errors import RunError


def changed_weight(teacher):
    with torch.no_grad():
        teacher.head[0, 0] += 1e-12


def by_adaptor(batch, outputs):
    return {"logits": outputs["logits"], "hidden": outputs["hidden"]}


def other_adaptor(batch, outputs):
    return {"logits": 2 * outputs["logits"], "hidden": outputs["hidden"]}


STALE = {
    "a weight": ({"edit": changed_weight}, r"the teacher's weights: teacher\.head$"),
    "the architecture": ({"edit": lambda teacher: setattr(teacher, "act", nn.GELU())}, "architecture: teacher"),
    "the adaptor": ({"adaptors": (other_adaptor, None)}, "the teacher's adaptor: teacher$"),
    "the data": ({"data": data(seed=4)}, "the data that the teacher receives: examples 0 to 3"),
    "the number of examples": ({"data": data(26)}, "the number of examples: 22 -> 26"),
    "the dtype": ({"training": {"teacher_cache_dtype": "float16"}}, "stored outputs: None -> 'float16'"),
    "the model's arguments": ({"train": {"scale": 2.0}}, "the model_args: changed"),
    "the postprocessor": ({"train": {"batch_postprocessor": lambda batch: [2 * batch[0]]}}, "the data that"),
    "a feature that was not kept": ({"matches": [{**PROJECTED, "layer_T": 1}]}, r"lacks hidden/1, which"),
}


@pytest.mark.parametrize(("change", "words"), STALE.values(), ids=STALE)
def test_a_stale_cache_is_an_error_that_names_what_differs(tmp_path, teacher, change, words):
    change = dict(change)
    folder = {"teacher_cache": str(tmp_path / "cache")}
    run(tmp_path, teacher, loader(), caching=True, training=folder, adaptors=(by_adaptor, None))
    change.pop("edit", lambda teacher: None)(teacher)
    batches = DataLoader(change.pop("data", data()), batch_size=4, shuffle=True)
    training = folder | change.pop("training", {})
    with pytest.raises(RunError, match=f"(?m){words}"):
        run(tmp_path, teacher, batches, caching=True, training=training, **{"adaptors": (by_adaptor, None), **change})


def again(folder, teacher, *matches, **distillation):
    """Train a student with the cache in ``folder``, which may have no teacher."""
    student = make_student()
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu", seed=7, teacher_cache=str(folder / "cache")),
        DistillationConfig(intermediate_matches=list(matches), is_caching_logits=True, **distillation),
        teacher,
        student,
        show_progress=False,
    )
    distiller.objective.double()
    distiller.train(sgd(student), loader(), num_epochs=1, overwrite=True)


LACKING = {
    "a layer": ({"layer_T": 1}, "hidden/1"),
    "a module": ({"layer_T": "act"}, "captured/act"),
}


@pytest.mark.parametrize("is_there", [True, False], ids=["with the teacher", "without a teacher"])
@pytest.mark.parametrize("widths", [["linear", 3, 5], ["linear", "auto", "auto"]], ids=["widths", "auto"])
@pytest.mark.parametrize(("layer", "lacking"), LACKING.values(), ids=LACKING)
def test_what_the_cache_lacks_is_named_even_if_widths_are_read_from_it(
    tmp_path, teacher, layer, lacking, widths, is_there
):
    folder = {"teacher_cache": str(tmp_path / "cache")}
    run(tmp_path, teacher, loader(), caching=True, training=folder)
    match = {**PROJECTED, **layer, "proj": widths}
    with pytest.raises(RunError, match=rf"the teacher cache .* lacks {lacking}, which the objective reads"):
        again(tmp_path, teacher if is_there else None, match)


def test_a_layer_map_of_which_the_cache_holds_the_chosen_layers_needs_no_more(tmp_path, teacher):
    layer_map = {
        "feature": "hidden",
        "loss": "hidden_mse",
        "proj": ["linear", "auto", "auto"],
        "name": {"name": "last", "top": True},
        "embeddings": False,
    }
    layer_map |= {"layer_T": ["relu", "act"]}
    teacher.relu = nn.ReLU()  # never called
    again(tmp_path, teacher, layer_map=[layer_map])
    again(tmp_path, teacher, layer_map=[layer_map])


def test_an_example_that_changed_where_nobody_looked_is_found_when_it_is_used(tmp_path, teacher):
    folder, examples = {"teacher_cache": str(tmp_path / "cache")}, data(60)
    run(tmp_path, teacher, DataLoader(examples, batch_size=4), caching=True, training=folder)
    examples.tensors[0][13, 0] += 1e-12
    with pytest.raises(RunError, match="example 13 differs from the one the teacher ran on"):
        run(tmp_path, teacher, DataLoader(examples, batch_size=4), caching=True, training=folder)


class Augmented(Dataset):
    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 12

    def __getitem__(self, place):
        return torch.full((4,), float(place), dtype=torch.float64) + self.draw()


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random], ids=["torch", "python"])
def test_random_examples_are_refused(tmp_path, teacher, draw):
    with pytest.raises(
        RunError, match=r"reading example \d+ twice gives two different results.*Make the data deterministic"
    ):
        run(tmp_path, teacher, DataLoader(Augmented(draw), batch_size=4), caching=True)


COLLATES = {
    "masks at random": (lambda items: torch.stack([i[0] for i in items]) * torch.rand(1), "is random"),
    "sorts": (lambda items: torch.stack(sorted((i[0] for i in items), key=lambda x: x[0].item())), "do not follow"),
    "mixes": (lambda items: torch.stack([i[0] + items[0][0] for i in items]), "do not follow"),
    "reverses": (lambda items: torch.stack([i[0] for i in items[::-1]]), "do not follow"),
    "mixes with the reverse": (lambda items: mixed_up(torch.stack([i[0] for i in items])), "do not follow"),
    "rotates": (lambda items: torch.stack([i[0] for i in items]).roll(2, 0), "do not follow"),
}


def mixed_up(rows):
    return 0.7 * rows + 0.3 * rows.flip(0)


@pytest.mark.parametrize(("collate", "words"), COLLATES.values(), ids=COLLATES)
def test_a_collate_function_that_mixes_examples_is_refused(tmp_path, teacher, collate, words):
    with pytest.raises(RunError, match=words):
        run(tmp_path, teacher, loader(collate_fn=collate), caching=True)


def test_two_examples_in_reverse_are_refused(tmp_path, teacher):
    with pytest.raises(RunError, match="do not follow"):
        run(tmp_path, teacher, loader(batch_size=2, collate_fn=COLLATES["reverses"][0]), caching=True)


@dataclass
class Pixels:
    values: torch.Tensor


def test_a_collate_function_that_sorts_into_a_dataclass_is_refused(tmp_path, teacher):
    def collate(items):
        return Pixels(torch.stack(sorted((item[0] for item in items), key=lambda row: row[0].item())))

    with pytest.raises(RunError, match="do not follow"):
        run(tmp_path, teacher, loader(collate_fn=collate), caching=True)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(8, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("batches", "kind"),
    [(DataLoader(Stream(), batch_size=4), "Stream"), ((b for b in make_batches(3)), "generator")],
    ids=["iterable dataset", "generator"],
)
def test_data_without_places_are_refused(tmp_path, teacher, batches, kind):
    with pytest.raises(RunError, match=f"looked up by index, which {kind} does not support"):
        run(tmp_path, teacher, batches, caching=True, steps=3)


def test_outputs_that_are_not_one_per_example_are_refused(tmp_path, teacher):
    def flat(batch, outputs):
        return {"logits": outputs["logits"].reshape(-1), "hidden": outputs["hidden"]}

    with pytest.raises(RunError, match=r"logits/0 \[12\] cannot be divided among the 4 examples"):
        run(tmp_path, teacher, loader(), caching=True, adaptors=(flat, None))


def test_batches_that_bring_their_own_teacher_cache_are_refused(tmp_path, teacher):
    (batch,) = make_batches(1)
    brought = [{"teacher": None, "student": batch, "teacher_cache": teacher(batch)}]
    with pytest.raises(
        RunError,
        match=r"is_caching_logits: the batches already contain a key 'teacher_cache'.*Set is_caching_logits to false",
    ):
        run(tmp_path, teacher, brought, caching=True)
