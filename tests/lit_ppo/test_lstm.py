"""The LSTM against torch.nn.LSTM, a float64 cell loop and itself."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from torch import Tensor, nn

from lit_ppo.nets import lstm as lstm_module
from lit_ppo.nets.lstm import LSTM, LSTMState
from lit_ppo.nets.networks import PolicyState

CPU_IMPLEMENTATIONS = ["reference", "torch", "numba"]
SIZES = [(1, 3), (5, 64), (16, 1), (32, 64), (33, 3), (64, 3), (256, 1), (256, 3)]  # (H, S)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_case(
    T: int, S: int, F: int, H: int, L: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[LSTM, Tensor, LSTMState]:
    """An LSTM with non-zero biases, inputs and a random state."""
    draw = generator(1)
    lstm = LSTM(F, H, L, generator=generator(0))
    with torch.no_grad():
        for bias in lstm.bias:
            bias.normal_(0.0, 0.3, generator=draw)
    inputs = torch.randn(T, S, F, generator=draw, dtype=torch.float64)
    hidden = torch.randn(L, S, H, generator=draw, dtype=torch.float64).tanh()
    cell = torch.randn(L, S, H, generator=draw, dtype=torch.float64)
    return lstm.to(dtype), inputs.to(dtype), LSTMState(hidden.to(dtype), cell.to(dtype))


def random_starts(T: int, S: int, rate: float = 0.2) -> Tensor:
    return torch.rand(T, S, generator=generator(2)) < rate


def library_lstm(lstm: LSTM) -> nn.LSTM:
    """torch's own LSTM with our weights; its second bias is zero."""
    library = nn.LSTM(lstm.num_inputs, lstm.hidden_size, lstm.num_layers, dtype=lstm.bias[0].dtype)
    with torch.no_grad():
        for layer in range(lstm.num_layers):
            getattr(library, f"weight_ih_l{layer}").copy_(lstm.weight_ih[layer])
            getattr(library, f"weight_hh_l{layer}").copy_(lstm.weight_hh[layer])
            getattr(library, f"bias_ih_l{layer}").copy_(lstm.bias[layer])
            getattr(library, f"bias_hh_l{layer}").zero_()
    return library


def library_gradients(library: nn.LSTM) -> list[Tensor]:
    """In the order of `LSTM.parameters()`."""
    names = ("weight_ih", "weight_hh", "bias_ih")
    return [getattr(library, f"{name}_l{layer}").grad for name in names for layer in range(library.num_layers)]


def scalar_loss(outputs: Tensor, state: LSTMState) -> Tensor:
    """Depends on every output and on the state, unevenly."""
    weights = torch.linspace(-1.0, 1.0, outputs.numel(), dtype=torch.float64).to(outputs.dtype).view_as(outputs)
    return (outputs * weights).sum() + state.hidden.square().sum() + state.cell.sin().sum()


