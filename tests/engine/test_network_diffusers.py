"""The network computes what diffusers' `Cosmos3OmniTransformer` computes, on the same weights under the same names."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.checkpoint import open_checkpoint
from engine.network.config import TransformerConfig
from engine.network.heads import time_features
from engine.network.layers import RmsNorm
from engine.network.rope import action_positions, layout_positions, rotary, vision_positions
from engine.network.transformer import CosmosTransformer, Velocities
from engine.sequence import (
    ActionItem,
    Layout,
    SoundItem,
    VisionItem,
    forward_dynamics_layout,
    inverse_dynamics_layout,
    policy_layout,
    text_to_video_layout,
)
from engine.tiny import make_tiny

diffusers = pytest.importorskip('diffusers', reason='diffusers is the reference here')
from diffusers.models.embeddings import Timesteps  # noqa: E402
from diffusers.models.normalization import RMSNorm  # noqa: E402
from diffusers.models.transformers import transformer_cosmos3 as reference_module  # noqa: E402
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import (  # noqa: E402
    Cosmos3OmniPipeline,
    get_3d_mrope_ids_vae_tokens,
)

Pairs = dict[str, tuple[CosmosTransformer, nn.Module]]

VOCABULARY = 50
EXACT = 1e-9
IDS = torch.tensor([3, 14, 15, 9, 26, 5, 35])
FAMILIES = ('nano', 'edge')
SIZE = {'height': 3, 'width': 4, 'fps': 15.0}  # an odd height: the last patch row is filled up with zeros
EMBODIMENT = {'domain_id': 8, 'raw_dim': 10}

LAYOUTS = {
    'policy': policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=False),
    'policy with state': policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=True),
    'policy with state and history': policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=True, history=3),
    'policy with history': policy_layout(chunk=8, **SIZE, **EMBODIMENT, state=False, history=2),
    'forward dynamics': forward_dynamics_layout(chunk=8, **SIZE, **EMBODIMENT),
    'inverse dynamics': inverse_dynamics_layout(chunk=8, **SIZE, **EMBODIMENT),
    'text to video': text_to_video_layout(video_frames=9, **SIZE),
    'text to image': text_to_video_layout(video_frames=1, height=5, width=3, fps=24.0),
    'image to video': text_to_video_layout(video_frames=9, **SIZE, clean=(0,)),
    'text to video with sound': text_to_video_layout(video_frames=9, **SIZE, sound=True),
    'video to video with sound': text_to_video_layout(video_frames=9, **SIZE, clean=(0, 1), sound=True),
    'all three': Layout(VisionItem(3, **SIZE), ActionItem(8, **EMBODIMENT, fps=15.0), SoundItem(5)),
}
CASES = [
    (family, name) for family in FAMILIES for name, layout in LAYOUTS.items() if family == 'nano' or not layout.sound
]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make_reference(family: str, dtype: torch.dtype, *, lifted: bool) -> nn.Module:
    """A tiny diffusers model with random weights.

    Diffusers takes the statistic of its norms in float32 even in a float64 model. `lifted` puts PyTorch's own RMSNorm
    in their place, same weights and names, so that both sides calculate in float64 and can be compared to its limit.
    """
    torch.manual_seed(7)
    config = TransformerConfig.tiny(family, VOCABULARY).to_dict()
    model = reference_module.Cosmos3OmniTransformer.from_config(config).to(dtype)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5))
    return lift(model, dtype) if lifted else model


def lift(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put PyTorch's own RMSNorm in the place of diffusers' norms."""
    norms = (RMSNorm, reference_module.Cosmos3NemotronRMSNorm)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, norms):
                twin = nn.RMSNorm(child.weight.shape, eps=child.eps, dtype=dtype)
                twin.weight = child.weight
                setattr(module, name, twin)
    return model


def make_ours(family: str, reference: nn.Module, dtype: torch.dtype) -> CosmosTransformer:
    model = CosmosTransformer(TransformerConfig.tiny(family, VOCABULARY)).to(dtype)
    model.load_state_dict(reference.state_dict(), strict=True)
    return model


@pytest.fixture(scope='module')
def pairs() -> Pairs:
    with torch.no_grad():
        references = {family: make_reference(family, torch.float64, lifted=True) for family in FAMILIES}
        return {family: (make_ours(family, r, torch.float64), r) for family, r in references.items()}


