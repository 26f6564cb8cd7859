"""A run whose teacher was asked once about every example is the run whose teacher was asked every time."""

from __future__ import annotations

import pytest
import torch
from cache_scene import Reader, Rowwise, Tokens, loader, read, run
from small_run import AUTO, MATCH, PROJECTED, make_batches, make_distiller, make_student, make_teacher, sgd, weights
from torch.utils.data import DataLoader, Dataset

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.basic import BasicDistiller
from kdplug.distillers.custom_match import CustomMatch
from kdplug.distillers.multi_task import MultiTaskDistiller
from kdplug.distillers.multi_teacher import MultiTeacherDistiller
from kdplug.errors import RunError


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


@pytest.mark.filterwarnings("ignore:2 of the student's 4 trained parameters got no gradient")  # its head
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
        distiller.train(sgd(student), loader(), num_epochs=2, overwrite=True)
        sizes.append((teacher.calls, distiller.teacher_cache.summary.bytes))
    assert sizes[0] == sizes[1] == (6, 22 * (3 * 8 + 8))
    assert distiller.teacher_cache.summary.batches == 0


def test_in_memory_other_data_and_another_teacher_are_asked_again(tmp_path, teacher):
    student = make_student()
    distiller = make_distiller(tmp_path, student, teacher, is_caching_logits=True)
    distiller.train(sgd(student), loader(), num_epochs=1, overwrite=True)
    distiller.train(sgd(student), loader(8), num_epochs=1, overwrite=True)
    with torch.no_grad():
        teacher.head.mul_(2)
    distiller.train(sgd(student), loader(8), num_epochs=1, overwrite=True)
    assert teacher.calls == 6 + 2 + 2


def test_every_distiller_caches(tmp_path, teacher):
    ends = []
    for caching in (False, True):
        torch.manual_seed(0)
        student, config = make_student(), DistillationConfig(is_caching_logits=caching)
        training = TrainingConfig(output_dir=str(tmp_path / str(caching)), device="cpu", seed=7)
        BasicDistiller(training, config, teacher, student, show_progress=False).train(
            sgd(student), loader(), 2, overwrite=True
        )
        several = MultiTeacherDistiller(training, config, [teacher, Rowwise(4)], student, show_progress=False)
        several.train(sgd(student), loader(), 2, overwrite=True)
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


def test_tasks_cache_each_their_own_and_only_where_configured(tmp_path, teacher):
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
    assert said[0].startswith("teacher cache: teacher ran on 6 batches in ")
    assert said[0].endswith("; 22 examples, 32 B each, 704 B in memory")


def test_two_sided_batches_are_cached(tmp_path, teacher):
    def sides(items):
        x = torch.stack([item[0] for item in items])
        return {"teacher": x * 2, "student": x}

    assert torch.equal(*both(tmp_path, teacher, lambda: loader(collate_fn=sides)))


def test_a_folder_without_caching_is_reported_as_unused(tmp_path):
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

    with pytest.raises(RunError, match="adaptor returns no logits_mask to mark the padding of its logits"):
        run_tokens(tmp_path, caching=True, adaptor=maskless)


def filled_tokens(folder, adaptor, generator):
    tokens = Tokens()
    distiller = make_distiller(
        folder, Reader(3, seed=1), Reader(5, seed=2), adaptors=(adaptor, read), is_caching_logits=True
    )
    return distiller.fill_teacher_cache(
        DataLoader(tokens, 4, shuffle=True, collate_fn=tokens.collate, generator=generator)
    )


def test_a_cache_that_training_could_not_read_is_refused_when_it_is_filled(tmp_path):
    def maskless(batch, outputs):
        return {**outputs, "inputs_mask": batch["attention_mask"]}

    with pytest.raises(RunError, match="adaptor returns no logits_mask to mark the padding of its logits"):
        filled_tokens(tmp_path, maskless, torch.Generator())


def test_filling_a_cache_leaves_the_order_of_the_loader_unchanged(tmp_path):
    generator = torch.Generator().manual_seed(3)
    filled_tokens(tmp_path, read, generator)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
