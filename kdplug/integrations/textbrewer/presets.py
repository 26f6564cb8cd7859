"""TextBrewer's maps, as live views of the registries: they contain plugins' entries, and scripts can add to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdplug.contracts.vocabulary import ADAPTOR_KEYS as _KEYS
from kdplug.contracts.vocabulary import FEATURES as _FEATURES
from kdplug.errors import ConfigError, did_you_mean
from kdplug.host.textbrewer_maps import (
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    PROJ_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
    TextBrewerMap,
)
from kdplug.integrations.textbrewer.losses import (
    att_ce_loss,
    att_ce_mean_loss,
    att_mse_loss,
    att_mse_sum_loss,
    cos_loss,
    fsp_loss,
    hid_mse_loss,
    kd_ce_loss,
    kd_mse_loss,
    mmd_loss,
    pkd_loss,
)
from kdplug.integrations.textbrewer.projections import linear_projection, projection_with_activation
from kdplug.integrations.textbrewer.schedulers import (
    constant_temperature_scheduler,
    cwsm_temperature_scheduler_builder,
    flsw_temperature_scheduler_builder,
    linear_decay_weight_scheduler,
    linear_growth_weight_scheduler,
)
from kdplug.integrations.textbrewer.utils import cycle

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MAPS",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "att_ce_loss",
    "att_ce_mean_loss",
    "att_mse_loss",
    "att_mse_sum_loss",
    "constant_temperature_scheduler",
    "cos_loss",
    "cwsm_temperature_scheduler_builder",
    "cycle",
    "flsw_temperature_scheduler_builder",
    "fsp_loss",
    "hid_mse_loss",
    "kd_ce_loss",
    "kd_mse_loss",
    "linear_decay_weight_scheduler",
    "linear_growth_weight_scheduler",
    "linear_projection",
    "mmd_loss",
    "pkd_loss",
    "projection_with_activation",
    "register_new",
]

FEATURES = list(_FEATURES)
ADAPTOR_KEYS = list(_KEYS)

MAPS: dict[str, TextBrewerMap] = {
    "kd_loss": KD_LOSS_MAP,
    "match_Loss": MATCH_LOSS_MAP,
    "match_loss": MATCH_LOSS_MAP,
    "projection": PROJ_MAP,
    "weight_scheduler": WEIGHT_SCHEDULER,
    "temperature_scheduler": TEMPERATURE_SCHEDULER,
}


def register_new(map_name: str, name: str, func: Callable[..., Any]) -> None:
    """Register ``func`` in the map ``map_name`` under ``name``.

    Raises: ``ConfigError`` if the map does not exist or ``func`` is not callable.
    """
    if map_name not in MAPS:
        raise ConfigError(f"no map {map_name!r}.{did_you_mean(map_name, MAPS)}", field="map_name")
    if not callable(func):
        raise ConfigError(f"must be a callable, got {type(func).__name__}", field="func")
    MAPS[map_name][name] = func
