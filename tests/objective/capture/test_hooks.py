"""Reading tensors inside a model: what is read, when, and what is left behind."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdplug.errors import ConfigError, OutputsError, RunError
from kdplug.objective.capture.hooks import Capture


class Block(nn.Module):
    """Returns a pair, as attention layers do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        hidden = torch.tanh(self.inner(x)) * scale
        return hidden, {"half": hidden / 2, "all": [hidden, x]}


class Net(nn.Module):
    """Two blocks, a module that is called twice, and a branch that is not called."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.shared = nn.Linear(4, 4)
        self.again = self.shared
        self.unused = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.before = nn.Linear(4, 4)
        self.recomputes: bool | None = None

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.recomputes)[0] if self.recomputes is not None else layer(x)[0]
        x = self.again(self.shared(x))
        return self.relu(self.before(x))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Net().double()


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def captured(model, x, *paths, side="student"):
    """What one forward pass of the model gives at the paths."""
    with Capture(model, paths, side).hooked() as capture:
        with capture.reading():
            logits = model(x)
        return capture.join(logits).captured


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_path_gives_what_the_module_returned(net, x):
    found = captured(net, x, "layers.1.inner")["layers.1.inner"]
    assert torch.equal(found, net.layers[1].inner(net.layers[0](x)[0]))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers.0", lambda net, x: net.layers[0](x)[0]),
        ("layers.0:output[0]", lambda net, x: net.layers[0](x)[0]),
        ("layers.0:output[-1].half", lambda net, x: net.layers[0](x)[0] / 2),
        ("layers.0:output[1].all[1]", lambda net, x: x),
        ("layers.0:input", lambda net, x: x),
        ("layers.0:input[0]", lambda net, x: x),
        ("layers.0:input.x", lambda net, x: x),
        ("layers.0.inner", lambda net, x: net.layers[0].inner(x)),
    ],
)
def test_a_selector_picks_an_element_of_the_output_or_an_input(net, x, path, expected):
    assert torch.equal(captured(net, x, path)[path], expected(net, x))


def test_an_input_is_found_by_position_and_by_name_however_it_was_given(x):
    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block().double()

        def forward(self, x):
            return self.block(scale=torch.full((1,), 2.0), x=x)[0]

    found = captured(Caller(), x, "block:input.scale", "block:input[0]", "block:input[1]")
    assert [float(one.flatten()[0]) for one in found.values()] == [2.0, 2.0, float(x[0, 0])]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "layers.0:output[1]",
            "gives a dict with half, all, but a match needs a tensor. Use 'layers.0:output[1].half' or",
        ),
        ("layers.0:output[2]", "there is no [2] in a tuple of 2"),
        ("layers.0:output.hidden", "there is no .hidden in a tuple of 2"),
        ("layers.0:output[1].halb", "there is no .halb in a dict with half, all"),
        (
            "layers.0:input.y",
            "there is no such input. The module was called with 1 positional argument. Use 'layers.0:input.x'",
        ),
        (
            "layers.0:input[1]",
            "there is no such input. The module was called with 1 positional argument. Use 'layers.0:input.x'",
        ),
    ],
)
def test_what_leads_to_no_tensor_says_what_is_there(net, x, path, says):
    with pytest.raises(OutputsError, match=f"^student: {re.escape(repr(path))}:? {re.escape(says)}"):
        captured(net, x, path)


class Fused(nn.Module):
    """An attention as transformers has it under sdpa."""

    def forward(self, x):
        return x, None


def test_attentions_that_a_kernel_did_not_return_are_reported_with_the_way_out(x):
    with pytest.raises(OutputsError, match=r"'0:output\[1\]' gives None, but a match.*attn_implementation=\"eager\""):
        captured(nn.Sequential(Fused()), x, "0:output[1]")


def test_a_dict_without_a_selector_names_its_tensors(x):
    class Named(nn.Module):
        def forward(self, x):
            return {"last": x, "states": (x, x)}

    with pytest.raises(OutputsError, match=r"Use 'named:output.last' or 'named:output.states\[0\]' or"):
        captured(nn.Sequential(OrderedDict(named=Named())), x, "named")


def test_a_module_that_several_paths_read_has_one_hook(net, x):
    with Capture(net, ["layers.0", "layers.0:input", "layers.0", "layers.0:output[1].half"], "student").hooked():
        assert hooks(net) == 1


def test_no_hook_is_left_behind(net, x):
    captured(net, x, "layers.0", "layers.1.inner")
    assert hooks(net) == 0


def test_no_hook_is_left_behind_by_an_error(net):
    with pytest.raises(RuntimeError, match="shapes"):
        captured(net, torch.ones(2, 3, dtype=torch.float64), "layers.0")
    assert hooks(net) == 0


def test_an_error_in_the_forward_pass_leaves_nothing_that_was_read(net, x):
    with Capture(net, ["layers.0"], "student").hooked() as capture:
        with pytest.raises(AttributeError), capture.reading():
            net(x).missing()
        assert capture.join(x).captured == {}


def test_hooks_of_others_stay(net, x):
    net.layers[0].register_forward_hook(lambda module, args, output: (output[0] * 0, output[1]))
    found = captured(net, x, "layers.0")["layers.0"]
    assert hooks(net) == 1
    assert not found.any()


def test_a_forward_pass_outside_of_reading_is_not_read(net, x):
    with Capture(net, ["layers.0"], "student").hooked() as capture:
        with capture.reading():
            logits = net(x)
        net(2 * x)
        assert torch.equal(capture.join(logits).captured["layers.0"], net.layers[0](x)[0])


def test_what_was_read_is_forgotten_once_it_is_joined(net, x):
    with Capture(net, ["layers.0"], "student").hooked() as capture:
        with capture.reading():
            logits = net(x)
        capture.join(logits)
        assert capture.join(logits).captured == {}


def test_reading_without_hooks_is_an_error(net):
    with pytest.raises(RunError, match="modules have no hooks"), Capture(net, ["layers.0"], "student").reading():
        pass


def test_without_paths_there_is_nothing_to_do(net, x):
    with Capture(net, [], "teacher").hooked() as capture, capture.reading():
        assert hooks(net) == 0
        assert capture.join(net(x)).captured is None


def test_a_module_that_is_not_called_is_left_out(net, x):
    assert captured(net, x, "unused", "layers.0").keys() == {"layers.0"}


def test_a_module_that_is_called_twice_needs_to_say_which_call(net, x):
    says = r"^student: 'shared' was called 2 times in the forward pass. Specify which call: 'shared@0', 'shared@1'…$"
    with pytest.raises(OutputsError, match=says):
        captured(net, x, "shared")


def test_each_call_of_a_shared_module_is_found_under_each_of_its_names(net, x):
    first = net.shared(net.layers[1](net.layers[0](x)[0])[0])
    found = captured(net, x, "shared@0", "shared@1", "again@0", "shared@-1", "again@1:input")
    expected = (first, net.shared(first), first, net.shared(first), first)
    assert all(map(torch.equal, found.values(), expected))


def test_a_call_that_did_not_happen_is_an_error(net, x):
    with pytest.raises(OutputsError, match=r"'shared@2': the module was called only 2 times .* 'shared@1'"):
        captured(net, x, "shared@2")


def test_what_an_operation_in_place_overwrites_is_an_error(net, x):
    with pytest.raises(RunError, match="'before' was overwritten after it was read: an in-place operation"):
        captured(net, x, "before")


def test_gradient_flows_from_what_was_captured(net, x):
    captured(net, x, "layers.1")["layers.1"].sum().backward()
    expected = copy.deepcopy(net)
    expected.zero_grad()
    expected.layers[1](expected.layers[0](x)[0])[0].sum().backward()
    assert torch.equal(net.layers[0].inner.weight.grad, expected.layers[0].inner.weight.grad)


def test_checkpointing_changes_neither_values_nor_gradients(net, x):
    other = copy.deepcopy(net)
    other.recomputes = False
    for model in (net, other):
        found = captured(model, x, "layers.0.inner", "layers.1")
        sum(one.square().sum() for one in found.values()).backward()
    assert torch.equal(net.layers[0].inner.weight.grad, other.layers[0].inner.weight.grad)


def test_recomputation_in_the_backward_pass_leaves_no_trace(net, x):
    net.recomputes = False
    with Capture(net, ["layers.0.inner"], "student").hooked() as capture:
        with capture.reading():
            logits = net(x)
        found = capture.join(logits).captured["layers.0.inner"]
        value = found.detach().clone()
        (found.sum() + logits.sum()).backward()
        assert torch.equal(found, value)
        assert capture._calls == {}


def test_reentrant_checkpointing_inside_the_student_is_an_error_that_says_what_to_do(net, x):
    net.recomputes = True
    with pytest.raises(RunError, match=r"'layers.1.inner' was computed without gradient.*use_reentrant=False"):
        captured(net, x.requires_grad_(), "layers.1.inner")


def test_a_teacher_may_be_read_without_gradient(net, x):
    with torch.no_grad():
        assert captured(net, x, "layers.0", side="teacher").keys() == {"layers.0"}
    with torch.inference_mode():
        assert captured(net, x, "layers.0", side="teacher").keys() == {"layers.0"}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model_is_read_alike_also_where_it_ran_before(net, x, backend, warm):
    torch.compiler.reset()
    compiled = torch.compile(net, backend=backend)
    if warm:
        compiled(x)
    found = captured(compiled, x, "layers.0", "layers.1:output[1].half", "shared@1")
    expected = captured(net, x, "layers.0", "layers.1:output[1].half", "shared@1")
    for path, tensor in expected.items():
        torch.testing.assert_close(found[path], tensor, rtol=0, atol=1e-14)
        assert found[path].requires_grad


@pytest.mark.parametrize("how", ["in place", "one layer"])
def test_other_ways_to_compile_are_read_alike(net, x, how):
    torch.compiler.reset()
    expected = captured(net, x, "layers.0", "layers.1.inner")
    if how == "in place":
        net.compile(backend="eager")
    else:
        net.layers[0] = torch.compile(net.layers[0], backend="eager")
    net(x)
    found = captured(net, x, "layers.0", "layers.1.inner")
    assert all(torch.equal(found[path], tensor) for path, tensor in expected.items())


def test_a_compiled_model_is_read_again_and_again(net, x):
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    for _ in range(2):
        with Capture(compiled, ["layers.0"], "student").hooked() as capture:
            for scale in (1, 2, 3):
                with capture.reading():
                    logits = compiled(scale * x)
                assert torch.equal(capture.join(logits).captured["layers.0"], net.layers[0](scale * x)[0])


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("layer.1", "no module 'layer.1' in the teacher. Did you mean 'layers.1' or 'layers.0'?"),
        ("inner", "no module 'inner' in the teacher. Did you mean 'layers.0.inner' or 'layers.1.inner'?"),
        ("layers.7", "no module 'layers.7' in the teacher. 'layers' holds 0, 1."),
        ("layers.0.qqq", "no module 'layers.0.qqq' in the teacher. 'layers.0' holds inner."),
        ("zzz", "no module 'zzz' in the teacher. The teacher holds layers, shared, again, unused, relu, before."),
        (
            "11",
            "no module '11' in the teacher. The teacher holds layers, shared, again, unused, relu, before. For layer 11 of the adaptor",
        ),
        (
            "layers.*",
            "'layers.*' matches 2 modules of the teacher: layers.0, layers.1. A match of single layers needs a single module",
        ),
        ("layers.*.outer", "no module 'layers.*.outer' in the teacher."),
    ],
)
def test_a_path_that_leads_nowhere_is_reported_with_the_nearest(net, path, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
        Capture(net, [path], "teacher")


def test_a_glob_that_means_one_module_will_do(net, x):
    found = captured(net, x, "layers.[1]", "layers.0.in*")
    assert found.keys() == {"layers.[1]", "layers.0.in*"}
