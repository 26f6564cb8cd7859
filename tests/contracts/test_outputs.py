"""What an adaptor may return, and what is said about what it may not."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch

from kdplug import FactoredLogits, SparseLogits
from kdplug.contracts.loss import LossSum
from kdplug.contracts.outputs import Outputs
from kdplug.errors import OutputsError

ONE = torch.zeros(2, 3)
LAYER = torch.zeros(2, 4, 5)


@dataclass
class FakeModelOutput(OrderedDict):
    """Shaped like transformers' ``ModelOutput``: a mapping that is a dataclass and leaves out what is None."""

    loss: object = None
    logits: object = None
    hidden_states: object = None
    attentions: object = None
    past_key_values: object = None
    start_logits: object = None
    end_logits: object = None

    def __post_init__(self):
        super().__init__({key: value for key, value in vars(self).items() if value is not None})


def read(value):
    return Outputs.read(value, "student")


@pytest.mark.parametrize("key", ["logits", "logits_mask", "losses", "labels", "hidden", "attention"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: (x,)], ids=["bare", "list", "tuple"])
def test_a_bare_tensor_is_a_list_of_one(key, wrap):
    (found,) = getattr(read({key: wrap(ONE)}), key)
    assert found is ONE


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: (x,)], ids=["bare", "list", "tuple"])
def test_a_loss_sum_is_one_loss_and_not_two_tensors(wrap):
    loss = LossSum(ONE.sum(), ONE.sum())
    (found,) = read({"losses": wrap(loss)}).losses
    assert found is loss


def test_losses_may_be_of_several_forms():
    loss = LossSum(ONE.sum(), 3)
    assert read({"losses": [ONE, loss]}).losses == (ONE, loss)


def test_hidden_as_a_bare_tensor_is_one_layer_and_not_one_per_example():
    assert len(read({"hidden": LAYER}).hidden) == 1


def test_the_order_of_the_keys_does_not_matter():
    value = {"labels": ONE, "hidden": [LAYER], "logits": ONE, "inputs_mask": ONE}
    assert read(value) == read(dict(reversed(value.items())))


def test_a_bare_tensor_is_the_logits():
    assert read(ONE) == Outputs(logits=(ONE,))


def test_outputs_pass_through():
    outputs = Outputs(logits=ONE)
    assert read(outputs) is outputs
    assert outputs.logits == (ONE,)


def test_outputs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Outputs().logits = (ONE,)


def test_none_and_an_empty_list_are_as_good_as_no_key():
    assert read({"logits": None, "losses": [], "labels": ()}) == Outputs()


def test_any_mapping_will_do():
    assert read(OrderedDict(logits=ONE)).logits == (ONE,)


def test_what_was_given_is_not_modified():
    value = {"logits": [ONE], "hidden": [LAYER]}
    read(value)
    assert value == {"logits": [ONE], "hidden": [LAYER]}
    assert type(value["hidden"]) is list


def test_an_unknown_key_is_an_error_with_the_nearest_key():
    with pytest.raises(OutputsError, match=r"^student\.input_mask: .* Did you mean 'inputs_mask'\?"):
        read({"logits": ONE, "input_mask": ONE})


