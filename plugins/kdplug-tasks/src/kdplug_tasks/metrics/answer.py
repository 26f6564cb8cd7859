"""How near an answer is to the right ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(found: str, answers: Sequence[str]) -> float:
    """1 where the normalised answer is one of the right ones, else 0. No right answer means that none is to be given."""
    return float(any(normalised(found) == normalised(answer) for answer in answers or ("",)))


def overlap(found: str, answers: Sequence[str]) -> float:
    """The F1 of the words of an answer and of a right one, the best over the right ones.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; 2018, arXiv:1806.03822, for questions without an answer.
    """
    return max(_f1(normalised(found).split(), normalised(answer).split()) for answer in answers or ("",))


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(found: list[str], answer: list[str]) -> float:
    if not found or not answer:
        return float(found == answer)
    shared = sum((Counter(found) & Counter(answer)).values())
    return 2 * shared / (len(found) + len(answer))
