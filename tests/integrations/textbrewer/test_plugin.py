"""Losses, projections and schedulers of installed plugins, named in a TextBrewer script."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_install import FakeSite
from textbrewer_twin import TinyEncoder, adaptor, make_examples
from torch.utils.data import DataLoader

import kdplug.integrations.textbrewer as textbrewer
from kdplug import OutputsError, SignatureError

SOURCE = """
    import torch
    from torch import nn

    seen = []

    def labelled(student_logits, teacher_logits, labels, progress, *, alpha: float = 1.0):
        seen.append((labels.tolist(), progress))
        return alpha * (student_logits - teacher_logits).square().mean()

    def drawn(student_logits, teacher_logits, draw_seed):
        seen.append(draw_seed)
        return (student_logits - teacher_logits).square().mean()

    def epochal(student_logits, teacher_logits, epoch):
        seen.append(epoch)
        return (student_logits - teacher_logits).square().mean()

    def identified(student_logits, teacher_logits, example_ids):
        assert example_ids.shape == student_logits.shape[:-1]
        seen.append(example_ids.tolist())
        return (student_logits - teacher_logits).square().mean()

    def matched(student_features, teacher_features, example_ids):
        seen.append(example_ids.tolist())
        return student_features.mean() - teacher_features.mean()

    class Sized(nn.Module):
        def __init__(self, num_examples):
            super().__init__()

        def forward(self, student_logits, teacher_logits):
            return student_logits.mean()

    class Learned(nn.Module):
        def __init__(self, start: float = 1.0):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(start))

        def forward(self, student_features, teacher_features, student_mask):
            assert student_mask.dtype is torch.bool
            return ((student_features * self.scale - teacher_features) ** 2).mean()

    def wide(in_dim, out_dim, *, bias: bool = True):
        return nn.Linear(in_dim, out_dim, bias=bias)

    def half(progress):
        return 0.5

    def warm(student_logits, teacher_logits, temperature):
        return ((student_logits - teacher_logits.detach()) / temperature).square().mean()

    class Warmth(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, temperature):
            return temperature * self.factor

    class Weight(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, progress):
            return self.factor.item()
