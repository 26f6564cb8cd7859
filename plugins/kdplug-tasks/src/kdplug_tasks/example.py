"""Examples in memory."""

from __future__ import annotations

from typing import Any, Protocol

from torch.utils.data import Dataset


class Sized(Protocol):
    """A dataset with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Any: ...


class Examples(Dataset[Any]):
    """A list of examples as a dataset."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]
