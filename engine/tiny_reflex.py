"""A reflex for the tiny checkpoint: weights worked out on paper, so that a random network moves an arm sensibly.

A network with random weights denoises nothing: what it hands back is noise of one radian per row, which every guard
must refuse. For the embedded default to exercise the whole chain, a few lanes of the residual stream of the tiny
checkpoint are therefore set by hand, for two action domains. For the one whose rows are joint positions, the network
then computes, for every joint and row `r`,

    target = state + f(r) * (noise of nearby video tokens - (state - home)),    velocity = (x - target) / sigma

with `f` close to 0 at the first rows and rising to about one half: a chunk starts where the arm is and drifts,
smoothly and at the whim of the seed, around the home pose. It means nothing; but it depends on the measured state
through attention, passes through every layer and is denoised by the real sampler. All other weights stay random.

The other is that of two arms whose rows are deltas of poses, without a state row: `target` is the row that stands still
and, for each arm, a small motion and a gripper that follow the noise of the same video tokens.

How it is done (H hidden size, gen tower only):

* Lane C holds a constant far larger than everything else, so RMS norms become division by a known number. Noisy tokens
  get `C * sigma` there from the time embedding, which turns the last norm into the division by sigma above.
* Head 0 of layer 0 attends to the one token that is an action and clean (the state row), copies the state to lanes S.
* Head 2 of layer 0 divides its attention between the state row, at a logit that falls with the distance in time (rotary
  frequency of one radian per unit), and the noisy video tokens: that ratio is `f`. Where there is no state row, all of
  it goes to the video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.actions import PoseCodec, Poses, codec

DOMAIN = 8  # droid_lerobot
HOME = (0.0, -math.pi / 5, 0.0, -4 * math.pi / 5, 0.0, 3 * math.pi / 5, 0.0, 0.5)
REACH = (0.35, 0.12, 0.2, 0.25, 0.35, 0.35, 0.4, 0.5)
"""Spread (rad; the gripper in openings) of the random target that each channel is drawn towards."""

PAIR_DOMAIN = 12  # robomind-franka-dual
PAIR_STEP_M, PAIR_TURN_RAD, PAIR_GRIP = 0.0015, 0.005, 0.5
"""Spread of what a row asks of each of two arms: way along and turn about each axis, closed fraction."""

CHANNELS = len(HOME)
CONSTANT = 256.0
LANE_X, LANE_S = 0, 16
LANE_C, LANE_ACTION, LANE_VISION, LANE_NOISY = 32, 33, 34, 35
PAIR_LANES = (*range(LANE_X, 16), *range(24, 28))
"""Where the twenty channels of the pair enter: lanes X, and those of S that the eight joint channels leave over."""
FREE = 36
"""First lane of the residual stream that stays random."""

FLAT = 7
"""Rotary pair whose frequency is so low that it does not turn within a chunk."""
TURNING = 0
"""Rotary pair that turns by one radian per unit of temporal position."""
NEUTRAL, BLIND = 6, 5
"""Rotary pairs on which no query has a component: one fills a direction up to unit length, one drowns it."""


@dataclass(frozen=True)
class _Head:
    """Direction of a query or key before its norm: components on the flat, the turning and a neutral axis."""

    flat: float
    turning: float = 0.0

    @property
    def neutral(self) -> float:
        return math.sqrt(max(0.0, 1.0 - self.flat**2 - self.turning**2))


QUERY = _Head(0.95, math.sqrt(1 - 0.95**2))
STATE_KEY = _Head(0.30, 0.30)
VIDEO_KEY = _Head(0.138, 0.30)
GAIN_FLAT, GAIN_TURNING = 4.0, 2.0
TOKENS_AVERAGED = 64
"""Independent video tokens that a row effectively averages over; measured."""


def apply(tensors: MutableMapping[str, Tensor], config: Mapping[str, int]) -> None:
    """Overwrite lanes of freshly drawn random transformer tensors, in place.

    Args:
        tensors: Public tensor names to float32 tensors (shapes as on disk).
        config: `hidden_size`, `head_dim` (16), `num_hidden_layers`, `num_attention_heads` (4).
    """
    hidden = config['hidden_size']
    if hidden < 2 * FREE or config['head_dim'] != 16 or config['num_attention_heads'] != 4:
        raise ValueError(f'the reflex is laid out for hidden size >= {2 * FREE}, 4 heads of 16, got {dict(config)}')
    _isolate_lanes(tensors, config['num_hidden_layers'])
    _embed(tensors)
    _time(tensors)
    _attend(tensors, hidden)
    _read_out(tensors, hidden)
    _move_pair(tensors, hidden)


def _isolate_lanes(tensors: MutableMapping[str, Tensor], layers: int) -> None:
    """Keep random weights from writing to the reserved lanes, and random heads from drowning in lane C."""
    for index in range(layers):
        layer = f'layers.{index}.'
        tensors[layer + 'self_attn.to_add_out.weight'][:FREE] = 0
        tensors[layer + 'mlp_moe_gen.down_proj.weight'][:FREE] = 0
        for name in ('self_attn.add_q_proj', 'self_attn.add_k_proj', 'self_attn.add_v_proj', 'mlp_moe_gen.up_proj'):
            tensors[f'{layer}{name}.weight'][:, :FREE] = 0
        gate = layer + 'mlp_moe_gen.gate_proj.weight'
        if gate in tensors:
            tensors[gate][:, :FREE] = 0
        tensors[layer + 'input_layernorm_moe_gen.weight'].fill_(1)
    tensors['norm_moe_gen.weight'].fill_(1)
    tensors['proj_out.weight'][:, :FREE] = 0


def _embed(tensors: MutableMapping[str, Tensor]) -> None:
    """Actions enter lanes X, one channel a lane; each modality marks itself and adds the constant.

    The free lanes start out with nothing but the video, or constants in them would drown its noise.
    """
    hidden = tensors['action_modality_embed'].shape[0]
    weight = tensors['action_proj_in.fc.weight'][DOMAIN].view(-1, hidden)
    weight[:] = 0
    weight[:CHANNELS, LANE_X : LANE_X + CHANNELS] = torch.eye(CHANNELS)
    bias = tensors['action_proj_in.bias.weight'][DOMAIN]
    bias[:] = 0
    bias[LANE_C] = CONSTANT
    tensors['action_modality_embed'][:] = 0
    tensors['action_modality_embed'][LANE_ACTION] = 0.5
    tensors['proj_in.weight'][:FREE] = 0
    tensors['proj_in.bias'][:] = 0
    tensors['proj_in.bias'][LANE_C] = CONSTANT
    tensors['proj_in.bias'][LANE_VISION] = 0.5


def _time(tensors: MutableMapping[str, Tensor]) -> None:
    """Noisy tokens: lane C becomes `CONSTANT * sigma`, lane NOISY becomes 0.5.

    sigma = timestep / 1000, and a sinusoid of low frequency is that number times the frequency: linear. A large bias
    keeps SiLU in its linear part.
    """
    first, second = tensors['time_embedder.linear_1.weight'], tensors['time_embedder.linear_2.weight']
    first_bias, second_bias = tensors['time_embedder.linear_1.bias'], tensors['time_embedder.linear_2.bias']
    feature = 64  # frequency exp(-ln(10000) * 64 / 128) = 0.01: sine within 2e-5 of linear
    frequency = math.exp(-math.log(10000) * feature / 128)
    slope, offset = 1.0 / frequency, 16.0
    first[0] = 0
    first[0, 128 + feature] = slope  # the sine half comes second
    first_bias[0] = offset
    second[:] = second_bias[:] = 0
    second[LANE_C, 0] = CONSTANT
    second_bias[LANE_C] = -CONSTANT * (offset + 1.0)
    second_bias[LANE_NOISY] = 0.5


def _attend(tensors: MutableMapping[str, Tensor], hidden: int) -> None:
    """Heads 0 and 2 of layer 0 (key heads 0 and 1), as the module's text describes."""
    attention = 'layers.0.self_attn.'
    query, key = tensors[attention + 'add_q_proj.weight'], tensors[attention + 'add_k_proj.weight']
    value, out = tensors[attention + 'add_v_proj.weight'], tensors[attention + 'to_add_out.weight']
    for norm in ('norm_added_q', 'norm_added_k'):
        weight = tensors[f'{attention}{norm}.weight'].fill_(1)
        weight[FLAT], weight[TURNING] = GAIN_FLAT, GAIN_TURNING
    query[0:16] = query[32:48] = key[:] = value[:] = out[:, 0:16] = out[:, 32:48] = 0
    words = tensors[attention + 'to_v.weight']
    words[:CHANNELS] = words[16 : 16 + CHANNELS] = 0  # what little attention the prompt draws must not add up to a push
    query[FLAT, LANE_C] = 1
    query[32 + FLAT, LANE_C], query[32 + TURNING, LANE_C] = QUERY.flat, QUERY.turning
    key[FLAT, LANE_ACTION], key[FLAT, LANE_VISION], key[FLAT, LANE_NOISY] = 1, -1, -2
    _key_of_drift(key[16:32])
    for channel, (home, reach) in enumerate(zip(HOME, REACH, strict=True)):
        # ACTION - NOISY + VISION is 0.5 on the state row and 0 on everything noisy: a constant of the state row alone
        for lane, sign in ((LANE_ACTION, 1), (LANE_NOISY, -1), (LANE_VISION, 1)):
            value[channel, lane], value[16 + channel, lane] = 2 * sign * home, -2 * sign * home
        value[16 + channel, LANE_X + channel] = 1
        value[16 + channel, FREE:] = _noise_reader(tensors['proj_in.weight'][FREE:], channel, reach)
        out[LANE_S + channel, channel] = CONSTANT / math.sqrt(hidden)
        out[LANE_S + channel, 32 + channel] = CONSTANT / math.sqrt(hidden)


