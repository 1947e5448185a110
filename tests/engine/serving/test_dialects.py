"""What each dialect reads and writes, to the byte; which one a request is in; and every fault of a request at once."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine.errors import InvalidInput, ServerError
from engine.observation.views import COMPOSITIONS, compose, in_shape
from engine.serving.base import BusyError, Fault, Fields, Refusal, Reply, RequestError
from engine.serving.cameras import read_composite
from engine.serving.dialects import DIALECTS, FRAMEWORK, OPENPI, ROBOARENA, VLLM_OMNI, tongue
from engine.serving.wire import pack, unpack
from tests.engine.serving.clients import OMNI, PROMPT, composite, exteriors, picture, state, views, with_history

REPLY = Reply(np.array([[1, 2]], np.float32), 2.5, 0.5, np.zeros((1, 1, 1, 3), np.uint8))
ARRAY = '84c40b5f5f6e6461727261795f5fc3c40464617461c4080000803f00000040c4056474797065a33c6634c4057368617065920102'
VIDEO = '84c40b5f5f6e6461727261795f5fc3c40464617461c403000000c4056474797065a37c7531c40573686170659401010103'
TIMING = (
    'ad7365727665725f74696d696e6782a8696e6665725f6d73cb4004000000000000ad707265765f746f74616c5f6d73cb3fe0000000000000'
)
ACTIONS = 'a7616374696f6e73'
ACTION = 'a6616374696f6e'


# To the byte


@pytest.mark.parametrize(
    ('dialect', 'wanted'),
    [
        (OPENPI, f'82{ACTIONS}{ARRAY}{TIMING}'),
        (FRAMEWORK, f'83{ACTION}{ARRAY}a5766964656f{VIDEO}{TIMING}'),
        (ROBOARENA, f'81{ACTIONS}{ARRAY}'),
        (VLLM_OMNI, ARRAY),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_the_bytes_of_an_answer_are_these(dialect, wanted):
    frame = dialect.reply(REPLY)
    assert frame.data == bytes.fromhex(wanted)
    assert not frame.closes


def test_the_bytes_of_a_reset_and_of_faults_are_these():
    assert OPENPI.reset_reply().data == ROBOARENA.reset_reply().data == 'reset successful'
    assert VLLM_OMNI.reset_reply().data == bytes.fromhex('81a6737461747573b072657365742073756363657373' + '66756c')
    fault = Refusal(Fault.INVALID, 'no', ('a: b',))
    wanted = (
        '83a474797065a56572726f72a76d657373616765b7496e76616c69642072657175657374207061796c6f6164a870726f626c656d73'
    )
    assert VLLM_OMNI.refusal(fault).data == bytes.fromhex(wanted + '91a4613a2062')


@pytest.mark.parametrize('dialect', [OPENPI, FRAMEWORK, ROBOARENA], ids=lambda d: d.name)
def test_a_fault_is_a_text_that_ends_the_connection_and_busy_one_that_does_not(dialect):
    assert dialect.refusal(Refusal(Fault.INVALID, 'no')).data == 'no'
    closing = {fault: dialect.refusal(Refusal(fault, 'no')).closes for fault in Fault}
    assert {fault for fault, closes in closing.items() if closes} == {Fault.INVALID, Fault.INTERNAL}


def test_a_fault_leaves_a_connection_of_vllm_omni_open():
    frames = {fault: VLLM_OMNI.refusal(Refusal(fault, 'what happened')) for fault in Fault}
    assert not any(frame.closes for frame in frames.values())
    told = {fault: unpack(frame.data) for fault, frame in frames.items()}
    assert {answer['type'] for answer in told.values()} == {'error'}
    assert told[Fault.INTERNAL]['message'] == 'Internal inference error'
    assert (told[Fault.BUSY]['message'], told[Fault.BUSY]['code']) == ('Server busy', 'busy')
    assert all(answer['problems'] == ['what happened'] for answer in told.values())


REQUEST = bytes.fromhex(
    '84'
    'b16f62736572766174696f6e2f696d616765' '84c40b5f5f6e6461727261795f5fc3c40464617461c504c8' + '07' * 0x4C8 +
    'c4056474797065a37c7531c40573686170659311180' '3'
    'ba6f62736572766174696f6e2f6a6f696e745f706f736974696f6e' '84c40b5f5f6e6461727261795f5fc3c40464617461c41c'
    + '0000803f' * 7 + 'c4056474797065a33c6634c40573686170659107'
    'bc6f62736572766174696f6e2f677269707065725f706f736974696f6e' 'cb3fd0000000000000'
    'a670726f6d7074' 'a46c696674'
)  # fmt: skip


def test_a_request_of_these_bytes_is_read_in_every_dialect_with_a_composite(droid):
    for dialect in (FRAMEWORK, VLLM_OMNI):
        request = dialect.read(unpack(REQUEST), droid)
        assert (request.kind, request.instruction, request.seed, request.session) == ('infer', 'lift', None, None)
        assert {name: view.shape for name, view in request.images.items()} == {
            'wrist': (360, 640, 3),
            'exterior_1': (180, 320, 3),
            'exterior_2': (180, 320, 3),
        }
        assert all((view == 7).all() for view in request.images.values())
        np.testing.assert_array_equal(request.state['joint_positions'], np.ones((1, 7)))
        np.testing.assert_array_equal(request.state['gripper_position'], [0.25])


def text(words: str) -> bytes:
    head = bytes([0xA0 | len(words)]) if len(words) < 32 else bytes([0xD9, len(words)])
    return head + words.encode()


def array(kind: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """An array by the rules of msgpack and openpi, without the library."""
    key = {name: bytes([0xC4, len(name)]) + name for name in (b'__ndarray__', b'data', b'dtype', b'shape')}
    head = bytes([0xC4, len(data)]) if len(data) < 256 else b'\xc6' + len(data).to_bytes(4, 'big')
    sizes = b''.join(bytes([n]) if n < 128 else b'\xcd' + n.to_bytes(2, 'big') for n in shape)
    return (
        b'\x84' + key[b'__ndarray__'] + b'\xc3' + key[b'data'] + head + data
        + key[b'dtype'] + text(kind) + key[b'shape'] + bytes([0x90 | len(shape)]) + sizes
    )  # fmt: skip


def shot(level: int, height: int = 360, width: int = 640) -> bytes:
    return array('|u1', (height, width, 3), bytes([level]) * (height * width * 3))


WHOLE = array('|u1', (540, 640, 3), b'\x05' * (540 * 640 * 3))
JOINTS = text('observation/joint_position') + array('<f8', (7,), bytes.fromhex('000000000000f03f') * 7)
GRIPPER = text('observation/gripper_position') + array('<f8', (), bytes.fromhex('000000000000d03f'))
WORDS = text('prompt') + text('lift')
MINE = text('session_id') + text('s')
SEEDED = text('seed') + b'\x09'
INFER = text('endpoint') + text('infer')


def cameras(first: int) -> bytes:
    exteriors = (text(f'observation/exterior_image_{first + k}_left') + shot(5) for k in range(2))
    return text('observation/wrist_image_left') + shot(5) + b''.join(exteriors)


@pytest.mark.parametrize(
    ('dialect', 'wanted'),
    [
        (OPENPI, b'\x87' + cameras(1) + JOINTS + GRIPPER + WORDS + SEEDED),
        (FRAMEWORK, b'\x85' + text('observation/image') + WHOLE + JOINTS + GRIPPER + WORDS + SEEDED),
        (ROBOARENA, b'\x89' + cameras(0) + JOINTS + GRIPPER + WORDS + MINE + SEEDED + INFER),
        (VLLM_OMNI, b'\x87' + text('observation/image') + WHOLE + JOINTS + GRIPPER + WORDS + MINE + SEEDED + INFER),
    ],
    ids=lambda value: getattr(value, 'name', ''),
)
def test_the_bytes_of_a_request_are_these_in_both_directions(droid, dialect, wanted):
    images = {view: np.full((360, 640, 3), 5, np.uint8) for view in droid.views.streams}
    observation = engine.Observation(images, 'lift', np.ones(7), 0.25)
    assert pack(dialect.request(observation, droid, 9, 's')) == wanted
    request = dialect.read(unpack(wanted), droid)
    assert (request.instruction, request.seed) == ('lift', 9)
    assert (request.state['joint_positions'] == 1).all()
    assert request.state['gripper_position'].tolist() == [0.25]
    assert (composite_of(request, droid) == 5).all()


# Which dialect


@pytest.mark.parametrize(
    ('path', 'message', 'name'),
    [
        ('/', views(), 'cosmos-framework'),
        ('/', composite(), 'cosmos-framework'),
        ('/', exteriors(1) | state(), 'openpi'),
        ('/', {}, 'openpi'),
        ('/', exteriors(0, 1) | {'endpoint': 'infer'}, 'roboarena'),
        ('/', composite(endpoint='reset'), 'roboarena'),
        (OMNI, exteriors(0, 1) | {'endpoint': 'infer'}, 'vllm-omni'),
        (OMNI, {}, 'vllm-omni'),
    ],
)
def test_a_dialect_is_known_by_path_and_fields(path, message, name):
    assert tongue(path).dialect_of(message).name == name


@pytest.mark.parametrize('name', DIALECTS)
@pytest.mark.parametrize('path', ['/', OMNI])
def test_a_dialect_that_is_forced_is_spoken_at_either_path(name, path):
    spoken = tongue(path, name)
    assert all(spoken.dialect_of(m).name == name for m in (views(), composite(endpoint='infer'), {}))


def test_nothing_is_spoken_at_other_paths_and_no_unknown_dialect():
    assert tongue('/predict') is None
    with pytest.raises(InvalidInput, match='allowed: openpi, cosmos-framework, roboarena, vllm-omni'):
        tongue('/', 'grpc')


def test_whoever_may_be_either_client_finds_the_field_of_either(droid):
    answer = unpack(tongue('/').dialect_of(views()).reply(REPLY).data)
    np.testing.assert_array_equal(answer['action'], answer['actions'])


def test_the_first_words_are_what_each_client_needs(droid):
    configuration = {
        'image_resolution': [360, 640],
        'needs_wrist_camera': True,
        'n_external_cameras': 2,
        'needs_stereo_camera': False,
        'needs_session_id': False,
        'action_space': 'joint_position',
    }
    assert tongue('/').metadata(droid) == ROBOARENA.metadata(droid) == configuration
    assert tongue('/', 'cosmos-framework').metadata(droid) == {}
    assert VLLM_OMNI.metadata(droid) == configuration | {'needs_session_id': True}
    assert OPENPI.metadata(droid)['action_horizon'] == 32
    poses = engine.load_contract('droid_ee_delta')
    assert ROBOARENA.metadata(poses) == {}
    assert 'action_space' not in VLLM_OMNI.metadata(poses)


# Pictures


def composite_of(request, contract):
    terms = contract.views
    return compose(in_shape(request.images, terms.composition, terms.size), terms.composition, terms.size)


def test_a_composite_reaches_the_policy_to_the_bit(droid):
    message = composite()
    np.testing.assert_array_equal(composite_of(FRAMEWORK.read(message, droid), droid), message['observation/image'])


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(110, 300).filter(lambda h: h % 3 != 2),
    width=st.integers(20, 150).map(lambda w: 2 * w),
    composition=st.sampled_from(sorted(COMPOSITIONS)),
)
def test_a_composite_of_any_size_is_taken_apart_such_that_it_comes_together_again(height, width, composition):
    droid = engine.load_contract('droid_joint_pos')
    terms = replace(droid.views, composition=composition, size=(height, width))
    contract, image = replace(droid, views=terms), picture(height, width)
    parts = read_composite(Fields({'observation/image': image}), contract)
    whole = compose(in_shape(parts, composition, terms.size), composition, terms.size)
    np.testing.assert_array_equal(whole, image)


def test_a_composite_that_could_not_be_put_together_again_is_refused(droid):
    contract = replace(droid, views=replace(droid.views, size=(542, 640)))
    with pytest.raises(RequestError, match='cannot be taken apart at 542 rows'):
        FRAMEWORK.read(composite(), contract)


@pytest.mark.parametrize('size', [(270, 320), (360, 640), (720, 1280), (541, 639)])
def test_a_composite_of_another_size_is_resized_as_the_reference_server_does(droid, size):
    import torch

    message = composite(height=size[0], width=size[1])
    planes = torch.from_numpy(message['observation/image']).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(planes, size=(540, 640), mode='bilinear', align_corners=False)
    wanted = wanted[0].permute(1, 2, 0).numpy().astype(np.uint8)
    np.testing.assert_array_equal(composite_of(FRAMEWORK.read(message, droid), droid), wanted)


@pytest.mark.parametrize('size', [(360, 640), (180, 320), (480, 640), (540, 640)])
def test_views_are_composed_as_the_reference_server_does_whatever_their_shape(droid, size):
    cameras = {key: picture(*size, seed=k) for k, key in enumerate(exteriors(1, 2))}
    request = FRAMEWORK.read(views() | cameras, droid)
    sent = dict(zip(('wrist', 'exterior_1', 'exterior_2'), cameras.values(), strict=True))
    wanted = compose(sent, 'wrist_over_two_exteriors', (540, 640))
    np.testing.assert_array_equal(composite_of(request, droid), wanted)


@pytest.mark.parametrize(
    ('dialect', 'numbers'),
    [(OPENPI, (1, 2)), (FRAMEWORK, (1, 2)), (ROBOARENA, (0, 1)), (ROBOARENA, (1, 2)), (VLLM_OMNI, (1, 2)),
     (VLLM_OMNI, (0, 1))],
    ids=lambda value: getattr(value, 'name', str(value)),
)  # fmt: skip
def test_exterior_cameras_are_counted_as_the_client_counts_them(droid, dialect, numbers):
    message = exteriors(*numbers) | state() | {'prompt': PROMPT, 'endpoint': 'infer'}
    images = dialect.read(message, droid).images
    for view, number in zip(('exterior_1', 'exterior_2'), numbers, strict=True):
        np.testing.assert_array_equal(images[view], message[f'observation/exterior_image_{number}_left'])


@pytest.mark.parametrize('dialect', [OPENPI, FRAMEWORK], ids=lambda d: d.name)
def test_a_camera_0_is_no_camera_where_they_are_counted_from_1(dialect, droid):
    with pytest.raises(RequestError, match='exterior_image_2_left: is missing'):
        dialect.read(exteriors(0, 1) | state() | {'prompt': PROMPT}, droid)


def test_pictures_that_are_no_bytes_are_clipped_and_cut_off(droid):
    levels = np.full((540, 640, 3), 9.99)
    levels[0, 0] = (-5, 300, 254.5)
    image = composite_of(FRAMEWORK.read(composite() | {'observation/image': levels}, droid), droid)
    assert image[0, 0].tolist() == [0, 255, 254]
    assert (image[1:] == 9).all()


# State


@pytest.mark.parametrize('gripper', [0.25, np.float32(0.25), [0.25], np.array([0.25]), np.array([[0.25]])])
@pytest.mark.parametrize('joints', [[1, 2, 3, 4, 5, 6, 7.5], np.arange(7.0), np.arange(7.0)[None]])
def test_a_state_may_be_written_in_many_ways(droid, gripper, joints):
    message = composite() | {'observation/gripper_position': gripper, 'observation/joint_position': joints}
    found = FRAMEWORK.read(message, droid).state
    np.testing.assert_array_equal(found['joint_positions'], np.reshape(np.asarray(joints, float), (1, 7)))
    np.testing.assert_array_equal(found['gripper_position'], [0.25])


def test_the_newest_row_of_a_history_is_the_state_and_the_rest_is_kept_where_it_is_wanted(droid):
    joints, gripper = np.arange(28.0).reshape(4, 7), np.linspace(0, 1, 4)
    message = composite() | {'observation/gripper_position': gripper, 'observation/joint_position': joints}
    np.testing.assert_array_equal(FRAMEWORK.read(message, droid).state['joint_positions'], joints[-1:])
    remembering = FRAMEWORK.read(message, with_history(droid, 3)).state
    np.testing.assert_array_equal(remembering['joint_positions'], joints)
    np.testing.assert_array_equal(remembering['gripper_position'], gripper)


def test_poses_are_read_where_the_contract_has_poses():
    contract = engine.load_contract('droid_ee_delta')
    pose = {'observation/eef_pos': np.array([0.4, 0, 0.3]), 'observation/eef_quat': np.array([1.0, 0, 0, 0])}
    message = {'observation/image': picture(540, 640), 'prompt': PROMPT, **pose, **state()}
    for dialect in (OPENPI, FRAMEWORK, VLLM_OMNI):
        request = dialect.read(message | views() if dialect is OPENPI else message, contract)
        assert request.state['end_effector_position'].shape == (1, 3)
        assert request.state['end_effector_quaternion'].shape == (1, 4)
    with pytest.raises(RequestError, match='is no robot of this dialect: ee_delta'):
        ROBOARENA.read(views() | pose | {'endpoint': 'infer'}, contract)
    with pytest.raises(RequestError, match='observation/eef_quat: has no length'):
        FRAMEWORK.read(message | {'observation/eef_quat': np.zeros(4)}, contract)


# Faults


def test_every_fault_of_a_request_is_listed(droid):
    message = {
        'observation/wrist_image_left': np.zeros((360, 640), np.uint8),
        'observation/exterior_image_1_left': 'picture.png',
        'observation/joint_position': np.array([0, 0, np.nan, 0, 0, np.inf, 1e9]),
        'observation/gripper_position': np.zeros(3, bool),
        'prompt': '  ',
        'seed': -1,
        'session_id': 7,
        'endpoint': 'predict',
    }
    with pytest.raises(RequestError) as raised:
        ROBOARENA.read(message, droid)
    told = [str(problem) for problem in raised.value.problems]
    assert [line.partition(':')[0] for line in told] == [
        'endpoint',
        'observation/wrist_image_left',
        'observation/exterior_image_0_left',
        'observation/exterior_image_1_left',
        'observation/joint_position',
        'observation/gripper_position',
        'prompt',
        'seed',
        'session_id',
    ]
    assert 'is out of range at (0, 2), (0, 5), (0, 6)' in told[4]


@pytest.mark.parametrize(
    ('changed', 'words'),
    [
        ({'observation/image': picture(540, 640).astype(np.float32) / 255}, 'has levels from 0 to 1'),
        ({'observation/image': np.full((540, 640, 3), np.nan)}, 'is not finite'),
        ({'observation/image': np.zeros((540, 640, 4), np.uint8)}, 'is no RGB picture'),
        ({'observation/image': np.zeros((540, 640, 3), bool)}, 'is no RGB picture'),
        ({'observation/image': [[1, 2, 3]]}, 'is no RGB picture'),
        ({'observation/image': np.zeros((3, 5000, 3), np.uint8)}, 'has a size that cannot be meant'),
        ({'observation/joint_position': np.zeros(6)}, 'has the wrong shape'),
        ({'observation/joint_position': np.zeros((0, 7))}, 'has the wrong shape'),
        ({'observation/joint_position': np.zeros((1, 1, 7))}, 'has the wrong shape'),
        ({'observation/joint_position': np.zeros((600, 7))}, 'has the wrong shape'),
        ({'observation/joint_position': [[1, 2], [3]]}, 'is not numeric'),
        ({'observation/joint_position': ['1'] * 7}, 'is not numeric'),
        ({'observation/joint_position': [10**30] * 7}, 'is not numeric'),
        ({'observation/joint_position': {}}, 'is not numeric'),
        ({'observation/joint_position': np.array(['1'] * 7)}, 'is not numeric'),
        ({'observation/gripper_position': True}, 'is not numeric'),
        ({'observation/gripper_position': None}, 'is missing'),
        ({'observation/gripper_position': -np.inf}, 'is out of range'),
        ({'prompt': None}, 'prompt: is missing'),
        ({'prompt': b'lift'}, 'must be text'),
        ({'prompt': 'x' * 9000}, 'is too long'),
        ({'seed': 2**32}, 'is no seed'),
        ({'seed': True}, 'is no seed'),
        ({'seed': 1.5}, 'is no seed'),
        ({'session_id': ''}, 'is no name of a session'),
        ({'session_id': 'x' * 300}, 'is no name of a session'),
        ({'sampling_params': {'num_inference_steps': 10}}, 'is not served, got 10, allowed: 4'),
        ({'sampling_params': 4}, 'must be a map'),
    ],
)
def test_a_fault_is_named(droid, changed, words):
    with pytest.raises(RequestError, match=words):
        VLLM_OMNI.read(composite() | changed, droid)


def test_steps_of_the_contract_may_be_asked_for(droid):
    assert VLLM_OMNI.read(composite(sampling_params={'num_inference_steps': 4}), droid).kind == 'infer'


def test_histories_have_to_fit_each_other_and_the_contract(droid):
    contract = with_history(droid, 2)
    for joints, gripper in ((2, 2), (3, 1), (4, 3)):
        message = composite() | {
            'observation/joint_position': np.zeros((joints, 7)),
            'observation/gripper_position': np.zeros(gripper),
        }
        with pytest.raises(RequestError, match='has histories that do not fit'):
            FRAMEWORK.read(message, contract)


# The client's side


@pytest.mark.parametrize('name', DIALECTS)
def test_what_a_client_writes_is_what_a_server_reads(name, droid, observe):
    observation = observe(images={view: picture(360, 640, k) for k, view in enumerate(droid.views.streams)})
    dialect = DIALECTS[name]
    request = dialect.read(unpack(pack(dialect.request(observation, droid, 11, 'mine'))), droid)
    assert (request.seed, request.instruction) == (11, observation.instruction)
    assert request.session == ('mine' if name in ('roboarena', 'vllm-omni') else None)
    np.testing.assert_array_equal(request.state['joint_positions'][-1], observation.joint_positions)
    np.testing.assert_array_equal(request.state['gripper_position'][-1], observation.gripper_position)
    np.testing.assert_array_equal(composite_of(request, droid), composite_of(observation, droid))


@pytest.mark.parametrize('name', DIALECTS)
def test_a_client_takes_actions_from_an_answer_and_nothing_else_for_them(name):
    dialect = DIALECTS[name]
    np.testing.assert_array_equal(dialect.actions(dialect.reply(REPLY).data), REPLY.actions)
    for data in ('reset successful', b'\xc1', msgpack.packb({'state': 1}), msgpack.packb(None)):
        with pytest.raises(ServerError):
            dialect.actions(data)
    with pytest.raises(BusyError):
        dialect.actions(dialect.refusal(Refusal(Fault.BUSY, 'busy: come back')).data)
    with pytest.raises(ServerError, match='what was wrong'):
        dialect.actions(dialect.refusal(Refusal(Fault.INVALID, 'what was wrong')).data)
