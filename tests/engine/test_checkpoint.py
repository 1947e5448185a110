"""Opening and loading a sound checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import open_checkpoint
from engine.errors import CheckpointError, CosmosError, InvalidInput
from engine.network.transformer import CosmosTransformer
from engine.tiny import make_tiny

FAMILIES = ('nano', 'edge')
WEIGHTS = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = {name: make_tiny(tmp_path_factory.mktemp('tiny') / name, name, weights='random') for name in FAMILIES}
    return made.__getitem__


@pytest.fixture
def copied(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny('nano'), tmp_path / 'copy'))


def stored(root: Path) -> dict[str, torch.Tensor]:
    files = sorted((root / 'transformer').glob('*.safetensors'))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def merge_shards(root: Path, keep: Callable[[str], bool] = lambda name: True) -> None:
    """Rewrite the transformer as diffusers does when it fits one file: without an index."""
    tensors = {name: tensor for name, tensor in stored(root).items() if keep(name)}
    for file in (root / 'transformer').glob('diffusion_pytorch_model*'):
        file.unlink()
    save_file(tensors, root / 'transformer' / WEIGHTS, metadata={'format': 'pt'})


@pytest.mark.parametrize('variant', FAMILIES)
def test_opening_says_what_the_checkpoint_is_and_has(tiny, variant):
    checkpoint = open_checkpoint(tiny(variant))
    assert checkpoint.root == tiny(variant)
    assert checkpoint.family == variant
    assert checkpoint.has_action
    assert checkpoint.has_language_head
    assert checkpoint.has_vision_encoder
    assert checkpoint.has_sound is checkpoint.has_sound_tokenizer is (variant == 'nano')
    assert checkpoint.provenance['weights'] == 'random'
    assert checkpoint.model_index['_class_name'] == 'Cosmos3OmniPipeline'


def test_the_policy_terms_of_an_edge_checkpoint_are_in_its_provenance(tiny):
    terms = open_checkpoint(tiny('edge')).provenance['policy']
    assert terms == {'action_chunk_size': 32, 'conditioning_fps': 15, 'domain_name': 'droid_lerobot'}


@pytest.mark.parametrize('variant', FAMILIES)
def test_loading_gives_every_stored_weight_unchanged(tiny, variant):
    model = open_checkpoint(tiny(variant)).load_transformer('cpu', torch.bfloat16)
    expected = stored(tiny(variant))
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_loading_converts_every_weight_to_the_type_asked_for(tiny, dtype):
    model = open_checkpoint(tiny('nano')).load_transformer('cpu', dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    expected = stored(tiny('nano'))['layers.1.mlp_moe_gen.up_proj.weight'].to(dtype)
    assert torch.equal(model.state_dict()['layers.1.mlp_moe_gen.up_proj.weight'], expected)


def test_a_loaded_network_is_ready_for_inference(tiny):
    model = open_checkpoint(tiny('nano')).load_transformer()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_loaded_weights_do_not_depend_on_the_file_any_more(copied):
    model = open_checkpoint(copied).load_transformer('cpu', torch.bfloat16)
    before = model.state_dict()['lm_head.weight'].clone()
    for file in (copied / 'transformer').glob('*.safetensors'):
        with file.open('r+b') as stream:
            stream.write(bytes(file.stat().st_size))
    assert torch.equal(model.state_dict()['lm_head.weight'], before)


def test_without_the_reasoner_the_language_head_is_not_loaded(tiny):
    model = open_checkpoint(tiny('nano')).load_transformer(surfaces=('policy', 'dynamics'))
    assert 'lm_head.weight' not in model.state_dict()
    with pytest.raises(CosmosError, match='without lm_head'):
        model.logits(torch.zeros(1, 128, dtype=torch.bfloat16))


def test_an_unknown_surface_is_refused(tiny):
    with pytest.raises(InvalidInput, match=r"surfaces: is unknown, got 'chess', allowed: policy, dynamics"):
        open_checkpoint(tiny('nano')).load_transformer(surfaces=('policy', 'chess'))


def test_the_video_autoencoder_is_loaded_in_the_type_asked_for(tiny):
    vae = open_checkpoint(tiny('nano')).load_vae('cpu', torch.float32)
    expected = load_file(tiny('nano') / 'vae' / WEIGHTS)
    state = vae.autoencoder.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name].float()) for name in expected)
    assert (vae.latent_channels, vae.spatial, vae.temporal) == (48, 16, 4)


def test_the_tokenizer_comes_with_the_checkpoint(tiny):
    prompt = open_checkpoint(tiny('edge')).load_tokenizer()
    assert prompt.family == 'edge'
    assert prompt.encode('')[-2:] == [11, 20]


def test_a_transformer_in_one_file_without_an_index_is_accepted(copied):
    merge_shards(copied)
    assert open_checkpoint(copied).load_transformer().has_sound


def test_a_policy_export_without_its_sound_head_is_accepted(copied):
    merge_shards(copied, keep=lambda name: not name.startswith('audio_'))
    shutil.rmtree(copied / 'sound_tokenizer')
    checkpoint = open_checkpoint(copied)
    assert checkpoint.transformer_config.sound_gen
    assert not checkpoint.has_sound
    assert not checkpoint.has_sound_tokenizer
    assert not checkpoint.load_transformer().has_sound


def test_an_export_without_language_head_vision_encoder_and_provenance_is_accepted(copied):
    merge_shards(copied, keep=lambda name: name != 'lm_head.weight')
    shutil.rmtree(copied / 'vision_encoder')
    (copied / 'checkpoint.json').unlink()
    (copied / 'model.safetensors.index.json').unlink()
    checkpoint = open_checkpoint(copied)
    assert not checkpoint.has_language_head
    assert not checkpoint.has_vision_encoder
    assert checkpoint.provenance == {}
    assert checkpoint.load_transformer().lm_head is None


def test_a_legacy_table_of_action_positions_is_ignored(copied):
    merge_shards(copied)
    file = copied / 'transformer' / WEIGHTS
    save_file({**load_file(file), 'action_pos_embed.weight': torch.zeros(4, 128)}, file, metadata={'format': 'pt'})
    assert 'action_pos_embed.weight' not in open_checkpoint(copied).load_transformer().state_dict()


@pytest.mark.parametrize('name', ['Cosmos3OmniPipeline', 'Cosmos3OmniDiffusersPipeline'])
def test_both_published_names_of_the_pipeline_are_accepted(copied, name):
    index = json.loads((copied / 'model_index.json').read_text())
    (copied / 'model_index.json').write_text(json.dumps({**index, '_class_name': name}))
    assert open_checkpoint(copied).model_index['_class_name'] == name


def test_the_fingerprint_does_not_depend_on_where_the_checkpoint_lies(tiny, copied):
    assert open_checkpoint(copied).fingerprint == open_checkpoint(tiny('nano')).fingerprint


def test_the_fingerprint_tells_apart_weights_that_differ_in_nothing_but_their_values(tiny, copied):
    merge_shards(copied)
    file = copied / 'transformer' / WEIGHTS
    tensors = load_file(file)
    save_file({**tensors, 'proj_out.weight': tensors['proj_out.weight'] * 1.5}, file, metadata={'format': 'pt'})
    assert open_checkpoint(copied).fingerprint != open_checkpoint(tiny('nano')).fingerprint


def test_a_file_that_changes_between_opening_and_loading_is_named(copied):
    checkpoint = open_checkpoint(copied)
    shard = checkpoint.tensors['lm_head.weight'].file
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf'{shard.name}: .* has changed since the checkpoint was opened'):
        checkpoint.load_transformer()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub cache of our own and no network."""
    constants = pytest.importorskip('huggingface_hub').constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    return tmp_path / 'hub'


