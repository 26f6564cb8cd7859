"""A distribution with entry points as a pluggy plugin: what metadata offers comes through the same hooks as anything else."""

from __future__ import annotations

from kdplug.host.hookspec import Offers, hookimpl
from kdplug.host.metadata import Distribution


class DistributionPlugin:
    """Offers each entry point of a distribution as a name and an import path."""

    def __init__(self, dist: Distribution) -> None:
        self.dist = dist

    def _offers(self, group: str) -> Offers:
        return [(point.name, point.value) for point in self.dist.entry_points if point.group == group]

    @hookimpl
    def kdplug_losses(self) -> Offers:
        return self._offers("kdplug.losses")

    @hookimpl
    def kdplug_projections(self) -> Offers:
        return self._offers("kdplug.projections")

    @hookimpl
    def kdplug_weight_schedulers(self) -> Offers:
        return self._offers("kdplug.weight_schedulers")

    @hookimpl
    def kdplug_temperature_schedulers(self) -> Offers:
        return self._offers("kdplug.temperature_schedulers")

    @hookimpl
    def kdplug_teacher_combiners(self) -> Offers:
        return self._offers("kdplug.teacher_combiners")

    @hookimpl
    def kdplug_layer_maps(self) -> Offers:
        return self._offers("kdplug.layer_maps")

    @hookimpl
    def kdplug_tasks(self) -> Offers:
        return self._offers("kdplug.tasks")

    @hookimpl
    def kdplug_cache_codecs(self) -> Offers:
        return self._offers("kdplug.cache_codecs")
