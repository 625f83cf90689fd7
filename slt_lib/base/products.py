"""Matrix products on a CPU, where another way than torch's own is faster.

fp32: on a processor that is not Intel's, MKL stops at AVX2; oneDNN takes AVX-512 wherever it is, which is twice as
fast. bf16: without AVX-512 oneDNN has no kernels for it, and with PyTorch's own product a step takes 14 times as long
as in fp32. There the operands are rounded to bf16, multiplied in fp32, and the result is rounded: what the kernels
compute too, in another order of sums. Everything else uses PyTorch's own product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
SMALL = 1 << 24  # multiplications below which a call of oneDNN costs more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x [..., I], weight [O, I], bias [O] -> [..., O]; with its gradients."""
    if _rounds(x):
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else _rounded(bias)
            return linear(_rounded(x), _rounded(weight), bias).bfloat16()
    if not _served(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [..., M, K] times b [..., K, N] -> [..., M, N]; with its gradients."""
    if _rounds(a):
        with torch.autocast("cpu", enabled=False):
            return (_rounded(a) @ _rounded(b)).bfloat16()
    return a @ b


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed -> [M, N]; no gradient is kept."""
    if _rounds(a):
        return product(a.float(), b.float()).bfloat16()
    return _onednn(a, b) if _served(a, b) else a @ b.t()


def _served(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply these; not under autocast, nor under vmap, for which it has no rule."""
    return (
        ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= SMALL
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def _rounds(x: Tensor) -> bool:
    """Whether a product is asked for in bf16 on a CPU without kernels for it."""
    low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return low and not ONEDNN and x.device.type == "cpu"


def _rounded(x: Tensor) -> Tensor:
    """The values of bf16 in fp32; the gradient is rounded too."""
    return x.bfloat16().float()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        rows, needs = gradient.reshape(-1, gradient.shape[-1]), ctx.needs_input_grad
        return (
            _onednn(gradient, weight.t()) if needs[0] else None,
            _onednn(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs[1] else None,
            rows.sum(0) if needs[2] else None,
        )
