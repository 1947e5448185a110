"""Chunks: padded with zeros, fitted as forward dynamics does, read from files with every fault named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions import MODEL_WIDTH, fit_chunk, pad_channels, read_action_file
from engine.errors import InvalidInput


def write(tmp_path, document) -> str:
    path = tmp_path / 'actions.json'
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


@given(st.integers(1, 64))
def test_padding_appends_zeros_and_changes_nothing_else(width):
    rows = np.arange(3.0 * width).reshape(3, width) + 1
    padded = pad_channels(rows)
    assert padded.shape == (3, MODEL_WIDTH)
    np.testing.assert_array_equal(padded[:, :width], rows)
    assert not padded[:, width:].any()


def test_padding_keeps_leading_dimensions():
    assert pad_channels(np.ones((2, 3, 8)), 10).shape == (2, 3, 10)
    assert pad_channels(np.ones(8)).shape == (64,)


def test_rows_wider_than_the_model_are_refused():
    with pytest.raises(InvalidInput, match='too wide, got 65, allowed: at most 64'):
        pad_channels(np.zeros((1, 65)))


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_chunk_has_its_length_and_repeats_the_last_row_or_drops_the_end(rows, length):
    actions = np.arange(rows, dtype=float)[:, None]
    fitted = fit_chunk(actions, length)
    expected = [min(index, rows - 1) for index in range(length)]
    assert fitted[:, 0].tolist() == expected


@pytest.mark.parametrize(('rows', 'length'), [(np.zeros((0, 3)), 4), (np.zeros(3), 4), (np.zeros((2, 3)), 0)])
def test_what_is_no_chunk_is_refused(rows, length):
    with pytest.raises(InvalidInput):
        fit_chunk(rows, length)


def test_a_file_reads_as_its_rows(tmp_path):
    rows = [[1, 2.5], [-3, 4e-3]]
    np.testing.assert_array_equal(read_action_file(write(tmp_path, rows), 2), rows)


def test_every_faulty_row_is_named_with_what_is_wrong(tmp_path):
    rows = [[1, 2], [1], 'x', [None, True], [1, 2, 'y']]
    with pytest.raises(InvalidInput) as caught:
        read_action_file(write(tmp_path, rows))
    found = [(problem.where, problem.what) for problem in caught.value.problems]
    assert found == [
        ('row 1', 'has another width'),
        ('row 2', 'is no list'),
        ('row 3', 'holds what is no finite number'),
        ('row 4', 'has another width'),
        ('row 4', 'holds what is no finite number'),
    ]
    assert '[0] = None, [1] = True' in str(caught.value)


@pytest.mark.parametrize('number', ['NaN', 'Infinity', '-Infinity', '1e999', '1' + '0' * 400])
def test_numbers_that_are_not_finite_are_refused(tmp_path, number):
    with pytest.raises(InvalidInput, match='row 0: holds what is no finite number'):
        read_action_file(write(tmp_path, f'[[{number}]]'))


@pytest.mark.parametrize('document', ['{}', '[]', '3', 'null'])
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path, document):
    with pytest.raises(InvalidInput, match='no list of rows'):
        read_action_file(write(tmp_path, document))


@pytest.mark.parametrize('document', ['', '[[1, 2], [3'])
def test_a_file_that_is_no_json_is_refused(tmp_path, document):
    with pytest.raises(InvalidInput, match='cannot be read'):
        read_action_file(write(tmp_path, document))


def test_an_absent_file_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidInput, match=r'nowhere\.json'):
        read_action_file(tmp_path / 'nowhere.json')


def test_a_width_that_the_embodiment_does_not_have_is_refused_for_every_row(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        read_action_file(write(tmp_path, [[1, 2], [3, 4]]), 10)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize('rows', [[[]], [[], []]])
def test_rows_without_numbers_are_refused(tmp_path, rows):
    with pytest.raises(InvalidInput, match='another width, got 0'):
        read_action_file(write(tmp_path, rows))
