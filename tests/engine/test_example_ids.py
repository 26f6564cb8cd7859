"""Losses that request ``example_ids`` and ``num_examples``: a memory bank by example, as in CRD (arXiv:1910.10699)."""

from __future__ import annotations

import pytest
import torch
from cache_scene import Rowwise
from example_id_scene import BANK, COUNT, SEEN, First, Rows, distil, flat, register, seen, student
from killer import Killed, Killer
from multi_task_scene import make
from small_run import make_batches, make_student, sgd, weights
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from kdplug import ConfigError, DistillationConfig, Objective, OutputsError, RunError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore:. of the student's . trained parameters got no gradient")


@pytest.fixture(autouse=True)
def _entries():
    register()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}])
def test_each_example_has_its_place_in_the_data_in_every_epoch(tmp_path, workers, order):
    found, _ = distil(tmp_path, DataLoader(Rows(noise=0.1), batch_size=4, num_workers=workers, **order))
    whole = 2 if order.get("drop_last") else 3
    assert len(found) == 2 * whole
    passes = [flat(found[:whole]), flat(found[whole:])]
    for ids in passes:
        assert len(set(ids)) == len(ids)
        assert len(ids) == (8 if whole == 2 else COUNT)
    assert (passes[0] == list(range(COUNT))) == (not order)
    assert (passes[0] == passes[1]) == (not order)


@pytest.mark.parametrize("term", [BANK, {"loss": "logit_bank"}, {"loss": "sized"}], ids=["bank", "logits", "sized"])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_train_what_whole_batches_train(tmp_path, term, masked):
    """Micro-batches of a step, counted before or not, get their own ids."""
    ends = []
    for cut in (1, 2):
        made = student()
        data = DataLoader(Rows(8), batch_size=4 // cut)
        mask = (lambda batch, found: {**found, "logits_mask": (batch[:, 0] >= 0).long()}) if masked else None
        _, distiller = distil(
            tmp_path / str(cut),
            data,
            term,
            made=made,
            adaptors=(None, mask),
            training={"gradient_accumulation_steps": cut},
        )
        ends.append(
            torch.cat([weights(made), *(value.flatten() for value in distiller.objective.state_dict().values())])
        )
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    assert not torch.equal(ends[0][: len(weights(student()))], weights(student()))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("killed_at", [2, 3, 5])
def test_a_resumed_run_sees_the_same_ids_and_ends_with_the_same_bits(tmp_path, workers, killed_at):
    def ran(folder, **options):
        made = student()
        data = DataLoader(Rows(noise=0.1), batch_size=4, shuffle=True, num_workers=workers)
        training = {"ckpt_steps": 1}
        found, distiller = distil(folder, data, made=made, training=training, **options)
        return found, torch.cat([weights(made), weights(distiller.objective)])

    ids, whole = ran(tmp_path / "whole", train={"num_epochs": None, "num_steps": 7})
    with pytest.raises(Killed):
        ran(tmp_path / "cut", train={"num_epochs": None, "num_steps": 7}, options={"observers": [Killer(killed_at)]})
    rest, again = ran(tmp_path / "cut", train={"num_epochs": None, "num_steps": 7, "resume": "auto"})
    assert rest == ids[killed_at - 1 :]
    assert torch.equal(again, whole)


@pytest.mark.parametrize("folder", [None, "kept"])
def test_with_a_teacher_cache_they_are_the_same(tmp_path, folder):
    expected, distiller = distil(tmp_path / "plain", DataLoader(Rows(), batch_size=4, shuffle=True), teacher=Rowwise())
    for number in range(2):
        training = {} if folder is None else {"teacher_cache": str(tmp_path / folder)}
        found, cached = distil(
            tmp_path / str(number),
            DataLoader(Rows(), batch_size=4, shuffle=True),
            teacher=Rowwise(),
            is_caching_logits=True,
            training=training,
        )
        assert found == expected
        assert torch.equal(weights(cached.objective), weights(distiller.objective))


def as_dict(rows):
    rows = torch.stack(rows)
    return {"x": rows, "example_ids": rows[:, 0].int()}


def test_a_batch_keeps_its_own_ids_with_a_teacher_cache(tmp_path):
    """The data are reversed, so that the ids that the batches bring differ from the indices."""
    data = DataLoader(list(Rows())[::-1], batch_size=4, collate_fn=as_dict)
    found, _ = distil(tmp_path, data, teacher=Rowwise(), is_caching_logits=True, train={"num_epochs": 1})
    assert flat(found) == list(range(COUNT))[::-1]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows())


