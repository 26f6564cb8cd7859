"""The hashing of data and teacher before a training of the Trainer or of Lightning is never silent, if progress is shown."""

from __future__ import annotations

import pytest
from bert_run import make_trainer
from listener import listening
from loop_run import data, lightning_trainer, make_module
from torch.utils.data import DataLoader

from kdplug.integrations.lightning import module
from kdplug.integrations.transformers import trainer


@pytest.fixture
def listener(capfd, monkeypatch):
    """Makes the hashing of both integrations slow."""
    with listening(capfd) as made:
        for place in (module, trainer):
            monkeypatch.setattr(place, "identity_of", _waiting(made, place.identity_of))
        yield made


def _waiting(listener, function):
    def identity_of(*arguments):
        listener.wait("hash")
        return function(*arguments)

    return identity_of


def test_the_trainer_is_never_silent(tmp_path, listener):
    make_trainer(tmp_path, disable_tqdm=False, max_steps=1).train()


def test_lightning_is_never_silent(tmp_path, listener):
    rows, size = data()
    run = lightning_trainer(tmp_path, max_steps=1, enable_progress_bar=True)
    run.fit(make_module(), DataLoader(rows, size))
