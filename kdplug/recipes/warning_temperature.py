"""How the temperature shifts the balance between the kd loss and the labels."""

from __future__ import annotations

from collections.abc import Iterator

from kdplug.recipes.plan_sample import Sample
from kdplug.recipes.warning import PlanWarning


def unbalanced_temperature(sample: Sample) -> Iterator[PlanWarning]:
    """A kd loss without the factor T² beside a loss on labels."""
    config = sample.config
    if not (config.kd_loss_weight and config.hard_label_weight) or config.temperature <= 1:
        return
    if config.kd_loss_type.settings.get("t2") is False:
        squared = config.temperature**2
        message = (
            f"{config.kd_loss_type.name} leaves out the factor T², so at temperature {config.temperature:g} the gradient of the kd "
            f"loss is about 1/{squared:g} of what it is at 1, and labels outweigh the teacher by as much. Write t2: true, or "
            f"raise kd_loss_weight to about {squared * config.kd_loss_weight:g}"
        )
        yield PlanWarning("temperature", "distillation.kd_loss_type", message)
