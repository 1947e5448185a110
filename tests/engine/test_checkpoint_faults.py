"""A damaged checkpoint is refused before anything is loaded, with every fault named by file and tensor."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.checkpoint import open_checkpoint
from engine.checkpoint.shards import read_header
from engine.errors import CheckpointError, Problem
from engine.tiny import make_tiny

FIRST = 'transformer/diffusion_pytorch_model-00001-of-00002.safetensors'
SECOND = 'transformer/diffusion_pytorch_model-00002-of-00002.safetensors'
INDEX = 'transformer/diffusion_pytorch_model.safetensors.index.json'
VAE = 'vae/diffusion_pytorch_model.safetensors'
NORM = 'norm.weight'  # in the second shard, as its name is late in the alphabet


@pytest.fixture(scope='module')
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp('tiny') / 'nano', weights='random')


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / 'copy'))


def faults(root: Path) -> list[Problem]:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    assert str(root) in str(caught.value)
    return list(caught.value.problems)


def only(root: Path) -> Problem:
    (problem,) = faults(root)
    return problem


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; the value None removes one."""
    document = json.loads(file.read_text(encoding='utf-8')) | changes
    file.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={'format': 'pt'})


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def test_a_truncated_shard_is_named_with_its_lengths_and_the_tensors_cut_off(root):
    full = (root / SECOND).stat().st_size
    cut(root / SECOND, full - 300)
    problem = only(root)
    assert problem.where == SECOND
    assert problem.what == 'is truncated'
    assert problem.value.startswith(f'{full - 300} bytes; cut off or incomplete: ')
    assert problem.value.split(': ')[1] in load_names(root / INDEX)
    assert problem.allowed == f'{full} bytes, as its header says'


def load_names(index: Path) -> set[str]:
    return set(json.loads(index.read_text())['weight_map'])


@pytest.mark.parametrize('size', [0, 7, 8, 500])
def test_a_shard_cut_within_its_header_is_truncated(root, size):
    cut(root / SECOND, size)
    problem = only(root)
    assert (problem.where, problem.what) == (SECOND, 'is truncated')
    assert problem.value == f'{size} bytes'


def test_a_shard_with_bytes_behind_its_data_is_refused(root):
    with (root / SECOND).open('ab') as stream:
        stream.write(b'tail')
    assert only(root).what == 'is longer than its header says'