def _key_of_drift(key: Tensor) -> None:
    """Key head 1: the state row and the noisy video get their directions, the observed frame and noisy rows get none.

    Lanes (ACTION, VISION, NOISY) read (.5, 0, 0) on the state row, (0, .5, .5) on noisy video, (0, .5, 0) on the
    observed frame and (.5, 0, .5) on noisy rows. The blind axis cancels on noisy video only and swamps the last two.
    """
    key[FLAT, LANE_ACTION], key[TURNING, LANE_ACTION] = STATE_KEY.flat, STATE_KEY.turning
    key[FLAT, LANE_NOISY], key[TURNING, LANE_NOISY] = VIDEO_KEY.flat, VIDEO_KEY.turning
    key[NEUTRAL, LANE_ACTION], key[NEUTRAL, LANE_NOISY] = STATE_KEY.neutral, VIDEO_KEY.neutral
    key[BLIND, LANE_VISION], key[BLIND, LANE_NOISY] = -256, 256
    key *= 64  # lanes are small next to the constant, and the norm of keys has an epsilon


def _noise_reader(lanes: Tensor, channel: int, reach: float) -> Tensor:
    """Weights over the free lanes that see one random direction of the video noise, of spread `reach` once averaged.

    Args:
        lanes: Rows of `proj_in.weight` that feed the free lanes, [free, 192].
        channel: Which direction; every channel has its own.
        reach: Standard deviation of what arrives, in the channel's unit.
    """
    direction = lanes @ lanes[channel]
    seen = (direction @ lanes).norm()
    scaled: Tensor = direction * (reach * math.sqrt(TOKENS_AVERAGED) / seen)
    return scaled


