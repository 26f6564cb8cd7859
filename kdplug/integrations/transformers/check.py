"""What a ``Trainer`` can do and one with an objective cannot."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from kdplug.errors import RunError
from kdplug.objective.objective import Objective


def check(trainer: Trainer, objective: Objective) -> None:
    """Raises: ``RunError`` where the Trainer's arguments would make the loss something else than it says."""
    if trainer.args.n_gpu > 1:
        raise RunError(
            "one process sees several GPUs and would use DataParallel. Start one process for each: torchrun "
            "--nproc_per_node=N, or show it one with CUDA_VISIBLE_DEVICES"
        )
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
        raise RunError("tensor, context and sequence parallelism cut what an objective compares; use DDP or FSDP")
    if trainer.args.use_liger_kernel:
        raise RunError("use_liger_kernel fuses the student's logits away, and the objective reads them; leave it out")
    if trainer.is_deepspeed_enabled:
        _check_deepspeed(trainer.args.hf_deepspeed_config.config, objective)


def _check_deepspeed(config: dict[str, Any], objective: Objective) -> None:
    has_options = not objective.needs_materialize and any({*group} - {"params"} for group in objective.param_groups())
    if "optimizer" in config and has_options:
        raise RunError(
            "the DeepSpeed config makes the optimizer, which leaves out the projections' options. Take 'optimizer' out of it, "
            "or the options out of proj"
        )