def outputs_and_gradients(
    lstm: LSTM, inputs: Tensor, state: LSTMState, starts: Tensor | None = None
) -> dict[str, Tensor]:
    """Everything a training step can see of an LSTM."""
    leaves = [tensor.clone().requires_grad_() for tensor in (inputs, *state)]
    outputs, end = lstm(leaves[0], LSTMState(leaves[1], leaves[2]), starts)
    parameters = dict(lstm.named_parameters())
    gradients = torch.autograd.grad(scalar_loss(outputs, end), [*leaves, *parameters.values()])
    names = ["inputs", "hidden", "cell", *parameters]
    return {
        "outputs": outputs.detach(),
        "last_hidden": end.hidden.detach(),
        "last_cell": end.cell.detach(),
        **dict(zip(names, gradients, strict=True)),
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest entry of each tensor (gradients of weights are sums over T S steps)."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        difference = (actual[name].double() - value.double()).abs().max().item()
        assert difference <= tolerance * scale, f"{name}: {difference:.2e} off, largest {scale:.2e}"


def cell_loop(lstm: LSTM, inputs: Tensor, state: LSTMState, starts: Tensor | None) -> tuple[Tensor, LSTMState]:
    """torch.nn.LSTMCell, step by step, sequence state zeroed by hand."""
    hiddens, cells = list(state.hidden), list(state.cell)
    outputs = []
    for t in range(len(inputs)):
        layer_input = inputs[t]
        for layer in range(lstm.num_layers):
            hidden, cell = hiddens[layer], cells[layer]
            if starts is not None:
                continues = (~starts[t]).to(hidden.dtype).unsqueeze(-1)
                hidden, cell = hidden * continues, cell * continues
            hidden, cell = torch.lstm_cell(
                layer_input,
                (hidden, cell),
                lstm.weight_ih[layer],
                lstm.weight_hh[layer],
                lstm.bias[layer],
                torch.zeros_like(lstm.bias[layer]),
            )
            hiddens[layer], cells[layer], layer_input = hidden, cell, hidden
        outputs.append(layer_input)
    return torch.stack(outputs), LSTMState(torch.stack(hiddens), torch.stack(cells))


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("H", "S"), SIZES)
def test_forward_and_gradient_equal_torch_nn_lstm(implementation, num_layers, H, S):
    lstm, inputs, state = random_case(T=7, S=S, F=3, H=H, L=num_layers)
    library = library_lstm(lstm)
    lstm.implementation = implementation
    actual = outputs_and_gradients(lstm, inputs, state)
    leaves = [tensor.clone().requires_grad_() for tensor in (inputs, *state)]
    outputs, end = library(leaves[0], (leaves[1], leaves[2]))
    scalar_loss(outputs, LSTMState(*end)).backward()
    expected = {
        "outputs": outputs.detach(),
        "last_hidden": end[0].detach(),
        "last_cell": end[1].detach(),
        **dict(zip(["inputs", "hidden", "cell"], [leaf.grad for leaf in leaves], strict=True)),
        **dict(zip(dict(lstm.named_parameters()), library_gradients(library), strict=True)),
    }
    assert_same(actual, expected, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_in_float64_it_equals_a_loop_over_lstm_cells_to_1e_9(implementation, num_layers):
    lstm, inputs, state = random_case(T=12, S=5, F=4, H=9, L=num_layers, dtype=torch.float64)
    starts = random_starts(12, 5)
    lstm.implementation = implementation
    actual = outputs_and_gradients(lstm, inputs, state, starts)
    leaves = [tensor.clone().requires_grad_() for tensor in (inputs, *state)]
    outputs, end = cell_loop(lstm, leaves[0], LSTMState(leaves[1], leaves[2]), starts)
    parameters = dict(lstm.named_parameters())
    gradients = torch.autograd.grad(scalar_loss(outputs, end), [*leaves, *parameters.values()])
    expected = {
        "outputs": outputs.detach(),
        "last_hidden": end.hidden.detach(),
        "last_cell": end.cell.detach(),
        **dict(zip(["inputs", "hidden", "cell", *parameters], gradients, strict=True)),
    }
    assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("H", "S"), SIZES)
def test_the_fused_kernel_equals_float64_torch_with_resets(num_layers, H, S):
    lstm, inputs, state = random_case(T=33, S=S, F=3, H=H, L=num_layers)
    starts = random_starts(33, S)
    starts[0, 0] = True
    lstm.implementation = "numba"
    actual = outputs_and_gradients(lstm, inputs, state, starts)
    lstm.double().implementation = "torch"
    expected = outputs_and_gradients(lstm, inputs.double(), LSTMState(*(part.double() for part in state)), starts)
    assert_same(actual, expected, 1e-5)


def test_the_library_layer_equals_the_reference_and_refuses_resets():
    lstm, inputs, state = random_case(T=6, S=3, F=4, H=5, L=2, dtype=torch.float64)
    lstm.implementation = "library"
    actual = outputs_and_gradients(lstm, inputs, state)
    with pytest.raises(ValueError, match="cannot reset"):
        lstm(inputs, state, random_starts(6, 3))
    lstm.implementation = "reference"
    assert_same(actual, outputs_and_gradients(lstm, inputs, state), 1e-12)


