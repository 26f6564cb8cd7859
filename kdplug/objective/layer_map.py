"""A layer map until its layers are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdplug.config.layer import Layer, in_list
from kdplug.contracts.outputs import Outputs
from kdplug.errors import RunError
from kdplug.objective.batch import Batch
from kdplug.objective.capture_path import Modules, Side
from kdplug.objective.feature import layers
from kdplug.objective.field import Path, below

if TYPE_CHECKING:
    from kdplug.config.layer_map import LayerMap
    from kdplug.config.match import IntermediateMatch


class WaitingMap:
    """One layer map of a config at ``path``, and what there is to read on each side, as far as that is known."""

    def __init__(self, layer_map: LayerMap, path: Path) -> None:
        self.layer_map = layer_map
        self.path = path
        self._layers: dict[Side, tuple[Layer, ...] | None] = {
            "student": layer_map.indices("S"),
            "teacher": layer_map.indices("T"),
        }

    @property
    def is_counted(self) -> bool:
        """Whether the layers of both sides are known."""
        return None not in self._layers.values()

    def connect(self, student: Modules | None, teacher: Modules | None) -> None:
        """Find the modules that the map names.

        Raises: ``ConfigError`` where there are none, with the side as its field.
        """
        for modules, letter, patterns in (
            (student, "S", self.layer_map.layer_S),
            (teacher, "T", self.layer_map.layer_T),
        ):
            if modules is not None and patterns is not None:
                with below(f"layer_{letter}"):
                    found = modules.expand(patterns[0] if len(patterns) == 1 else patterns, listed=True)
                self._layers[modules.side] = in_list(found)

    def count(self, batch: Batch) -> None:
        """Count what the adaptors returned, on the sides that go by index.

        Raises: ``OutputsError`` where they returned none; ``RunError`` where a side goes by path and was not connected.
        """
        if self.layer_map.layer_S is None and self._layers["student"] is None:
            self._layers["student"] = self._counted(batch.student, "student")
        if self.layer_map.layer_T is None and self._layers["teacher"] is None:
            self._layers["teacher"] = self._counted(batch.teacher, "teacher")
        if not self.is_counted:
            raise RunError("it names modules: let objective.connect(student, teacher) find them in the models first")

    def matches(self) -> tuple[IntermediateMatch, ...]:
        """The matches that the map stands for.

        Raises: ``ConfigError`` where it does not fit the layers, and what else ``LayerMap.matches`` raises.
        """
        student, teacher = self._layers["student"], self._layers["teacher"]
        assert student is not None
        assert teacher is not None
        return self.layer_map.matches(student, teacher)

    def paths(self, side: Side) -> tuple[str, ...]:
        """What may have to be captured on a side."""
        return tuple(layer for layer in self._layers[side] or () if isinstance(layer, str))

    def _counted(self, outputs: Outputs, side: Side) -> tuple[int, ...]:
        layers(outputs, self.layer_map.feature, 0, side)  # raises where there is nothing to count
        found = outputs.hidden if self.layer_map.feature == "hidden" else outputs.attention
        return tuple(range(len(found or ())))


def not_counted(path: Path) -> RunError:
    return RunError(
        "how many layers the models have is not known yet. Call objective.materialize(student=…, teacher=…) with the outputs "
        "for one batch, before the optimizer is made, or write layers_S and layers_T"
    ).at(*path)