def inputs_for(layout: Layout, dtype: torch.dtype = torch.float64) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(11)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    vision, action, sound = layout.vision, layout.action, layout.sound
    rows = None if action is None else noise(action.rows, 64)
    if action is not None and rows is not None:
        rows[:, action.raw_dim :] = 0
    return (
        None if vision is None else noise(1, 48, vision.frames, vision.height, vision.width),
        rows,
        None if sound is None else noise(64, sound.frames),
    )


def reference_step(
    reference: nn.Module, ids: Tensor, layout: Layout, inputs: tuple[Tensor | None, ...], timestep: int
) -> Velocities:
    """One transformer call as diffusers' pipeline makes it, with the pipeline's own packing."""
    vision, action, sound = inputs
    pipeline = SimpleNamespace(transformer=reference, vae_scale_factor_temporal=4)
    text = Cosmos3OmniPipeline._prepare_text_segment(pipeline, ids.tolist(), 'cpu')
    offset = text['vision_start_temporal_offset']
    segments = [pack_vision(pipeline, layout.vision, vision, offset, start=len(ids), timestep=timestep)]
    if sound is not None:
        segments.append(pack_sound(pipeline, sound, offset, start=end_of(segments, ids), timestep=timestep))
    if action is not None:
        segments.append(
            pack_action(pipeline, layout.action, action, offset, start=end_of(segments, ids), timestep=timestep)
        )
    positions = [text['text_mrope_ids'], *(segment.pop('positions') for segment in segments)]
    out = reference(
        input_ids=text['input_ids'],
        text_indexes=text['text_indexes'],
        und_len=text['und_len'],
        position_ids=torch.cat([p.float() for p in positions], dim=1),
        sequence_length=sum(p.shape[1] for p in positions),
        **{key: value for segment in segments for key, value in segment.items()},
    )
    rows = None
    if action is not None:
        rows = out.action[0].clone()
        rows[:, layout.action.raw_dim :] = 0  # the pipeline does this to every prediction
    return Velocities(out.sample[0], rows, None if sound is None else out.sound[0])


def end_of(segments: list[dict[str, Any]], ids: Tensor) -> int:
    return len(ids) + sum(segment['positions'].shape[1] for segment in segments)


def pack_vision(
    pipeline: SimpleNamespace, item: VisionItem, latents: Tensor, offset: int, *, start: int, timestep: int
) -> dict[str, Any]:
    packed = Cosmos3OmniPipeline._prepare_vision_segment(
        pipeline, latents, False, offset, item.fps, start, 'cpu', condition_frame_indexes=list(item.clean)
    )
    noisy = packed.pop('num_noisy_vision_tokens')
    packed.pop('num_vision_tokens')
    positions = packed.pop('vision_mrope_ids')
    times = torch.full((noisy,), timestep)
    return {**packed, 'positions': positions, 'vision_tokens': [latents], 'vision_timesteps': times}


def pack_sound(pipeline: SimpleNamespace, latents: Tensor, offset: int, *, start: int, timestep: int) -> dict[str, Any]:
    packed = Cosmos3OmniPipeline._prepare_sound_segment(pipeline, latents, offset, 25.0, start, 'cpu')
    times = torch.full((packed.pop('sound_len'),), timestep)
    positions = packed.pop('sound_mrope_ids')
    return {**packed, 'positions': positions, 'sound_tokens': [latents], 'sound_timesteps': times}


def pack_action(
    pipeline: SimpleNamespace, item: ActionItem, rows: Tensor, offset: int, *, start: int, timestep: int
) -> dict[str, Any]:
    packed = Cosmos3OmniPipeline._prepare_action_segment(
        pipeline, rows, list(item.clean), offset, item.fps, start, 'cpu'
    )
    packed.pop('action_len')
    times = torch.full((packed.pop('num_noisy_action_tokens'),), timestep)
    positions = packed.pop('action_mrope_ids')
    if item.start != 1:  # the pipeline knows neither state nor history rows, but its position function does
        positions, _ = get_3d_mrope_ids_vae_tokens(
            item.rows,
            1,
            1,
            offset,
            fps=item.fps,
            temporal_compression_factor=1,
            base_temporal_compression_factor=4,
            start_frame_offset=item.start,
        )
    return {
        **packed,
        'positions': positions,
        'action_tokens': [rows],
        'action_timesteps': times,
        'action_domain_ids': [torch.tensor(item.domain_id)],
    }


