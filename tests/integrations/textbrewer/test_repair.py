"""What fails or destroys a student in TextBrewer, and works here."""

from __future__ import annotations

import logging
from collections import UserDict
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from textbrewer_twin import TinyEncoder, adaptor, make_examples
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import kdplug.integrations.textbrewer as textbrewer
from kdplug import LossSum
from kdplug.errors import ConfigError, EntryError, OutputsError, RunError
from kdplug.integrations.textbrewer.batch import post_adaptor
from kdplug.integrations.textbrewer.distiller_utils import CustomMatch
from kdplug.integrations.textbrewer.log import warn_once

PROJECTED = {
    "layer_T": 1,
    "layer_S": 1,
    "feature": "hidden",
    "loss": "hidden_mse",
    "weight": 1,
    "proj": ["linear", 6, 8],
}


class Scene:
    """A distiller of any kind on a tiny student, and one short run of it."""

    def __init__(self, folder: Path, kind: str = "General", keys: str = "whole", **options: Any) -> None:
        torch.manual_seed(5)
        training = textbrewer.TrainingConfig(output_dir=folder, device="cpu", **options.pop("training", {}))
        self.student, self.teacher = TinyEncoder(6), TinyEncoder(8)
        custom = options.pop("custom", None)
        self.extra = {"custom_matches": custom(self.student, self.teacher)} if custom else {}
        self.config = textbrewer.DistillationConfig(**options)
        read = partial(adaptor, keys=keys)
        teacher = {"MultiTeacher": [self.teacher] * 2, "MultiTask": {"a": self.teacher}}.get(kind, self.teacher)
        reads = {"a": read} if kind == "MultiTask" else read
        self.distiller = textbrewer.Distillers[kind](  # type: ignore[call-arg]
            training, self.config, teacher, self.student, reads, reads, **self.extra
        )
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1)

    def train(self, loader: Any = None, **options: Any) -> dict[str, torch.Tensor]:
        loader = self.loader() if loader is None else loader
        self.distiller.train(self.optimizer, loader, **(options or {"num_steps": 3}))
        return self.student.state_dict()

    @staticmethod
    def loader(count: int = 12, **options: Any) -> DataLoader[Any]:
        return DataLoader(make_examples(count, is_full=False), batch_size=4, **options)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    warn_once.cache_clear()
    caplog.set_level(logging.INFO, "Distillation")
    yield caplog
    warn_once.cache_clear()


