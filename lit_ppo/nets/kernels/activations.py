"""The activations of the heads; tanh in float32 on a CPU runs in vectors, several times faster than torch's there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_ppo.nets.lstm import fused_on_cpu


class Tanh(nn.Module):
    """Hyperbolic tangent, elementwise: `torch.tanh`, off by at most 2e-7 where the fused kernel serves."""

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.jit.is_tracing() or not fused_on_cpu(inputs):
            return torch.tanh(inputs)
        return _VectorTanh.apply(inputs)


class _VectorTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        from lit_ppo.nets.kernels.vector_math import tanh_of  # numba is optional

        inputs = inputs.contiguous()
        outputs = torch.empty_like(inputs)
        tanh_of(inputs.data_ptr(), outputs.data_ptr(), inputs.numel())
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs):
        (outputs,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad_outputs, outputs)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "mish": nn.Mish}
