"""`cosmos3 ask` and `cosmos3 plan`: words as they come, values in a table, marks on a picture, faults told early."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine
from cosmos3_ros.cli import main
from engine.evaluation.video import VideoWriter
from tests.openai_server import Hang, OpenAIServer, Reply, Says, Status, in_turn

CUBE = '```json\n[{"bbox_2d": [250, 500, 750, 1000], "label": "the [red] cube"}]\n```'
PATH = '[{"point_2d": [100, 500], "label": "gripper"}, {"point_2d": [900, 250], "label": "gripper"}]'


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.fromarray(np.full((120, 160, 3), 60, np.uint8)).save(tmp_path / 'table.png')
    return str(tmp_path / 'table.png')


@pytest.fixture
def video(tmp_path: Path) -> str:
    with VideoWriter(tmp_path / 'clip.mp4', 10.0, (64, 96)) as writer:
        for shade in range(0, 200, 5):
            writer.write(np.full((64, 96, 3), shade, np.uint8))
    return str(tmp_path / 'clip.mp4')


def run(*arguments: str, says: Says | list[Says] = 'ok') -> tuple[int, OpenAIServer]:
    command, *rest = arguments
    script = in_turn(*says) if isinstance(says, list) else says
    with OpenAIServer(script) as server:
        return main([command, 'tiny', '--url', server.url, *rest]), server


def cells(told: str) -> list[list[str]]:
    """Cells of all rows of a table, its head left out."""
    return [[cell.strip() for cell in line.strip('│').split('│')] for line in told.splitlines() if line.startswith('│')]


def test_an_answer_in_words_is_shown_as_it_comes(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, server = run('ask', '--image', picture, '--question', 'What is there?', says='a red cube')
    told = capsys.readouterr().out
    assert code == 0
    assert told.startswith('a red cube\n(')
    assert re.search(r'\(\d+ tokens in \d+\.\d s\)', told)
    assert server.requests[0].body['model'] == 'tiny'
    assert server.requests[0].text == 'What is there?'
    assert len(server.requests[0].media()) == 1


def test_words_cannot_command_the_terminal(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    run('ask', '--image', picture, '--question', 'What is there?', says='a red cube\x1b[2J\x07')
    assert not set('\x1b\x07') & set(''.join(capsys.readouterr()))


def test_boxes_are_listed_with_their_pixels_and_drawn(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / 'drawn.png'
    code, _ = run('ask', '--image', picture, '--question', 'cubes', '--kind', 'boxes', '-o', str(drawn), says=CUBE)
    told = capsys.readouterr().out
    assert code == 0
    assert cells(told) == [['the [red] cube', '250 500 750 1000', '40 60 120 120']]
    assert f'{drawn}: 1 drawn' in told
    changed = (np.asarray(Image.open(drawn)) != np.asarray(Image.open(picture))).any(axis=-1)
    assert changed[60:119, 40].all()  # the left edge of the box
    assert not changed[70:110, 50:110].any()


@pytest.mark.parametrize(
    ('kind', 'says', 'row'),
    [
        ('points', '{"point_2d": [500, 500], "label": "knob"}', ['knob', '500 500', '80 60']),
        ('trajectory', PATH, ['gripper', '100 500, 900 250', '16 60, 144 30']),
    ],
)
def test_points_and_trajectories_likewise(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, says: str, row: list[str]
) -> None:
    drawn = tmp_path / 'drawn.png'
    assert run('ask', '--image', picture, '--question', 'x', '--kind', kind, '-o', str(drawn), says=says)[0] == 0
    assert cells(capsys.readouterr().out) == [row]
    assert (np.asarray(Image.open(drawn)) != 60).any()


def test_nothing_found_is_said(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run('ask', '--image', picture, '--question', 'x', '--kind', 'boxes', says='[]')[0] == 0
    assert capsys.readouterr().out.endswith('none\n')


def test_events_of_a_video_are_listed(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    says = '[{"start": "00:00.50", "end": 4.0, "caption": "it gets brighter"}]'
    code, server = run('ask', '--video', video, '--question', 'it gets brighter', '--kind', 'events', says=says)
    assert code == 0
    assert cells(capsys.readouterr().out) == [['0.50', '4.00', 'it gets brighter']]
    assert len(server.requests[0].media()) == 8  # 4 s, two frames a second


def test_yes_or_no_with_thinking(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    says = '<think>\nIt is.\n</think>\nYes.'
    code, server = run('ask', '--image', picture, '--question', 'Red?', '--kind', 'yes-no', '--think', says=says)
    assert code == 0
    assert capsys.readouterr().out.endswith(')\nyes\n')
    assert server.requests[0].body['max_tokens'] == 4096


def test_a_malformed_answer_is_shown_with_its_faults_and_asked_for_once_more(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ['ask', '--image', picture, '--question', 'cubes', '--kind', 'boxes', '--max-tokens', '500']
    code, server = run(*command, says=['[{"bbox_2d": [1, 2]}]', CUBE])
    told = capsys.readouterr().out
    assert code == 0
    assert 'asking once more.\n  - answer[0].label: is missing\n  - answer[0].bbox_2d: is no list of 4' in told
    assert cells(told) == [['the [red] cube', '250 500 750 1000', '40 60 120 120']]
    assert server.requests[0].body['max_tokens'] == 500
    code, _ = run(*command, says='no idea')
    assert code == 2
    assert 'cosmos3 ask: boxes: answer 2 of the reasoner, too, is malformed: 1 problem' in capsys.readouterr().err


def test_a_plan_is_a_table_of_steps_and_conditions(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    says = '{"steps": [{"instruction": "open the drawer", "success": "the drawer is open"}]}'
    past = ['--done', 'look around', '--failed', 'pull hard', '--example', 'open the drawer', '--robot', 'a Franka']
    code, server = run('plan', '--goal', 'put it away', '--image', picture, '--max-steps', '3', *past, says=says)
    assert code == 0
    assert cells(capsys.readouterr().out) == [['1', 'open the drawer', 'the drawer is open']]
    words = server.requests[0].text
    assert '- look around: done\n- pull hard: failed' in words
    assert 'a Franka' in words
    code, _ = run('plan', '--goal', 'put it away', '--done', 'put it away', says='{"steps": []}')
    assert 'nothing is left to do' in capsys.readouterr().out


def test_a_server_that_fails_or_is_slow_is_told(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run('ask', '--image', picture, '--question', 'x', says=Status(500, 'out of memory'))[0] == 2
    assert '/v1/chat/completions: answered 500 Internal Server Error: out of memory' in capsys.readouterr().err
    assert run('ask', '--image', picture, '--question', 'x', '--timeout', '0.2', says=Hang())[0] == 2
    assert 'was not done within 0.2 s' in capsys.readouterr().err


def test_the_key_comes_from_the_environment(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('COSMOS3_API_KEY', 'sk-secret-1')
    with OpenAIServer(Reply('in'), api_key='sk-secret-1') as server:
        assert main(['ask', 'tiny', '--url', server.url, '--question', 'x']) == 0
    monkeypatch.setenv('COSMOS3_API_KEY', 'sk-secret-2')
    with OpenAIServer(Reply('in'), api_key='sk-secret-1') as server:
        assert main(['ask', 'tiny', '--url', server.url, '--question', 'x']) == 2
    assert 'secret' not in ''.join(capsys.readouterr())


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (['--image', 'nowhere.png'], '--image: cannot be read'),
        (['--video', 'nowhere.mp4'], 'nowhere.mp4: cannot be opened as a video'),
        (['-o', 'nowhere/drawn.png'], '--output: cannot be made'),
        (['-o', 'drawn.txt'], '--output: is no kind of picture, got drawn.txt, allowed: .png, .jpg'),
        (['-o', 'drawn.png', '--kind', 'text'], '--output: has nothing to show, got --kind text'),
        (['--kind', 'events'], '--video: is missing: events are those of a video'),
        (['--question', ' '], 'what: is empty or too long'),
    ],
)
def test_faults_are_told_before_anything_is_loaded_or_asked(
    picture: str, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    assert main(['ask', 'no checkpoint', '--image', picture, '--question', 'x', '--kind', 'boxes', *changes]) == 2
    assert words in capsys.readouterr().err


def test_drawing_needs_a_picture(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ['ask', 'no checkpoint', '--question', 'x', '--kind', 'points', '-o', str(tmp_path / 'drawn.png')]
    assert main([*command, '--video', video]) == 2
    assert '--image: is missing: there is nothing to draw on' in capsys.readouterr().err


def test_a_rate_that_shows_nothing_is_refused(video: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['ask', 'no checkpoint', '--video', video, '--question', 'x', '--sample-fps', '0']) == 2
    assert '--sample-fps: gives no frames' in capsys.readouterr().err


def test_weights_of_this_machine_are_asked_without_an_address_and_babble_is_not_believed(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = str(engine.make_tiny(tmp_path / 'tiny', sound=False))
    command = ['ask', tiny, '--image', picture, '--question', 'cubes', '--kind', 'boxes', '--max-tokens', '6']
    assert main(command) == 2
    told = capsys.readouterr()
    assert 'asking once more.\n  - answer: was cut at the limit of tokens, got 6' in told.out
    assert 'cosmos3 ask: boxes: answer 2 of the reasoner, too, is malformed' in told.err
