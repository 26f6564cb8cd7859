"""Outputs of examples that were padded in one batch, laid out as another batch pads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kdplug.engine.cache_guide import Padding, padding_of, rows_of
from kdplug.engine.cache_layout import Layout, Length
from kdplug.errors import RunError


def paddings(
    stored: Mapping[str, Sequence[Tensor]], now: Mapping[str, Tensor], keys: Sequence[int]
) -> dict[str, list[Padding]]:
    """For each guide, where each example is padded: what both rows have in common lies at the other end.

    ``stored`` holds the marks of each example's row as the teacher was given it, ``now`` the rows of this batch.

    Shapes: marks ``[7]``, rows ``[batch, length]``.
    Raises: ``RunError`` where the tokens of an example lie otherwise than the teacher saw them.
    """
    found = {}
    for path, marks in stored.items():
        current = now.get(path)
        if current is None or len(current) != len(marks):
            raise RunError(f"the teacher's input {path or 'tensor'!r} [batch, length] is not in this batch any more")
        found[path] = [
            _checked(padding_of(mark.tolist(), row), key)
            for mark, row, key in zip(marks, rows_of(current), keys, strict=True)
        ]
    return found


def fit(row: Tensor, length: Length, size: int, padding: Padding) -> Tensor:
    """``row`` with each dimension of ``length`` cut to ``size``, or filled up with zeros, at the end that is padded."""
    shape = list(row.shape)
    for dim in length.dims:
        shape[dim - 1] = size
    if shape == list(row.shape):
        return row
    made = row.new_zeros(shape)
    source, target = row, made
    for dim in length.dims:
        kept = min(row.shape[dim - 1], size)
        starts = (0, 0) if padding is Padding.END else (row.shape[dim - 1] - kept, size - kept)
        source, target = source.narrow(dim - 1, starts[0], kept), target.narrow(dim - 1, starts[1], kept)
    target.copy_(source)
    return made


@dataclass(frozen=True, slots=True)
class Fits:
    """How the rows of one batch's examples are to be laid out: its lengths and the ends that are padded, by guide."""

    layout: Layout
    sizes: Mapping[str, int]
    padded: Mapping[str, list[Padding]]

    def fitted(self, name: str, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows that follow a guide, as the batch wants them.

        Raises: ``RunError`` where they change and nothing says which of their positions count.
        """
        length = self.layout.lengths[name]
        ends = [
            Padding.START if Padding.START in one else Padding.END
            for one in zip(*(self.padded[path] for path in length.paths), strict=True)
        ]
        size = self.sizes[length.paths[0]] - length.less
        found = [fit(row, length, size, end) for row, end in zip(rows, ends, strict=True)]
        if any(one is not row for one, row in zip(found, rows, strict=True)):
            check_masked(name, self.layout)
        return found


def check_masked(name: str, layout: Layout) -> None:
    """Raises: ``RunError`` where nothing says which positions of a padded output count."""
    teacher, _, part = name.partition("/")
    key = part.partition("/")[0]
    mask = "logits_mask" if key in ("logits", "logits_mask") else "inputs_mask"
    if key == mask or any(one.startswith(f"{teacher}/{mask}") for one in layout.dtypes):
        return
    if name in layout.heads and layout.heads[name].masked:
        return
    raise RunError(
        f"batches are padded to different lengths, and the teacher's adaptor returns no {mask} that says what of its {key} is "
        f"padding. Return {mask} from adaptor_T, or pad all examples to one length",
        field="is_caching_logits",
    )


def _checked(padding: Padding | None, key: int) -> Padding:
    if padding is not None:
        return padding
    raise RunError(
        f"example {key} is laid out otherwise than when the teacher saw it: its tokens lie neither at the start nor at the end of "
        "both rows. What the batch is made of must not depend on the other examples, padding at one end apart",
        field="is_caching_logits",
    )
