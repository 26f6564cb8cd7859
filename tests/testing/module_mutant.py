"""Defects of losses with parameters or state, and of settings."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from testing.mutant import mutant
from testing.specimen import Bank, BankLaws, HiddenLaws, Vid, VidLaws, hidden_mse, likelihood
from torch import Tensor

from kdplug import LossSum


@mutant(VidLaws, "test_every_parameter_is_trained", "log_variance is declared as trained, but is not a parameter")
class VarianceAsABuffer(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        del self.log_variance
        self.register_buffer("log_variance", torch.zeros(width))


@mutant(VidLaws, "test_every_parameter_is_trained", "gradient does not reach parameter log_variance")
class VarianceDetached(Vid):
    def forward(self, student_features: Tensor, teacher_features: Tensor) -> LossSum:
        return likelihood(student_features, teacher_features, self.log_variance.detach())


@mutant(VidLaws, "test_every_parameter_is_trained", "do not require a gradient: log_variance")
class VarianceNotTrainable(Vid):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.log_variance.requires_grad_(False)


@mutant(BankLaws, "test_it_is_a_module_whose_tensors_are_registered", "mean is a plain tensor")
class BankAsAnAttribute(Bank):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        del self.mean
        self.mean = torch.zeros(width)


@mutant(BankLaws, "test_a_copy_and_a_loaded_state_go_on_alike", "a module that loaded the state_dict gives")
class BankThatIsNotSaved(Bank):
    def __init__(self, *, width: int = 6) -> None:
        super().__init__(width=width)
        self.register_buffer("mean", torch.zeros(width), persistent=False)


@mutant(HiddenLaws, "test_its_settings_have_a_schema_and_valid_defaults", "the default of setting 'alpha' is not valid")
def default_out_of_bounds(student_features, teacher_features, mask, *, alpha: Annotated[float, Field(le=1)] = 2.0):
    return hidden_mse(student_features, teacher_features, mask)


@mutant(BankLaws, "test_no_buffer_changes_in_eval_mode", "changes a buffer in eval mode: mean")
class BankWrittenInEval(Bank):
    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        evaluates, self.training = not self.training, True
        try:
            return super().forward(student_features, teacher_features)
        finally:
            self.training = not evaluates


@mutant(HiddenLaws, "test_torch_compile_traces_it_whole", "it reads a number from a tensor")
def a_scale_read_as_a_number(student_features, teacher_features, mask):
    scale = 1 + teacher_features.detach().abs().max().item()
    total, count = hidden_mse(student_features, teacher_features, mask)
    return LossSum(total * scale / scale, count)
