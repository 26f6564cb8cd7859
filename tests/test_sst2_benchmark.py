"""What the benchmark on SST-2 counts on: the order of batches, the layers of students, and its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.sst2_scene import BATCH, Scene, shared_layers
from benchmarks.sst2_table import student_lines

EXAMPLES = [({"input_ids": [place] * (1 + place % 7)}, place) for place in range(100)]


class Batch(dict):
    """Inputs and targets, as the task's own batches have them."""

    def __init__(self, examples):
        super().__init__()
        self.targets = {"target": torch.tensor([target for _, target in examples])}


TASK = SimpleNamespace(data=lambda part: EXAMPLES, collate=Batch)


def batches(seed, epochs=1, examples=None):
    found = Scene("nowhere", Path(), examples).training_batches(TASK, seed, epochs)
    return [batch["labels"].tolist() for batch in found]


def test_an_epoch_holds_each_sentence_once():
    assert sorted(place for batch in batches(1) for place in batch) == list(range(100))


def test_a_seed_decides_the_order_and_each_epoch_has_its_own():
    twice = batches(1, epochs=2)
    assert twice == batches(1, epochs=2) != batches(2, epochs=2)
    assert twice[:4] != twice[4:]


def test_fewer_sentences_are_the_same_ones_in_each_epoch():
    twice = batches(1, epochs=2, examples=BATCH)
    assert len(twice) == 2
    assert sorted(twice[0]) == sorted(twice[1])


@pytest.mark.parametrize(("layers", "expected"), [(3, [1, 3, 5]), (2, [2, 5])])
def test_a_student_has_the_last_layer_of_each_part(layers, expected):
    assert shared_layers(layers) == expected


def cell(dev, seconds=1.0, weights=1.0):
    return {"accuracy": {"dev": dev}, "cpu_seconds": seconds, "examples": 10, "peak_mib": 1, "weights": weights}


def test_a_lead_is_taken_seed_by_seed_and_times_are_paired():
    cells = {f"{seed}/3/undistilled/kdplug": cell(seed / 10) for seed in (1, 2, 3)}
    cells |= {f"{seed}/3/kd/kdplug": cell(seed / 10 + 0.02, weights=seed) for seed in (2, 3)}
    cells |= {f"{seed}/3/kd/textbrewer": cell(seed / 10, 2.0) for seed in (1, 2)}
    *_, kdplug, textbrewer = student_lines(cells, ("dev",))
    assert "| 2 | 27.00 ± 7.07 | +2.00 ± 0.00 |" in kdplug
    assert "| 0.500 (0.500 to 0.500) | 0 of 1 |" in kdplug
    assert textbrewer.endswith("|  |  |")
