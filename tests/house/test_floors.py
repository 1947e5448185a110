"""The floors of the house: who may import whom."""

from __future__ import annotations

import subprocess
import sys

import pytest

# From the ground up. A room imports itself and rooms of lower floors, nothing beside or above it.
FLOORS = (
    {'errors'},
    {'resources', 'turns', 'answers'},
    {'actions', 'observation'},
    {'contract', 'sequence', 'sampler'},
    {'network'},
    {'backends', 'checkpoint'},
    {'tiny'},
    {'runtime'},
    {'policy', 'dynamics', 'reasoner', 'generator'},
    {'cosmos3'},
    {'engine'},
    {'serving', 'evaluation', 'export', 'monitors', 'calibration'},
    {'datasets'},
    {'training'},
    {'cosmos3_ros'},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room that a module of the product belongs to: 'engine.actions.poses' -> 'actions'."""
    top, *below = module.split('.')
    if top == 'cosmos3_ros':
        return 'cosmos3_ros'
    # A room may be a folder, a file, or several files with the room's name in front.
    return below[0].partition('_')[0] if below else 'engine'


def project_imports(source) -> set[str]:
    return {name for name in source.imports() if name.partition('.')[0] in ('engine', 'cosmos3_ros')}


def in_room(product, prefix: str):
    return [s for s in product if s.module == prefix or s.module.startswith(f'{prefix}.')]


def test_every_module_has_a_floor(product):
    homeless = {source.module for source in product if room_of(source.module) not in FLOOR_OF}
    assert homeless == set()


def test_a_room_imports_only_itself_and_lower_floors(product):
    upwards = []
    for source in product:
        # The face of the package names what it offers, from all floors, and imports it when it is first used.
        if source.module == 'engine':
            continue
        here = room_of(source.module)
        for name in project_imports(source):
            there = room_of(name)
            if there != here and FLOOR_OF[there] >= FLOOR_OF[here]:
                upwards.append(f'{source.path} ({here}) imports {name} ({there})')
    assert upwards == []


def test_the_engine_knows_no_ros(product):
    # Where an installed package keeps its files may be asked of the ament index, which is plain Python.
    known = {f'{s.path}: {name}' for s in in_room(product, 'engine') for name in s.ros() - {'ament_index_python'}}
    assert known == set()


def test_actions_are_numpy_only(product):
    foreign = {f'{s.path}: {name}' for s in in_room(product, 'engine.actions') for name in s.third_party() - {'numpy'}}
    assert foreign == set()


@pytest.mark.parametrize('room', ['engine.contract', 'engine.errors', 'engine.resources', 'engine.sequence'])
def test_what_only_describes_does_not_import_torch(product, room):
    assert [str(source.path) for source in in_room(product, room) if 'torch' in source.third_party()] == []


def test_the_network_does_not_know_what_a_robot_is(product):
    known = {room_of(name) for source in in_room(product, 'engine.network') for name in project_imports(source)}
    assert known <= {'network', 'sequence', 'errors'}


def test_the_guard_imports_numbers_limits_and_contracts_only(product):
    guard = in_room(product, 'cosmos3_ros.guard')
    assert guard, 'the guard has moved: this test no longer sees it'
    foreign = {f'{s.path}: {name}' for s in guard for name in s.third_party() - {'numpy', 'ruckig', 'yaml'}}
    names = {(s.path, name) for s in guard for name in project_imports(s) if not name.startswith('cosmos3_ros.guard')}
    allowed = {'errors', 'resources', 'actions', 'contract'}
    assert foreign == set()
    assert {f'{path}: {name}' for path, name in names if room_of(name) not in allowed} == set()


def loaded_by(statement: str) -> set[str]:
    """Top-level names of all modules that a fresh Python holds after `statement`."""
    code = f'import sys\n{statement}\nprint("\\n".join(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {line.partition('.')[0] for line in result.stdout.splitlines()}


def test_loading_all_of_the_guard_loads_neither_torch_nor_ros():
    walk = (
        'import importlib, pkgutil, cosmos3_ros.guard as guard\n'
        'for found in pkgutil.walk_packages(guard.__path__, "cosmos3_ros.guard."): importlib.import_module(found.name)'
    )
    loaded = loaded_by(walk)
    assert 'cosmos3_ros' in loaded
    assert loaded & {'torch', 'rclpy', 'transformers', 'diffusers'} == set()


def test_the_guard_process_loads_no_torch():
    loaded = loaded_by('import cosmos3_ros.guard_node')
    assert 'rclpy' in loaded
    assert loaded & {'torch', 'transformers', 'diffusers'} == set()


def test_the_command_line_starts_without_torch_and_ros():
    assert loaded_by('import cosmos3_ros.cli') & {'torch', 'rclpy', 'transformers', 'diffusers', 'mujoco'} == set()


def test_importing_the_engine_loads_no_torch():
    assert loaded_by('import engine') & {'torch', 'transformers', 'diffusers', 'rclpy'} == set()
