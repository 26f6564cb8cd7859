"""Names that ``from textbrewer.distiller_utils import *`` provides to authors of custom distillers."""

from __future__ import annotations

import json
import logging
import os
import random
from collections import OrderedDict, abc
from typing import Dict, Optional, Union  # noqa: UP035  the names that scripts take from here

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from kdplug.distillers.custom_match import CustomMatch
from kdplug.integrations.textbrewer import presets
from kdplug.integrations.textbrewer.batch import (
    BasicAdaptor,
    DistillationContext,
    auto_forward,
    get_outputs_from_batch,
    move_to_device,
    post_adaptor,
)
from kdplug.integrations.textbrewer.compatibility import is_apex_available, mask_dtype
from kdplug.integrations.textbrewer.configurations import DistillationConfig, TrainingConfig
from kdplug.integrations.textbrewer.distiller_basic import AbstractDistiller
from kdplug.integrations.textbrewer.log import logger, no_op
from kdplug.integrations.textbrewer.presets import *  # noqa: F403
from kdplug.integrations.textbrewer.term import probability_shift_, select_logits_with_mask

has_apex = False

__all__ = [  # noqa: PLE0604  includes the names of presets, as in TextBrewer
    *presets.__all__,
    "AbstractDistiller",
    "BasicAdaptor",
    "CustomMatch",
    "Dict",
    "DistillationConfig",
    "DistillationContext",
    "Optional",
    "OrderedDict",
    "TrainingConfig",
    "Union",
    "abc",
    "auto_forward",
    "get_outputs_from_batch",
    "has_apex",
    "is_apex_available",
    "json",
    "logger",
    "logging",
    "mask_dtype",
    "move_to_device",
    "nn",
    "no_op",
    "np",
    "os",
    "post_adaptor",
    "probability_shift_",
    "random",
    "select_logits_with_mask",
    "torch",
    "tqdm",
]
