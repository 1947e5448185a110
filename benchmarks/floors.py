"""What a GPU needs at least for a denoising step: matrix products, attention, and the traffic nobody can avoid.

Rates are those that good kernels reach on these GPUs for products of this size, not the data sheets': BF16 products and
bandwidth of Hopper as measured, FP8 as cuBLASLt reaches it with one scale for a tensor, Ada as cosmos-lite measured it
at 3,093 tokens, the others as shares of the data sheet (75 to 90 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.network.config import TransformerConfig


@dataclass(frozen=True)
class Rates:
    """TFLOP/s of products in bfloat16 and FP8 and of attention, and GB/s of memory."""

    bfloat16: float
    fp8: float
    attention: float
    memory: float


RATES: Mapping[str, Rates] = {
    'H100': Rates(790, 1400, 544, 3000),
    'H200': Rates(790, 1400, 544, 4300),
    'B200': Rates(1700, 3300, 1100, 7000),
    'RTX PRO 6000': Rates(428, 856, 353, 1600),
    'RTX 5090': Rates(189, 377, 178, 1600),
    'RTX 4090': Rates(160, 268, 132, 900),
    'Thor': Rates(194, 388, 168, 230),
}


@dataclass(frozen=True)
class Work:
    """What is to be done: TFLOP of products and of attention, and GB of activations that are read and written."""

    products: float
    attention: float
    traffic: float

    @property
    def teraflop(self) -> float:
        """All arithmetic."""
        return self.products + self.attention

    def __mul__(self, times: int) -> Work:
        return Work(self.products * times, self.attention * times, self.traffic * times)


def rates_of(gpu: str) -> Rates | None:
    """Rates of a GPU by its name; None if nothing is known of it."""
    return next((rates for name, rates in RATES.items() if name in gpu), None)


def work_of(config: TransformerConfig, tokens: int, prompt: int) -> Work:
    """One forward pass of the generation tower over so many tokens after such a prompt.

    The traffic is what remains when everything that can be fused is: per token and layer the residual stream twice
    through addition and norm, queries and keys through norm and rotation, and the gated product of the MLP, in two
    bytes each; 17.8 GB for the 3,093 tokens of the DROID policy on Nano.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    gated = config.hidden_act != 'relu2'
    weights = layers * (width * (2 * heads + 2 * keys) + (3 if gated else 2) * width * inner)
    attention = 4 * layers * heads * tokens * (tokens + prompt)
    # Two fused additions with norm read two rows and write two each; norm with rotation reads and writes q and k.
    per_token = 2 * 4 * width + 2 * (heads + keys) + (3 if gated else 2) * inner
    return Work(2 * weights * tokens / 1e12, attention / 1e12, 2 * layers * tokens * per_token / 1e9)


def floor_seconds(work: Work, rates: Rates, precision: str) -> float:
    """Least time for some work with products in 'bfloat16' or 'fp8', s."""
    rate = rates.fp8 if precision == 'fp8' else rates.bfloat16
    return work.products / rate + work.attention / rates.attention + work.traffic / rates.memory
