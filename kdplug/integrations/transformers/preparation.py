"""Check a Trainer's arguments, and add the objective to its optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from transformers import Trainer

from kdplug.engine.optimizer import add_groups, make_scheduler, unwrap
from kdplug.errors import RunError
from kdplug.objective.objective import Objective


def check(trainer: Trainer, objective: Objective) -> None:
    """Raise ``RunError`` if the Trainer's arguments would make the loss wrong."""
    if trainer.args.n_gpu > 1:
        raise RunError(
            "one process sees several GPUs and would use DataParallel. Start one process per GPU with torchrun "
            "--nproc_per_node=N, or select one GPU with CUDA_VISIBLE_DEVICES"
        )
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
        raise RunError(
            "tensor, context and sequence parallelism split the tensors that the objective compares. Use DDP or FSDP"
        )
    if trainer.args.use_liger_kernel:
        raise RunError(
            "use_liger_kernel returns no student logits, but the objective reads them. Set use_liger_kernel=False"
        )
    if trainer.is_deepspeed_enabled:
        _check_deepspeed(trainer.args.hf_deepspeed_config.config, objective)


def _check_deepspeed(config: dict[str, Any], objective: Objective) -> None:
    has_options = not objective.needs_materialize and any({*group} - {"params"} for group in objective.param_groups())
    if "optimizer" in config and has_options:
        raise RunError(
            "the optimizer in the DeepSpeed config ignores the projections' options. Remove 'optimizer' from that "
            "config, or the options from proj"
        )


def add_objective(trainer: Trainer, objective: Objective, optimizer: Optimizer) -> None:
    """Add the objective's parameter groups with their options.

    The default ``weight_decay`` is the Trainer's, and 0 for biases and norms, as for the student.

    Raises: ``RunError`` if an existing scheduler cannot be extended.
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