@pytest.mark.parametrize(
    ('garbage', 'what'),
    [
        (b'<!DOCTYPE html><html>', 'is not a safetensors file'),
        (struct.pack('<Q', 5) + b'hello', 'has a damaged header'),
        (struct.pack('<Q', 2) + b'[]', 'has a damaged header'),
        (struct.pack('<Q', 4) + b'\xff\xfe\xfd\xfc', 'has a damaged header'),
    ],
)
def test_garbage_in_the_place_of_a_header_is_recognised(root, garbage, what):
    (root / SECOND).write_bytes(garbage)
    problem = only(root)
    assert (problem.where, problem.what) == (SECOND, what)
    assert problem.remedy == 'download or write this file again'


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack('<Q', content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_header(file: Path, header: dict[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack('<Q', len(encoded)) + encoded + data)


@pytest.mark.parametrize(
    'entry',
    [
        {'dtype': 'BF16', 'shape': [128], 'data_offsets': [0, 100]},
        {'dtype': 'BF16', 'shape': [-1, -128], 'data_offsets': [0, 256]},
        {'dtype': 'BF16', 'shape': [128], 'data_offsets': [0.0, 256.0]},
        {'dtype': 'BF16', 'shape': [128], 'data_offsets': [-256, 0]},
        {'dtype': 'QUUX', 'shape': [128], 'data_offsets': [0, 256]},
        {'dtype': 'BF16', 'shape': 'many', 'data_offsets': [0, 256]},
        {'shape': [128]},
        7,
    ],
)
def test_a_header_that_contradicts_itself_names_the_tensor(root, entry):
    header, data = header_of(root / SECOND)
    put_header(root / SECOND, header | {NORM: entry}, data)
    problem = faults(root)[0]
    assert problem.where == f'{SECOND}: {NORM}'
    assert problem.what == 'is described inconsistently in the header'


def test_tensors_that_share_their_bytes_are_refused(root):
    header, data = header_of(root / SECOND)
    names = sorted((n for n in header if n != '__metadata__'), key=lambda n: header[n]['data_offsets'])
    twin = next(n for n in names[1:] if header[n]['shape'] == [128])
    first = header[names[0]]['data_offsets'][0]
    put_header(root / SECOND, header | {twin: header[twin] | {'data_offsets': [first, first + 256]}}, data)
    overlapping = {problem.where for problem in faults(root) if problem.what == 'overlaps the tensor before it'}
    assert overlapping & {f'{SECOND}: {twin}', f'{SECOND}: {names[0]}'}


def test_a_missing_shard_is_one_fault_with_the_tensors_it_should_hold(root):
    (root / SECOND).unlink()
    problem = only(root)
    assert (problem.where, problem.what) == (SECOND, 'is missing')
    assert problem.value.startswith('the index puts ')
    assert ' more' in problem.value


def test_a_missing_tensor_is_named_with_the_file_that_should_hold_it(root):
    rewrite(root / SECOND, lambda tensors: tensors.pop(NORM))
    assert str(only(root)) == f'{SECOND}: {NORM}: is missing, allowed: [128]'


def test_an_extra_tensor_is_named_with_its_file(root):
    rewrite(root / FIRST, lambda tensors: tensors.update(surprise=torch.zeros(2, 3, dtype=torch.bfloat16)))
    problem = only(root)
    assert (problem.where, problem.what, problem.value) == (f'{FIRST}: surprise', 'is not part of this model', '[2, 3]')


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(root):
    rewrite(root / SECOND, lambda tensors: tensors.update({NORM: torch.ones(64, dtype=torch.bfloat16)}))
    problem = only(root)
    assert str(problem) == f'{SECOND}: {NORM}: has the wrong shape, got [64], allowed: [128]'


def test_a_tensor_of_integers_is_of_the_wrong_type(root):
    rewrite(root / SECOND, lambda tensors: tensors.update({NORM: torch.ones(128, dtype=torch.int32)}))
    assert str(only(root)) == f'{SECOND}: {NORM}: has the wrong type, got I32, allowed: BF16, F16, F32, F64'


def test_half_a_sound_head_is_not_an_optional_part(root):
    rewrite(root / FIRST, lambda tensors: tensors.pop('audio_proj_out.bias'))
    assert str(only(root)) == f'{FIRST}: audio_proj_out.bias: is missing, allowed: [64]'


def test_a_missing_action_head_is_reported_tensor_by_tensor(root):
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith('action_')]:
            del tensors[name]

    rewrite(root / FIRST, drop)
    parts = ('modality_embed', 'proj_in.bias.weight', 'proj_in.fc.weight', 'proj_out.bias.weight', 'proj_out.fc.weight')
    assert [problem.where for problem in faults(root)] == [f'{FIRST}: action_{part}' for part in parts]


def test_an_index_that_omits_a_tensor_is_reported(root):
    index = json.loads((root / INDEX).read_text())
    del index['weight_map'][NORM]
    edit(root / INDEX, weight_map=index['weight_map'])
    where = {problem.where: problem.what for problem in faults(root)}
    assert where[f'{SECOND}: {NORM}'] == 'is not listed in the index'


def test_an_index_that_points_out_of_its_folder_is_refused(root):
    index = json.loads((root / INDEX).read_text())
    edit(root / INDEX, weight_map=index['weight_map'] | {NORM: '../../etc/passwd'})
    problem = next(problem for problem in faults(root) if problem.where == f'{INDEX}: {NORM}')
    assert (problem.what, problem.value) == ('is mapped to a strange place', "'../../etc/passwd'")


def test_a_tensor_in_two_shards_is_reported(root):
    rewrite(root / FIRST, lambda tensors: tensors.update({NORM: torch.ones(128, dtype=torch.bfloat16)}))
    assert f'{FIRST}: {NORM}: is in another file by the index' in str(only(root))


def test_a_missing_index_beside_shards_is_reported(root):
    (root / INDEX).unlink()
    assert (only(root).where, only(root).what) == (INDEX, 'is missing')


def test_a_root_index_that_points_to_the_wrong_file_is_reported(root):
    index = json.loads((root / 'model.safetensors.index.json').read_text())
    weights = index['weight_map'] | {'pos_embed.weight': FIRST}
    edit(root / 'model.safetensors.index.json', weight_map=weights)
    problem = only(root)
    assert problem.where == 'model.safetensors.index.json: pos_embed.weight'
    assert problem.what == 'is mapped to a file that lacks it'


@pytest.mark.parametrize('text', ['{"hidden_size": 128,', '', '\x00\x01', '[' * 100_000])
def test_an_unreadable_configuration_is_named(root, text):
    (root / 'transformer/config.json').write_text(text)
    problem = only(root)
    assert (problem.where, problem.what) == ('transformer/config.json', 'cannot be read as JSON')


def test_a_configuration_that_is_no_object_is_named(root):
    (root / 'config.json').write_text('[]')
    assert str(only(root)) == 'config.json: is not a JSON object, got list'


def test_a_configuration_of_other_sizes_names_every_tensor_that_does_not_fit(root):
    edit(root / 'transformer/config.json', intermediate_size=512)
    problems = faults(root)
    assert len(problems) == 2 * 2 * 3  # layers, towers, matrices of a gated MLP
    assert {problem.what for problem in problems} == {'has the wrong shape'}
    assert f'{FIRST}: layers.0.mlp.down_proj.weight: has the wrong shape, got [128, 256], allowed: [128, 512]' in map(
        str, problems
    )


def test_faults_within_the_configuration_are_all_listed(root):
    edit(root / 'transformer/config.json', num_hidden_layers=-1, hidden_act='gelu', vocab_size=None)
    where = [problem.where for problem in faults(root)]
    assert sorted(where) == [f'transformer/config.json: {k}' for k in ('hidden_act', 'num_hidden_layers', 'vocab_size')]


@pytest.mark.parametrize(
    ('file', 'what'),
    [
        ('model_index.json', 'is not a Cosmos 3 pipeline'),
        ('transformer/config.json', 'is of another model'),
        ('vae/config.json', 'is of another model'),
    ],
)
def test_the_class_of_another_model_is_refused(root, file, what):
    edit(root / file, _class_name='SomethingElse')
    problem = only(root)
    assert (problem.where, problem.what, problem.value) == (f'{file}: _class_name', what, "'SomethingElse'")


def test_a_root_configuration_of_another_family_is_refused(root):
    edit(root / 'config.json', model_type='cosmos3_edge')
    problem = only(root)
    assert (problem.where, problem.allowed) == ('config.json: model_type', 'cosmos3_omni')
    assert problem.value == "'cosmos3_edge' beside a transformer of family nano"


@pytest.mark.parametrize(
    'file',
    [
        'config.json',
        'model_index.json',
        'scheduler/scheduler_config.json',
        'text_tokenizer/chat_template.jinja',
        'text_tokenizer/tokenizer.json',
        'text_tokenizer/tokenizer_config.json',
        'transformer/config.json',
        'vae/config.json',
        VAE,
    ],
)
def test_a_missing_file_is_named(root, file):
    (root / file).unlink()
    problem = only(root)
    assert (problem.where, problem.what) == (file, 'is missing')


@pytest.mark.parametrize('part', ['text_tokenizer', 'transformer', 'vae', 'scheduler'])
def test_a_missing_part_is_reported_by_its_files(root, part):
    shutil.rmtree(root / part)
    problems = faults(root)
    assert problems
    assert all(problem.where.startswith(f'{part}/') and problem.what == 'is missing' for problem in problems)


def test_a_chat_template_inside_the_tokenizer_configuration_will_do(root):
    template = root / 'text_tokenizer/chat_template.jinja'
    edit(root / 'text_tokenizer/tokenizer_config.json', chat_template=template.read_text())
    template.unlink()
    assert open_checkpoint(root).load_tokenizer().encode('')


def test_a_damaged_video_autoencoder_is_reported_like_the_transformer(root):
    rewrite(root / VAE, lambda tensors: tensors.pop('quant_conv.bias'))
    assert str(only(root)) == f'{VAE}: quant_conv.bias: is missing, allowed: [96]'


def test_a_video_autoencoder_with_other_latents_is_refused(root):
    edit(root / 'vae/config.json', z_dim=16)
    assert faults(root)[0].where == 'vae/config.json: z_dim'
    assert faults(root)[0].allowed == '48, as the transformer has'


def test_a_configuration_of_no_video_autoencoder_is_reported_with_every_fault(root):
    edit(root / 'vae/config.json', dim_mult='wide', is_residual=False)
    assert [str(problem) for problem in faults(root)] == [
        "vae/config.json: dim_mult: has a wrong value, got 'wide', allowed: a list of positive integers",
        'vae/config.json: is_residual: is not the autoencoder of Cosmos 3, got False, '
        'allowed: true, the residual Wan 2.2 variant',
    ]


def test_a_sound_tokenizer_without_weights_is_incomplete(root):
    (root / 'sound_tokenizer/diffusion_pytorch_model.safetensors').unlink()
    assert only(root).where == 'sound_tokenizer/diffusion_pytorch_model.safetensors'


def test_a_damaged_vision_encoder_is_reported_although_it_is_optional(root):
    cut(root / 'vision_encoder/model.safetensors', 5000)
    assert faults(root)[0].where == 'vision_encoder/model.safetensors'


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        ('layers.0.self_attn.to_q.weight_quantizer._scale', torch.float32),
        ('embed_tokens.weight', torch.float8_e4m3fn),
    ],
)
def test_a_quantised_checkpoint_is_recognised_as_one(root, name, dtype):
    rewrite(root / FIRST, lambda tensors: tensors.update({name: torch.ones(64, 128).to(dtype)}))
    problem = only(root)
    assert problem.what == 'is quantised (ModelOpt), which this engine cannot load'
    assert name in problem.value
    assert problem.remedy == 'use the bfloat16 revision of this checkpoint'


