"""Runs whose losses read extras and parameters: with and without a cache, resumed, and in several processes."""

from __future__ import annotations

import pytest
import torch
from cache_scene import Reader, Rowwise, Tokens, loader, read
from killer import Killed, Killer
from named_scene import PENALTY, RELATION, SRRL, adapt, distil, go
from small_run import make_batches, make_student, sgd, weights
from torch.utils.data import DataLoader
from two_processes import run_in_two_processes

from kdplug import ConfigError, DistillationConfig, MultiTeacherDistiller, OutputsError, RunError, TrainingConfig
from kdplug.engine.cache import layout
from kdplug.engine.cache.store import Store
from kdplug.engine.parallel.agreement import _described
from kdplug.objective.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore:2 of the student's 4 trained parameters got no gradient")  # its head

TERMS = {"a relation of extras": [RELATION], "the teacher's head": [SRRL], "all": [RELATION, SRRL, PENALTY]}


def cached(folder, **more):
    return {"caching": True, "training": {"teacher_cache": str(folder / "cache"), **more}}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_a_cache_in_memory_or_on_disk_changes_no_bit(tmp_path, teacher, terms):
    plain = go(tmp_path / "plain", teacher, terms)
    assert not torch.equal(plain, weights(make_student()))
    assert torch.equal(plain, go(tmp_path / "memory", teacher, terms, caching=True))
    assert torch.equal(plain, go(tmp_path / "disk", teacher, terms, **cached(tmp_path)))
    calls = teacher.calls
    assert torch.equal(plain, go(tmp_path / "again", teacher, terms, **cached(tmp_path)))
    assert teacher.calls == calls
    assert torch.equal(plain, go(tmp_path / "no teacher", None, terms, **cached(tmp_path)))


def test_what_the_cache_holds_is_named(tmp_path, teacher):
    from kdplug.engine.cache.report import CacheReport

    go(tmp_path, teacher, TERMS["all"], **cached(tmp_path))
    found = CacheReport.read(tmp_path / "cache", checks=True).to_data()
    assert found["holds"] == ["0/captured/act", "0/extras/values", "0/logits/0", "0/parameters/:parameter.head"]
    assert found["shared_bytes"] > 3 * 5 * 8


@pytest.mark.parametrize("caching", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, teacher, caching):
    options = cached(tmp_path, ckpt_frequency=2) if caching else {"training": {"ckpt_frequency": 2}}
    whole = go(tmp_path / "whole", teacher, TERMS["all"], **options)
    with pytest.raises(Killed):
        go(tmp_path / "killed", teacher, TERMS["all"], options={"observers": [Killer(5)]}, **options)
    assert torch.equal(whole, go(tmp_path / "killed", teacher, TERMS["all"], train={"resume": "auto"}, **options))


