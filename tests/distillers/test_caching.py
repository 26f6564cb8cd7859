"""A run whose teacher was asked once about every example is the run whose teacher was asked every time."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cache_scene import Reader, Rowwise, Tokens, data, loader, read, run
from small_run import AUTO, MATCH, PROJECTED, make_batches, make_distiller, make_student, make_teacher, sgd, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.custom_match import CustomMatch
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.engine import cache_extent
from kdplug.errors import RunError


@pytest.fixture
def teacher():
    return Rowwise()


def both(folder, teacher, make, **more):
    """The run as it is, and the run with a cache."""
    plain, cached = (run(folder / str(caching), teacher, make(), caching=caching, **more) for caching in (False, True))
    return plain, cached


LOADERS = {
    "in order": {"shuffle": False},
    "shuffled": {},
    "own generator": {"generator": torch.Generator().manual_seed(5)},
    "workers": {"num_workers": 2},
    "last batch dropped": {"drop_last": True},
    "with replacement": {
        "shuffle": False,
        "sampler": torch.utils.data.WeightedRandomSampler([1.0, 2.0] * 11, 30, replacement=True),
    },
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
def test_a_cache_changes_no_bit_of_what_is_learned(tmp_path, teacher, options):
    def make():
        if "generator" in options:
            options["generator"].manual_seed(5)
        return loader(**options)

    assert torch.equal(*both(tmp_path, teacher, make))


VARIANTS = {
    "accumulation": {"training": {"gradient_accumulation_steps": 3}},
    "steps": {"steps": 13},
    "widths from the first batch": {"matches": [AUTO]},
    "no match": {"matches": []},
    "a negative layer": {"matches": [{**PROJECTED, "layer_T": -1}]},
    "a module path": {"matches": [{**PROJECTED, "layer_T": "act"}]},
    "no kd loss": {"kd_loss_weight": 0},
    "on disk": {"on_disk": True},
    "a layer map": {
        "matches": [],
        "layer_map": {
            "name": {"name": "last", "top": True},
            "embeddings": False,
            "feature": "hidden",
            "loss": "hidden_mse",
            "proj": ["linear", "auto", "auto"],
        },
    },
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_whatever_is_trained_on_the_teacher_a_cache_changes_no_bit(tmp_path, teacher, options):
    options = dict(options)
    if options.pop("on_disk", False):
        options["training"] = {"teacher_cache": str(tmp_path / "cache")}
        plain = run(tmp_path, teacher, loader(), caching=False)
        assert torch.equal(plain, run(tmp_path, teacher, loader(), caching=True, **options))
        return
    assert torch.equal(*both(tmp_path, teacher, loader, **options))


def test_a_teacher_of_matrix_products_gives_the_same_up_to_rounding(tmp_path):
    torch.testing.assert_close(*both(tmp_path, make_teacher(), loader), rtol=1e-10, atol=1e-12)


def test_a_list_of_batches_is_cached_batch_by_batch(tmp_path, teacher):
    assert torch.equal(*both(tmp_path, teacher, lambda: make_batches(5)))


def test_items_that_are_batches_are_cached_whole(tmp_path, teacher):
    class Whole(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, place):
            return make_batches(5, size=3)[place]

    assert torch.equal(*both(tmp_path, teacher, lambda: DataLoader(Whole(), batch_size=None, shuffle=True)))


def test_the_teacher_is_asked_once_about_every_example_and_never_again(tmp_path, teacher):
    seen = []
    teacher.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    run(tmp_path, teacher, loader(), caching=True, epochs=5)
    assert seen == [4, 4, 4, 4, 4, 2]


def test_a_width_that_the_first_batch_decides_costs_one_more_forward_pass(tmp_path, teacher):
    run(tmp_path, teacher, loader(), caching=True, matches=[AUTO])
    assert teacher.calls == 7


def test_a_second_run_asks_nothing_and_keeps_nothing_twice(tmp_path, teacher):
    student = make_student()
    distiller = make_distiller(tmp_path, student, teacher, is_caching_logits=True)
    sizes = []
    for _ in range(2):
        distiller.train(sgd(student), loader(), num_epochs=2)
        sizes.append((teacher.calls, distiller.teacher_cache.summary.bytes))
    assert sizes[0] == sizes[1] == (6, 22 * (3 * 8 + 8))
    assert distiller.teacher_cache.summary.batches == 0


def test_in_memory_other_data_and_another_teacher_are_asked_anew(tmp_path, teacher):
    student = make_student()
    distiller = make_distiller(tmp_path, student, teacher, is_caching_logits=True)
    distiller.train(sgd(student), loader(), num_epochs=1)
    distiller.train(sgd(student), loader(8), num_epochs=1)
    with torch.no_grad():
        teacher.head.mul_(2)
    distiller.train(sgd(student), loader(8), num_epochs=1)
    assert teacher.calls == 6 + 2 + 2


def test_every_distiller_caches(tmp_path, teacher):
    ends = []
    for caching in (False, True):
        torch.manual_seed(0)
        student, config = make_student(), DistillationConfig(is_caching_logits=caching)
        training = TrainingConfig(output_dir=str(tmp_path / str(caching)), device="cpu", seed=7)
        BasicDistiller(training, config, teacher, student, show_progress=False).train(sgd(student), loader(), 2)
        several = MultiTeacherDistiller(training, config, [teacher, Rowwise(4)], student, show_progress=False)
        several.train(sgd(student), loader(), 2)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_matches_with_a_chosen_teacher_read_that_teachers_cache(tmp_path, teacher):
    ends = []
    for caching in (False, True):
        torch.manual_seed(0)
        student = make_student()
        config = DistillationConfig(
            is_caching_logits=caching, intermediate_matches=[{**PROJECTED, "teacher": "b", "layer_T": "act"}]
        )
        training = TrainingConfig(output_dir=str(tmp_path / str(caching)), device="cpu", seed=7)
        teachers = {"a": teacher, "b": Rowwise(4)}
        distiller = MultiTeacherDistiller(training, config, teachers, student, show_progress=False)
        distiller.objective.double()
        distiller.train(sgd(student), loader(), 2)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_tasks_cache_each_their_own_and_only_where_they_are_told(tmp_path, teacher):
    ends, other = [], Rowwise(4)
    for caching in (False, True):
        torch.manual_seed(0)
        student = make_student()
        configs = {"a": DistillationConfig(is_caching_logits=caching), "b": DistillationConfig()}
        training = TrainingConfig(output_dir=str(tmp_path / str(caching)), device="cpu", seed=7)
        teacher.calls = other.calls = 0
        distiller = MultiTaskDistiller(training, configs, {"a": teacher, "b": other}, student, show_progress=False)
        distiller.train(sgd(student), {"a": loader(), "b": loader(8)}, num_steps=40)
        ends.append(weights(student))
    assert torch.equal(*ends)
    assert teacher.calls == 6
    assert other.calls > 6


def test_a_match_written_in_python_reads_the_cache(tmp_path, teacher):
    match = CustomMatch("act", "inner", 0.5, lambda S, T, mask_S, mask_T: (S.sum(-1) - T.sum(-1)).square().mean())
    assert torch.equal(*both(tmp_path, teacher, loader, options={"custom_matches": [match]}))


def test_what_was_kept_and_what_it_cost_is_said_once(tmp_path, teacher, capsys):
    student, config = make_student(), DistillationConfig(is_caching_logits=True)
    training = TrainingConfig(output_dir=str(tmp_path), device="cpu")
    BasicDistiller(training, config, teacher, student).train(sgd(student), loader(), 2)
    said = [line for line in capsys.readouterr().err.splitlines() if "teacher cache" in line]
    assert len(said) == 1
    assert said[0].startswith("teacher cache: asked about 6 batches in ")
    assert said[0].endswith("; 22 examples, 32 B each, 704 B in memory")


class Killer:
    def __init__(self, step):
        self.step = step

    def run_start(self, run):
        pass

    def step_end(self, run, step, report):
        if step == self.step:
            raise KeyboardInterrupt

    def run_end(self, run, error):
        pass


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_killed_run_with_a_cache_goes_on_to_the_same_bits(tmp_path, teacher, on_disk, workers):
    folder = {"teacher_cache": str(tmp_path / "cache")} if on_disk else {}
    training = {"ckpt_frequency": 2, "gradient_accumulation_steps": 2, **folder}

    def go(name, **more):
        return run(tmp_path / name, teacher, loader(num_workers=workers), caching=True, training=training, **more)

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("killed", options={"observers": [Killer(5)]})
    assert torch.equal(whole, go("killed", train={"resume": "auto"}))


def test_a_folder_serves_the_next_process(tmp_path, teacher):
    folder = {"teacher_cache": str(tmp_path / "cache")}
    first = run(tmp_path / "1", teacher, loader(), caching=True, training=folder)
    assert torch.equal(first, run(tmp_path / "2", teacher, loader(), caching=True, training=folder))
    assert teacher.calls == 6


def small_shards(monkeypatch):
    monkeypatch.setattr(cache_extent, "SHARD_BATCHES", 2)


def test_an_interrupted_capture_keeps_its_shards_and_goes_on(tmp_path, teacher, monkeypatch):
    small_shards(monkeypatch)
    folder = {"teacher_cache": str(tmp_path / "cache")}
    handle = teacher.register_forward_pre_hook(lambda module, args: 1 / 0 if teacher.calls == 3 else None)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, teacher, loader(), caching=True, training=folder)
    handle.remove()
    teacher.calls = 0
    cached = run(tmp_path, teacher, loader(), caching=True, training=folder)
    assert teacher.calls == 4
    assert torch.equal(cached, run(tmp_path, teacher, loader(), caching=False))


def several(training, config, teacher, student):
    return MultiTeacherDistiller(training, config, [teacher, Rowwise(4)], student, show_progress=False)


def tasks(training, config, teacher, student):
    made = MultiTaskDistiller(training, config, {"a": teacher, "b": Rowwise(4)}, student, show_progress=False)
    train, made.train = made.train, lambda optimizer, batches, _: train(optimizer, {"a": batches, "b": loader()}, 6)
    return made


def basic(training, config, teacher, student):
    return BasicDistiller(training, config, teacher, student, show_progress=False)


@pytest.mark.parametrize("make", [basic, several, tasks])
def test_an_interrupted_capture_of_any_distiller_goes_on(tmp_path, teacher, monkeypatch, make):
    small_shards(monkeypatch)
    training = TrainingConfig(output_dir=str(tmp_path), device="cpu", seed=7, teacher_cache=str(tmp_path / "cache"))

    def train():
        student, teacher.calls = make_student(), 0
        distiller = make(training, DistillationConfig(is_caching_logits=True), teacher, student)
        distiller.train(sgd(student), loader(), 2)
        return weights(student)

    handle = teacher.register_forward_pre_hook(lambda module, args: 1 / 0 if teacher.calls == 3 else None)
    with pytest.raises(ZeroDivisionError):
        train()
    handle.remove()
    resumed = train()
    assert teacher.calls == 4
    training = training.model_copy(update={"teacher_cache": str(tmp_path / "another")})
    assert torch.equal(resumed, train())
    assert teacher.calls == 6


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from kdplug.engine import cache_extent
from cache_scene import Rowwise, loader, run
cache_extent.SHARD_BATCHES = 1
teacher = Rowwise()
teacher.register_forward_pre_hook(lambda module, args: os.kill(os.getpid(), 9) if teacher.calls == 4 else None)
run(Path(sys.argv[1]), teacher, loader(), caching=True, training={{"teacher_cache": sys.argv[1] + "/cache"}})
"""


