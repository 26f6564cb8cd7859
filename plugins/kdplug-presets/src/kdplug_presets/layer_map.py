"""Layer maps: pairs of a student layer and the teacher layer it learns from.

Layers are numbered from 1; 0 is the embeddings' output. A map is a list of pairs, student first.
"""

from __future__ import annotations

from kdplug import ConfigError

Pairs = list[tuple[int, int]]


def uniform(student_layers: int, teacher_layers: int, *, embeddings: bool = False, round: bool = False) -> Pairs:  # noqa: A002
    """Student layer ``m`` of ``M`` learns from teacher layer ``m · N / M`` of ``N``: evenly spaced, last from last.

    Settings: ``embeddings``, also match the embeddings' output; ``round``, use the nearest layer (the lower one of two
    equally near) if ``N`` is not a multiple of ``M``.
    Raises: ``ConfigError`` if the student has more layers, or ``N`` is not a multiple of ``M`` and ``round`` is false.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351: every third of 12 layers for 4 student layers; as in
    huawei-noah/Pretrained-Language-Model, TinyBERT/task_distill.py, which also matches the embeddings' output
    (``embeddings: true``) and requires ``N`` to be a multiple of ``M``.
    """
    pairs = _evenly("uniform", student_layers, teacher_layers, nearest=round)
    return [(0, 0), *pairs] if embeddings else pairs


def skip(student_layers: int, teacher_layers: int, *, top: bool = False, round: bool = False) -> Pairs:  # noqa: A002
    """PKD-Skip: each student layer ``m`` of ``M`` but the last learns from teacher layer ``m · N / M`` of ``N``.

    The last layers are excluded because the logits, computed from them, are compared already. With 6 student layers and
    12 teacher layers, student layers 1 to 5 learn from teacher layers 2, 4, 6, 8 and 10.

    Settings: ``top``, match the last layers as well; ``round``, use the nearest layer (the lower one of two equally
    near) if ``N`` is not a multiple of ``M``.
    Raises: ``ConfigError`` if the student has more layers, ``N`` is not a multiple of ``M`` and ``round`` is false, or
    no pair remains.
    Source: Sun et al. 2019 (PKD), arXiv:1908.09355; the example is that of
    intersun/PKD-for-BERT-Model-Compression, src/argument_parser.py, which counts layers from 0.
    """
    return _but_top(_evenly("skip", student_layers, teacher_layers, nearest=round), "skip", top=top)


def last(student_layers: int, teacher_layers: int, *, top: bool = False) -> Pairs:
    """PKD-Last: the student's layers learn from the same number of last teacher layers, excluding the very last.

    With 6 student layers and 12 teacher layers, student layers 1 to 5 learn from teacher layers 7, 8, 9, 10 and 11.

    Settings: ``top``, match the last layers as well.
    Raises: ``ConfigError`` if the student has more layers, or no pair remains.
    Source: Sun et al. 2019 (PKD), arXiv:1908.09355.
    """
    _check_depths("last", student_layers, teacher_layers)
    start = teacher_layers - student_layers
    return _but_top([(m, start + m) for m in range(1, student_layers + 1)], "last", top=top)


def emb_and_last(student_layers: int, teacher_layers: int) -> Pairs:
    """Match the embeddings' output and the last layer. Needs features that begin with the embeddings' output.

    Source: no paper; both ends of TinyBERT's map (arXiv:1909.10351).
    """
    return [(0, 0), (student_layers, teacher_layers)]


def _evenly(owner: str, student_layers: int, teacher_layers: int, *, nearest: bool) -> Pairs:
    _check_depths(owner, student_layers, teacher_layers)
    if teacher_layers % student_layers and not nearest:
        raise ConfigError(
            f"{owner}: the teacher's {teacher_layers} layers are not a multiple of the student's {student_layers}. To use the nearest "
            f"layers, set name: {{name: {owner}, round: true}}"
        )
    return [(m, _nearest(m * teacher_layers, student_layers)) for m in range(1, student_layers + 1)]


def _but_top(pairs: Pairs, owner: str, *, top: bool) -> Pairs:
    found = pairs if top else pairs[:-1]
    if not found:
        raise ConfigError(
            f"{owner}: excludes the last layer, but the student has only one layer. "
            f"To match the last layer, set name: {{name: {owner}, top: true}}"
        )
    return found


def _check_depths(owner: str, student_layers: int, teacher_layers: int) -> None:
    if student_layers > teacher_layers:
        raise ConfigError(
            f"{owner}: the student has {student_layers} layers and the teacher {teacher_layers}; the student must not "
            "have more. Use the map emb_and_last, or list the pairs of layers in intermediate_matches"
        )


def _nearest(numerator: int, denominator: int) -> int:
    """Round the fraction to the nearest integer, the lower one of two equally near, in integer arithmetic."""
    return -((denominator - 2 * numerator) // (2 * denominator))
