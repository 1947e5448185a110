"""Would it pay to compute requests of several robots together? One layer of generation, for one robot and for several.

    python benchmarks/serving_batch.py
    python benchmarks/serving_batch.py --device cuda --hidden 4096 --dtype bfloat16

Tokens of several robots go through the linear maps together, each robot attends to its own. That is all that a batch
can share: the weights are read once for all. It pays where reading them takes longer than the arithmetic, and a chunk
has thousands of tokens already. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import figures
import torch
from torch import Tensor

import engine
from engine.network.config import TransformerConfig
from engine.network.layers import KeysValues, Layer, Rotary, attend, rotate
from engine.policy import layout_of

CONTRACTS = ('demo_joint_pos', 'droid_joint_pos')
PROMPT = 190


def tokens_of(name: str) -> int:
    """Generation tokens of one chunk."""
    layout = layout_of(engine.load_contract(name))
    vision, action = layout.vision, layout.action
    frames, rows, columns = vision.grid(2)
    return frames * rows * columns + action.rows


def together(layer: Layer, hidden: Tensor, rotary: Rotary, prefix: KeysValues, robots: int) -> Tensor:
    """One layer for several robots: linear maps over all tokens, attention each for itself."""
    own, x = layer.self_attn, layer.input_layernorm_moe_gen(hidden)
    query, keys, values = (own._heads(project(x)) for project in (own.add_q_proj, own.add_k_proj, own.add_v_proj))
    query, keys = own.norm_added_q(query), own.norm_added_k(keys)
    attended = [
        attend(
            rotate(q, rotary),
            torch.cat([prefix.keys, rotate(k, rotary)]),
            torch.cat([prefix.values, v]),
            causal=False,
        )
        for q, k, v in zip(query.chunk(robots), keys.chunk(robots), values.chunk(robots), strict=True)
    ]
    hidden = hidden + own.to_add_out(torch.cat(attended))
    return hidden + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(hidden))


def seconds_of(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """The shortest of several times of each, in turns: what else the machine does hits all of them."""
    found = dict.fromkeys(calls, float('inf'))
    for name, call in [*calls.items()] * (repeats + 1):
        began = time.perf_counter()
        call()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        found[name] = min(found[name], time.perf_counter() - began)
    return found


def measure(config: TransformerConfig, name: str, options: argparse.Namespace) -> list[list[object]]:
    """One row for each number of robots."""
    device, dtype, tokens = torch.device(options.device), getattr(torch, options.dtype), tokens_of(name)
    layer = Layer(config).to(device, dtype).eval()
    heads = (PROMPT, config.num_key_value_heads, config.head_dim)
    prefix = KeysValues(torch.randn(heads, device=device, dtype=dtype), torch.randn(heads, device=device, dtype=dtype))
    angles = torch.rand(tokens, config.head_dim, device=device, dtype=dtype)
    rotary, rows = Rotary(angles.cos(), angles.sin()), []
    one = torch.randn(tokens, config.hidden_size, device=device, dtype=dtype)
    for robots in options.robots:
        many = one.repeat(robots, 1)
        calls = {
            'alone': lambda robots=robots: [layer.generate(one, rotary, prefix) for _ in range(robots)],
            'together': lambda many=many, robots=robots: together(layer, many, rotary, prefix, robots),
        }
        took = seconds_of(calls, options.repeats, device)
        off = (calls['together']()[:tokens] - calls['alone']()[0]).abs().max()
        gain = took['alone'] / took['together']
        rows.append(
            [name, tokens, robots, *(f'{1e3 * s:.1f}' for s in took.values()), f'{gain:.2f}', f'{float(off):.0e}']
        )
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--hidden', type=int, default=512, help='width; 4096 is that of Nano')
    parser.add_argument('--robots', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--repeats', type=int, default=3)
    options = parser.parse_args()
    config = scaled(options.hidden)
    with torch.inference_mode():
        rows = [row for name in CONTRACTS for row in measure(config, name, options)]
    print(figures.facts(figures.machine()))
    print(figures.table(['contract', 'tokens', 'robots', 'ms one by one', 'ms together', 'gain', 'difference'], rows))
    return 0


def scaled(width: int) -> TransformerConfig:
    """Nano's proportions at another width; 4096 is its own."""
    nano = TransformerConfig.NANO
    heads = max(width // nano.head_dim, 4)
    return replace(
        nano,
        hidden_size=width,
        intermediate_size=3 * width,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
    )


if __name__ == '__main__':
    raise SystemExit(main())
