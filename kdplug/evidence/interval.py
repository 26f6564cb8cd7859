"""Confidence intervals of the mean difference between two methods, over seeds, over test units and over both.

Seeds and test units are crossed random effects: all seeds are evaluated on the same units. The variance of the mean
difference is the sum of three parts: from seeds, from units, and from their interaction. The interval over seeds
includes the first and the third part, and the interval over units the second and the third. The interval over both
includes all three; its degrees of freedom are Satterthwaite's approximation (for readers and cases: Hillis 2014,
doi:10.1002/sim.5926).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdplug.evidence.pairs import Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Bounds = tuple[float, float]

RESAMPLES = 2000
_LARGEST_BATCH = 1 << 22
"""Maximum number of values of a batch of resamples."""

POWER = 0.8
"""Probability of a verdict, if the true difference is the margin, that ``seeds_for`` requires."""

MOST_SEEDS = 1000


@dataclass(frozen=True)
class UnitSpread:
    """Variation over units: the variance and interval of the mean difference, and the mean variance of one seed's."""

    variance: float
    interval: Bounds
    one_seed: float


@dataclass(frozen=True)
class Variances:
    """Variances of the mean difference over ``seeds`` and over ``units``; both include that of the ``interaction``."""

    seeds: float
    units: float
    interaction: float

    @property
    def both(self) -> float:
        """The variance from seeds and units together; the interaction counts once."""
        return max(self.seeds + self.units - self.interaction, self.seeds, self.units)


def t_interval(centre: float, variance: float, freedom: float, confidence: float) -> Bounds:
    """Return the t interval of a mean whose estimate has this variance."""
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, (1 + confidence) / 2)) * variance**0.5
    return centre - half, centre + half


def freedom(variances: Variances, seeds: int, units: int) -> float:
    """Return the degrees of freedom of ``variances.both``."""
    parts = variances.seeds**2 / (seeds - 1) + variances.units**2 / (units - 1)
    return max(variances.both**2 / parts, float(min(seeds, units) - 1))


def unit_spread(pairs: Pairs, sign: float, confidence: float) -> UnitSpread:
    """Return the variation over units of the difference, averaged over seeds.

    For a plain mean of units, it is computed from the units' differences, with a t interval. For any other aggregate,
    units are resampled with all their examples, and the same resamples are used for both sides and all seeds.
    """
    values, count = pairs.unit_values(), pairs.units
    if values is None:
        return _resampled(pairs, sign, confidence)
    differences = sign * (values[0] - values[1])
    mean = differences.mean(0)
    variance = float(mean.var(ddof=1)) / count
    interval = t_interval(float(mean.mean()), variance, count - 1, confidence)
    return UnitSpread(variance, interval, float(differences.var(-1, ddof=1).mean()) / count)


def _resampled(pairs: Pairs, sign: float, confidence: float) -> UnitSpread:
    from scipy import stats

    count = pairs.units

    def statistic(drawn: NDArray[np.intp], axis: int) -> Numbers:  # noqa: ARG001  # scipy passes the axis -1
        resamples = len(drawn)
        places = drawn + count * np.arange(resamples)[:, None]
        counts = np.bincount(places.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)
        estimates = pairs.estimates(counts)
        differences = sign * (estimates[0] - estimates[1])
        return np.concatenate([differences.mean(0, keepdims=True), differences])

    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        # an undefined resample makes the interval nan, which the verdict reports
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(count),),
            statistic,
            n_resamples=RESAMPLES,
            batch=max(_LARGEST_BATCH // max(count, len(pairs.ids)), 1),
            vectorized=True,
            confidence_level=confidence,
            method="percentile",
            random_state=np.random.default_rng(0),
        )
    interval = float(found.confidence_interval.low[0]), float(found.confidence_interval.high[0])
    variances = found.standard_error**2 * count / (count - 1)
    return UnitSpread(float(variances[0]), interval, float(variances[1:].mean()))


def seeds_for(margin: float, variances: Variances, seeds: int, units: int, confidence: float) -> int | None:
    """Return the number of seeds at which a true difference of ``margin`` leads to a verdict with probability ``POWER``.

    The variances were estimated from ``seeds`` seeds. Return ``None`` if no number of seeds is enough on this test set.
    """
    from scipy import stats

    n = np.arange(3, MOST_SEEDS + 1)
    over_seeds = variances.seeds * seeds / n
    over_units = max(variances.units - variances.interaction, 0.0) + variances.interaction * seeds / n
    both = np.maximum(over_seeds + over_units - variances.interaction * seeds / n, np.maximum(over_seeds, over_units))
    if not both.all():
        return None
    satterthwaite = both**2 / (over_seeds**2 / (n - 1) + over_units**2 / (units - 1))
    power = np.ones(len(n))
    for variance, freedoms in ((over_seeds, n - 1), (over_units, units - 1), (both, satterthwaite)):
        # The mean difference has the variance `both`, while the statistic divides by the root of `variance`.
        bound = stats.t.ppf((1 + confidence) / 2, freedoms) * np.sqrt(variance / both)
        power = np.minimum(power, stats.nct.sf(bound, freedoms, margin / np.sqrt(both)))
    enough = np.flatnonzero(power >= POWER)
    return int(n[enough[0]]) if len(enough) else None
