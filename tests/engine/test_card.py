"""A folder of compiled parts is what its card says, down to the last byte, or it is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.backends.card import CARD, Card, EngineError, StoredFile, StoredPart, StoredPort, read_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'step.onnx').write_bytes(b'graph')
    (tmp_path / 'step.engine').write_bytes(b'plan' * 1000)
    files = {key: StoredFile.of(tmp_path / f'step.{key}') for key in ('onnx', 'engine')}
    port = StoredPort('keys', (2, 'length', 2, 16), 'bfloat16')
    Card(
        key='0' * 64,
        made='2026-01-01T00:00:00Z',
        checkpoint={'fingerprint': 'f' * 64, 'family': 'nano'},
        contract={'name': 'demo_joint_pos', 'fingerprint': 'abc'},
        layout={'canvas': [192, 320]},
        precision='bf16',
        builder={'flavour': 'tensorrt_rtx', 'version': '1.7'},
        targets=('sm_89', 'sm_120'),
        gpu='',
        versions={'torch': '2.11'},
        parts={'step': StoredPart('step', files, (port,), (port,), 12, {'export': 1.5})},
        accuracy={},
    ).write(tmp_path)
    return tmp_path


def test_a_card_comes_back_as_it_was_written(folder: Path) -> None:
    card = read_card(folder)
    assert card.targets == ('sm_89', 'sm_120')
    assert card.parts['step'].inputs[0] == StoredPort('keys', (2, 'length', 2, 16), 'bfloat16')
    assert card.parts['step'].files['engine'].bytes == 4000
    card.write(folder)
    assert read_card(folder) == card


def edited(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / CARD).read_text())
        change(document)
        (folder / CARD).write_text(json.dumps(document))

    return edit


def flipped(folder: Path) -> None:
    data = bytearray((folder / 'step.engine').read_bytes())
    data[2000] ^= 1
    (folder / 'step.engine').write_bytes(data)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda f: (f / CARD).unlink(), 'is no compiled checkpoint'),
        (lambda f: (f / CARD).write_text(''), 'cannot be read'),
        (lambda f: (f / CARD).write_bytes(b'\xff\xfe\x00'), 'cannot be read'),
        (lambda f: (f / CARD).write_text((f / CARD).read_text()[:300]), 'cannot be read'),
        (lambda f: (f / CARD).write_text('[]'), 'cannot be read'),
        (edited(lambda d: d.update(schema=99)), 'schema 99'),
        (edited(lambda d: d.update(precision='fp16')), 'changed since it was written'),
        (edited(lambda d: d['targets'].append('sm_90')), 'changed since it was written'),
        (edited(lambda d: d['parts']['step']['files']['engine'].update(name='../step.engine')), 'changed since'),
        (edited(lambda d: d.pop('digest')), 'cannot be read'),
        (edited(lambda d: d['parts'].pop('step')), 'changed since it was written'),
        (lambda f: (f / 'step.engine').unlink(), 'step.engine: is missing'),
        (lambda f: (f / 'step.engine').write_bytes(b'plan' * 999), 'another length, got 3996 bytes'),
        (flipped, 'other contents'),
        (lambda f: (f / 'step.onnx').write_bytes(b'grafh'), 'step.onnx: has other contents'),
    ],
)
def test_whatever_is_damaged_is_refused_with_the_reason(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    with pytest.raises(EngineError, match=words):
        read_card(folder)


def test_every_damaged_file_is_listed(folder: Path) -> None:
    (folder / 'step.onnx').unlink()
    (folder / 'step.engine').write_bytes(b'')
    with pytest.raises(EngineError) as error:
        read_card(folder)
    assert {problem.where for problem in error.value.problems} == {'step.onnx', 'step.engine'}


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match='there is no such folder'):
        read_card(tmp_path / 'nowhere')