def difference(ours: Velocities, theirs: Velocities) -> float:
    worst = 0.0
    for mine, other in ((ours.vision, theirs.vision), (ours.action, theirs.action), (ours.sound, theirs.sound)):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            assert mine.shape == other.shape
            worst = max(worst, float((mine.double() - other.double()).abs().max()))
    return worst


def largest(velocities: Velocities) -> float:
    parts = (velocities.vision, velocities.action, velocities.sound)
    return max(float(part.abs().max()) for part in parts if part is not None)


@pytest.mark.parametrize(('family', 'name'), CASES)
def test_velocities_equal_those_of_diffusers(pairs: Pairs, family: str, name: str) -> None:
    ours, reference = pairs[family]
    layout = LAYOUTS[name]
    inputs = inputs_for(layout)
    prefix = ours.prefix(IDS)
    for timestep in (999, 624, 0):
        mine = ours.denoise(prefix, layout, *inputs, timestep)
        assert difference(mine, reference_step(reference, IDS, layout, inputs, timestep)) <= EXACT
        assert largest(mine) > 0.1, 'a step in which nothing moves proves nothing'


@pytest.fixture(scope='module')
def pairs_from_files(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """The same tiny checkpoint files, opened by us and by diffusers."""
    pairs = {}
    for family in FAMILIES:
        root = make_tiny(tmp_path_factory.mktemp('checkpoints') / family, family, weights='random')
        ours = open_checkpoint(root).load_transformer('cpu', torch.float64)
        config = json.loads((root / 'transformer' / 'config.json').read_text(encoding='utf-8'))
        theirs = reference_module.Cosmos3OmniTransformer.from_config(config).double()
        shards = [load_file(path) for path in sorted((root / 'transformer').glob('*.safetensors'))]
        theirs.load_state_dict({name: tensor for shard in shards for name, tensor in shard.items()}, strict=True)
        pairs[family] = (ours, lift(theirs, torch.float64))
    return pairs


@pytest.mark.parametrize(('family', 'name'), CASES)
def test_a_checkpoint_written_by_make_tiny_gives_both_the_same_velocities(
    pairs_from_files: Pairs, family: str, name: str
) -> None:
    ours, reference = pairs_from_files[family]
    layout = LAYOUTS[name]
    inputs = inputs_for(layout)
    theirs = reference_step(reference, IDS, layout, inputs, 937)
    mine = ours.denoise(ours.prefix(IDS), layout, *inputs, 937)
    assert difference(mine, theirs) <= EXACT
    assert largest(theirs) > 1e-3


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', ['policy with state', 'image to video'])
def test_an_unmodified_diffusers_model_differs_by_float32_rounding_only(family: str, name: str) -> None:
    reference = make_reference(family, torch.float32, lifted=False)
    ours, layout = make_ours(family, reference, torch.float32), LAYOUTS[name]
    inputs = inputs_for(layout, torch.float32)
    mine = ours.denoise(ours.prefix(IDS), layout, *inputs, 624)
    assert difference(mine, reference_step(reference, IDS, layout, inputs, 624)) <= 5e-6


@pytest.mark.parametrize('family', FAMILIES)
def test_in_bfloat16_we_are_as_close_to_the_truth_as_diffusers(pairs: Pairs, family: str) -> None:
    exact = copy.deepcopy(pairs[family][1])
    layout = LAYOUTS['policy with state']
    reference = make_reference(family, torch.bfloat16, lifted=False)
    ours = make_ours(family, reference, torch.bfloat16)
    exact.load_state_dict(reference.state_dict())
    reference.time_embedder.float()  # as its `from_pretrained` keeps it
    inputs = inputs_for(layout, torch.bfloat16)
    truth = reference_step(exact, IDS, layout, tuple(None if x is None else x.double() for x in inputs), 624)
    error = difference(ours.denoise(ours.prefix(IDS), layout, *inputs, 624), truth)
    allowed = difference(reference_step(reference, IDS, layout, inputs, 624), truth)
    assert 0 < error <= 1.5 * allowed


@pytest.mark.parametrize('family', FAMILIES)
def test_actions_alone_equal_diffusers_own_modules_run_without_vision(pairs: Pairs, family: str) -> None:
    ours, reference = pairs[family]
    item = ActionItem(rows=9, domain_id=3, raw_dim=7, fps=15.0, start=0, clean=(0,))
    layout = Layout(action=item)
    _, rows, _ = inputs_for(layout)
    mine = ours.denoise(ours.prefix(IDS), layout, None, rows, None, 937)

    domains = torch.full((item.rows,), item.domain_id)
    time = reference.time_embedder(reference.time_proj(torch.tensor([937]) * 0.001).double())
    tokens = reference.action_proj_in(rows, domains) + reference.action_modality_embed
    tokens[1:] += time
    where, _ = get_3d_mrope_ids_vae_tokens(
        item.rows, 1, 1, len(IDS) + 15000, fps=15.0, temporal_compression_factor=1, base_temporal_compression_factor=4
    )
    text = torch.arange(len(IDS)).expand(3, -1).float()
    cos, sin = (x.squeeze(0) for x in rotations(reference, torch.cat([text, where], dim=1)))
    split = len(IDS)
    turns = (cos[:split], sin[:split], cos[split:], sin[split:])
    _, hidden = reference._run_decoder_stack(reference.embed_tokens(IDS), tokens, turns)
    expected = reference.action_proj_out(hidden, domains)
    expected[0] = 0
    expected[:, item.raw_dim :] = 0
    assert difference(mine, Velocities(None, expected, None)) <= EXACT


@pytest.mark.parametrize('fps', [5, 10.0, 15.0, 16.0, 20.0, 23.976, 29.97, 30.0])
def test_positions_equal_those_of_diffusers_bit_for_bit(fps: float) -> None:
    offset = 15150
    clip, _ = get_3d_mrope_ids_vae_tokens(200, 2, 3, offset, fps=fps)
    assert torch.equal(vision_positions(VisionItem(200, 3, 6, fps), 2, offset), clip)
    for start in (1, 0, -4):
        rates = {'temporal_compression_factor': 1, 'base_temporal_compression_factor': 4}
        rows, _ = get_3d_mrope_ids_vae_tokens(200, 1, 1, offset, fps=fps, start_frame_offset=start, **rates)
        assert torch.equal(action_positions(ActionItem(200, 8, 8, fps, start=start), offset), rows)


@pytest.mark.parametrize('family', FAMILIES)
def test_rotations_equal_those_of_diffusers_bit_for_bit(family: str) -> None:
    config = TransformerConfig.EDGE if family == 'edge' else TransformerConfig.NANO
    reference = reference_module.Cosmos3VLTextRotaryEmbedding(128, config.rope_theta, config.rope_axes_dim)
    layout = policy_layout(chunk=32, height=33, width=40, fps=15.0, domain_id=8, raw_dim=8, state=True)
    positions = layout_positions(layout, 150, config)
    for dtype in (torch.float32, torch.bfloat16):
        cos, sin = reference(positions.unsqueeze(1), torch.device('cpu'), dtype)
        mine = rotary(positions, config, dtype)
        assert torch.equal(mine[0], cos.squeeze(0))
        assert torch.equal(mine[1], sin.squeeze(0))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_norms_round_where_diffusers_rounds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(200, 128) * 3).to(dtype), (torch.rand(128) + 0.5).to(dtype)
    for nemotron, theirs in ((False, RMSNorm), (True, reference_module.Cosmos3NemotronRMSNorm)):
        ours, reference = RmsNorm(128, 1e-5, nemotron=nemotron), theirs(128, eps=1e-5)
        ours.weight.data, reference.weight.data = weight, weight
        assert torch.equal(ours(x), reference(x))


def test_time_features_equal_those_of_diffusers_bit_for_bit() -> None:
    reference = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    times = torch.arange(1000) * 0.001
    assert torch.equal(time_features(times), reference(times))


def test_the_two_norms_differ_in_bfloat16() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 128).bfloat16()
    qwen, nemotron = (RmsNorm(128, 1e-5, nemotron=n).bfloat16() for n in (False, True))
    qwen.weight.data = nemotron.weight.data = (torch.rand(128) + 0.5).bfloat16()
    assert not torch.equal(qwen(x), nemotron(x))


def rotations(reference: nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = reference.rotary_emb(position_ids=positions.unsqueeze(1), device='cpu', dtype=torch.float64)
    return cos, sin
