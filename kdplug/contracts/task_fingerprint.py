"""What a task may say of its teacher, so that a cache of one is not taken for that of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class FingerprintedTask(Protocol):
    """A task that knows what its teacher's outputs depend on. It is optional: without it all settings of the task count."""

    def fingerprint(self) -> Mapping[str, Any]:
        """What has to be the same for a teacher cache to serve, as plain data by name.

        ``teacher`` (what is loaded, and its version), ``tokenizer`` (a digest of its vocabulary and settings), ``alignment``
        (which token the logits at a position are about). What concerns the student alone is left out, so that one cache
        serves several students. It is asked for where no teacher is at hand: building one for it defeats the purpose.
        """
        ...


@runtime_checkable
class FingerprintedDataset(Protocol):
    """A dataset that identifies its own examples, so that a run is not resumed over other data.

    It is optional: without it the run reads examples by their place, as many as a second allows.
    """

    def fingerprint(self) -> Any:
        """Plain data that changes whenever an example changes: digests of columns by name, say.

        It has to be the same in every process and cheap next to a run. A mapping lets the error name the part that changed.
        """
        ...
