"""Example ids are given only if the rows of a batch follow its examples."""

from __future__ import annotations

import pytest
import torch
from example_id_scene import COUNT, Rows, distil, register
from torch.utils.data import DataLoader

from kdplug import RunError, ShapeError

pytestmark = pytest.mark.filterwarnings("ignore:. of the student's . trained parameters got no gradient")


@pytest.fixture(autouse=True)
def _entries():
    register()


def sorts(rows):
    return torch.stack(sorted(rows, key=lambda row: -float(row[1])))


ARRANGEMENTS = {
    "reversed": lambda rows: rows.flip(0),
    "mixed with the reverse": lambda rows: 0.7 * rows + 0.3 * rows.flip(0),
    "rotated": lambda rows: rows.roll(1, 0),
    "halves exchanged": lambda rows: rows.roll(2, 0),
    "two exchanged": lambda rows: rows[[1, 0, *range(2, len(rows))]],
}


@pytest.mark.parametrize(
    ("size", "arrangement"),
    [(size, name) for size in (2, 3, 4) for name in ARRANGEMENTS if (size, name) != (2, "halves exchanged")],
)
def test_rearranged_rows_are_refused_whatever_the_arrangement(tmp_path, size, arrangement):
    change = ARRANGEMENTS[arrangement]
    rearranged = DataLoader(Rows(), batch_size=size, collate_fn=lambda rows: change(torch.stack(rows)))
    with pytest.raises(RunError, match="rows of a batch do not follow its examples"):
        distil(tmp_path, rearranged)


def drops(rows):
    return torch.stack(rows[1:])


def test_rows_that_do_not_follow_their_examples_are_refused(tmp_path):
    with pytest.raises(RunError, match="rows of a batch do not follow its examples"):
        distil(tmp_path / "collate", DataLoader(Rows(), batch_size=4, collate_fn=sorts))
    with pytest.raises(RunError, match="rows of a batch do not follow its examples"):
        distil(
            tmp_path / "post",
            DataLoader(Rows(), batch_size=4),
            train={"batch_postprocessor": lambda b: b[b[:, 1].argsort()]},
        )
    with pytest.raises(RunError, match="rows of a batch do not follow its examples"):
        distil(tmp_path / "noise", DataLoader(Rows(noise=0.1), batch_size=4, num_workers=1, collate_fn=sorts))
    with (
        pytest.warns(UserWarning, match="kdplug could not check"),
        pytest.raises(ShapeError, match="of which the batch has 4"),
    ):
        distil(tmp_path / "drops", DataLoader(Rows(), batch_size=4, collate_fn=drops))


def masks(rows):
    """A collate function that hides numbers at random."""
    rows = torch.stack(rows)
    return torch.cat([rows[:, :1], rows[:, 1:] * (torch.rand(len(rows), 3) > 0.5)], dim=1)


def test_random_batches_are_warned_of_and_numbered(tmp_path):
    with pytest.warns(UserWarning, match="kdplug could not check that row i of a batch is its example i"):
        found, _ = distil(tmp_path, DataLoader(Rows(), batch_size=4, collate_fn=masks))
    assert found[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


class Keys:
    def __len__(self):
        return COUNT

    def __iter__(self):
        return iter("abcdefghij")


def test_a_sampler_of_other_keys_is_refused(tmp_path):
    class ByLetter(Rows):
        def __getitem__(self, place):
            return super().__getitem__("abcdefghij".index(place))

    with pytest.raises(
        RunError, match="requests example_ids needs integer indices of examples, and the sampler returned 'a'"
    ):
        distil(tmp_path, DataLoader(ByLetter(), batch_size=4, sampler=Keys()))


@pytest.mark.parametrize("keys", [[0.0, 0.5, 1.0, 1.5], ["0", "1", "02", "3"]])
def test_keys_that_only_resemble_integers_are_refused(tmp_path, keys):
    class ByKey(Rows):
        def __getitem__(self, place):
            return super().__getitem__(keys.index(place))

    with pytest.raises(RunError, match=f"needs integer indices of examples, and the sampler returned {keys[0]!r}"):
        distil(tmp_path, DataLoader(ByKey(len(keys)), batch_size=2, sampler=keys))
