"""Distance between sorted probabilities, for a teacher with a different vocabulary."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from kdplug import LossSum, across_vocabularies
from kdplug_logits.divergence import over_temperature, promoted, read_temperature, times_squared
from kdplug_logits.shape import require_logits


def uld_per_item(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``Σ |sorted p − sorted q|``, ``[*items]``.

    Shapes: probabilities ``[*items, classes]``, where the classes may differ in number.
    """
    own, theirs = (side.sort(dim=-1, descending=True).values for side in (student, teacher))
    missing = own.shape[-1] - theirs.shape[-1]
    if missing > 0:
        theirs = pad(theirs, (0, missing))
    elif missing < 0:
        own = pad(own, (0, -missing))
    return (own - theirs).abs().sum(dim=-1)


@across_vocabularies
def uld(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0, *, t2: bool = True
) -> LossSum:
    """Universal logit distance ``T² Σ |sorted p − sorted q|`` of softened teacher p and student q, mean over items.

    Both sides are sorted by size and the shorter one is padded with 0: class identity does not matter, so vocabularies
    may differ. A student that gives the same probabilities to different tokens therefore has a distance of 0.

    It is symmetric, and finite even if either side rules out a class (``-inf``). Items must already be aligned to the
    same piece of text.

    Settings: ``t2`` multiplies by the squared temperature. The authors add it with a weight of 1.5 to the
    cross-entropy, at temperature 1.
    Relations: at most twice ``tvd``, and equal to that if both sides rank the classes equally.

    Shapes: logits ``[*items, classes]``, where the classes may differ in number; temperature a number, a one-element tensor,
    ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if items differ; ``SettingError`` if the temperature is not positive.
    Source: Boizard et al. 2024, arXiv:2402.12030; without T² the distance of TRL's GOLD trainer for a piece of text that is
    one token on each side. For a piece of several tokens GOLD, by default (``uld_token_merge_strategy: observed``), first
    multiplies the distribution of the first token by the probabilities of the others; here no distribution is changed.
    """
    require_logits("uld", student_logits, teacher_logits, classes=False)
    temperature = read_temperature("uld", temperature, student_logits)
    sides = promoted(student_logits, teacher_logits)
    student, teacher = (over_temperature(side, temperature).softmax(dim=-1) for side in sides)
    values = uld_per_item(student, teacher)
    return LossSum((times_squared(values, temperature) if t2 else values).sum(), values.numel())