def test_a_kill_in_the_middle_of_the_capture_loses_one_shard_at_most(tmp_path, teacher):
    code = KILLED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, check=False, env=os.environ).returncode == -9
    again = run(tmp_path, teacher, loader(), caching=True, training={"teacher_cache": str(tmp_path / "cache")})
    assert teacher.calls == 2
    assert torch.equal(again, run(tmp_path, teacher, loader(), caching=False))


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
    "the data": ({"data": data(seed=4)}, "the data, as the teacher is given them: examples 0 to 3"),
    "the number of examples": ({"data": data(26)}, "the number of examples: 22 -> 26"),
    "the dtype": ({"training": {"teacher_cache_dtype": "float16"}}, "kept: None -> 'float16'"),
    "the model's arguments": ({"train": {"scale": 2.0}}, "the model_args: changed"),
    "the postprocessor": ({"train": {"batch_postprocessor": lambda batch: [2 * batch[0]]}}, "the data, as"),
    "a feature that was not kept": ({"matches": [{**PROJECTED, "layer_T": 1}]}, r"holds no hidden/1, which"),
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


def test_an_example_that_changed_where_nobody_looked_is_found_when_it_is_used(tmp_path, teacher):
    folder, examples = {"teacher_cache": str(tmp_path / "cache")}, data(60)
    run(tmp_path, teacher, DataLoader(examples, batch_size=4), caching=True, training=folder)
    examples.tensors[0][13, 0] += 1e-12
    with pytest.raises(RunError, match="example 13 is not what the teacher saw"):
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
    with pytest.raises(RunError, match=r"drawn twice gives two different examples.*Take the augmentation out"):
        run(tmp_path, teacher, DataLoader(Augmented(draw), batch_size=4), caching=True)


