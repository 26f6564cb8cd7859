"""A batch to look at before training, which takes nothing away from it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer

from kdplug.engine.batch import to_device
from kdplug.engine.randomness import random_state_kept

_EXAMPLES = 2


def first_batch(trainer: Trainer, device: torch.device) -> dict[str, Any] | None:
    """The collated first examples of the training data, or of the evaluation data where there is none.

    The random state is as before afterwards, and no sampler has drawn from it.
    """
    data = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    if data is None:
        return None
    with random_state_kept():
        batch = _collated(trainer, data)
    moved: dict[str, Any] = to_device(batch, device)
    return moved


def _collated(trainer: Trainer, data: Any) -> Any:
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)  # noqa: SLF001  as its own loaders do
    if isinstance(data, IterableDataset) or not callable(getattr(data, "__len__", None)):
        return collate(list(islice(data, _EXAMPLES)))
    return collate([data[place] for place in range(min(_EXAMPLES, len(data)))])
