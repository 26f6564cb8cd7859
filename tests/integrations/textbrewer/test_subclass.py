"""Distillers that scripts write for themselves, on ``BasicDistiller`` and the star of ``distiller_utils``."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from textbrewer_twin import Case, loss_gap, run, weight_gap

import kdplug.integrations.textbrewer as dropin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    textbrewer = pytest.importorskip("textbrewer")


def all_pairs(library: ModuleType) -> type[Any]:
    """A distiller that matches every layer of the student with every one of the teacher, a projection for each."""
    names = library.distiller_utils

    class AllPairs(library.distiller_basic.BasicDistiller):  # type: ignore[name-defined,misc]
        def __init__(self, train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S):
            super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
            self.d_config.is_caching_logits = False
            self.projs = [names.PROJ_MAP["linear"](6, 8).to(self.t_config.device) for _ in range(3)]
            self.projs_group = [{"lr": 0.01}, {}, {}]

        def train_on_batch(self, batch, args):
            (batch_T, results_T), (batch_S, results_S) = names.get_outputs_from_batch(
                batch, self.t_config.device, self.model_T, self.model_S, args
            )
            results_T = names.post_adaptor(self.adaptor_T(batch_T, results_T))
            return self.compute_loss(names.post_adaptor(self.adaptor_S(batch_S, results_S)), results_T)

        def compute_loss(self, results_S, results_T):
            kd = 0
            logits_S = names.select_logits_with_mask(results_S["logits"], results_S["logits_mask"])
            logits_T = names.select_logits_with_mask(results_T["logits"], results_T["logits_mask"])
            for l_T, l_S in zip(logits_T, logits_S, strict=True):
                assert self.d_config.temperature_scheduler is None
                kd += self.kd_loss(l_S, l_T, self.d_config.temperature)
            loss, total = names.MATCH_LOSS_MAP["hidden_mse"], kd * self.d_config.kd_loss_weight
            states = [proj(state) for proj, state in zip(self.projs, results_S["hidden"], strict=True)]
            pairs = sum(loss(S, T, mask=results_S["inputs_mask"]) for S in states for T in results_T["hidden"])
            total += 0.1 * pairs
            return total, {"unweighted_kd_loss": kd, "unweighted_pairs": pairs}

    return AllPairs


def test_a_subclass_trains_as_on_textbrewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(
        "Own", "token logits_mask inputs_mask hidden", {"temperature": 8}, {"num_epochs": 2, "max_grad_norm": 1.0}
    )
    found = []
    for library in (dropin, textbrewer):
        monkeypatch.setitem(library.Distillers, "Own", all_pairs(library))
        found.append(run(library, case, tmp_path / library.__name__))
    assert len(found[1].scalars) == 3 * 14
    assert max(loss_gap(*found), weight_gap(*found)) <= 1e-5
    assert found[0].checkpoints == found[1].checkpoints