COLLATES = {
    "masks at random": (lambda items: torch.stack([i[0] for i in items]) * torch.rand(1), "draws at random"),
    "sorts": (lambda items: torch.stack(sorted((i[0] for i in items), key=lambda x: x[0].item())), "do not follow"),
    "mixes": (lambda items: torch.stack([i[0] + items[0][0] for i in items]), "do not follow"),
}


@pytest.mark.parametrize(("collate", "words"), COLLATES.values(), ids=COLLATES)
def test_a_collate_function_that_mixes_examples_is_refused(tmp_path, teacher, collate, words):
    with pytest.raises(RunError, match=words):
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
    with pytest.raises(RunError, match=f"found again by their place, and a {kind} has none"):
        run(tmp_path, teacher, batches, caching=True, steps=3)


def test_outputs_that_are_not_one_per_example_are_refused(tmp_path, teacher):
    def flat(batch, outputs):
        return {"logits": outputs["logits"].reshape(-1), "hidden": outputs["hidden"]}

    with pytest.raises(RunError, match=r"logits/0 \[12\] cannot be divided among the 4 examples"):
        run(tmp_path, teacher, loader(), caching=True, adaptors=(flat, None))


def test_two_sided_batches_are_cached(tmp_path, teacher):
    def sides(items):
        x = torch.stack([item[0] for item in items])
        return {"teacher": x * 2, "student": x}

    assert torch.equal(*both(tmp_path, teacher, lambda: loader(collate_fn=sides)))


