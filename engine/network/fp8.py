"""Matrix products in FP8 (e4m3): weights with a scale for each output channel, activations with one for each token.

    y = (q_x @ q_w^T) * s_x * s_w        s_x = max |x| of the token / 448        s_w = max |w| of the channel / 448

The scales of activations are found while it runs, so nothing is calibrated. It is the rule that `engine.export.fp8`
writes into ONNX graphs. Only the generation tower is quantised: heads, norms, the time embedder, the residual stream
and the understanding tower stay as they are. GPUs from sm_89 on multiply in FP8; everywhere else the same arithmetic is
done on the same rounded numbers in float32, so that the accuracy can be judged on any machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from engine.network.transformer import CosmosTransformer

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""Largest number of the format e4m3."""
TOWER = ('add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out', 'mlp_moe_gen')
"""Parts of the names of the linears that are quantised."""
OLDEST_GPU = (8, 9)
"""First compute capability with FP8 (Ada); Hopper and Blackwell have it too."""
SMALLEST = 2.0**-24
"""Scale of a token of zeros, so that nothing is divided by zero."""
_ALIGNED = 16  # the kernel takes no other sizes than multiples of this


class Quantised(NamedTuple):
    """Tokens in FP8: what several linears that read the same activations share.

    Attributes:
        values: Float8 e4m3 [tokens, width].
        scales: Float32 [tokens, 1]; a token is its values times its scale.
    """

    values: Tensor
    scales: Tensor


def quantise(x: Tensor) -> Quantised:
    """Quantise activations [tokens, width] of any float type, with one scale for each token."""
    exact = x.to(torch.float32)
    scales = (exact.abs().amax(dim=-1, keepdim=True) * (1.0 / LARGEST)).clamp(min=SMALLEST)
    return Quantised(_round(exact / scales), scales)


def quantise_weight(weight: Tensor) -> Quantised:
    """Quantise a weight [out, in] of any float type, with one scale for each output channel: scales [out, 1]."""
    exact = weight.detach().to(torch.float32)
    scales = exact.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST * LARGEST) / LARGEST
    return Quantised(_round(exact / scales), scales)


def read_together(x: Tensor, linear: nn.Module) -> Any:
    """What `linear`, and others of its kind, shall be given to read `x`: quantised once for all of them, or `x` itself.

    Args:
        x: Activations [tokens, width].
        linear: One of the linears that read them; all are of the same kind.
    """
    return quantise(x) if isinstance(linear, Fp8Linear) else x


class Fp8Linear(nn.Module):
    """A linear without bias whose product is calculated in FP8; made on the device where it stays.

    Attributes:
        weight: Float8 e4m3 [out, in].
        scales: Float32 [1, out], of the output channels.
        dtype: Type of the result.
        native: Whether the GPU multiplies in FP8; otherwise the rounded numbers are multiplied in float32.

    Args:
        linear: What it replaces.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values, scales = quantise_weight(linear.weight)
        self.dtype = linear.weight.dtype
        self.register_buffer('weight', values)
        self.register_buffer('scales', scales.T.contiguous())
        self.native = has_kernel(values.device, self.dtype) and not any(size % _ALIGNED for size in values.shape)

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """Map activations [tokens, in], or what :func:`read_together` made of them, to [tokens, out]."""
        given = x if isinstance(x, Quantised) else quantise(x)
        return (self.multiply if self.native else self.multiply_rounded)(given)

    def multiply(self, x: Quantised) -> Tensor:
        """The product by the GPU's own FP8 kernel, with sums in its fast accumulators."""
        return torch._scaled_mm(
            x.values, self.weight.T, x.scales, self.scales, out_dtype=self.dtype, use_fast_accum=True
        )

    def multiply_rounded(self, x: Quantised) -> Tensor:
        """The same product of the same rounded numbers, in float32 (float64 in a float64 model)."""
        exact = torch.promote_types(self.dtype, torch.float32)
        product = F.linear(x.values.to(exact), self.weight.to(exact))
        return (product * x.scales * self.scales).to(self.dtype)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products with results of `dtype` run in FP8 on `device`."""
    return device.type == 'cuda' and not misfits(torch.cuda.get_device_capability(device), dtype)


def misfits(capability: tuple[int, int], dtype: torch.dtype) -> list[Problem]:
    """What speaks against FP8 on a GPU of this compute capability, with results of `dtype`."""
    problems = []
    if capability < OLDEST_GPU or torch.version.hip:
        found = 'one of AMD' if torch.version.hip else f'sm_{capability[0]}{capability[1]}'
        what, newer = 'does not multiply in FP8', 'sm_89, sm_90 and newer'
        problems.append(Problem('device', what, found, newer, 'use bfloat16'))
    if dtype != torch.bfloat16:
        found = str(dtype).removeprefix('torch.')
        problems.append(Problem('dtype', 'is not what products in FP8 return', found, 'bfloat16', 'load in bfloat16'))
    return problems


def quantise_generation(transformer: CosmosTransformer) -> int:
    """Replace the linears of the generation tower, one at a time: memory never holds two copies of more than one.

    Args:
        transformer: Loaded, on the device where it stays; changed in place and for good.

    Returns:
        How many were replaced; 0 if all were already.

    Raises:
        InvalidInput: The GPU does not multiply in FP8, or not with results of the transformer's type; lists both.
    """
    device = transformer.device
    if device.type == 'cuda':
        problems = misfits(torch.cuda.get_device_capability(device), transformer.dtype)
        if problems:
            raise InvalidInput('precision fp8', problems)
    count = 0
    for layer in transformer.layers:
        for name in [name for name, module in layer.named_modules() if _is_of_the_tower(name, module)]:
            parent, _, own = name.rpartition('.')
            linear = cast('nn.Linear', layer.get_submodule(name))
            setattr(layer.get_submodule(parent), own, Fp8Linear(linear))
            count += 1
    return count


def _is_of_the_tower(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and any(part in name for part in TOWER)


def _round(scaled: Tensor) -> Tensor:
    """To the nearest number of the format; what rounding has put beyond the largest one is that one."""
    return scaled.clamp(-LARGEST, LARGEST).to(FP8)