def test_a_hub_id_that_cannot_be_had_says_what_to_do(offline):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint('nvidia/Cosmos3-Nano')
    text = str(caught.value)
    assert 'nvidia/Cosmos3-Nano: is no directory here and cannot be downloaded' in text
    assert 'go online, or copy the checkpoint to this machine (`hf download nvidia/Cosmos3-Nano`)' in text


def test_a_hub_id_in_the_local_cache_needs_no_network(offline, tiny):
    repository = offline / 'models--lab--tiny'
    shutil.copytree(tiny('edge'), repository / 'snapshots' / ('0' * 40))
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('0' * 40)
    assert open_checkpoint('lab/tiny').family == 'edge'


def test_a_path_that_is_neither_directory_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r'weights: does not exist -> name a checkpoint directory or a hub id'):
        open_checkpoint(tmp_path / 'no' / 'weights')
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='file: is not a directory'):
        open_checkpoint(tmp_path / 'file')


# Prints the bytes of the model in argv[1] and how far loading it drove the resident set.
MEASURE = """
import pathlib, sys
import torch
from engine.checkpoint import open_checkpoint

def resident(key):
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(1)
checkpoint = open_checkpoint(sys.argv[1])
for dtype in sys.argv[2:]:
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the high-water mark starts again here
    before = resident('VmRSS')
    model = checkpoint.load_transformer('cpu', getattr(torch, dtype))
    print(sum(p.nbytes for p in model.parameters()), resident('VmHWM') - before)
    del model
"""


def grow(root: Path) -> None:
    """Replace the transformer of a tiny checkpoint by one of 150 MB in three shards."""
    folder = root / 'transformer'
    sizes = {'hidden_size': 512, 'intermediate_size': 2048, 'num_hidden_layers': 11, 'sound_gen': False}
    config = dataclasses.replace(open_checkpoint(root).transformer_config, **sizes)
    with torch.device('meta'):
        shapes = {name: tensor.shape for name, tensor in CosmosTransformer(config).state_dict().items()}
    for file in folder.glob('*.safetensors*'):
        file.unlink()
    weight_map = {}
    for k in range(3):
        names = sorted(shapes)[k::3]
        file = f'diffusion_pytorch_model-{k + 1:05d}-of-00003.safetensors'
        save_file({name: torch.full(shapes[name], 0.5, dtype=torch.bfloat16) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / f'{WEIGHTS}.index.json').write_text(json.dumps({'weight_map': weight_map}))
    (folder / 'config.json').write_text(json.dumps(config.to_dict()))
    (root / 'model.safetensors.index.json').unlink()


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak is measured by means of Linux alone')
def test_loading_never_holds_a_second_copy_of_the_weights(copied, repository):
    grow(copied)
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', MEASURE, str(copied), 'bfloat16', 'float32'],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    loads = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert len(loads) == 2
    for model, growth in loads:
        assert model > 140e6
        assert 0.9 * model < growth < 1.25 * model