def finite(weights: dict[str, torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize("keys", ["token logits_mask", "whole hidden inputs_mask"])
def test_an_empty_mask_leaves_the_student_whole(tmp_path: Path, keys: str) -> None:
    scene = Scene(tmp_path, keys=keys, intermediate_matches=[PROJECTED] if "hidden" in keys else None)
    batch = {**next(iter(scene.loader())), "attention_mask": torch.zeros(4, 6, dtype=torch.long)}
    assert finite(scene.train([batch]))


def test_one_mask_serves_several_heads(tmp_path: Path) -> None:
    logits, mask = [torch.randn(2, 3, 4), torch.randn(2, 3, 5)], torch.tensor([[1, 1, 0], [1, 0, 0]])
    both = textbrewer.distiller_utils.select_logits_with_mask(logits, [mask])
    assert [one.shape for one in both] == [(3, 4), (3, 5)]
    with pytest.raises(OutputsError, match="number of masks is 2, but the number of heads of logits is 1"):
        textbrewer.distiller_utils.select_logits_with_mask(logits[:1], [mask, mask])


def test_probability_shift_goes_with_a_mask(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "Basic", "token logits_mask tags", probability_shift=True)
    batch = next(iter(scene.loader()))
    outputs = {
        name: adaptor(batch, model.eval()(**batch), "token logits_mask tags")
        for name, model in (("S", scene.student), ("T", scene.teacher))
    }
    results = {name: textbrewer.distiller_utils.post_adaptor(value) for name, value in outputs.items()}
    total, _ = scene.distiller.compute_loss(results["S"], results["T"])
    shifted = scene.teacher(**batch)["token"].detach().clone()
    textbrewer.distiller_utils.probability_shift_(shifted, batch["tags"])
    kept = batch["attention_mask"].bool()
    expected = textbrewer.KD_LOSS_MAP["ce"](scene.student(**batch)["token"][kept], shifted[kept], 4)
    assert total.item() == pytest.approx(expected.item())


def test_a_negative_label_shifts_nothing_and_the_teachers_tensor_stays(tmp_path: Path) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert textbrewer.distiller_utils.probability_shift_(logits, torch.tensor([-1, 2])).tolist() == [
        [1, 2, 3],
        [1, 2, 3],
    ]


def test_a_scheduler_object_learns_of_the_projections(tmp_path: Path) -> None:
    scene = Scene(tmp_path, keys="whole hidden", intermediate_matches=[PROJECTED])
    scheduler = LambdaLR(scene.optimizer, lambda step: 0.5**step)
    scene.train(num_steps=2, scheduler=scheduler)
    assert [group["lr"] for group in scene.optimizer.param_groups] == pytest.approx([0.025, 0.025])


def test_training_twice_adds_the_projection_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, keys="whole hidden", intermediate_matches=[PROJECTED])
    for _ in range(2):
        scene.train()
    assert len(scene.optimizer.param_groups) == 2


def test_a_second_run_starts_at_the_configured_weight(tmp_path: Path) -> None:
    scene = Scene(tmp_path, kd_loss_weight=0.5, kd_loss_weight_scheduler="linear_decay")
    seen: list[float] = []
    for _ in range(2):
        scene.train(num_steps=4, callback=lambda **_: seen.append(scene.config.kd_loss_weight))
    assert (seen, scene.config.kd_loss_weight) == ([0.0, 0.0], 0.5)


def test_a_second_run_caches_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "Basic", is_caching_logits=True)
    for _ in range(2):
        scene.train(num_epochs=1)
    assert len(scene.distiller.logits_cache) == 3


def test_two_sided_batches_are_cached_and_a_teacher_cache_replaces_the_teacher(tmp_path: Path) -> None:
    batches = [{"teacher": batch, "student": batch} for batch in Scene.loader()]
    cached = Scene(tmp_path, "Basic", is_caching_logits=True).train(batches, num_epochs=1)
    assert finite(cached)
    scene = Scene(tmp_path)
    outputs = [{**two, "teacher_cache": scene.teacher.eval()(**two["teacher"])} for two in batches]
    scene.teacher.forward = None  # type: ignore[assignment]
    assert finite(scene.train(outputs))


def test_any_mapping_is_passed_by_keyword(tmp_path: Path) -> None:
    assert finite(Scene(tmp_path).train([UserDict(batch) for batch in Scene.loader()]))


@pytest.mark.parametrize("name", [lambda model: model.embedding, lambda model: "embedding"])
def test_a_custom_match_is_an_intermediate_match_between_modules(tmp_path: Path, name: Any) -> None:
    def loss(S: torch.Tensor, T: torch.Tensor, mask_S: Any, mask_T: Any) -> torch.Tensor:
        assert mask_S is mask_T
        return nn.functional.mse_loss(S, T)

    match = {**PROJECTED, "layer_T": 0, "layer_S": 0}
    plain = Scene(tmp_path, keys="whole hidden", intermediate_matches=[match])
    proj = deepcopy(plain.distiller.projs[0])
    scene = Scene(tmp_path, custom=lambda S, T: [CustomMatch(name(T), name(S), 1.0, loss, proj, {"lr": 0.1})])
    found = []
    for one in (plain, scene):
        torch.manual_seed(0)
        found.append({**one.train(), "proj": one.distiller.projs[0].weight if one is plain else proj.weight})
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-6) for key in found[0])
    assert not scene.student.embedding._forward_hooks


