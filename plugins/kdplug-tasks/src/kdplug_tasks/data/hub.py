"""Read rows with the ``datasets`` library, and check that the hub can be reached before a library retries for long."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import kdplug
from kdplug_tasks.data.setting import DataSettings
from kdplug_tasks.data.table import Table, did_you_mean, without_rows
from kdplug_tasks.regular_file import NOT_REGULAR, is_special


def read_split(settings: DataSettings, split: str, field: str) -> Table:
    """Read one split of a dataset from the hub, from ``save_to_disk``, or whatever else ``load_dataset`` accepts.

    No loading script runs: ``datasets`` rejects them since version 4. Images stay encoded until ``read_picture`` opens
    them.

    Raises: ``ConfigError`` if the dataset or split does not exist or is empty.
    """
    assert settings.dataset is not None
    if settings.dataset == "pandas":
        raise kdplug.ConfigError(
            "'pandas' reads pickles, and reading one can run code. Save the rows as Parquet, set data.train to that file, and remove "
            "data.dataset",
            field="data.dataset",
        )
    try:
        _check_regular(settings.dataset)
        found = _on_disk(settings.dataset, split, field)
        if found is None:
            if _is_name(settings.dataset) and not _is_cached(settings.dataset):
                check_hub(settings.dataset, "data.dataset", "dataset")
            found = _loaded(settings, split)
        found = _encoded(found)
    except kdplug.ConfigError:
        raise
    except Exception as error:  # datasets and its dependencies raise many types of exceptions
        first = str(error).strip().splitlines()[:1] or ["no message"]
        raise kdplug.ConfigError(
            f"the datasets library cannot load the split {split!r} of {settings.dataset[:_SHOWN]!r}: {type(error).__name__}: {first[0][:_SHOWN]}",
            field="data.dataset",
        ) from error
    columns = {name: found[name] for name in found.column_names}
    table = Table(f"{settings.dataset}[{split}]", field, columns, _classes(found))
    if not len(table):
        raise without_rows(table)
    return table


_SHOWN = 200
"""Characters of a name or message that an error repeats."""


def check_hub(name: str, field: str, kind: Literal["model", "dataset"]) -> None:
    """Check that a hub name is in the local cache of the hub, or that the hub can be reached.

    Without this check, the hub's libraries retry each file for about 24 seconds.

    Raises: ``ConfigError``.
    """
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")
    if os.path.isdir(cached):  # noqa: PTH112 - False if the name is too long
        return
    if constants.is_offline_mode():
        reason = "it is not in the local cache of the hub. Unset HF_HUB_OFFLINE to download it"
    elif not _is_reachable(constants.ENDPOINT):
        reason = f"the hub cannot be reached ({constants.ENDPOINT}). Correct the path, or check the connection"
    else:
        return
    raise kdplug.ConfigError(f"{name[:_SHOWN]!r} is not a local folder, and {reason}", field=field)


@contextmanager
def offline_if_unreachable(name: str) -> Iterator[None]:
    """Inside the block, the hub's libraries read ``name`` from their cache, without retries, if the hub does not answer.

    Nothing changes if ``name`` is a folder.
    """
    from huggingface_hub import constants

    is_folder = os.path.isdir(name)  # noqa: PTH112 - False if the name is too long
    if is_folder or constants.is_offline_mode() or _is_reachable(constants.ENDPOINT):
        yield
        return
    from datasets import config  # before the switch is set: it is copied when datasets is imported

    _log_offline(constants.ENDPOINT)
    before = config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = False, before


@cache
def _log_offline(endpoint: str) -> None:
    """Log once that the hub cannot be reached."""
    logging.getLogger("kdplug_tasks").warning(
        "The hub cannot be reached (%s), so models and datasets are read from its local cache.", endpoint
    )


_SECONDS = 5.0
"""Seconds in which the hub must respond."""
_AGAIN_SECONDS = 300.0
"""Seconds after which a hub that did not respond is tried again."""
_asked: dict[str, tuple[bool, float]] = {}
"""For each endpoint, whether it responded to the last request, and the time of that request."""


def _is_reachable(endpoint: str) -> bool:
    """Return whether the hub responds. A hub that did not respond is tried again after five minutes."""
    is_there, when = _asked.get(endpoint, (False, -math.inf))
    if not is_there and time.monotonic() > when + _AGAIN_SECONDS:
        is_there = _responds(endpoint)
        _asked[endpoint] = is_there, time.monotonic()
    return is_there


def _responds(endpoint: str) -> bool:
    """Request the hub's address; any response in time is sufficient. A thread is used, since a name lookup has no timeout."""
    from huggingface_hub import get_session

    found: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # of the HTTP client: name lookup, connection, proxy, certificate, timeout
            found.append(get_session().head(endpoint, timeout=_SECONDS))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return bool(found)


def _is_name(name: str) -> bool:
    """Return whether ``datasets`` would look for ``name`` on the hub, because it is neither a path nor a format such as ``csv``."""
    from datasets import packaged_modules

    return name not in packaged_modules._PACKAGED_DATASETS_MODULES and not os.path.exists(name)  # noqa: PTH110, SLF001 - False if the name is too long; no public list


def _is_cached(name: str) -> bool:
    """Return whether ``datasets`` has prepared the dataset before."""
    from datasets import config

    return os.path.exists(Path(config.HF_DATASETS_CACHE, name.replace("/", "___")))  # noqa: PTH110 - as above


def _check_regular(name: str) -> None:
    folder = Path(name)
    for file in (folder, *(folder.rglob("*") if folder.is_dir() else ())):
        if is_special(file):
            raise kdplug.ConfigError(f"{str(file)!r} {NOT_REGULAR}", field="data.dataset")


def _on_disk(name: str, split: str, field: str) -> Any:
    """Return a split of a folder that ``save_to_disk`` wrote; ``None`` if ``name`` is not such a folder."""
    folder = Path(name)
    if not any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return None
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(folder))
    if not isinstance(found, DatasetDict):
        if split != "train":
            fix = "a fraction, such as 0.1" if field in ("data.validation", "data.test") else "'train'"
            raise kdplug.ConfigError(
                f"{name!r} is a single dataset, whose only split is 'train', got {split!r}. Set {field} to {fix}",
                field=field,
            )
        return found
    if split not in found:
        near = did_you_mean(split, found)
        raise kdplug.ConfigError(f"{name!r} has no split {split!r}.{near} It has {', '.join(found)}", field=field)
    return found[split]


def _loaded(settings: DataSettings, split: str) -> Any:
    from datasets import load_dataset

    assert settings.dataset is not None
    with offline_if_unreachable(settings.dataset) if _is_name(settings.dataset) else nullcontext():
        return load_dataset(settings.dataset, settings.config, split=split, revision=settings.revision)


def _encoded(found: Any) -> Any:
    """Return the rows with images as bytes or paths: decoding would accept every format, detected from the content."""
    from datasets import Image

    for name, feature in found.features.items():
        if isinstance(feature, Image):
            found = found.cast_column(name, Image(decode=False))
    return found


def _classes(found: Any) -> dict[str, tuple[str, ...]]:
    """Return the class names of integer label columns, including columns of lists."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in found.features.items()}
    return {name: tuple(one.names) for name, one in inner.items() if getattr(one, "names", None)}