class Counted(Stream):
    def __len__(self):
        return COUNT


@pytest.mark.parametrize(
    "data",
    [
        lambda: DataLoader(Counted(), batch_size=4, collate_fn=as_dict),
        lambda: DataLoader(Rows(), batch_size=4, collate_fn=as_dict, sampler=list(range(COUNT))),
        lambda: DataLoader(
            Rows(), batch_size=4, collate_fn=lambda rows: as_dict(sorted(rows, key=lambda row: -row[1]))
        ),
    ],
)
def test_a_batch_may_bring_its_ids(tmp_path, data):
    found, _ = distil(tmp_path, data(), train={"num_epochs": None, "num_steps": 3})
    assert sorted(flat(found)) == list(range(COUNT))


def test_the_teacher_and_the_student_may_have_parts_of_their_own(tmp_path):
    halves = lambda rows: {"teacher": torch.stack(rows), "student": {"x": torch.stack(rows)}}  # noqa: E731
    distil(tmp_path / "numbered", DataLoader(Rows(), batch_size=4, collate_fn=halves))
    both = lambda rows: {**halves(rows), "example_ids": [int(row[0]) for row in rows]}  # noqa: E731
    distil(tmp_path / "own", DataLoader(Counted(), batch_size=4, collate_fn=both))
    inner = lambda rows: {"teacher": torch.stack(rows), "student": as_dict(rows)}  # noqa: E731
    found, _ = distil(tmp_path / "inner", DataLoader(Counted(), batch_size=4, collate_fn=inner))
    assert found[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


NO_COUNT = (
    r"^terms\.0\.loss: hidden_bank_0_0: local:bank takes num_examples, but the number of examples of {}.* is unknown"
)
NO_IDS = (
    r"^terms\.0\.loss: logit_bank: local:logit_bank requests example_ids, but {}.*Give each batch a key 'example_ids'"
)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (lambda: DataLoader(Stream(), batch_size=4), "a DataLoader over a Stream"),
        (lambda: make_batches(3), "a list"),
        (lambda: DataLoader(TensorDataset(torch.zeros(3, 2, 4)), batch_size=None), "a DataLoader with batch_size=None"),
    ],
)
def test_data_without_places_or_a_number_of_examples_are_refused_before_training(tmp_path, data, kind):
    with pytest.raises(RunError, match=NO_COUNT.format(kind)):
        distil(tmp_path / "a", data(), train={"num_epochs": None, "num_steps": 3})
    with pytest.raises(RunError, match=NO_IDS.format(kind)):
        distil(tmp_path / "b", data(), {"loss": "logit_bank"}, train={"num_epochs": None, "num_steps": 3})
    assert not SEEN


def test_a_key_that_is_nearly_the_one_of_the_ids_is_named(tmp_path):
    batches = [{"x": torch.zeros(2, 4), "example_id": torch.arange(2)}] * 3
    with pytest.raises(RunError, match=r"a key 'example_ids' with one integer per example.*this one has 'example_id'"):
        distil(tmp_path, batches, {"loss": "logit_bank"}, train={"num_epochs": None, "num_steps": 3})