def test_a_custom_match_between_modules_that_are_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"custom_matches\.0\.module_S"):
        Scene(tmp_path, custom=lambda S, T: [CustomMatch("embedding", "embeding", 1.0, print)])


@pytest.mark.parametrize("kind", ["General", "MultiTask"])
def test_checkpoints_need_no_setting_that_fits(tmp_path: Path, kind: str) -> None:
    scene = Scene(tmp_path, kind, training={"ckpt_steps": 9})
    scene.train({"a": scene.loader()} if kind == "MultiTask" else None, num_steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["gs2.pkl"]
    plain = Scene(tmp_path / "plain", kind)
    plain.train({"a": scene.loader()} if kind == "MultiTask" else None, num_steps=3)
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["gs3.pkl"]


def test_a_checkpoint_is_the_students_weights(tmp_path: Path) -> None:
    weights = Scene(tmp_path).train()
    read = torch.load(tmp_path / "gs3.pkl", weights_only=True)
    assert all(torch.equal(read[name], value) for name, value in weights.items())


def test_all_checkpoints_are_kept_and_a_second_run_overwrites_those_of_the_same_name(tmp_path: Path) -> None:
    """As in TextBrewer, whose scripts give the same folder to several runs."""
    Scene(tmp_path, training={"ckpt_steps": 1}).train(num_steps=4)
    weights = Scene(tmp_path, training={"ckpt_steps": 1}, kd_loss_type="mse").train(num_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gs1.pkl", "gs2.pkl", "gs3.pkl", "gs4.pkl"]
    read = torch.load(tmp_path / "gs2.pkl", weights_only=True)
    assert all(torch.equal(read[name], value) for name, value in weights.items())


def test_a_fraction_of_an_epoch_still_ends_in_a_checkpoint(tmp_path: Path) -> None:
    Scene(tmp_path, training={"ckpt_epoch_frequency": 5}).train(num_epochs=2.5)
    assert [path.name for path in tmp_path.iterdir()] == ["gs6.pkl"]


def test_what_an_earlier_backward_pass_left_is_not_applied(tmp_path: Path) -> None:
    plain, stale = Scene(tmp_path), Scene(tmp_path)
    for parameter in stale.student.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    found = []
    for scene in (plain, stale):
        torch.manual_seed(0)
        found.append(scene.train()["whole.weight"])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        ([], {"num_steps": 2}, "no more batches"),
        (iter(list(Scene.loader())), {"num_steps": 9}, "no more batches"),
        (list(Scene.loader())[:1], {"num_epochs": 3}, "no optimizer step"),
    ],
)
def test_a_loader_that_makes_no_step_is_an_error(tmp_path: Path, loader: Any, options: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        Scene(tmp_path, training={"gradient_accumulation_steps": 2}).train(loader, **options)


def test_arguments_that_cannot_be_meant_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_epochs or num_steps"):
        Scene(tmp_path).train(num_epochs=None)
    with pytest.raises(ConfigError, match="is_caching_logits"):
        Scene(tmp_path, "Basic", is_caching_logits=True).train(num_steps=2)
    with pytest.raises(ConfigError, match="num_steps"):
        Scene(tmp_path).train(num_steps=0)
    with pytest.raises(EntryError, match="Did you mean 'hidden_mse'"):
        Scene(tmp_path, intermediate_matches=[{**PROJECTED, "loss": "hiden_mse"}])
    with pytest.raises(EntryError, match=r"kd_loss_type"):
        Scene(tmp_path, kd_loss_type="cee")
    with pytest.raises(OutputsError, match="layer 7"):
        Scene(tmp_path, keys="hidden", intermediate_matches=[{**PROJECTED, "layer_S": 7}]).train()


def test_a_hard_label_loss_that_is_not_finite_stays_out_at_weight_0(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    results = {"logits": [torch.randn(2, 3)], "losses": [torch.tensor(torch.nan)]}
    total, terms = scene.distiller.compute_loss(results, {"logits": [torch.randn(2, 3)]})
    assert total.isfinite()
    assert terms["unweighted_hard_label_loss"].isnan()


@pytest.mark.parametrize("listed", [False, True])
def test_a_loss_sum_is_one_loss_and_not_a_list_of_two(tmp_path: Path, listed: bool) -> None:
    scene, loss = Scene(tmp_path), LossSum(torch.tensor(6.0), torch.tensor(4))
    results = post_adaptor({"logits": torch.randn(2, 3), "losses": [loss] if listed else loss})
    _, terms = scene.distiller.compute_loss(results, {"logits": [torch.randn(2, 3)]})
    assert terms["unweighted_hard_label_loss"] == 1.5


def test_two_matches_of_one_name_are_logged_apart(tmp_path: Path) -> None:
    scene = Scene(tmp_path, intermediate_matches=[PROJECTED, PROJECTED])
    assert scene.distiller.match_names == ["unweighted_hidden_hidden_mse_1_1", "unweighted_hidden_hidden_mse_1_1_2"]


def test_with_gives_the_distiller_and_every_module_its_mode_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.student.dropout.eval()
    with scene.distiller as distiller:
        assert (distiller.model_T.training, distiller.model_S.dropout.training) == (False, True)
    assert (scene.teacher.training, scene.student.training, scene.student.dropout.training) == (True, True, False)


def test_what_has_no_effect_is_reported_once(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path, "MultiTeacher", intermediate_matches=[PROJECTED])
    scene.distiller.adaptor_S = lambda batch, outputs: {
        "logits": outputs["whole"],
        "input_mask": batch["attention_mask"],
    }
    assert not lines.records
    scene.train()
    told = [record.message for record in lines.records if record.levelno == logging.WARNING]
    assert told == [
        "intermediate_matches have no effect: MultiTeacherDistiller matches only logits",
        "adaptor_S returned 'input_mask', which has no effect. Did you mean 'inputs_mask'?",
    ]


def test_progress_is_logged_as_in_textbrewer(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    Scene(tmp_path).train(num_epochs=1, callback=lambda **_: None)
    assert [record.message for record in lines.records] == [
        "Training steps per epoch: 3",
        "Checkpoints(step): [0]",
        "Epoch 1",
        "Length of current epoch in forward batch: 3",
        "Global step: 3, epoch step:3",
        "Saving at global step 3, epoch step 3 epoch 1",
        "Running callback function...",
        "Epoch 1 finished",
    ]


def test_half_precision_is_torchs_own(tmp_path: Path) -> None:
    scene = Scene(tmp_path, keys="whole hidden", training={"fp16": True}, intermediate_matches=[PROJECTED])
    before = {name: value.clone() for name, value in scene.student.state_dict().items()}
    types: set[torch.dtype] = set()
    scene.student.whole.register_forward_hook(lambda module, args, output: types.add(output.dtype))
    after = scene.train(num_steps=3, max_grad_norm=1.0)
    assert types == {torch.float16}
    assert finite(after)
    assert after["whole.weight"].dtype is torch.float32
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_tensorboard_gets_textbrewers_tags(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {"log_dir": tmp_path / "log"}
    scene = Scene(tmp_path, keys="whole hidden losses", training=options, intermediate_matches=[PROJECTED])
    scene.train(num_steps=4)
    scene.distiller.tb_writer.flush()
    events = accumulator.EventAccumulator(str(tmp_path / "log")).Reload()
    names = ("total_loss", "unweighted_kd_loss", "unweighted_hidden_hidden_mse_1_1", "unweighted_hard_label_loss")
    assert set(events.Tags()["scalars"]) == {f"scalar/{name}" for name in names}
    assert [event.step for event in events.Scalars("scalar/total_loss")] == [0, 1, 2, 3]