def test_an_unknown_key_without_a_likeness_lists_the_keys():
    with pytest.raises(OutputsError, match=r"student\.7: .*logits, logits_mask, losses, inputs_mask"):
        read({7: ONE})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"losses": 0.5}, r"^student\.losses: must be a tensor or a list of tensors, got float 0\.5"),
        (
            {"losses": LossSum(ONE, 2)},
            r"^student\.losses: the total of a LossSum must be a scalar tensor, got a tensor of",
        ),
        (
            {"losses": LossSum(0.5, 2)},
            r"^student\.losses: the total of a LossSum must be a scalar tensor, got float 0\.5",
        ),
        (
            {"losses": [LossSum(ONE.sum(), ONE)]},
            r"^student\.losses\.0: the count of a LossSum must be a number or a scalar tensor",
        ),
        (
            {"losses": LossSum(ONE.sum(), -1)},
            r"^student\.losses: the count of a LossSum must be a finite number >= 0, got",
        ),
        (
            {"losses": [LossSum(ONE.sum(), 1), LossSum(ONE.sum(), torch.tensor(-3))]},
            r"^student\.losses\.1: the count of a LossSum must be a finite number >= 0, got a tensor that holds -3$",
        ),
        (
            {"losses": LossSum(ONE.sum(), torch.tensor(torch.nan))},
            r"^student\.losses: the count of a LossSum must be a finite number >= 0, got a tensor that holds nan$",
        ),
        (
            {"losses": LossSum(ONE.sum(), torch.tensor(torch.inf))},
            r"^student\.losses: the count of a LossSum must be a finite number >= 0, got a tensor that holds inf$",
        ),
        (
            {"losses": LossSum(ONE.sum(), None)},
            r"^student\.losses: the count of a LossSum must be a finite number >= 0, ",
        ),
        ({"losses": [LossSum(ONE.sum(), 1), 2]}, r"^student\.losses\.1: must be a tensor, got int 2"),
        ({"logits": {"a": ONE}}, r"^student\.logits: must be a tensor or a list of tensors, got dict"),
        ({"hidden": [LAYER, "x"]}, r"^student\.hidden\.1: must be a tensor, got str 'x'"),
        ({"hidden": [LAYER, None]}, r"^student\.hidden\.1: must be a tensor, got NoneType"),
        ({"inputs_mask": [ONE]}, r"^student\.inputs_mask: must be a tensor, got list"),
        ({"extras": [ONE]}, r"^student\.extras: must be a mapping from names to tensors, got list"),
        ({"extras": {"values": [ONE]}}, r"^student\.extras\.values: must be a tensor, got list"),
        ({"extras": {3: ONE}}, r"^student\.extras: must have names as keys, got int 3"),
        ({"extras": {" ": ONE}}, r"^student\.extras: must have names as keys, got str ' '"),
        (
            (ONE, ONE),
            r"^student: cannot read tuple\. An adaptor must return the logits as one tensor, or a dict whose keys are among logits",
        ),
        (None, r"^student: cannot read NoneType None"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_type(value, message):
    with pytest.raises(OutputsError, match=message):
        read(value)


def test_a_model_output_is_read_by_its_own_names():
    found = read(FakeModelOutput(loss=ONE[0, 0], logits=ONE, hidden_states=(LAYER, LAYER), attentions=(LAYER,)))
    assert (found.losses[0].item(), found.logits, len(found.hidden), len(found.attention)) == (0, (ONE,), 2, 1)


def test_other_fields_of_a_model_output_are_left_out():
    assert read(FakeModelOutput(logits=ONE, past_key_values=object())) == Outputs(logits=(ONE,))


def test_a_plain_dict_with_a_model_outputs_names_is_an_error():
    with pytest.raises(OutputsError, match=r"student\.hidden_states"):
        read({"logits": ONE, "hidden_states": (LAYER,)})


def test_start_and_end_logits_are_two_heads():
    assert read(FakeModelOutput(start_logits=ONE, end_logits=LAYER)).logits == (ONE, LAYER)


@pytest.mark.parametrize("attentions", [(), (None, None)])
def test_attentions_that_a_kernel_did_not_return_are_empty(attentions):
    assert read(FakeModelOutput(logits=ONE, attentions=attentions)).attention == ()


def test_given_names_what_there_is():
    assert read({"hidden": LAYER, "logits": ONE}).given == ("logits", "hidden")


def test_extras_are_copied_and_an_empty_mapping_is_no_key():
    extras = {"values": ONE}
    found = read({"logits": ONE, "extras": extras})
    extras["values"] = LAYER
    assert found.extras == {"values": ONE}
    assert found.given == ("logits", "extras")
    assert read({"logits": ONE, "extras": {}}) == Outputs(logits=(ONE,))


def test_a_misspelt_key_of_extras_is_an_error_with_the_nearest_key():
    with pytest.raises(
        OutputsError, match=r"^student\.extra: .* Did you mean 'extras'\? Valid keys: .*attention, extras$"
    ):
        read({"logits": ONE, "extra": {"values": ONE}})


def test_a_real_model_output_is_understood():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    found = read(outputs.SequenceClassifierOutput(loss=ONE.sum(), logits=ONE, hidden_states=(LAYER,)))
    assert found.given == ("logits", "losses", "hidden")


FACTORED = FactoredLogits(torch.zeros(2, 4), torch.zeros(3, 4))
SPARSE = SparseLogits(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), 3)


@pytest.mark.parametrize("logits", [FACTORED, SPARSE])
def test_logits_may_come_in_other_forms_than_a_tensor(logits):
    assert read(logits).logits == read({"logits": logits}).logits == (logits,)
    assert read({"logits": [logits, ONE]}).logits == (logits, ONE)
    assert read(FakeModelOutput(logits=logits)).logits == (logits,)


def test_a_wrong_head_next_to_factored_logits_is_named():
    with pytest.raises(OutputsError, match=r"^student\.logits\.1: must be a tensor, got str 'x'"):
        read({"logits": [FACTORED, "x"]})


def test_no_other_key_takes_factored_logits():
    with pytest.raises(
        OutputsError, match=r"^student\.hidden: must be a tensor or a list of tensors, got FactoredLogits"
    ):
        read({"hidden": FACTORED})
