"""FSDP2 on gloo processes: accelerate's private state says FSDP where it would say DDP.

accelerate chooses FSDP on accelerators only. ``enable()`` is for scripts that ``torchrun`` starts.
"""

from __future__ import annotations

import os

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def enable(version=2):
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION=str(version), FSDP_CPU_RAM_EFFICIENT_LOADING="false")
    init = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp
