"""Contracts: those that ship are sound, and whatever is wrong with one is said at once, by key."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

import engine
from engine import contract as contracts
from engine.checkpoint import open_checkpoint
from engine.contract import load_contract, parse_contract, with_preset
from engine.cosmos3 import contract_differences
from engine.errors import ContractError
from engine.observation.geometry import canvases
from engine.observation.prompts import VIEWPOINTS
from engine.observation.views import COMPOSITIONS
from engine.resources import config_names, find_config

SHIPPED = config_names('contracts')
GUIDED = [name for name in SHIPPED if load_contract(name).sampler.guidance != 1.0]
ABSENT = Enum('Absent', 'ABSENT').ABSENT  # by name, so that tests are called the same in every process


def document(name: str = 'demo_joint_pos') -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(find_config('contracts', name).read_text(encoding='utf-8'))
    return loaded


def changed(changes: dict[str, Any], name: str = 'demo_joint_pos') -> dict[str, Any]:
    """The document of a shipped contract with values at dotted keys replaced, or taken out."""
    result = copy.deepcopy(document(name))
    for key, value in changes.items():
        *path, last = key.split('.')
        section = result
        for part in path:
            section = section[part]
        if value is ABSENT:
            del section[last]
        else:
            section[last] = value
    return result


def faults(data: object) -> list[str]:
    with pytest.raises(ContractError) as caught:
        parse_contract(data, 'test.yaml')
    assert 'test.yaml' in caught.value.subject
    return [problem.where for problem in caught.value.problems]


@pytest.mark.parametrize('name', SHIPPED)
def test_every_contract_that_ships_loads_under_its_own_name(name: str) -> None:
    contract = load_contract(name)
    assert contract.name == name
    assert contract.description
    assert Path(contract.source).is_file()


@pytest.mark.parametrize('name', SHIPPED)
def test_every_contract_that_ships_fits_the_tiny_checkpoint(name: str, tiny_checkpoint: Path) -> None:
    assert contract_differences(open_checkpoint(tiny_checkpoint), load_contract(name)) == []


def test_the_droid_contract_is_that_of_the_released_policy() -> None:
    contract = load_contract('droid_joint_pos')
    assert (contract.timing.chunk_rows, contract.timing.fps, contract.timing.resolution_tier) == (32, 15, 480)
    assert (contract.timing.frames, contract.timing.latent_frames) == (33, 9)
    assert contract.timing.step_s == pytest.approx(1 / 15)
    assert contract.views.size == (540, 640)
    terms = contract.embodiment
    assert (terms.domain, terms.raw_action_dim, terms.state_row, terms.clean_rows) == ('droid_lerobot', 8, True, 1)
    sampler = contract.sampler
    assert (sampler.steps, sampler.guidance, sampler.guidance_interval, sampler.shift) == (4, 3.0, None, 5.0)


@pytest.mark.parametrize(
    ('state', 'history', 'clean', 'offset'), [(True, 0, 1, 0), (False, 0, 0, 1), (True, 4, 5, -4), (False, 2, 2, -1)]
)
def test_history_and_state_rows_come_before_the_first_action(
    state: bool, history: int, clean: int, offset: int
) -> None:
    terms = replace(load_contract('demo_joint_pos').embodiment, state_row=state, history_rows=history)
    assert (terms.clean_rows, terms.start_offset) == (clean, offset)


def test_contracts_offer_exactly_what_the_observation_side_can_do() -> None:
    assert {name: found.views for name, found in COMPOSITIONS.items()} == dict(contracts.COMPOSITIONS)
    assert set(contracts.VIEWPOINTS) == set(VIEWPOINTS)
    assert all(canvases(tier) for tier in contracts.RESOLUTION_TIERS)


FAULTS: list[tuple[str, Any]] = [
    # key, and the value that is wrong there
    ('schema', 2),
    ('schema', ABSENT),
    ('name', ABSENT),
    ('name', 7),
    ('description', None),
    ('checkpoint', ABSENT),
    ('checkpoint', 'nano'),
    ('checkpoint.families', []),
    ('checkpoint.families', ['nano', 'mega']),
    ('checkpoint.families', 'nano'),
    ('checkpoint.policy', 3),
    ('embodiment.action_space', 'joint_velocity'),
    ('embodiment.raw_action_dim', 0),
    ('embodiment.raw_action_dim', 65),
    ('embodiment.raw_action_dim', 8.0),
    ('embodiment.raw_action_dim', 7),
    ('embodiment.normalization', 'softmax'),
    ('embodiment.state_row', 'yes'),
    ('embodiment.history_rows', -1),
    ('robot.description', ABSENT),
    ('robot.joints', []),
    ('robot.joints', ['a', 'b', 'a']),
    ('robot.joints', ['a', 2]),
    ('robot.joints', 'panda_joint1'),
    ('robot.joints', ['only_one']),
    ('robot.gripper.joint', ABSENT),
    ('robot.gripper.open', 'wide'),
    ('robot.gripper.open', 0.0),
    ('robot.gripper.closed', float('nan')),
    ('robot.end_effector_frame', 5),
    ('views.composition', 'mosaic'),
    ('views.size', [256, 303]),
    ('views.size', [256]),
    ('views.size', [256, 304.0]),
    ('views.size', [8, 304]),
    ('views.size', '256x304'),
    ('views.streams', ABSENT),
    ('views.streams', ['wrist']),
    ('views.streams', {}),
    ('views.streams.wrist', ABSENT),
    ('views.streams.wrist.topic', ABSENT),
    ('views.streams.wrist.topic', '/camera'),
    ('views.streams.wrist.max_age_s', 0.0),
    ('views.streams.wrist.max_age_s', 11),
    ('state.joint_states', None),
    ('state.joint_states.max_age_s', '0.1 s'),
    ('timing.fps', 0),
    ('timing.fps', float('inf')),
    ('timing.fps', ABSENT),
    ('timing.chunk_rows', 30),
    ('timing.chunk_rows', 0),
    ('timing.resolution_tier', 500),
    ('timing.resolution_tier', 64),
    ('prompt.format', 'xml'),
    ('prompt.viewpoint', 'bird'),
    ('prompt.description', 4),
    ('prompt.idle_frames', 3),
    ('sampler.steps', 0),
    ('sampler.steps', True),
    ('sampler.guidance', 7.5),
    ('sampler.guidance', -1),
    ('sampler.guidance_interval', [960]),
    ('sampler.guidance_interval', [1001, 960]),
    ('sampler.guidance_interval', ['low', 'high']),
    ('sampler.guidance_steps', [0]),
    ('sampler.guidance_steps', [3, 5]),
    ('sampler.guidance_steps', [2, 2]),
    ('sampler.guidance_steps', [True]),
    ('sampler.guidance_steps', ['last']),
    ('sampler.guidance_steps', 4),
    ('sampler.shift', 0),
]


@pytest.mark.parametrize(('key', 'value'), FAULTS, ids=[f'{key}={str(value)[:24]}' for key, value in FAULTS])
def test_a_fault_is_reported_by_its_key(key: str, value: Any) -> None:
    # A stream that is missing is a fault of the list of streams; an absent or wrong stream has the key of the stream.
    expected = 'views.streams' if key == 'views.streams.wrist' else key
    assert expected in faults(changed({key: value}))


@pytest.mark.parametrize(
    'key', ['wheels', 'checkpoint.hash', 'embodiment.units', 'robot.gripper.force', 'views.streams.wrist.qos',
            'state.imu', 'timing.hz', 'prompt.language', 'sampler.seed']
)  # fmt: skip
def test_a_key_that_means_nothing_is_reported(key: str) -> None:
    assert faults(changed({key: 1})) == [key]


def test_a_domain_that_nobody_trained_is_reported() -> None:
    found = faults(changed({'embodiment.domain': 'droid_lerobo'}))
    assert [where for where in found if where.startswith('embodiment')]


def test_end_effector_actions_need_a_measured_pose() -> None:
    assert faults(changed({'state.end_effector': None}, 'droid_ee_delta')) == ['state.end_effector']


def arms_of_two() -> dict[str, Any]:
    arms: dict[str, Any] = document('robomind_dual')['robot']['arms']
    return arms


def test_arms_have_names_joints_grippers_and_frames_in_the_order_of_a_row() -> None:
    robot = load_contract('robomind_dual').robot
    assert [(arm.name, arm.prefix, len(arm.joints)) for arm in robot.arms] == [
        ('left', 'left/', 7),
        ('right', 'right/', 7),
    ]
    assert robot.joints == (*robot.arms[0].joints, *robot.arms[1].joints)
    assert robot.gripper_joints == ('left_panda_finger_joint1', 'right_panda_finger_joint1')
    assert robot.end_effector_frames == ('left_panda_link8', 'right_panda_link8')
    assert [stream.topic for stream in load_contract('robomind_dual').state.end_effectors] == [
        'left/end_effector_pose',
        'right/end_effector_pose',
    ]
    alone = load_contract('droid_ee_delta').robot
    assert [(arm.name, arm.prefix) for arm in alone.arms] == [('', '')]


def test_one_arm_may_have_a_name_too() -> None:
    robot = document()['robot']
    arm = {name: robot[name] for name in ('joints', 'gripper', 'end_effector_frame')}
    named = changed({'robot': {'description': 'panda', 'arms': {'main': arm}}})
    assert parse_contract(named, 'test.yaml').robot.joints == load_contract('demo_joint_pos').robot.joints


FAULTS_OF_TWO: list[tuple[str, dict[str, Any]]] = [
    # where it is reported, and what is wrong
    ('robot.arms', {'robot.arms': {}}),
    ('robot.arms', {'robot.arms': ['left', 'right']}),
    ('robot.arms', {'robot.arms.left': ABSENT, 'state.end_effector.left': ABSENT}),
    ('robot.arms', {'robot.arms': dict(reversed(arms_of_two().items()))}),
    ('robot.arms', {'robot.arms.right.joints': arms_of_two()['left']['joints']}),
    ('robot.arms', {'robot.arms.right.gripper.joint': 'left_panda_finger_joint1'}),
    ('robot.arms', {'robot.arms.right.gripper.joint': 'left_panda_joint7'}),
    ('robot.arms', {'robot.arms.right.end_effector_frame': 'left_panda_link8'}),
    ('robot.arms.left', {'robot.arms.left': 'arm'}),
    ('robot.arms.left.joints', {'robot.arms.left.joints': []}),
    ('robot.arms.left.gripper', {'robot.arms.left.gripper': None}),
    ('robot.arms.right.gripper.open', {'robot.arms.right.gripper.open': 0.0}),
    ('robot.arms.right.wheels', {'robot.arms.right.wheels': 4}),
    ('robot.arms.left arm', {'robot.arms.left arm': arms_of_two()['left']}),
    ('robot.joints', {'robot.joints': ['left_panda_joint1']}),
    ('embodiment.state_row', {'embodiment.state_row': True}),
    ('state.end_effector', {'state.end_effector': None}),
    ('state.end_effector.right', {'state.end_effector.right': ABSENT}),
    ('state.end_effector.left', {'state.end_effector': {'topic': 'end_effector_pose', 'max_age_s': 0.1}}),
    ('state.end_effector.middle', {'state.end_effector.middle': {'topic': 'pose', 'max_age_s': 0.1}}),
    ('state.end_effector', {'state.end_effector.right.topic': 'left/end_effector_pose'}),
]


@pytest.mark.parametrize(('where', 'changes'), FAULTS_OF_TWO)
def test_a_fault_of_several_arms_is_reported_by_its_key(where: str, changes: dict[str, Any]) -> None:
    assert where in faults(changed(changes, 'robomind_dual'))


def test_all_faults_of_several_arms_are_reported_at_once() -> None:
    wrong = {
        'robot.arms.left.gripper.joint': ABSENT,
        'robot.arms.right.joints': 'all',
        'robot.arms.right.wheels': 4,
        'state.end_effector.left.topic': '/pose',
    }
    assert set(faults(changed(wrong, 'robomind_dual'))) == set(wrong)


def test_one_arm_is_refused_where_rows_move_two() -> None:
    robot, state = (document('droid_ee_delta')[key] for key in ('robot', 'state'))
    assert faults(changed({'robot': robot, 'state': state}, 'robomind_dual')) == ['robot.joints']


def test_each_arm_must_have_the_joints_that_a_row_has_for_it() -> None:
    arms = arms_of_two()
    six = {name: {**arm, 'joints': arm['joints'][:6]} for name, arm in arms.items()}
    changes = {
        'embodiment': {**document('robomind_dual')['embodiment'], 'domain': 'robotwin', 'raw_action_dim': 14},
        'embodiment.action_space': 'joint_position',
        'embodiment.normalization': 'none',
        'robot.arms': six,
    }
    assert (
        parse_contract(changed(changes, 'robomind_dual'), 'test.yaml').robot.arms[1].joints[0] == 'right_panda_joint1'
    )
    uneven = {**changes, 'robot.arms.right.joints': arms['right']['joints']}
    assert faults(changed(uneven, 'robomind_dual')) == ['robot.arms.right.joints']


@pytest.mark.parametrize(
    ('given', 'read'), [(None, None), (ABSENT, None), ([], ()), ([4, 3], (3, 4)), ([1, 2, 3, 4], (1, 2, 3, 4))]
)
def test_the_steps_with_guidance_are_read_in_order_and_need_not_be_given(given: Any, read: object) -> None:
    assert parse_contract(changed({'sampler.guidance_steps': given}), 'test.yaml').sampler.guidance_steps == read


def test_guidance_is_limited_by_steps_or_by_an_interval_and_not_by_both() -> None:
    both = {'sampler.guidance_steps': [1], 'sampler.guidance_interval': [960, 1001]}
    assert faults(changed(both)) == ['sampler.guidance_steps']


@pytest.mark.parametrize('name', GUIDED)
def test_the_fast_preset_is_two_guided_steps_and_changes_nothing_else(name: str) -> None:
    contract = load_contract(name)
    fast = with_preset(contract, 'fast')
    assert (fast.sampler.steps, fast.sampler.guidance, fast.sampler.guidance_steps) == (2, 3.0, None)
    assert replace(fast, sampler=contract.sampler) == contract
    assert fast.fingerprint == contract.fingerprint
    assert with_preset(fast, 'fast') == fast


def test_the_fast_preset_drops_a_mask_made_for_other_steps() -> None:
    for mask in ({'sampler.guidance_steps': [3, 4]}, {'sampler.guidance_interval': [960, 1001]}):
        masked = with_preset(parse_contract(changed(mask), 'test.yaml'), 'fast').sampler
        assert masked == with_preset(load_contract('demo_joint_pos'), 'fast').sampler


def test_the_reference_preset_is_the_contract_itself() -> None:
    own = parse_contract(changed({'sampler.steps': 7, 'sampler.guidance_steps': [6, 7]}), 'test.yaml')
    assert with_preset(own, 'reference') is own


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ContractError, match=r"'faster'.*reference, fast"):
        with_preset(load_contract('demo_joint_pos'), 'faster')


@pytest.mark.parametrize(('key', 'value'), [('sampler.guidance', 1), ('sampler.steps', 1)])
def test_the_fast_preset_is_refused_where_nobody_has_tried_it_or_it_would_not_be_faster(key: str, value: int) -> None:
    with pytest.raises(ContractError) as caught:
        with_preset(parse_contract(changed({key: value}), 'test.yaml'), 'fast')
    assert [problem.where for problem in caught.value.problems] == [key]


def test_history_needs_a_state_row() -> None:
    assert faults(changed({'embodiment.state_row': False, 'embodiment.history_rows': 2})) == ['embodiment.history_rows']


def test_all_faults_are_reported_at_once() -> None:
    wrong = {
        'name': ABSENT,
        'checkpoint.families': ['mega'],
        'embodiment.raw_action_dim': 0,
        'robot.gripper.open': 0.0,
        'views.streams.exterior_1.topic': '/camera',
        'timing.chunk_rows': 30,
        'timing.hz': 15,
        'prompt.format': 'xml',
        'sampler.steps': 0,
    }
    assert set(faults(changed(wrong))) == set(wrong)


def test_a_fault_says_the_value_what_is_allowed_and_where() -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract(changed({'timing.resolution_tier': 500}), 'my_robot.yaml')
    text = str(caught.value)
    assert all(part in text for part in ('my_robot.yaml', 'timing.resolution_tier', '500', '480'))


@pytest.mark.parametrize('data', [None, [], 'text', 3, {}])
def test_a_document_that_is_no_mapping_is_refused(data: object) -> None:
    assert faults(data)


def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / 'broken.yaml'
    file.write_text('name: [unclosed', encoding='utf-8')
    with pytest.raises(ContractError, match=r'broken\.yaml'):
        load_contract(file)
    file.write_bytes(b'\xff\xfe\x00name')
    with pytest.raises(ContractError, match=r'broken\.yaml'):
        load_contract(file)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="did you mean 'droid_joint_pos'") as caught:
        load_contract('droid_joint_poss')
    assert all(name in str(caught.value) for name in SHIPPED)
    with pytest.raises(ContractError, match='no such file'):
        load_contract(tmp_path / 'absent.yaml')


def test_a_contract_of_the_users_own_is_read_from_its_path(tmp_path: Path) -> None:
    file = tmp_path / 'mine.yaml'
    file.write_text(yaml.safe_dump(changed({'name': 'mine', 'sampler.steps': 2})), encoding='utf-8')
    contract = load_contract(file)
    assert (contract.name, contract.sampler.steps) == ('mine', 2)


def test_the_fingerprint_follows_the_content_and_not_the_file(tmp_path: Path) -> None:
    original = load_contract('demo_joint_pos')
    same, other = tmp_path / 'same.yaml', tmp_path / 'other.yaml'
    same.write_text('# a remark\n' + yaml.safe_dump(document(), sort_keys=False), encoding='utf-8')
    other.write_text(yaml.safe_dump(changed({'sampler.steps': 2}), sort_keys=False), encoding='utf-8')
    assert load_contract(same).fingerprint == original.fingerprint != load_contract(other).fingerprint
    assert load_contract(same) == original


def mismatched(contract: engine.Contract) -> engine.Contract:
    return replace(
        contract,
        checkpoint=replace(contract.checkpoint, families=('nano', 'super')),
        embodiment=replace(contract.embodiment, raw_action_dim=65, domain='bridge_orig_lerobot'),
        timing=replace(contract.timing, chunk_rows=16, fps=10.0),
    )


def test_a_checkpoint_that_does_not_fit_is_refused_with_every_difference(
    tiny_edge_checkpoint: Path, demo_contract: engine.Contract
) -> None:
    model = engine.load(tiny_edge_checkpoint)
    with pytest.raises(ContractError) as caught:
        model.policy(mismatched(demo_contract))
    where = {problem.where for problem in caught.value.problems}
    assert where == {
        'checkpoint.families',
        'embodiment.raw_action_dim',
        'embodiment.domain',
        'timing.chunk_rows',
        'timing.fps',
    }
    text = str(caught.value)
    assert all(part in text for part in ('demo_joint_pos', str(tiny_edge_checkpoint), 'edge', '32', '64'))


def test_a_checkpoint_that_names_no_policy_serves_any_contract_of_its_family(
    tiny_checkpoint: Path, demo_contract: engine.Contract
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    shorter = replace(demo_contract, timing=replace(demo_contract.timing, chunk_rows=16, fps=10.0))
    assert contract_differences(checkpoint, shorter) == []
    other = replace(shorter, checkpoint=replace(shorter.checkpoint, families=('super', 'edge')))
    assert [problem.where for problem in contract_differences(checkpoint, other)] == ['checkpoint.families']


def test_a_policy_is_refused_where_statistics_are_not_public(
    model: engine.Cosmos3, demo_contract: engine.Contract, observe: Callable[..., engine.Observation]
) -> None:
    terms = replace(demo_contract.embodiment, normalization='quantile')
    with pytest.raises(ContractError, match='statistics'):
        model.policy(replace(demo_contract, embodiment=terms))


SCALE = {'mean': [0.0] * 8, 'std': [0.5] * 8}
OFFSETS = {
    'embodiment.normalization': 'meanstd',
    'embodiment.statistics': SCALE,
    'embodiment.offsets': True,
    'embodiment.state_statistics': SCALE,
}


def test_a_contract_may_hold_the_statistics_of_its_own_checkpoint() -> None:
    contract = parse_contract(changed(OFFSETS), 'test.yaml')
    assert contract == parse_contract(changed(OFFSETS), 'test.yaml')
    other = parse_contract(changed({**OFFSETS, 'embodiment.statistics': {**SCALE, 'std': [0.6] * 8}}), 'test.yaml')
    assert other.embodiment != contract.embodiment
    assert other.fingerprint != contract.fingerprint


@pytest.mark.parametrize(('changes', 'where'), [
    ({'embodiment.statistics': {'mean': [0.0] * 7, 'std': [1.0] * 7}}, 'embodiment.statistics'),
    ({'embodiment.statistics': {'q01': [0.0] * 8}}, 'embodiment.statistics'),
    ({'embodiment.statistics': {'mean': ['a'] * 8}}, 'embodiment.statistics: mean'),
    ({'embodiment.statistics': 7}, 'embodiment.statistics'),
    ({'embodiment.state_statistics': None}, 'embodiment.state_statistics'),
    ({'embodiment.state_row': False}, 'embodiment.offsets'),
])  # fmt: skip
def test_statistics_that_do_not_fit_are_named(changes: dict[str, Any], where: str) -> None:
    assert where in faults(changed(OFFSETS | changes))
