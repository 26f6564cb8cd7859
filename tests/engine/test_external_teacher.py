"""External teachers: served over HTTP, with a teacher cache, and what happens when the server fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from served_teacher import Served, serving
from small_run import MATCH, PROJECTED, make_student, make_teacher, sgd, weights
from torch import nn
from torch.utils.data import DataLoader

from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.contracts.teacher import ExternalTeacher
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.cache import layout
from kdplug.errors import ConfigError, RunError, SignatureError
from kdplug.host import registry


class Normed(nn.Module):
    """A student whose forward pass has a state and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.inner = make_student(dropout=0.3)
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, x):
        found = self.inner(x)
        return {"logits": self.norm(found["logits"]), "hidden": found["hidden"]}


def data():
    return torch.randn(24, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def distil(folder, teacher, *, student=None, training=None, adaptor=None, matches=(PROJECTED,), **options):
    torch.manual_seed(0)
    student = Normed() if student is None else student
    keys = options.pop("keys", {})
    config = DistillationConfig(kd_loss_type="mse", intermediate_matches=list(matches), **keys)
    training = TrainingConfig(output_dir=str(folder), device="cpu", ckpt_steps=100, seed=5, **(training or {}))
    made = GeneralDistiller(training, config, teacher, student, adaptor, show_progress=False)
    made.objective.double()
    loader = DataLoader(data(), batch_size=4, shuffle=True)
    made.train(sgd(student), loader, **{"num_steps": 9, "max_grad_norm": 1.0, **options})
    return weights(student)


def test_a_served_teacher_trains_the_student_of_the_model_behind_it(tmp_path):
    with serving() as server:
        served = Served(url=server.url)
        assert isinstance(served, ExternalTeacher)
        found = distil(tmp_path / "served", served)
        assert server.asked == 9
    assert torch.equal(found, distil(tmp_path / "model", make_teacher()))


def test_nothing_is_lost_when_the_server_fails(tmp_path):
    with serving() as server:
        whole = distil(tmp_path / "whole", Served(url=server.url))
    for fails_at in (2, 6, 8):
        folder = tmp_path / f"{fails_at}"
        with serving(fails_at) as server:
            with pytest.raises(RunError, match=r"the teacher Served failed on a batch: HTTPError: .*503") as error:
                distil(folder, Served(url=server.url))
            assert f"The run is saved in {folder / f'step-{fails_at - 1}'}" in str(error.value)
            assert [path.name for path in folder.glob("step-*")] == [f"step-{fails_at - 1}"]
            assert torch.equal(distil(folder, Served(url=server.url), resume="auto"), whole)


def test_nothing_is_lost_within_a_step_of_several_batches(tmp_path):
    training = {"gradient_accumulation_steps": 2, "normalization": "micro_batch"}
    with serving() as server:
        whole = distil(tmp_path / "whole", Served(url=server.url), training=training)
    with serving(fails_at=8) as server:
        with pytest.raises(RunError, match="saved in"):
            distil(tmp_path / "run", Served(url=server.url), training=training)
        assert torch.equal(distil(tmp_path / "run", Served(url=server.url), training=training, resume="auto"), whole)


def test_a_server_that_never_answers_is_an_error_before_the_first_step(tmp_path):
    with pytest.raises(RunError, match=r"the teacher Served failed on a batch: URLError: .*refused") as error:
        distil(tmp_path, Served(url="http://127.0.0.1:9"), matches=())
    assert "saved" not in str(error.value)
    assert not list(tmp_path.glob("step-*"))


@pytest.mark.parametrize("in_folder", [False, True])
def test_its_outputs_are_cached_and_the_cache_belongs_to_its_fingerprint(tmp_path, in_folder):
    training = {"teacher_cache": str(tmp_path / "cache")} if in_folder else {}
    keys = {"is_caching_logits": True}
    with serving() as server:
        found = distil(tmp_path / "one", Served(url=server.url), keys=keys, training=training)
        asked = server.asked
        assert asked < 9
        live = distil(tmp_path / "live", Served(url=server.url))
    assert torch.equal(found, live)
    if not in_folder:
        return
    again = distil(tmp_path / "two", Served(url="http://127.0.0.1:9"), keys=keys, training=training)
    assert torch.equal(again, live)
    assert torch.equal(distil(tmp_path / "three", None, keys=keys, training=training), live)
    with pytest.raises(RunError, match=r"the external teacher's fingerprint: teacher\.fingerprint\.version '1' -> '2'"):
        distil(tmp_path / "four", Served(url="http://127.0.0.1:9", version="2"), keys=keys, training=training)


def test_a_failure_keeps_the_complete_shards_of_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SHARD_BYTES", 1)  # a shard for each batch
    keys, training = {"is_caching_logits": True}, {"teacher_cache": str(tmp_path / "cache")}
    with serving(fails_at=5) as server:
        with pytest.raises(RunError, match="the teacher Served failed"):
            distil(tmp_path / "one", Served(url=server.url), keys=keys, training=training)
        kept, asked = len(list((tmp_path / "cache").glob("shard-*"))), server.asked
        assert kept > 1
        found = distil(tmp_path / "one", Served(url=server.url), keys=keys, training=training)
        assert server.asked - asked < 6
    assert torch.equal(found, distil(tmp_path / "live", make_teacher()))


def test_a_resumed_run_has_the_same_teacher(tmp_path):
    with serving(fails_at=4) as server:
        with pytest.raises(RunError, match="saved in"):
            distil(tmp_path, Served(url=server.url))
        with pytest.raises(RunError, match=r"teacher\.external\.fingerprint\.version: '1' -> '2'"):
            distil(tmp_path, Served(url=server.url, version="2"), resume="auto")


class Local:
    """An external teacher without a server."""

    def __init__(self, answer, mark=None):
        self.answer = answer
        self.mark = mark

    def __call__(self, batch):
        return self.answer(batch)

    def fingerprint(self):
        return self.mark() if callable(self.mark) else self.mark


def test_what_it_cannot_give_is_an_error_before_training(tmp_path):
    local = Local(lambda batch: {"logits": batch[:, :3]})
    by_path = {**MATCH, "layer_T": "head", "layer_S": "inner.head"}
    with pytest.raises(ConfigError, match=r"reads 'head' of the teacher by path, but Local is not a PyTorch module"):
        distil(tmp_path, local, matches=[by_path])
    with pytest.raises(ConfigError, match=r"adaptor_T: has no effect: Local is not a PyTorch module"):
        distil(tmp_path, local, adaptor=lambda batch, outputs: outputs)
    with pytest.raises(RunError, match=r"the teacher Local takes no model_args, so 'scale' would not reach it"):
        distil(tmp_path, local, matches=(), student=make_student(), scale=1.0)
    with pytest.raises(SignatureError, match=r"the fingerprint of the teacher Local must be plain data"):
        distil(tmp_path, Local(local.answer, mark=torch.ones(2)), matches=())
    with pytest.raises(RunError, match=r"the fingerprint of the teacher Local failed: ZeroDivisionError"):
        distil(tmp_path, Local(local.answer, mark=lambda: 1 / 0), matches=())
    for wrong in ("oneself", 3, object()):
        with pytest.raises(ConfigError, match=r"model_T: must be a model, an external teacher .*, or 'self', got"):
            distil(tmp_path, wrong)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda batch: {"logit": batch}, "logit"),
        (lambda batch: {"logits": np.zeros((4, 3))}, "must be a tensor"),
        (lambda batch: None, "NoneType"),
    ],
)
def test_an_answer_that_is_no_adaptors_result_is_named(tmp_path, answer, words):
    with pytest.raises(RunError, match="the teacher Local failed on a batch") as error:
        distil(tmp_path, Local(answer), matches=())
    assert words in str(error.value)


def test_an_entry_of_the_kind_is_built_from_its_settings():
    registry.teachers.register("local_served")(Served)
    found = registry.teachers.build({"name": "local_served", "url": "http://127.0.0.1:1"}).target
    assert isinstance(found, ExternalTeacher)
    assert found.url == "http://127.0.0.1:1"
