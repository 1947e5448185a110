"""What is made of a reasoner's words: the published forms are read, everything else is refused with every fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answers.json_text import MAX_CHARACTERS, json_in
from engine.answers.parsers import (
    MAX_ITEMS,
    as_json,
    parse_boxes,
    parse_events,
    parse_plan,
    parse_points,
    parse_text,
    parse_trajectories,
    parse_yes_no,
)
from engine.answers.values import Box, Event, Plan, PlanStep, Point, Trajectory
from engine.errors import InvalidInput

PARSERS: list[Callable[[str], object]] = [
    parse_boxes,
    parse_points,
    parse_trajectories,
    parse_events,
    parse_plan,
    parse_yes_no,
    parse_text,
]
CUBE = '{"bbox_2d": [100, 200, 300, 400], "label": "red cube"}'
BOX = Box('red cube', 100, 200, 300, 400)


def faults(parse: Callable[[str], object], text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    return str(caught.value)


# The forms that are read


@pytest.mark.parametrize(
    'text',
    [
        f'[{CUBE}]',
        CUBE,
        f'```json\n[{CUBE}]\n```',
        f'```\n{CUBE}\n```',
        f'There is one cube:\n```json\n[{CUBE}]\n```\nIt is red.',
        f'The red cube is here: [{CUBE}]',
        f'<think>\nA cube [1, 2]? Yes: {CUBE}\n</think>\n\n[{CUBE}]',
        f'It lies left.\n</think>\n{CUBE}',
        f'<answer>\n[{CUBE}]\n</answer>',
        f'  \n[ {CUBE} ]\n\n',
    ],
)
def test_json_is_read_bare_fenced_behind_words_and_behind_thinking(text: str) -> None:
    assert parse_boxes(text) == (BOX,)


def test_points_with_one_label_are_one_trajectory_in_their_order() -> None:
    text = """```json
    [{"point_2d": [500, 900], "label": "gripper trajectory"}, {"point_2d": [1000, 0], "label": "gripper trajectory"},
     {"point_2d": [0, 1], "label": "cube"}, {"point_2d": [4, 2], "label": "cube"}]
    ```"""
    assert parse_trajectories(text) == (
        Trajectory('gripper trajectory', ((500, 900), (1000, 0))),
        Trajectory('cube', ((0, 1), (4, 2))),
    )


def test_times_are_seconds_or_minutes_and_seconds() -> None:
    text = '[{"start": 0, "end": 2.5, "caption": "reach"}, {"start": "00:02.50", "end": "01:04.25", "caption": "lift"}]'
    assert parse_events(text) == (Event(0.0, 2.5, 'reach'), Event(2.5, 64.25, 'lift'))


def test_a_plan_is_an_object_with_steps_or_the_list_or_one_step() -> None:
    step = '{"instruction": "open the drawer", "success": "the drawer is open"}'
    plan = Plan((PlanStep('open the drawer', 'the drawer is open'),))
    assert parse_plan(f'{{"steps": [{step}]}}') == parse_plan(f'[{step}]') == parse_plan(step) == plan


def test_an_empty_plan_is_read_only_where_nothing_may_be_left_to_do() -> None:
    assert parse_plan('{"steps": []}', may_be_empty=True) == Plan(())
    assert 'answer.steps: has the wrong number of entries, got 0, allowed: 1 to 4' in faults(
        lambda text: parse_plan(text, 4), '{"steps": []}'
    )


@pytest.mark.parametrize(('text', 'says'), [('yes', True), ('No.', False), ('<think>no</think>\nYES!', True)])
def test_yes_and_no_are_read_in_any_case(text: str, says: bool) -> None:
    assert parse_yes_no(text) is says


def test_nothing_found_is_an_answer() -> None:
    assert parse_boxes('```json\n[]\n```') == ()


# What is refused


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'is empty'),
        ('there is no cube', 'holds no JSON'),
        ('<think>\nwhere is it', 'has no clear end of thinking'),
        (f'</think>{CUBE}</think>{CUBE}', 'has no clear end of thinking'),
        (f'[{CUBE}, {{"bbox_2d": [1, 2, 3', 'holds malformed JSON'),
        (f'[{CUBE}', 'holds malformed JSON'),
        (f'[{CUBE}] or rather [{CUBE}]', 'holds something like a second JSON value'),
        (f'The cube [red]: {CUBE}', 'holds malformed JSON'),
        (f'{CUBE} }}', 'holds something like a second JSON value'),
        (f'```json\n[{CUBE}]', 'has a fence that is not closed'),
        (f'```python\n[{CUBE}]\n```', 'has a fence that is not closed right around'),
        (f'```json\nsee below\n```\n[{CUBE}]', 'has a fence that is not closed right around'),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a", "label": "b"}', "a key occurs twice: 'label'"),
        ('{"bbox_2d": [NaN, 2, 3, 4], "label": "a"}', 'not finite: NaN'),
        ('{"bbox_2d": [1e999, 2, 3, 4], "label": "a"}', "not finite: '1e999'"),
        ('{"bbox_2d": [1, 2, 3, ' + '4' * 5000 + '], "label": "a"}', 'absurdly long number'),
        ('[' * 7 + ']' * 7, 'is nested too deeply'),
        ('[' * 50_000, 'is nested too deeply'),
        ('x' * (MAX_CHARACTERS + 1), 'is too long'),
    ],
)
def test_text_that_is_not_one_json_value_is_refused(text: str, words: str) -> None:
    assert words in faults(json_in if 'nested' in words else parse_boxes, text)


def test_every_fault_is_listed_with_its_place() -> None:
    text = """[
        {"bbox_2d": [0, 0, 1001, 2.5], "label": "a"}, {"bbox_2d": [5, 5, 5, 9], "label": "b"},
        {"label": 3, "score": 1}, {"bbox_2d": [1, 2, 3], "label": " "}, 7,
        {"bbox_2d": [true, -1, 3, null], "label": "e\\u001b"}
    ]"""
    found = faults(parse_boxes, text).splitlines()
    assert found[0] == 'answer of the reasoner: 13 problems'
    assert [line.strip(' -') for line in found[1:]] == [
        'answer[0].bbox_2d[2]: is out of range, got 1001, allowed: a whole number from 0 to 1000',
        'answer[0].bbox_2d[3]: is out of range, got 2.5, allowed: a whole number from 0 to 1000',
        'answer[1].bbox_2d: has its corners in the wrong order, got (5, 5, 5, 9), '
        'allowed: x1 < x2 and y1 < y2 in [x1, y1, x2, y2]',
        'answer[2].bbox_2d: is missing',
        "answer[2]: has an unknown key, got 'score', allowed: bbox_2d, label",
        'answer[2].label: is no text, got 3, allowed: a text in quotes',
        'answer[3].bbox_2d: is no list of 4, got [1, 2, 3], allowed: 4 whole numbers',
        "answer[3].label: is empty or too long, got ' ', allowed: 1 to 200 characters",
        'answer[4]: is no object, got 7, allowed: an object in braces',
        'answer[5].bbox_2d[0]: is out of range, got True, allowed: a whole number from 0 to 1000',
        'answer[5].bbox_2d[1]: is out of range, got -1, allowed: a whole number from 0 to 1000',
        'answer[5].bbox_2d[3]: is out of range, got None, allowed: a whole number from 0 to 1000',
        "answer[5].label: holds characters that cannot be printed, got '\\x1b'",
    ]


@pytest.mark.parametrize(
    ('parse', 'text', 'words'),
    [
        (parse_boxes, json.dumps([{'bbox_2d': [1, 2, 3, 4], 'label': 'a'}] * (MAX_ITEMS + 1)), 'wrong number'),
        (parse_points, '{"point_2d": [1, 2, 3], "label": "a"}', 'answer.point_2d: is no list of 2'),
        (parse_points, CUBE, 'answer.point_2d: is missing'),
        (parse_trajectories, '{"point_2d": [1, 2], "label": "a"}', "trajectory 'a': has the wrong number of entries"),
        (parse_trajectories, '[]', 'holds no trajectory'),
        (parse_events, '{"start": 2, "end": 1, "caption": "a"}', 'answer: ends before it begins, got 2 to 1 s'),
        (
            parse_events,
            '{"start": "0:1", "end": -1, "caption": "a"}',
            "answer.start: is no time in the video, got '0:1'",
        ),
        (parse_events, '{"start": true, "end": "00:61.00", "caption": "a"}', 'answer.end: is no time in the video'),
        (parse_events, '{"start": 0, "end": ' + '9' * 400 + ', "caption": "a"}', 'answer.end: is no time in the video'),
        (parse_plan, '{"steps": {"instruction": "a", "success": "b"}}', 'answer.steps: is no list'),
        (parse_plan, '{"steps": [], "goal": "x"}', "answer: has an unknown key, got 'goal', allowed: steps"),
        (parse_plan, '{"steps": [{"instruction": "a"}]}', 'answer.steps[0].success: is missing'),
        (parse_yes_no, 'Yes, it is.', 'is neither yes nor no'),
        (parse_yes_no, 'yes no', 'is neither yes nor no'),
        (parse_text, 'a\x00b', 'cannot be printed'),
    ],
)
def test_values_out_of_form_are_refused(parse: Callable[[str], object], text: str, words: str) -> None:
    assert words in faults(parse, text)


def test_an_event_after_the_end_of_the_video_is_refused() -> None:
    text = '{"start": 1, "end": "00:08.25", "caption": "a"}'
    assert parse_events(text, 8.25)
    assert 'answer.end: is no time in the video' in faults(lambda text: parse_events(text, 8.0), text)


# For all texts and all values

coordinates = st.integers(0, 1000)
# A label with such a tag in it is refused with the whole answer: nobody can tell where the thinking ends.
labels = st.text(st.characters(exclude_categories=['Cc', 'Cs']), min_size=1, max_size=40).filter(
    lambda label: label.strip() and 'think>' not in label
)
boxes = st.builds(
    lambda label, x, y: Box(label, min(x), min(y), max(x), max(y)),
    labels,
    st.tuples(coordinates, coordinates).filter(lambda pair: pair[0] != pair[1]),
    st.tuples(coordinates, coordinates).filter(lambda pair: pair[0] != pair[1]),
)
places = st.lists(st.tuples(coordinates, coordinates), min_size=2, max_size=6).map(tuple)
events = st.builds(
    lambda a, b, caption: Event(min(a, b), max(a, b), caption), st.floats(0, 600), st.floats(0, 600), labels
)
# Something that looks like an answer, broken at random.
PIECES = (
    '[ ] { } , : " \\ ``` json </think> <think> <answer> </answer> NaN -1 1e999 yes "bbox_2d" "label" "steps" "start"'
)
pieces = st.sampled_from([*PIECES.split(), '\n', '\ud800', '"00:01.00"', CUBE])
texts = st.one_of(st.text(max_size=80), st.lists(pieces, max_size=30).map(''.join))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | pieces, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(texts)
def test_no_text_raises_anything_but_faults(text: str) -> None:
    for parse in PARSERS:
        with suppress(InvalidInput):
            parse(text)


@settings(deadline=None)
@given(st.fixed_dictionaries({'bbox_2d': anything, 'label': anything}) | anything, st.integers(0, 40))
def test_no_json_raises_anything_but_faults_whole_or_cut(document: object, cut: int) -> None:
    text = json.dumps(document)
    for parse in PARSERS:
        for said in (text, text[: len(text) - cut]):
            with suppress(InvalidInput):
                parse(said)


@settings(deadline=None)
@given(
    st.lists(boxes, max_size=5),
    st.lists(events, max_size=5),
    st.lists(st.builds(Point, labels, coordinates, coordinates)),
)
def test_what_is_written_is_read_back(some_boxes: list[Box], some_events: list[Event], points: list[Point]) -> None:
    for parse, values in ((parse_boxes, some_boxes), (parse_events, some_events), (parse_points, points)):
        assert parse(f'Here:\n```json\n{as_json(values)}\n```') == tuple(values)


@settings(deadline=None)
@given(
    st.dictionaries(labels, places, min_size=1, max_size=4), st.lists(st.builds(PlanStep, labels, labels), min_size=1)
)
def test_trajectories_and_plans_are_read_back(by_label: dict[str, tuple[tuple[int, int], ...]], steps) -> None:
    trajectories = tuple(Trajectory(label, points) for label, points in by_label.items())
    assert parse_trajectories(as_json(trajectories)) == trajectories
    assert parse_plan(as_json(Plan(tuple(steps[:32])))) == Plan(tuple(steps[:32]))


@settings(deadline=None)
@given(boxes, st.integers(1, 4))
def test_an_answer_that_breaks_off_is_never_read(box: Box, missing: int) -> None:
    text = as_json([box, box])
    assert 'malformed JSON' in faults(parse_boxes, text[: len(text) - missing])


@settings(deadline=None)
@given(st.sampled_from([-1, 1001, 0.5, '5', None, True, [5]]), st.integers(0, 3))
def test_a_coordinate_that_is_no_whole_number_in_range_is_never_clamped(odd: object, place: int) -> None:
    corners: list[object] = [100, 100, 200, 200]
    corners[place] = odd
    found = faults(parse_boxes, json.dumps({'bbox_2d': corners, 'label': 'a'}))
    assert f'answer.bbox_2d[{place}]: is out of range' in found