def _read_out(tensors: MutableMapping[str, Tensor], hidden: int) -> None:
    """Velocity = (X - S) / sigma: the last norm divides by `CONSTANT * sigma / sqrt(H)`."""
    # A video velocity of its own would give all video tokens something in common, which averaging does not remove.
    tensors['proj_out.weight'] *= 1 / 64
    tensors['proj_out.bias'][:] = 0
    weight = tensors['action_proj_out.fc.weight'][DOMAIN].view(hidden, -1)
    weight[:] = 0
    gain = CONSTANT / math.sqrt(hidden)
    for channel in range(CHANNELS):
        weight[LANE_X + channel, channel] = gain
        weight[LANE_S + channel, channel] = -gain
    tensors['action_proj_out.bias.weight'][DOMAIN] = 0


def _move_pair(tensors: MutableMapping[str, Tensor], hidden: int) -> None:
    """Velocity = (X - target) / sigma; the lanes S hold nothing but noise where there is no state row."""
    still, motions = _pair_rows()
    enter = tensors['action_proj_in.fc.weight'][PAIR_DOMAIN].view(-1, hidden)
    leave = tensors['action_proj_out.fc.weight'][PAIR_DOMAIN].view(hidden, -1)
    enter[:] = leave[:] = 0
    bias = tensors['action_proj_in.bias.weight'][PAIR_DOMAIN]
    bias[:] = 0
    bias[LANE_C] = CONSTANT
    gain = CONSTANT / math.sqrt(hidden)
    for channel, lane in enumerate(PAIR_LANES):
        enter[channel, lane] = 1
        leave[lane, channel] = gain
    leave[LANE_ACTION, : len(still)] = -2 * gain * still  # the lane is 0.5 on every row
    for number, (motion, reach) in enumerate(zip(motions, REACH, strict=True)):
        leave[LANE_S + number, : len(still)] = -gain / reach * motion
    tensors['action_proj_out.bias.weight'][PAIR_DOMAIN] = 0


def _pair_rows() -> tuple[Tensor, Tensor]:
    """The row that stands still [20], and what is added to it for each of eight motions [8, 20]; scaled as in training.

    The motions are each arm along and about each of its axes, then each gripper.
    """
    of = codec('robomind-franka-dual', 'ee_delta', 'quantile')
    if not isinstance(of, PoseCodec):
        raise TypeError(f'{of.embodiment.name} has no public frames')
    rest, grip = Poses.identity((1, 2)), np.full((1, 2), 0.5)
    still = of.encode_trajectory(Poses.identity((2, 2)), grip)[0]
    rows = []
    for arm, axis in ((arm, axis) for arm in range(2) for axis in range(3)):
        way, turn = np.zeros((1, 2, 3)), np.zeros((1, 2, 3))
        way[0, arm, axis], turn[0, arm, axis] = PAIR_STEP_M, PAIR_TURN_RAD
        moved = Poses.from_rpy(way, turn)
        path = Poses(np.concatenate([rest.position, moved.position]), np.concatenate([rest.rotation, moved.rotation]))
        rows.append(of.encode_trajectory(path, grip)[0])
    for arm in range(2):
        closing = grip.copy()
        closing[0, arm] += PAIR_GRIP
        rows.append(of.encode_trajectory(Poses.identity((2, 2)), closing)[0])
    return torch.from_numpy(still).float(), torch.from_numpy(np.stack(rows) - still).float()