def test_batches_that_bring_their_own_teacher_cache_are_refused(tmp_path, teacher):
    (batch,) = make_batches(1)
    brought = [{"teacher": None, "student": batch, "teacher_cache": teacher(batch)}]
    with pytest.raises(RunError, match="is_caching_logits: the batches bring a teacher_cache"):
        run(tmp_path, teacher, brought, caching=True)


def test_a_folder_without_caching_is_told_to_be_of_no_use(tmp_path):
    with pytest.warns(UserWarning, match="teacher_cache has no effect: is_caching_logits is false"):
        make_distiller(tmp_path, make_student(), training={"teacher_cache": "somewhere"})


def test_a_narrower_dtype_keeps_less_and_says_how_far_off_it_is(tmp_path, teacher):
    student = make_student()
    distiller = make_distiller(
        tmp_path, student, teacher, is_caching_logits=True, training={"teacher_cache_dtype": "float16"}
    )
    distiller.train(sgd(student), loader(), num_epochs=1)
    summary = distiller.teacher_cache.summary
    assert summary.bytes_per_example == 3 * 2 + 8
    assert 1e-6 < summary.error < 1e-2


ALL_FEATURES = [
    {**MATCH, "proj": ["linear", 3, 5]},
    {"layer_T": 0, "layer_S": 0, "feature": "attention", "loss": "attention_mse", "weight": 0.3},
    {"layer_T": [0, 0], "layer_S": [0, 0], "feature": "hidden", "loss": "mmd", "weight": 0.1},
]


def run_tokens(folder, *, caching, left=False, adaptor=read, batch_size=4):
    torch.manual_seed(0)
    student, tokens = Reader(3, seed=1), Tokens(left)
    distiller = make_distiller(
        folder,
        student,
        Reader(5, seed=2),
        matches=ALL_FEATURES,
        training={"seed": 7, "gradient_accumulation_steps": 2},
        adaptors=(adaptor, read),
        is_caching_logits=caching,
    )
    distiller.train(
        sgd(student, lr=1e-3), DataLoader(tokens, batch_size, shuffle=True, collate_fn=tokens.collate), num_epochs=3
    )
    return weights(student)


@pytest.mark.parametrize("left", [False, True], ids=["padded at the end", "padded at the start"])
def test_examples_of_unequal_lengths_meet_others_in_every_epoch_and_no_bit_changes(tmp_path, left):
    plain, cached = (run_tokens(tmp_path / str(c), caching=c, left=left) for c in (False, True))
    assert torch.isfinite(plain).all()
    assert torch.equal(plain, cached)


def test_unequal_lengths_without_a_mask_are_refused(tmp_path):
    def maskless(batch, outputs):
        return {**outputs, "inputs_mask": batch["attention_mask"]}

    with pytest.raises(RunError, match="adaptor returns no logits_mask that says what of its logits is padding"):
        run_tokens(tmp_path, caching=True, adaptor=maskless)
