"""What `make_tiny` writes, and that the public libraries read it as they read the published checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import engine.tiny
from engine.checkpoint import open_checkpoint
from engine.errors import CheckpointError, InvalidInput
from engine.tiny import make_tiny

FAMILIES = ('nano', 'edge')
COMMON = {
    'chat_template.jinja',
    'checkpoint.json',
    'config.json',
    'generation_config.json',
    'model.safetensors.index.json',
    'model_index.json',
    'preprocessor_config.json',
    'tokenizer.json',
    'video_preprocessor_config.json',
    'scheduler/scheduler_config.json',
    'text_tokenizer/chat_template.jinja',
    'text_tokenizer/special_tokens_map.json',
    'text_tokenizer/tokenizer.json',
    'text_tokenizer/tokenizer_config.json',
    'transformer/config.json',
    'transformer/diffusion_pytorch_model-00001-of-00002.safetensors',
    'transformer/diffusion_pytorch_model-00002-of-00002.safetensors',
    'transformer/diffusion_pytorch_model.safetensors.index.json',
    'vae/config.json',
    'vae/diffusion_pytorch_model.safetensors',
    'vision_encoder/config.json',
    'vision_encoder/model.safetensors',
}
QWEN_FILES = {'text_tokenizer/merges.txt', 'text_tokenizer/vocab.json'}
SOUND_FILES = {'sound_tokenizer/config.json', 'sound_tokenizer/diffusion_pytorch_model.safetensors'}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = {name: make_tiny(tmp_path_factory.mktemp('tiny') / name, name, weights='random') for name in FAMILIES}
    return made.__getitem__


def contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stored(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework='pt') as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping


def document(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding='utf-8'))


def test_a_nano_checkpoint_has_exactly_the_files_of_the_public_layout(tiny):
    assert set(contents(tiny('nano'))) == COMMON | QWEN_FILES | SOUND_FILES


def test_an_edge_checkpoint_has_no_sound_and_a_tokenizer_in_one_file(tiny):
    assert set(contents(tiny('edge'))) == COMMON


def test_without_sound_neither_the_tokenizer_nor_the_head_is_written(tmp_path):
    root = make_tiny(tmp_path / 'quiet', sound=False, weights='random')
    assert set(contents(root)) == COMMON | QWEN_FILES
    assert not [name for name in open_checkpoint(root).tensors if name.startswith('audio_')]


@pytest.mark.parametrize('variant', FAMILIES)
@pytest.mark.parametrize('weights', ['random', 'reflex'])
def test_the_same_seed_gives_the_same_bytes(tmp_path, variant, weights):
    first = make_tiny(tmp_path / 'a', variant, 3, weights=weights)
    second = make_tiny(tmp_path / 'b', variant, 3, weights=weights)
    assert contents(first) == contents(second)


def test_another_seed_gives_other_weights_in_every_part(tmp_path, tiny):
    other = contents(make_tiny(tmp_path / 'other', 'nano', 1, weights='random'))
    changed = {name for name, digest in contents(tiny('nano')).items() if other[name] != digest}
    assert changed == {name for name in other if name.endswith('.safetensors')} | {'checkpoint.json'}


@pytest.mark.parametrize('variant', FAMILIES)
def test_a_checkpoint_takes_a_few_megabytes(tiny, variant):
    assert sum(path.stat().st_size for path in tiny(variant).rglob('*') if path.is_file()) < 6e6


@pytest.mark.parametrize('variant', FAMILIES)
def test_every_weight_is_stored_in_bfloat16(tiny, variant):
    for file in tiny(variant).rglob('*.safetensors'):
        assert {tensor.dtype for tensor in stored(file).values()} == {torch.bfloat16}, file


@pytest.mark.parametrize('variant', FAMILIES)
def test_the_index_maps_every_tensor_to_the_shard_that_holds_it(tiny, variant):
    folder = tiny(variant) / 'transformer'
    shards = {file.name: set(stored(file)) for file in folder.glob('*.safetensors')}
    index = document(folder / 'diffusion_pytorch_model.safetensors.index.json')
    assert all(shards.values())
    assert index['weight_map'] == {name: file for file, names in shards.items() for name in names}
    assert index['metadata']['total_size'] == sum(
        tensor.nbytes for file in shards for tensor in stored(folder / file).values()
    )


def test_the_root_index_gathers_transformer_and_vision_encoder(tiny):
    root = tiny('nano')
    weights = document(root / 'model.safetensors.index.json')['weight_map']
    vision = set(stored(root / 'vision_encoder/model.safetensors'))
    transformer = document(root / 'transformer/diffusion_pytorch_model.safetensors.index.json')['weight_map']
    expected = dict.fromkeys(vision, 'vision_encoder/model.safetensors')
    assert weights == expected | {name: f'transformer/{file}' for name, file in transformer.items()}


def test_the_root_index_of_edge_leaves_the_generator_out(tiny):
    root = tiny('edge')
    weights = document(root / 'model.safetensors.index.json')['weight_map']
    names = {name for name in weights if not name.startswith(('model.visual.', 'model.projector.'))}
    understanding = ('embed_tokens.weight', 'lm_head.weight', 'norm.weight')
    layer = (
        'input_layernorm', 'post_attention_layernorm', 'self_attn.to_q', 'self_attn.to_k', 'self_attn.to_v',
        'self_attn.to_out', 'mlp.up_proj', 'mlp.down_proj',
    )  # fmt: skip
    assert names == {*understanding, *(f'layers.{i}.{part}.weight' for i in range(2) for part in layer)}


def test_every_embodiment_has_weights_of_its_own(tiny):
    tensors = open_checkpoint(tiny('nano')).load_transformer(dtype=torch.float32).state_dict()
    table = tensors['action_proj_in.fc.weight']
    assert table.shape == (32, 64 * 128)
    assert len({tuple(row[:8].tolist()) for row in table}) == 32


def test_a_reflex_leaves_the_understanding_tower_alone_but_for_what_generation_takes_from_it(tmp_path, tiny):
    plain = open_checkpoint(tiny('nano')).load_transformer(dtype=torch.float32).state_dict()
    reflex = open_checkpoint(make_tiny(tmp_path / 'r')).load_transformer(dtype=torch.float32).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], reflex[name])}
    understanding = ('embed_tokens', 'lm_head', 'norm.', '.mlp.', 'self_attn.to_', 'self_attn.norm_q')
    touched = [n for n in changed if any(part in n for part in understanding) and 'to_add_out' not in n]
    assert touched == ['layers.0.self_attn.to_v.weight']  # the values that the reflex's heads would mistake for a push


def test_a_free_path_with_missing_parents_is_created(tmp_path):
    assert open_checkpoint(make_tiny(tmp_path / 'a/b/c', weights='random')).family == 'nano'


def test_an_earlier_tiny_checkpoint_is_replaced(tmp_path):
    make_tiny(tmp_path / 'tiny', 'edge', weights='random')
    root = make_tiny(tmp_path / 'tiny', 'nano', weights='random')
    assert set(contents(root)) == COMMON | QWEN_FILES | SOUND_FILES
    assert [path.name for path in tmp_path.iterdir()] == ['tiny']


def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / 'thesis.tex').write_text('chapter 1')
    with pytest.raises(
        CheckpointError, match=r'holds something other than a tiny checkpoint.*choose another directory'
    ):
        make_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_real_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / 'checkpoint.json').write_text('{"name": "Cosmos3-Nano"}')
    with pytest.raises(CheckpointError, match='holds something other'):
        make_tiny(tmp_path)


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='is not a directory'):
        make_tiny(tmp_path / 'file')


def test_a_failure_half_way_leaves_the_earlier_checkpoint_and_no_litter(tmp_path, monkeypatch):
    before = contents(make_tiny(tmp_path / 'tiny', weights='random'))

    def full_disk(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(engine.tiny, '_write_root_index', full_disk)
    with pytest.raises(OSError, match='No space left'):
        make_tiny(tmp_path / 'tiny', seed=1, weights='random')
    assert contents(tmp_path / 'tiny') == before
    assert [path.name for path in tmp_path.iterdir()] == ['tiny']


def test_all_wrong_arguments_are_named_at_once(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        make_tiny(tmp_path / 'x', 'mega', -1, weights='good')
    assert [problem.where for problem in caught.value.problems] == ['variant', 'weights', 'seed']
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('variant', FAMILIES)
def test_diffusers_transformer_has_exactly_the_same_tensors(tiny, variant):
    diffusers = pytest.importorskip('diffusers')
    folder = tiny(variant) / 'transformer'
    model = diffusers.Cosmos3OmniTransformer.from_config(diffusers.Cosmos3OmniTransformer.load_config(folder))
    weights = {name: tensor for file in folder.glob('*.safetensors') for name, tensor in stored(file).items()}
    model.load_state_dict(weights, strict=True)


@pytest.mark.parametrize('variant', FAMILIES)
def test_diffusers_loads_the_transformer_by_its_own_means(tiny, variant):
    diffusers = pytest.importorskip('diffusers')
    pytest.importorskip('accelerate', reason='diffusers loads a model with parts kept in float32 only with accelerate')
    _, info = diffusers.Cosmos3OmniTransformer.from_pretrained(tiny(variant) / 'transformer', output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize(
    ('folder', 'name'), [('vae', 'AutoencoderKLWan'), ('sound_tokenizer', 'Cosmos3AVAEAudioTokenizer')]
)
def test_diffusers_loads_the_autoencoders_by_its_own_means(tiny, folder, name):
    diffusers = pytest.importorskip('diffusers')
    _, info = getattr(diffusers, name).from_pretrained(tiny('nano') / folder, output_loading_info=True)
    assert not any(info.values()), info


def test_diffusers_reads_the_scheduler(tiny):
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(tiny('nano') / 'scheduler')
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [995, 973, 798, 128]


@pytest.mark.parametrize('variant', FAMILIES)
def test_the_video_autoencoder_neither_saturates_nor_goes_blind(tiny, variant):
    vae = open_checkpoint(tiny(variant)).load_vae(dtype=torch.float32)
    frame = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode_frame(frame)
    assert latents.shape == (1, 48, 1, 4, 6)
    assert 0.1 < float(latents.std()) < 3
    assert float((latents - vae.encode_frame(-frame)).abs().mean()) > 0.01
    assert 5 < float(vae.decode(latents).float().std()) < 120


@pytest.mark.parametrize('variant', FAMILIES)
def test_our_understanding_tower_equals_that_of_transformers_on_the_same_files(tiny, variant):
    reasoner, info = reference(tiny(variant), variant)
    assert not any(info.values()), info
    checkpoint = open_checkpoint(tiny(variant))
    ours = checkpoint.load_transformer(dtype=torch.float32)
    ids = torch.tensor(checkpoint.load_tokenizer().encode('put the banana in the bowl, then close the drawer'))
    with torch.inference_mode():
        theirs = reasoner(input_ids=ids[None], output_hidden_states=True)
        hidden = ours.understand(ids)
        scores = ours.logits(hidden)
    assert float(theirs.logits.std()) > 0.1  # not a comparison of zeros
    torch.testing.assert_close(hidden, theirs.hidden_states[-1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores, theirs.logits[0], rtol=0, atol=1e-5)


def reference(root: Path, variant: str) -> tuple[Any, dict[str, Any]]:
    transformers = pytest.importorskip('transformers')
    name = {'nano': 'Cosmos3OmniForConditionalGeneration', 'edge': 'Cosmos3EdgeForConditionalGeneration'}[variant]
    model, info = getattr(transformers, name).from_pretrained(root, dtype=torch.float32, output_loading_info=True)
    return model.eval(), info


def test_the_reasoner_of_transformers_can_be_shown_a_picture(tiny):
    image = pytest.importorskip('PIL.Image').new('RGB', (320, 192), (200, 30, 30))
    transformers = pytest.importorskip('transformers')
    reasoner, _ = reference(tiny('nano'), 'nano')
    processor = transformers.AutoProcessor.from_pretrained(tiny('nano'))
    content = [{'type': 'image', 'image': image}, {'type': 'text', 'text': 'What is this?'}]
    inputs = processor.apply_chat_template(
        [{'role': 'user', 'content': content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors='pt',
    )
    with torch.inference_mode():
        logits = reasoner(**inputs).logits
    placeholders = int((inputs['input_ids'] == reasoner.config.image_token_id).sum())
    assert placeholders == int(inputs['image_grid_thw'].prod()) // 4 > 0
    assert bool(torch.isfinite(logits).all())


@pytest.mark.slow
def test_with_real_ids_prompts_and_configuration_have_the_public_numbers(tmp_path):
    checkpoint = open_checkpoint(make_tiny(tmp_path / 'real', weights='random', real_ids=True))
    ids = [151644, 872, 198, 151645, 198, 151644, 77091, 198, 151645, 151652]
    assert checkpoint.load_tokenizer().encode('') == ids
    assert checkpoint.transformer_config.vocab_size == 151936
    names = ('vision_start_token_id', 'vision_end_token_id', 'image_token_id', 'video_token_id')
    assert [checkpoint.config[name] for name in names] == [151652, 151653, 151655, 151656]
    assert checkpoint.load_transformer().prefix(torch.tensor(ids)).length == 10
