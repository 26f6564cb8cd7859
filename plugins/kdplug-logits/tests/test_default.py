"""Defaults of the losses, each with the source that it was compared with.

A new or changed default fails here until its source is read and written down.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from typing import Any

import pytest

OWN = "own"
"""No source: kdplug's choice, described in the docstring of the entry."""
HINTON = "arXiv:1503.02531"

TABLE: list[tuple[str, str, Any, str]] = [
    ("adaptive_kl", "mass", 0.5, "wutaiqiang/LLM_KD_AKL, AKL.py"),  # get_ratio(mu=0.5)
    ("adaptive_kl", "t2", True, HINTON),
    ("alpha_beta", "alpha", 0.2, "arXiv:2505.04560"),
    ("alpha_beta", "beta", 0.7, "arXiv:2505.04560"),
    ("alpha_beta", "t2", True, HINTON),
    ("bce", "t2", True, HINTON),
    ("dist", "beta", 1.0, "hunto/DIST_KD, segmentation/losses/dist_kd.py"),
    ("dist", "gamma", 1.0, "hunto/DIST_KD, segmentation/losses/dist_kd.py"),
    ("dist", "eps", 1e-8, "hunto/DIST_KD, segmentation/losses/dist_kd.py"),
    ("dist", "t2", True, OWN),  # the repository has no T²
    ("dkd", "alpha", 1.0, "megvii-research/mdistiller"),  # mdistiller/engine/cfg.py: CFG.DKD
    ("dkd", "beta", 8.0, "megvii-research/mdistiller"),  # configs: 0.5 (ImageNet, ResNet-34 to 18) to 8
    ("dkd", "t2", True, "megvii-research/mdistiller"),
    ("jsd", "beta", 0.5, "arXiv:2306.13649"),
    ("jsd", "normalize", False, "arXiv:2306.13649"),
    ("jsd", "t2", True, HINTON),
    ("kl", "t2", True, HINTON),
    ("logit_std", "eps", 1e-7, "sunshangquan/logit-standardization-KD, mdistiller/distillers/KD.py"),
    ("logit_std", "t2", True, "sunshangquan/logit-standardization-KD, mdistiller/distillers/KD.py"),
    ("nkd", "gamma", 1.5, "yzd-v/cls_KD, mmcls/models/dis_losses/nkd.py"),
    ("nkd", "t2", True, "yzd-v/cls_KD, mmcls/models/dis_losses/nkd.py"),
    ("ranking", "form", "logistic", "doi:10.1145/1102351.1102363"),
    ("ranking", "margin", 1.0, "doi:10.1145/775047.775067"),
    ("reverse_kl", "t2", True, HINTON),
    ("sampled", "draws", 50, "arXiv:2503.16870"),
    ("sampled", "sharpness", 1.0, "arXiv:2503.16870"),
    ("sampled", "seed", 0, OWN),
    ("sampled", "t2", True, HINTON),
    ("skew_kl", "skew", 0.1, "jongwooko/distillm, distillm/losses.py"),
    ("skew_kl", "t2", True, HINTON),
    ("skew_reverse_kl", "skew", 0.1, "jongwooko/distillm, distillm/losses.py"),
    ("skew_reverse_kl", "t2", True, HINTON),
    ("topk", "k", 64, OWN),
    ("topk", "rest", "tail", OWN),
    ("topk", "t2", True, HINTON),
    ("tvd", "t2", True, HINTON),
    ("uld", "t2", True, HINTON),
    ("wsld", "eps", 1e-7, "bellymonster/Weighted-Soft-Label-Distillation, knowledge_distiller.py"),
    ("wsld", "t2", True, "bellymonster/Weighted-Soft-Label-Distillation, knowledge_distiller.py"),
]  # fmt: skip


def _losses() -> dict[str, Any]:
    found = entry_points(group="kdplug.losses")
    return {one.name: one.load() for one in found if one.value.startswith("kdplug_logits.")}


def test_every_default_is_in_the_table_with_its_value() -> None:
    found = [
        (name, one.name, one.default)
        for name, loss in sorted(_losses().items())
        for one in inspect.signature(loss).parameters.values()
        if one.kind is one.KEYWORD_ONLY and one.default is not one.empty
    ]
    assert sorted(found, key=str) == sorted(((name, key, value) for name, key, value, _ in TABLE), key=str)


@pytest.mark.parametrize(("name", "key", "source"), [(name, key, source) for name, key, _, source in TABLE])
def test_the_source_of_a_default_is_in_the_docstring(name: str, key: str, source: str) -> None:
    text = " ".join((_losses()[name].__doc__ or "").split())
    if source == OWN:
        assert f"``{key}``" in text
    elif source != HINTON:  # the factor T², which the other sources do not mention
        assert source in text