@pytest.mark.parametrize("resets", [False, True])
def test_gradients_equal_finite_differences(resets):
    lstm, inputs, state = random_case(T=4, S=2, F=2, H=3, L=2, dtype=torch.float64)
    starts = random_starts(4, 2, 0.4) if resets else None
    lstm.implementation = "torch"
    names = [name for name, _ in lstm.named_parameters()]

    def run(inputs, hidden, cell, *weights):
        arguments = (inputs, LSTMState(hidden, cell), starts)
        outputs, end = torch.func.functional_call(lstm, dict(zip(names, weights, strict=True)), arguments)
        return outputs, end.hidden, end.cell

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (inputs, *state, *lstm.parameters())]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_a_reset_in_the_middle_equals_separate_sequences(implementation):
    lstm, inputs, state = random_case(T=20, S=3, F=4, H=16, L=2)
    lstm.implementation = implementation
    starts = torch.zeros(20, 3, dtype=torch.bool)
    starts[8] = True
    outputs, end = lstm(inputs, state, starts)
    first, _ = lstm(inputs[:8], state)
    second, second_end = lstm(inputs[8:], lstm.initial_state(3))
    torch.testing.assert_close(outputs, torch.cat((first, second)))
    torch.testing.assert_close(end, second_end)


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_no_gradient_reaches_back_over_a_reset(implementation):
    lstm, inputs, state = random_case(T=10, S=5, F=4, H=16, L=2)
    lstm.implementation = implementation
    starts = torch.zeros(10, 5, dtype=torch.bool)
    starts[6, 2] = True
    leaf = inputs.clone().requires_grad_()
    outputs, _ = lstm(leaf, state, starts)
    (gradient,) = torch.autograd.grad(outputs[6:].sum(), leaf)
    assert (gradient[:6, 2] == 0).all()
    assert (gradient[:6, [0, 1, 3, 4]].abs().sum((0, 2)) > 0).all()
    assert (gradient[6:, 2].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_2t_steps_equal_t_steps_twice(implementation):
    lstm, inputs, state = random_case(T=24, S=5, F=4, H=33, L=2)
    lstm.implementation = implementation
    starts = random_starts(24, 5)
    outputs, end = lstm(inputs, state, starts)
    first, middle = lstm(inputs[:12], state, starts[:12])
    second, second_end = lstm(inputs[12:], middle, starts[12:])
    torch.testing.assert_close(outputs, torch.cat((first, second)))
    torch.testing.assert_close(end, second_end)


@pytest.mark.parametrize("implementation", ["auto", *CPU_IMPLEMENTATIONS])
def test_one_call_equals_bar_by_bar_stepping(implementation):
    lstm, inputs, state = random_case(T=10, S=3, F=4, H=32)
    lstm.implementation = implementation
    starts = random_starts(10, 3)
    outputs, end = lstm(inputs, state, starts)
    for t in range(10):
        output, state = lstm(inputs[t : t + 1], PolicyState(state).reset_where(starts[t]).policy)
        torch.testing.assert_close(output[0], outputs[t])
    torch.testing.assert_close(end, state)


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_permuting_the_sequences_permutes_the_outputs(implementation):
    lstm, inputs, state = random_case(T=9, S=11, F=4, H=16)
    lstm.implementation = implementation
    starts = random_starts(9, 11)
    order = torch.randperm(11, generator=generator(3))
    outputs, end = lstm(inputs, state, starts)
    permuted, permuted_end = lstm(inputs[:, order], LSTMState(*(part[:, order] for part in state)), starts[:, order])
    torch.testing.assert_close(permuted, outputs[:, order])
    torch.testing.assert_close(permuted_end.cell, end.cell[:, order])


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
@pytest.mark.parametrize("poisoned", ["inputs", "state"])
def test_nan_in_one_sequence_touches_no_other_and_ends_at_its_reset(implementation, poisoned):
    lstm, inputs, state = random_case(T=12, S=6, F=4, H=16)
    lstm.implementation = implementation
    starts = torch.zeros(12, 6, dtype=torch.bool)
    starts[8, 1] = True
    clean, _ = lstm(inputs, state, starts)
    if poisoned == "inputs":
        inputs[3, 1] = float("nan")
    else:
        state.hidden[:, 1], state.cell[:, 1] = float("nan"), float("nan")
    leaf = inputs.clone().requires_grad_()
    outputs, _ = lstm(leaf, state, starts)
    others = [0, 2, 3, 4, 5]
    assert torch.equal(outputs[:, others], clean[:, others])
    assert outputs[3:8, 1].isnan().all()
    torch.testing.assert_close(outputs[8:, 1], clean[8:, 1])
    (gradient,) = torch.autograd.grad(outputs[:, others].sum() + outputs[8:, 1].sum(), leaf)
    assert gradient[:, others].isfinite().all()
    assert gradient[8:, 1].isfinite().all()


@pytest.mark.parametrize("implementation", CPU_IMPLEMENTATIONS)
def test_without_gradient_the_numbers_are_the_same(implementation):
    lstm, inputs, state = random_case(T=40, S=300, F=4, H=16)  # more than one piece of inference
    lstm.implementation = implementation
    starts = random_starts(40, 300)
    outputs, end = lstm(inputs, state, starts)
    with torch.no_grad():
        plain, plain_end = lstm(inputs, state, starts)
    assert outputs.requires_grad
    assert not plain.requires_grad
    torch.testing.assert_close(plain, outputs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plain_end.cell, end.cell, rtol=1e-6, atol=1e-6)


def test_the_fused_kernel_gives_the_same_bits_for_any_number_of_threads():
    lstm, inputs, state = random_case(T=64, S=67, F=4, H=64)
    lstm.implementation = "numba"
    starts = random_starts(64, 67)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(lstm, inputs, state, starts))
    finally:
        torch.set_num_threads(before)
    for name in ("outputs", "last_cell"):
        assert torch.equal(results[0][name], results[1][name])
        assert torch.equal(results[0][name], results[2][name])
    assert_same(results[1], results[0], 1e-6)


