"""The objective's parameters in the Trainer's optimizer."""

from __future__ import annotations

from torch.optim import Optimizer
from transformers import Trainer

from kdplug.engine.learning_rate import make_scheduler
from kdplug.engine.optimizer import add_groups, unwrap
from kdplug.objective.objective import Objective


def add_objective(trainer: Trainer, objective: Objective, optimizer: Optimizer) -> None:
    """Add the objective's groups, each with its options. Where they name no ``weight_decay``, it is the Trainer's, and none
    for biases and norms, as for the student.

    Raises: ``RunError`` where the user built a scheduler before that cannot be extended.
    """
    decayed = {*trainer.get_decay_parameter_names(objective)}
    spared = {id(parameter) for name, parameter in objective.named_parameters() if name not in decayed}
    groups = []
    for group in objective.param_groups():
        if "weight_decay" in group:
            groups.append(group)
            continue
        for decay, is_spared in ((trainer.args.weight_decay, False), (0.0, True)):
            parameters = [one for one in group["params"] if (id(one) in spared) is is_spared]
            if parameters:
                groups.append({**group, "params": parameters, "weight_decay": decay})
    plain = unwrap(optimizer)
    added = add_groups(plain, groups)
    if added and trainer.lr_scheduler is not None:
        make_scheduler(plain, new_groups=added, scheduler=trainer.lr_scheduler)
