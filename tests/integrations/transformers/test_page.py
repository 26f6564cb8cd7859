"""The code of the page on the Trainer trains the same weights however a step is cut into micro-batches."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from bert_run import weights
from transformers import TrainingArguments

PAGE = Path(__file__).parents[3] / "docs/how-to/use-with-transformers-trainer.md"
DISTILLATION_TRAINER, OWN_LOSS = 1, 2


def trained(folder, place, micro_batches, change=("", "")):
    """The student of the page's code block ``place``, after 4 steps of 8 rows in so many micro-batches."""
    cut = {"per_device_train_batch_size": 8 // micro_batches, "gradient_accumulation_steps": micro_batches}
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "save_strategy": "no", "disable_tqdm": True}
    names = {"TrainingArguments": lambda _, **own: TrainingArguments(str(folder), **{**own, **plain, **cut})}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[1 : place + 1]:
        code = block.replace(", TrainingArguments\n", "\n").replace(*change)
        exec(code, names)
    return weights(names["student"])


@pytest.mark.parametrize("place", [DISTILLATION_TRAINER, OWN_LOSS], ids=["distillation trainer", "own compute_loss"])
def test_the_pages_code_trains_the_same_weights_at_one_and_two_micro_batches(tmp_path, place):
    train = partial(trained, tmp_path, place)
    torch.testing.assert_close(train(2), train(1), rtol=0, atol=1e-5)


def test_without_num_items_in_batch_the_pages_own_loss_would_differ(tmp_path):
    train = partial(trained, tmp_path, OWN_LOSS, change=("if num_items_in_batch is not None:", "if False:"))
    assert (train(2) - train(1)).abs().max() > 1e-3