def test_the_caller_s_state_is_not_written_to():
    for implementation in CPU_IMPLEMENTATIONS:
        lstm, inputs, state = random_case(T=8, S=3, F=4, H=16)
        lstm.implementation = implementation
        before = [part.clone() for part in (inputs, *state)]
        with torch.no_grad():
            lstm(inputs, state)
        lstm(inputs, state)[0].sum().backward()
        assert all(torch.equal(x, y) for x, y in zip(before, (inputs, *state), strict=True))


def test_a_second_backward_over_a_kept_graph_gives_the_same_gradient():
    lstm, inputs, state = random_case(T=8, S=5, F=4, H=16)
    lstm.implementation = "numba"
    outputs, _ = lstm(inputs, state)
    first = torch.autograd.grad(outputs.sum(), list(lstm.parameters()), retain_graph=True)
    second = torch.autograd.grad(outputs.sum(), list(lstm.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_strided_inputs_give_the_same_numbers():
    for implementation in CPU_IMPLEMENTATIONS:
        lstm, inputs, state = random_case(T=8, S=5, F=4, H=16)
        lstm.implementation = implementation
        strided = inputs.transpose(0, 1).contiguous().transpose(0, 1)
        assert not strided.is_contiguous()
        starts = random_starts(5, 8).t()
        torch.testing.assert_close(
            outputs_and_gradients(lstm, strided, state, starts),
            outputs_and_gradients(lstm, inputs, state, starts.contiguous()),
        )


@pytest.mark.parametrize("x", [-1e30, -200.0, -88.0, -1e-4, 0.0, 1e-4, 88.0, 200.0, 1e30])
def test_the_fused_activations_saturate_without_overflow(x):
    lstm, _, _ = random_case(T=5, S=4, F=1, H=16)
    inputs = torch.full((5, 4, 1), x)
    with torch.no_grad():
        lstm.implementation = "numba"
        actual, _ = lstm(inputs, lstm.initial_state(4))
        lstm.implementation = "reference"
        expected, _ = lstm(inputs, lstm.initial_state(4))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["auto", *CPU_IMPLEMENTATIONS])
def test_under_autocast_it_computes_in_float32(implementation):
    lstm, inputs, state = random_case(T=8, S=3, F=4, H=16)
    lstm.implementation = implementation
    expected, _ = lstm(inputs.bfloat16().float(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, end = lstm(inputs.bfloat16(), state)
    assert outputs.dtype == end.cell.dtype == torch.float32
    assert torch.equal(outputs, expected)


def test_reset_where_zeroes_the_marked_sequences_only():
    state = LSTMState(torch.ones(2, 3, 4), torch.full((2, 3, 4), float("nan")))
    reset = PolicyState(state).reset_where(torch.tensor([True, False, True])).policy
    assert (reset.hidden.sum((0, 2)) == torch.tensor([0.0, 8.0, 0.0])).all()
    assert (reset.cell[:, [0, 2]] == 0).all()
    assert reset.cell[:, 1].isnan().all()


def test_the_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (LSTM(3, 8, 2, generator=generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_the_recurrent_weights_start_orthogonal_and_the_biases_zero():
    lstm = LSTM(3, 8, 2, generator=generator())
    for weight_ih, weight_hh, bias in zip(lstm.weight_ih, lstm.weight_hh, lstm.bias, strict=True):
        for gate in weight_hh.chunk(4):
            torch.testing.assert_close(gate @ gate.t(), torch.eye(8), atol=1e-5, rtol=0)
        assert weight_ih.abs().max() <= (6 / (weight_ih.shape[1] + 8)) ** 0.5  # Xavier's bound for one gate
        assert (bias == 0).all()


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 5), (2, 3)])
def test_inputs_without_steps_or_sequences_or_of_wrong_width_are_refused(shape):
    lstm = LSTM(3, 8, generator=generator())
    with pytest.raises(ValueError, match=r"LSTM needs inputs \[T, S, 3\]"):
        lstm(torch.zeros(shape), lstm.initial_state(2))


def test_a_state_or_mask_of_the_wrong_shape_is_refused():
    lstm = LSTM(3, 8, generator=generator())
    inputs = torch.zeros(4, 2, 3)
    with pytest.raises(ValueError, match="needs a state"):
        lstm(inputs, lstm.initial_state(3))
    with pytest.raises(ValueError, match="needs episode_starts"):
        lstm(inputs, lstm.initial_state(2), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs episode_starts"):
        lstm(inputs, lstm.initial_state(2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="implementation"):
        LSTM(3, 8, implementation="fast")
    with pytest.raises(ValueError, match=">= 1"):
        LSTM(3, 0)


def test_the_fused_kernel_refuses_float64():
    lstm, inputs, state = random_case(T=8, S=3, F=4, H=16, dtype=torch.float64)
    lstm.implementation = "numba"
    with pytest.raises(ValueError, match="float32 on the CPU"):
        lstm(inputs, state)


def test_without_numba_plain_torch_is_used_and_says_so_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lstm_module.fastest_on_cpu.cache_clear()
    lstm, inputs, state = random_case(T=8, S=3, F=4, H=16)
    try:
        with pytest.warns(UserWarning, match="numba is not installed"):
            outputs, _ = lstm(inputs, state)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lstm(inputs, state)
    finally:
        lstm_module.fastest_on_cpu.cache_clear()
    lstm.implementation = "torch"
    assert torch.equal(outputs, lstm(inputs, state)[0])
