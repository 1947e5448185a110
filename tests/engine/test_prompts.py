"""Prompts against strings measured on the reference implementation, byte for byte."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.contract import PROMPT_FORMATS
from engine.contract import VIEWPOINTS as CONTRACT_VIEWPOINTS
from engine.errors import InvalidInput
from engine.observation.geometry import Canvas, canvases, choose_canvas
from engine.observation.prompts import (
    DROID_DESCRIPTION,
    SYSTEM_PROMPTS,
    VIEWPOINTS,
    Clip,
    IdleFrames,
    action_prompt,
    conditioning_fps,
    generation_prompt,
    json_prompt,
    negative_prompt,
    plain_prompt,
)

TASK = 'put the banana in the bowl'
DROID = Clip(frames=33, fps=15, height=544, width=736)

DROID_PLAIN = (
    'put the banana in the bowl. This video contains concatenated views from multiple camera perspectives. The top row '
    'is from the wrist-mounted camera. The bottom row contains two horizontally concatenated third-person perspective '
    'views of the scene from opposite sides, with the robot visible. The video is 2.0 seconds long and is of 15 FPS. '
    'This video is of 544x736 resolution.'
)
DROID_JSON = (
    '{"cinematography": {"framing": "This video contains concatenated views from multiple camera perspectives. The top '
    'row is from the wrist-mounted camera. The bottom row contains two horizontally concatenated third-person '
    'perspective views of the scene from opposite sides, with the robot visible."}, "actions": [{"time": "0:00-0:02", '
    '"description": "put the banana in the bowl."}], "duration": "2s", "fps": 15.0, "resolution": {"H": 544, "W": '
    '736}, "aspect_ratio": "4,3"}'
)


def test_the_droid_policys_plain_prompt_is_the_reference_servers():
    assert plain_prompt(TASK, DROID, viewpoint='concat_view', description=DROID_DESCRIPTION) == DROID_PLAIN


def test_the_droid_policys_json_prompt_is_the_training_recipes():
    assert json_prompt(TASK, DROID, viewpoint='concat_view', description=DROID_DESCRIPTION) == DROID_JSON


@pytest.mark.parametrize(('style', 'expected'), [('plain', DROID_PLAIN), ('json', DROID_JSON)])
def test_an_action_request_is_written_in_the_contracts_format(style: str, expected: str):
    prompt = action_prompt(
        style,
        TASK,
        viewpoint='concat_view',
        description=DROID_DESCRIPTION,
        frames=33,
        fps=15.9,  # servers state whole frames per second
        canvas=choose_canvas(480, 540, 640),
    )
    assert prompt == expected


@pytest.mark.parametrize('style', PROMPT_FORMATS)
def test_every_format_and_viewpoint_of_a_contract_can_be_written(style: str):
    canvas = Canvas(256, 320, '4,3')
    for viewpoint in CONTRACT_VIEWPOINTS:
        prompt = action_prompt(style, TASK, viewpoint=viewpoint, description='', frames=17, fps=10, canvas=canvas)
        assert prompt == TASK if style == 'bare' else VIEWPOINTS[viewpoint] in prompt


@pytest.mark.parametrize('write', [plain_prompt, json_prompt])
def test_an_empty_instruction_is_the_unconditional_prompt(write):
    assert write('', DROID, viewpoint='concat_view', description=DROID_DESCRIPTION) == ''


@pytest.mark.parametrize(
    ('caption', 'start'),
    [
        ('Pick it up.', 'Pick it up. The video'),
        ('Pick it up', 'Pick it up. The video'),
        ('Pick it up!', 'Pick it up!. The video'),
        ('Can you?', 'Can you?. The video'),
        ('Pick it up. \n', 'Pick it up. The video'),
    ],
)
def test_plain_sentences_are_joined_as_the_reference_joins_them(caption: str, start: str):
    assert plain_prompt(caption, DROID).startswith(start)


@pytest.mark.parametrize(
    ('caption', 'description'),
    [
        ('Pick it up.', 'Pick it up.'),
        (' Pick it up ', 'Pick it up.'),
        ('Pick it up!', 'Pick it up!'),
        ('Can you?', 'Can you?'),
        ('éclair', 'éclair.'),
    ],
)
def test_a_json_description_ends_its_sentence_once(caption: str, description: str):
    prompt = json_prompt(caption, DROID)
    assert json.loads(prompt)['actions'][0]['description'] == description
    assert prompt.isascii()


@pytest.mark.parametrize(
    ('frames', 'fps', 'time', 'duration'),
    [
        (33, 15, '0:00-0:02', '2s'),
        (37, 15, '0:00-0:02', '2s'),  # 2.47 s
        (39, 15, '0:00-0:03', '2s'),  # 2.6 s: rounded in one place, cut off in the other
        (25, 10, '0:00-0:02', '2s'),  # 2.5 s: a half goes to the even second
        (35, 10, '0:00-0:04', '3s'),
        (189, 24, '0:00-0:08', '7s'),
        (17, 30, '0:00-0:01', '0s'),
        (1260, 10, '0:00-2:06', '126s'),
    ],
)
def test_the_time_is_rounded_and_the_duration_cut_off(frames: int, fps: float, time: str, duration: str):
    prompt = json.loads(json_prompt(TASK, Clip(frames, fps, 544, 736)))
    assert (prompt['actions'][0]['time'], prompt['duration']) == (time, duration)
    assert f'is {int(duration[:-1])}.0 seconds long' in plain_prompt(TASK, Clip(frames, fps, 544, 736))


def test_json_prompts_are_those_of_diffusers():
    pipeline = pytest.importorskip('diffusers').Cosmos3OmniPipeline
    for viewpoint in ('ego_view', 'third_person_view', 'wrist_view', 'concat_view', None):
        for frames, fps, canvas in itertools.product((5, 17, 33, 189), (5, 10, 24, 29.97), canvases(480)):
            expected = pipeline._build_action_json_prompt(
                TASK, view_point=viewpoint, num_frames=frames, fps=fps, height=canvas.height, width=canvas.width
            )
            assert json_prompt(TASK, Clip(frames, fps, *canvas.size), viewpoint=viewpoint) == expected


def test_short_clips_can_state_fractions_of_a_second():
    prompt = json.loads(json_prompt(TASK, DROID, float_seconds=True))
    assert prompt['actions'][0]['time'] == '0.00-2.20s'
    assert list(prompt) == ['actions', 'duration', 'fps', 'resolution', 'aspect_ratio']
    assert prompt['duration'] == '2.20s'


def test_idle_frames_are_stated_as_in_training():
    assert json_prompt(TASK, DROID, idle=IdleFrames(3, 33)) == json_prompt(TASK, DROID).replace(
        'bowl."', 'bowl.", "idle_frame": "3 out of 33."'
    )
    assert plain_prompt(TASK, DROID, idle=IdleFrames(0, 16)).endswith('resolution. IdleFrames: 0 out of 16.')
    assert str(IdleFrames(2, None)) == '2.'


def test_an_unknown_viewpoint_leaves_the_description_to_json_and_nothing_to_plain_text():
    assert json.loads(json_prompt(TASK, DROID, viewpoint='drone', description='From above. '))['cinematography'] == {
        'framing': 'From above.'
    }
    assert 'cinematography' not in json.loads(json_prompt(TASK, DROID, viewpoint='drone'))
    assert 'From above' not in plain_prompt(TASK, DROID, viewpoint='drone', description='From above.')


@pytest.mark.parametrize(
    ('height', 'width', 'label'),
    [(544, 736, '4,3'), (480, 832, '16,9'), (768, 512, '2,3'), (960, 960, '1,1'), (540, 640, '32,27')],
)
def test_the_aspect_ratio_is_the_tables_label_or_the_reduced_ratio(height: int, width: int, label: str):
    assert json.loads(json_prompt(TASK, Clip(33, 15, height, width)))['aspect_ratio'] == label


def test_frame_rates_are_cut_off_to_whole_numbers():
    assert [conditioning_fps(fps) for fps in (15, 15.9, 29.97)] == [15, 15, 29]
    with pytest.raises(InvalidInput, match=r'0\.5'):
        conditioning_fps(0.5)


def test_an_impossible_clip_is_refused_with_every_fault():
    with pytest.raises(InvalidInput) as error:
        Clip(0, float('inf'), 0, 736)
    assert [problem.where for problem in error.value.problems] == ['frames', 'height', 'fps']


def test_an_unknown_format_is_refused():
    with pytest.raises(InvalidInput, match='plain, json'):
        action_prompt('xml', TASK, viewpoint=None, description=None, frames=33, fps=15, canvas=Canvas(544, 736, '4,3'))


@given(caption=st.text(min_size=1))
def test_json_prompts_are_always_json(caption: str):
    described = json.loads(json_prompt(caption, DROID, viewpoint='wrist_view'))['actions'][0]['description']
    assert described.rstrip('.') == caption.strip().rstrip('.')


VIDEO = Clip(frames=189, fps=24, height=720, width=1280)
IMAGE = Clip(frames=1, fps=24, height=1024, width=1024)


def test_generation_states_the_real_duration():
    assert generation_prompt('A robot waves...', VIDEO) == (
        'A robot waves. The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution.'
    )
    assert generation_prompt('A robot', IMAGE) == 'A robot. This image is of 1024x1024 resolution.'


def test_negative_prompts_negate_or_repeat_the_facts():
    assert negative_prompt('blur', VIDEO) == (
        'blur. The video is not 7.9 seconds long and is not of 24 FPS. This video is not of 720x1280 resolution.'
    )
    assert negative_prompt('', IMAGE) == 'This image is not of 1024x1024 resolution.'
    assert negative_prompt('', IMAGE, 'same') == 'This image is of 1024x1024 resolution.'
    assert negative_prompt('blur', VIDEO, 'none') == 'blur'
    with pytest.raises(InvalidInput, match='none, same, inverse'):
        negative_prompt('blur', VIDEO, 'opposite')  # type: ignore[arg-type]


def test_a_json_caption_gets_the_facts_as_keys():
    prompt = generation_prompt('{"fps": 1, "subjects": ["a robot"], "duration": "9s"}', VIDEO)
    assert prompt == (
        '{"fps": 24.0, "subjects": ["a robot"], "duration": "7s", "resolution": {"H": 720, "W": 1280}, '
        '"aspect_ratio": "16,9"}'
    )
    image = generation_prompt('{"fps": 1, "subjects": ["a robot"], "duration": "9s"}', IMAGE)
    assert image == '{"subjects": ["a robot"], "resolution": {"H": 1024, "W": 1024}, "aspect_ratio": "1,1"}'


@pytest.mark.parametrize('text', ['[1, 2]', '3', 'null', '{broken'])
def test_only_json_objects_are_taken_for_json(text: str):
    assert generation_prompt(text, IMAGE) == f'{text}. This image is of 1024x1024 resolution.'


def test_system_prompts_keep_the_grammar_of_training():
    assert SYSTEM_PROMPTS['video'] == 'You are a helpful assistant who will generate videos from a give prompt.'
    assert SYSTEM_PROMPTS['image'] == SYSTEM_PROMPTS['video'].replace('videos', 'images')
    assert set(SYSTEM_PROMPTS) == {'image', 'video', 'image_edit', 'transfer'}