def test_an_interrupted_cache_goes_on_to_the_same_bits(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(layout, "SHARD_BATCHES", 1)
    plain = go(tmp_path / "plain", teacher, TERMS["all"])
    teacher.calls, teacher.before = 0, lambda calls: 1 / 0 if calls == 4 else None
    with pytest.raises(ZeroDivisionError):
        go(tmp_path, teacher, TERMS["all"], **cached(tmp_path))
    teacher.calls, teacher.before = 0, lambda calls: None
    assert torch.equal(plain, go(tmp_path, teacher, TERMS["all"], **cached(tmp_path)))
    assert teacher.calls == 3
    assert torch.equal(plain, go(tmp_path, None, TERMS["all"], **cached(tmp_path)))


def test_a_cache_that_was_killed_before_its_parameters_were_written_asks_for_them_again(tmp_path, teacher):
    plain = go(tmp_path / "plain", teacher, TERMS["all"])
    go(tmp_path, teacher, TERMS["all"], **cached(tmp_path))
    (tmp_path / "cache" / "shared.json").unlink()
    with pytest.raises(RunError, match="is incomplete"):
        go(tmp_path, None, TERMS["all"], **cached(tmp_path))
    assert torch.equal(plain, go(tmp_path, teacher, TERMS["all"], **cached(tmp_path)))
    assert torch.equal(plain, go(tmp_path, None, TERMS["all"], **cached(tmp_path)))


def test_narrow_storage_narrows_extras_and_keeps_parameters(tmp_path, teacher):
    options = cached(tmp_path, teacher_cache_dtype="bfloat16")
    go(tmp_path, teacher, TERMS["all"], **options)
    from safetensors.torch import load_file

    shared = load_file(tmp_path / "cache" / "shared.safetensors")
    assert torch.equal(shared["0/parameters/:parameter.head"], teacher.head.detach())
    assert load_file(tmp_path / "cache" / "shard-00000.safetensors")["0/extras/values"].dtype is torch.bfloat16


@pytest.mark.filterwarnings("ignore:1 of the student's 2 trained parameters got no gradient")  # its head
@pytest.mark.parametrize("left", [False, True])
def test_extras_of_tokens_are_padded_as_features_are(tmp_path, left):
    def values(batch, outputs):
        return {**read(batch, outputs), "extras": {"values": outputs["hidden"][0] * 2}}

    data, ends = Tokens(left), []
    term = {**RELATION, "loss": "masked_relation"}
    for caching in (False, True):
        torch.manual_seed(0)
        student = Reader(3, seed=1)
        batches = DataLoader(data, batch_size=4, shuffle=True, collate_fn=data.collate)
        distiller = distil(
            tmp_path / str(caching), Reader(5, seed=2), [term], student, (values, values), caching=caching
        )
        distiller.train(sgd(student), batches, num_epochs=2)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_several_teachers_cache_their_own(tmp_path, teacher):
    other, ends = Rowwise(4), []
    terms = [{**RELATION, "teacher": "a"}, {**SRRL, "teacher": "b"}, {"loss": "kl"}]
    for caching in (False, True):
        torch.manual_seed(0)
        student = make_student()
        training = TrainingConfig(output_dir=str(tmp_path / str(caching)), device="cpu", seed=7)
        config = DistillationConfig(terms=terms, is_caching_logits=caching)
        teachers = {"a": teacher, "b": other}
        distiller = MultiTeacherDistiller(training, config, teachers, student, adapt, adapt, show_progress=False)
        distiller.objective.double()
        distiller.train(sgd(student), loader(), 2)
        ends.append(weights(student))
    assert torch.equal(*ends)


# Refusals


def refused(folder, teacher, error, message, *, terms=(RELATION,), adaptor=None, batches=None, **more):
    with pytest.raises(error, match=message):
        go(folder, teacher, list(terms), caching=True, adaptor_T=adaptor, batches=batches, **more)


def test_extras_that_are_not_one_per_example_are_not_cached(tmp_path, teacher):
    def one(batch, outputs):
        return {**outputs, "extras": {"values": outputs["hidden"][0][:4].T.contiguous()}}

    def constant(batch, outputs):
        return {**outputs, "extras": {"values": torch.ones(4, 2, dtype=torch.float64)}}

    def scalar(batch, outputs):
        return {**outputs, "extras": {"values": outputs["logits"].mean()}}

    message = r"^is_caching_logits: the teacher's extras/values \[{}\] cannot be divided among the {} examples of a batch: its first"
    refused(tmp_path, teacher, RunError, message.format("5, 4", 4), adaptor=one)
    refused(tmp_path, teacher, RunError, message.format("", 4), adaptor=scalar)
    even = DataLoader(torch.cat(make_batches(4)), batch_size=4)  # no batch of another size would show it
    refused(tmp_path, teacher, RunError, message.format("4, 2", 3), adaptor=constant, batches=even)


def test_extras_that_compare_the_examples_of_a_batch_are_not_cached(tmp_path, teacher):
    def pairs(batch, outputs):
        return {**outputs, "extras": {"values": outputs["logits"] @ outputs["logits"].T}}

    message = r"^is_caching_logits: the teacher's extras/values is \[4, 4\] for 4 examples and \[3, 3\] for 3: each row depends"
    refused(tmp_path, teacher, RunError, message, adaptor=pairs)


def test_an_extra_that_is_missing_ends_the_cache_before_its_second_batch(tmp_path, teacher):
    message = r"^extras: the teacher returned no extra 'values', and no extras at all"
    refused(tmp_path, teacher, OutputsError, message, adaptor=lambda batch, outputs: outputs)
    assert teacher.calls == 1


@pytest.mark.parametrize(
    ("first", "second", "lacking"),
    [
        ([RELATION], [{**RELATION, "extras": ["others"]}], "extras/others"),
        ([RELATION], [RELATION, SRRL], "captured/act, logits, parameters/:parameter.head"),
    ],
)
def test_a_cache_without_what_is_read_now_is_refused(tmp_path, teacher, first, second, lacking):
    go(tmp_path, teacher, first, **cached(tmp_path))
    for model in (teacher, None):
        with pytest.raises(RunError, match=rf"cache .* lacks {lacking}, which the objective reads"):
            go(tmp_path, model, second, **cached(tmp_path))


def test_a_parameter_that_the_manifest_names_and_no_file_holds_is_an_error():
    store = Store(layout.Layout((), {}, {}, parameters=("0/parameters/:buffer.a",)), [], 1, is_whole=False)
    with pytest.raises(RunError, match=r"the cache does not hold 0/parameters/:buffer\.a, which its manifest names"):
        store.parameters(0, torch.device("cpu"))
    assert store.parameters(1, torch.device("cpu")) == {}


def test_outputs_that_a_batch_holds_may_have_extras(tmp_path, teacher):
    with torch.no_grad():
        batches = [{"student": x, "teacher": x, "teacher_cache": adapt(x, teacher(x))} for x in make_batches(3)]
    ends = []
    for data, of_teacher in ((make_batches(3), adapt), (batches, None)):
        student = make_student()
        distiller = distil(tmp_path, teacher, [RELATION, PENALTY], student, (of_teacher, adapt))
        distiller.train(sgd(student), data, num_epochs=1, overwrite=True)
        ends.append(weights(student))
    assert torch.equal(*ends)


def test_in_memory_a_cache_without_what_is_read_now_is_built_again(tmp_path, teacher):
    student = make_student()
    distiller = distil(tmp_path, teacher, [RELATION], student, (adapt, adapt), caching=True)
    distiller.train(sgd(student), loader(), 1)
    other = distil(tmp_path, teacher, [RELATION, SRRL], student, (adapt, adapt), caching=True)
    other.teacher_cache = distiller.teacher_cache
    other.train(sgd(student), loader(), 1, overwrite=True)
    assert torch.equal(other.objective.terms[1].named.read("teacher_parameters", None)[":parameter.head"], teacher.head)


def test_another_teachers_parameters_are_never_read_from_a_cache(tmp_path, teacher):
    go(tmp_path, teacher, [SRRL], **cached(tmp_path))
    with torch.no_grad():
        teacher.head.add_(1)
    with pytest.raises(RunError, match="the teacher's weights"):
        go(tmp_path, teacher, [SRRL], **cached(tmp_path))


def test_a_path_that_the_teacher_does_not_have_is_an_error_when_the_distiller_is_built(tmp_path):
    term = {**SRRL, "reads_T": [":parameter.heads"]}
    with pytest.raises(
        ConfigError, match=r"^terms\.0\.reads_T\.0: no parameter 'heads' .* Did you mean ':parameter\.head'"
    ):
        distil(tmp_path, Rowwise(), [term], make_student(), (adapt, adapt))


def test_a_teacher_that_nobody_has_and_no_cache_holds_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^model_T: is missing"):
        distil(tmp_path, None, [SRRL], make_student(), (adapt, adapt))


# Processes


def test_processes_compare_extras_by_name():
    one = torch.zeros(2, 3)
    objective = Objective(DistillationConfig())
    found = _described(
        objective, {"logits": one, "extras": {"a": one, "b": one}}, {"logits": one, "extras": {"b": one}}
    )
    assert found == dict.fromkeys(
        ["student.logits", "student.extras.a", "student.extras.b", "teacher.logits", "teacher.extras.b"], 1
    )


SCRIPT = """
import sys
import torch
from pathlib import Path
from named_scene import *
from small_run import make_batches, make_student, make_teacher, sgd, weights
from torch.utils.data import DataLoader

folder, rank = Path(sys.argv[1]), int(__import__("os").environ["RANK"])
ends = []
for name, options in (("plain", {}), ("cached", {"caching": True, "training": {"teacher_cache": str(folder / "cache")}})):
    torch.manual_seed(0)
    student = make_student()
    distiller = distil(folder / name, Rowwise(), [RELATION, SRRL, PENALTY], student, (adapt, adapt), **options)
    distiller.train(sgd(student), DataLoader(torch.cat(make_batches(6)), batch_size=4), num_epochs=2)
    ends.append(weights(student))
torch.save(ends, folder / f"{rank}.pt")
"""


def test_two_processes_train_as_one_does(tmp_path):
    run_in_two_processes(tmp_path, SCRIPT)
    torch.manual_seed(0)
    student = make_student()
    distiller = distil(tmp_path / "alone", Rowwise(), [RELATION, SRRL, PENALTY], student, (adapt, adapt))
    distiller.train(sgd(student), DataLoader(torch.cat(make_batches(6)), batch_size=8), num_epochs=2)
    for rank in (0, 1):
        for end in torch.load(tmp_path / f"{rank}.pt"):
            torch.testing.assert_close(end, weights(student), rtol=1e-12, atol=1e-14)