"""
MATCH = {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": ["learned", 2.0], "weight": 1, "proj": ["wide", 6, 8]}


@pytest.fixture
def plugin(fake_site: FakeSite) -> Iterator[Any]:
    fake_site.add(
        "kdplug-mine",
        files={"kdplug_mine.py": SOURCE},
        losses={
            "labelled": "kdplug_mine:labelled",
            "learned": "kdplug_mine:Learned",
            "drawn": "kdplug_mine:drawn",
            "identified": "kdplug_mine:identified",
            "matched": "kdplug_mine:matched",
            "sized": "kdplug_mine:Sized",
            "epochal": "kdplug_mine:epochal",
            "warm": "kdplug_mine:warm",
        },
        projections={"wide": "kdplug_mine:wide"},
        weight_schedulers={"half": "kdplug_mine:half", "weight": "kdplug_mine:Weight"},
        temperature_schedulers={"warmth": "kdplug_mine:Warmth"},
    )
    with fake_site.host():
        import kdplug_mine

        yield kdplug_mine


def distiller(folder: Path, keys: str, **config: Any) -> Any:
    torch.manual_seed(0)
    read = partial(adaptor, keys=keys)
    return textbrewer.GeneralDistiller(
        textbrewer.TrainingConfig(output_dir=folder, device="cpu"),
        textbrewer.DistillationConfig(**config),
        TinyEncoder(8),
        TinyEncoder(6),
        read,
        read,
    )


def train(made: Any, steps: int = 2) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.1)
    made.train(optimizer, DataLoader(make_examples(8, is_full=False), batch_size=4), num_steps=steps)
    return optimizer


def test_a_kd_loss_gets_the_labels_of_the_selected_items_and_the_progress(plugin: Any, tmp_path: Path) -> None:
    made = distiller(
        tmp_path, "token logits_mask tags", kd_loss_type=["labelled", 0.5], kd_loss_weight_scheduler="half"
    )
    train(made)
    examples = make_examples(8, is_full=False)
    tags = [tag for example in examples[:4] for tag in example["tags"][example["attention_mask"] == 1].tolist()]
    assert plugin.seen[0] == (tags, 0.0)
    assert plugin.seen[1][1] == 0.5


def test_a_match_loss_with_parameters_is_trained_and_a_plugins_projection_too(plugin: Any, tmp_path: Path) -> None:
    keys, matches = "hidden losses inputs_mask", [MATCH]
    made = distiller(tmp_path, keys, kd_loss_type="labelled", hard_label_weight=1, intermediate_matches=matches)
    (learned,) = [module for module, _ in made.trained_modules() if isinstance(module, plugin.Learned)]
    before = [parameter.clone() for parameter in (learned.scale, made.projs[0].weight)]
    optimizer = train(made)
    assert len(optimizer.param_groups) == 3
    assert not any(map(torch.equal, before, (learned.scale, made.projs[0].weight)))
    assert made.match_names == ["unweighted_hidden_learned_1_1"]


def test_a_loss_that_draws_gets_a_seed_of_its_own_in_each_batch(plugin: Any, tmp_path: Path) -> None:
    made = distiller(tmp_path, "token", kd_loss_type="drawn")
    train(made, steps=4)
    assert len(set(plugin.seen)) == len(plugin.seen) == 4
    assert textbrewer.KD_LOSS_MAP["drawn"](torch.ones(2, 3), torch.zeros(2, 3)) == 1


def test_a_loss_gets_the_epoch_by_steps_and_by_epochs(plugin: Any, tmp_path: Path) -> None:
    made = distiller(tmp_path, "token", kd_loss_type="epochal")
    train(made, steps=5)
    made.train(
        torch.optim.SGD(made.model_S.parameters(), lr=0.1),
        DataLoader(make_examples(8, is_full=False), batch_size=4),
        num_epochs=2,
    )
    assert plugin.seen == [0, 0, 1, 1, 2, 0, 0, 1, 1]


def with_ids() -> list[dict[str, Any]]:
    return [{**row, "example_ids": place} for place, row in enumerate(make_examples(8, is_full=False))]


@pytest.mark.parametrize("caching", [False, True])
def test_a_loss_gets_the_ids_of_the_batch_one_for_each_item(plugin: Any, tmp_path: Path, caching: bool) -> None:
    matches = [] if caching else [{**MATCH, "loss": "matched", "proj": None, "layer_T": 0, "layer_S": 0}]
    keys = "token logits_mask hidden"
    made = distiller(tmp_path, keys, kd_loss_type="identified", intermediate_matches=matches)
    if caching:
        made.d_config.is_caching_logits = True
        made = textbrewer.BasicDistiller(
            made.t_config, made.d_config, made.model_T, made.model_S, made.adaptor_T, made.adaptor_S
        )
    made.train(torch.optim.SGD(made.model_S.parameters(), lr=0.1), DataLoader(with_ids(), batch_size=4), num_epochs=1)
    counts = [int(row["attention_mask"].sum()) for row in with_ids()]
    items = [[place for place in rows for _ in range(counts[place])] for rows in (range(4), range(4, 8))]
    expected = items if caching else [items[0], [0, 1, 2, 3], items[1], [4, 5, 6, 7]]
    assert sorted(plugin.seen) == sorted(expected)


def test_ids_and_the_number_of_examples_that_the_drop_in_does_not_know_are_errors(plugin: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputsError, match=r"kdplug-mine:identified requests example_ids\. Give each batch a key"):
        train(distiller(tmp_path, "token", kd_loss_type="identified"))
    with pytest.raises(SignatureError, match="kdplug-mine:sized takes num_examples when it is built"):
        distiller(tmp_path, "token", kd_loss_type="sized")


@pytest.mark.parametrize("basic", [False, True])
def test_a_temperature_scheduler_with_a_parameter_is_trained(plugin: Any, tmp_path: Path, basic: bool) -> None:
    made = distiller(tmp_path, "token", kd_loss_type="warm", temperature_scheduler="warmth")
    if basic:
        made = textbrewer.BasicDistiller(
            made.t_config, made.d_config, made.model_T, made.model_S, made.adaptor_T, made.adaptor_S
        )
    scheduler = made.d_config.temperature_scheduler.component.target
    optimizer = train(made)
    assert scheduler.factor.item() != 1.0
    assert any(scheduler.factor is one for group in optimizer.param_groups for one in group["params"])


def test_a_weight_scheduler_with_a_parameter_is_refused(plugin: Any) -> None:
    with pytest.raises(
        SignatureError, match=r"^kd_loss_weight_scheduler: kdplug-mine:weight is a module with parameters"
    ):
        textbrewer.DistillationConfig(kd_loss_weight_scheduler="weight")