WRONG = {
    "negative": (lambda rows: rows[:, 0].long() - 1, OutputsError, r"example_ids: must be at least 0, got -1"),
    "beyond": (
        lambda rows: rows[:, 0].long() + 7,
        OutputsError,
        r"example_ids: must be below num_examples, which is 10",
    ),
    "floats": (lambda rows: rows[:, 0], OutputsError, r"example_ids: must be one integer per example.*float64 \[4\]"),
    "a column": (lambda rows: rows[:, :1].long(), OutputsError, r"must be one integer per example.*int64 \[4, 1\]"),
    "text": (lambda rows: ["a"] * len(rows), OutputsError, r"must be one integer per example, \[batch\], got list"),
    "too few": (
        lambda rows: rows[1:, 0].long(),
        ShapeError,
        r"of which the batch has 3, but the student's features are \[4, 3\]",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_ids_are_named(tmp_path, kind):
    ids, error, message = WRONG[kind]
    make_ids = lambda rows: {"x": torch.stack(rows), "example_ids": ids(torch.stack(rows))}  # noqa: E731
    with pytest.raises(error, match=message):
        distil(tmp_path, DataLoader(Rows(), batch_size=4, collate_fn=make_ids))


def test_a_loss_is_not_used_for_data_of_another_size(tmp_path):
    _, distiller = distil(tmp_path, DataLoader(Rows(), batch_size=4))
    with pytest.raises(RunError, match=r"was built for num_examples=10, but the data have 12 examples"):
        distiller.train(sgd(distiller.model_S), DataLoader(Rows(12), batch_size=4), num_epochs=1, overwrite=True)


def test_sampling_with_replacement_repeats_ids(tmp_path):
    sampler = torch.utils.data.RandomSampler(Rows(), replacement=True, num_samples=12)
    found, _ = distil(tmp_path, DataLoader(Rows(), batch_size=4, sampler=sampler))
    assert len(flat(found)) == 24
    assert max(map(len, map(set, (flat(found[:3]), flat(found[3:]))))) < 12


def test_a_model_does_not_get_the_key_unless_it_names_it(tmp_path):
    class Takes(First):
        def forward(self, **batch):
            assert set(batch) == {"x"}
            return super().forward(**batch)

    class Names(First):
        def forward(self, x, example_ids=None):
            assert example_ids is not None
            return super().forward(x)

    for number, made in enumerate((Takes(), Names())):
        distil(
            tmp_path / str(number),
            DataLoader(Rows(), batch_size=4, collate_fn=as_dict),
            made=made,
            teacher=Takes() if not number else None,
        )


def test_each_task_numbers_its_own_data(tmp_path):
    made = student()
    config = DistillationConfig(terms=[BANK])
    distiller = make(tmp_path, made, config=config, seed=1)
    data = {"a": DataLoader(Rows(), batch_size=4, shuffle=True), "b": DataLoader(Rows(6), batch_size=3, shuffle=True)}
    distiller.train(sgd(made), data, num_steps=12, tau=0)
    seen()
    assert {task: len(distiller.objective.of(task).configured["0"].loss.bank) for task in data} == {"a": 10, "b": 6}
    other = make(tmp_path / "other", make_student(), config=config)
    with pytest.raises(
        RunError,
        match=r"^b\.terms\.0\.loss: .*takes num_examples, but the number of examples of a DataLoader over a Stream",
    ):
        other.train(sgd(other.model_S), {**data, "b": DataLoader(Stream(), batch_size=4)}, num_steps=2, tau=0)
    ids = make(tmp_path / "ids", made, config=DistillationConfig(terms=[{"loss": "logit_bank"}]))
    with pytest.raises(
        RunError, match=r"^dataloaders\.b\.terms\.0\.loss: .*requests example_ids, but a list does not provide"
    ):
        ids.train(sgd(made), {**data, "b": make_batches(2)}, num_steps=2, tau=0)


def outputs(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def own(term, **keys):
    return Objective(DistillationConfig(terms=[term], **keys)).double()


def test_an_own_loop_gives_ids_and_the_number_of_examples():
    objective = own(BANK)
    given = {"student": {"hidden": [outputs(1, 2, 3)]}, "teacher": {"hidden": [outputs(2, 2, 5)]}}
    with pytest.raises(RunError, match=r"local:bank takes num_examples, which is not known yet.*num_examples=…"):
        objective(**given, example_ids=[0, 1])
    with pytest.raises(
        ConfigError, match=r"^terms\.0\.loss: hidden_bank_0_0: local:bank takes num_examples.*unknown.*len\(dataset\)"
    ):
        objective.materialize(**given)
    for wrong in (0, True, 2.0):
        with pytest.raises(ConfigError, match="num_examples: must be a whole number of at least 1"):
            objective.materialize(**given, num_examples=wrong)
    objective.materialize(**given, num_examples=4)
    objective.double()
    with pytest.raises(
        OutputsError, match=r"^terms\.0\.loss: local:bank requests example_ids, but the batch has none.*example_ids="
    ):
        objective(**given)
    for ids in ([3, 0], torch.tensor([3, 0], dtype=torch.int32), torch.tensor([3, 0]).numpy()):
        objective(**given, example_ids=ids)
    assert [ids for ids, _ in SEEN] == [[3, 0]] * 3
    assert not objective.configured["0"].loss.bank[1:3].any()


def test_ids_of_tokens_are_selected_like_labels():
    """A loss on logits gets one id for each item that it sees."""
    logits, mask = outputs(1, 2, 3, 5), torch.tensor([[1, 1, 0], [0, 1, 1]])
    objective = own({"loss": "logit_bank"})
    objective(student={"logits": logits}, teacher={"logits": outputs(2, 2, 3, 5)}, example_ids=[7, 4])
    assert SEEN[-1][0] == [[7, 7, 7], [4, 4, 4]]
    objective(
        student={"logits": logits, "logits_mask": mask}, teacher={"logits": outputs(2, 2, 3, 5)}, example_ids=[7, 4]
    )
    assert SEEN[-1][0] == [7, 7, 4, 4]
    with pytest.raises(ShapeError, match=r"of which the batch has 2, but the student's logits are \[6, 5\]"):
        objective(student={"logits": logits.view(6, 5)}, teacher={"logits": logits.view(6, 5)}, example_ids=[7, 4])


def test_ids_follow_the_students_mask_where_the_teachers_selects_other_places():
    objective = own({"loss": "logit_bank"})
    masks = torch.tensor([[[1, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 1]]])
    sides = ({"logits": outputs(seed, 2, 3, 5), "logits_mask": mask} for seed, mask in enumerate(masks))
    objective(**dict(zip(("student", "teacher"), sides, strict=True)), example_ids=[7, 4])
    assert SEEN[-1][0] == [7, 7, 4, 4]


def test_combined_teachers_and_chunks_keep_the_ids():
    from kdplug import FactoredLogits

    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    hidden, weight = outputs(3, 2, 3, 4), outputs(4, 5, 4)
    teacher = {"logits": outputs(2, 2, 3, 5)}
    two = Objective(DistillationConfig(terms=[{"loss": "logit_bank"}], teacher_combiner="mean_logits"), 2)
    two(student={"logits": hidden @ weight.T, "logits_mask": mask}, teacher=[teacher, teacher], example_ids=[7, 4])
    assert SEEN.pop()[0] == [7, 7, 4, 4]
    given = {"student": {"logits": hidden @ weight.T, "logits_mask": mask}, "teacher": teacher, "example_ids": [7, 4]}
    whole = own({"loss": "logit_bank"})(**given).total
    SEEN.clear()
    given["student"] = {"logits": FactoredLogits(hidden, weight), "logits_mask": mask}
    cut = own({"loss": "logit_bank"}, logit_chunk=3)(**given).total
    assert [ids for ids, _ in SEEN] == [[7, 7], [4, 4]]
    torch.testing.assert_close(cut, whole)