def test_a_configuration_that_declares_quantisation_is_enough(root):
    edit(root / 'transformer/config.json', quantization_config={'quant_method': 'modelopt'})
    assert only(root).value == 'quantization_config'


def test_many_faults_come_in_one_error(root):
    (root / FIRST).unlink()
    rewrite(root / SECOND, lambda tensors: tensors.update({NORM: torch.ones(64, dtype=torch.bfloat16)}))
    rewrite(root / VAE, lambda tensors: tensors.update(surprise=torch.zeros(1, dtype=torch.bfloat16)))
    (root / 'text_tokenizer/tokenizer.json').unlink()
    (root / 'scheduler/scheduler_config.json').write_text('{')
    edit(root / 'model_index.json', _class_name='SomethingElse')
    assert {problem.where for problem in faults(root)} == {
        FIRST,
        f'{SECOND}: {NORM}',
        f'{VAE}: surprise',
        'text_tokenizer/tokenizer.json',
        'scheduler/scheduler_config.json',
        'model_index.json: _class_name',
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), prefix=st.sampled_from([b'', struct.pack('<Q', 40), struct.pack('<Q', 2)]))
def test_no_bytes_whatever_make_the_header_reader_fail_otherwise(tmp_path, content, prefix):
    file = tmp_path / 'any.safetensors'
    file.write_bytes(prefix + content)
    tensors, problems = read_header(file, 'any')
    assert problems or not tensors


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(min_value=0, max_value=1_100_000))
def test_a_file_cut_anywhere_is_truncated(pristine, tmp_path, size):
    whole = (pristine / VAE).read_bytes()
    file = tmp_path / 'cut.safetensors'
    file.write_bytes(whole[: min(size, len(whole) - 1)])
    _, problems = read_header(file, 'cut')
    assert [problem.what for problem in problems] == ['is truncated']


def test_a_folder_that_is_no_checkpoint_at_all_says_so_file_by_file(tmp_path):
    where = {problem.where for problem in faults(tmp_path)}
    assert {'model_index.json', 'config.json', 'transformer/config.json', 'vae/config.json'} <= where
