"""Statistics: the published figures are there as published, and files of both forms are read or refused in full."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.actions import EMBODIMENTS, Method, parse_statistics, published_statistics, read_statistics
from engine.errors import InvalidInput

WIDTHS = {
    'droid': 10,
    'bridge': 10,
    'fractal': 10,
    'robomind_franka': 10,
    'robomind_ur': 10,
    'umi': 20,
    'robomind_franka_dual': 20,
    'agibot': 29,
    'libero': 10,
}
FLAT = {'q01': [-1.0, 0.0], 'q99': [1.0, 4.0]}
BLOCKS = {
    'metadata': {'dataset': 'x'},
    'global': {'q01': [-1.0], 'q99': [1.0]},
    'global_raw': {'q01': [-0.2], 'q99': [0.2]},
}
RAW_METHODS = [Method.QUANTILE_ROT, Method.QUANTILE_ROT_SCALE_FLOOR, Method.ASINH_ROT, Method.PIECEWISE_ASINH_ROT]
OTHER_METHODS = [Method.QUANTILE, Method.MEANSTD, Method.MINMAX]


@pytest.mark.parametrize(('name', 'width'), WIDTHS.items())
def test_published_percentiles_are_in_order_and_as_wide_as_the_rows(name, width):
    low, high = published_statistics(name, Method.QUANTILE_ROT).need('q01', 'q99')
    assert low.shape == high.shape == (width,)
    assert (low < high).all()


@pytest.mark.parametrize(('name', 'width'), WIDTHS.items())
def test_published_rotation_percentiles_surround_the_identity_at_the_diagonal_only(name, width):
    """A shifted or swapped list would put a 1 where small deltas have a 0."""
    low, high = published_statistics(name, Method.QUANTILE_ROT).need('q01', 'q99')
    starts = [3, 12, 22] if width == 29 else range(3, width, 10)
    for start in starts:
        np.testing.assert_array_equal(high[[start, start + 4]], 1.0)
        assert (low[[start, start + 4]] > 0.9).all()
        off = [start + 1, start + 2, start + 3, start + 5]
        assert (low[off] < 0).all()
        assert (high[off] > 0).all()
        assert np.abs([low[off], high[off]]).max() < 0.4


def test_some_published_figures_digit_by_digit():
    droid = published_statistics('droid', Method.QUANTILE)
    assert droid.need('q01')[0].tolist()[:4] == [-0.0142, -0.013416, -0.015206, 0.998459]
    assert droid.need('q99')[0].tolist()[6:] == [0.047654, 1.0, 0.038888, 1.0]
    assert published_statistics('umi', Method.QUANTILE).need('q99')[0][[9, 19]].tolist() == [0.096749, 0.085]
    assert published_statistics('agibot', Method.QUANTILE).need('q01')[0][[3, 8, 28]].tolist() == [
        0.999999,
        -0.025516,
        0.0,
    ]


def test_libero_has_identity_figures_for_one_method_and_real_ones_for_the_other():
    plain, raw = (published_statistics('libero', method) for method in (Method.QUANTILE, Method.QUANTILE_ROT))
    np.testing.assert_array_equal(plain.need('q01')[0][3:9], -1.0)
    np.testing.assert_array_equal(plain.need('q99')[0][3:9], 1.0)
    assert raw.need('q01')[0][3] == 0.934955
    np.testing.assert_array_equal(plain.need('q99')[0][:3], raw.need('q99')[0][:3])


def test_every_statistics_name_of_an_embodiment_is_published():
    names = {space.statistics for entry in EMBODIMENTS for space in entry.spaces if space.statistics}
    assert names == set(WIDTHS)


def test_a_data_set_without_published_statistics_is_refused_with_those_that_have_them():
    with pytest.raises(InvalidInput, match=r"'aloha', allowed: .*droid"):
        published_statistics('aloha', Method.QUANTILE)


@pytest.mark.parametrize('method', [*RAW_METHODS, *OTHER_METHODS])
def test_the_flat_form_serves_every_method(method):
    assert parse_statistics(FLAT, method, 'x').need('q99')[0].tolist() == [1.0, 4.0]


@pytest.mark.parametrize('method', RAW_METHODS)
def test_methods_that_scale_rotations_read_the_raw_block(method):
    assert parse_statistics(BLOCKS, method, 'x').need('q01')[0].tolist() == [-0.2]


@pytest.mark.parametrize('method', OTHER_METHODS)
def test_the_other_methods_read_the_global_block(method):
    assert parse_statistics(BLOCKS, method, 'x').need('q01')[0].tolist() == [-1.0]


def test_a_missing_block_is_refused_rather_than_replaced_by_the_other():
    with pytest.raises(InvalidInput, match="no block 'global_raw', which quantile_rot reads, got global"):
        parse_statistics({'global': FLAT}, Method.QUANTILE_ROT, 'x')


def test_all_faulty_statistics_are_listed():
    document = {'mean': ['a'], 'std': [[1.0]], 'q01': [float('nan')], 'q99': [], 'comment': 'ignored'}
    with pytest.raises(InvalidInput) as caught:
        parse_statistics(document, Method.QUANTILE, 'x')
    assert [problem.where for problem in caught.value.problems] == ['x: mean', 'x: std', 'x: q01', 'x: q99']


def test_statistics_of_different_lengths_are_refused():
    with pytest.raises(InvalidInput, match='of one length'):
        parse_statistics({'q01': [0.0], 'q99': [1.0, 1.0]}, Method.QUANTILE, 'x')


@pytest.mark.parametrize('document', [[1, 2], None, {}, {'comment': 'nothing here'}])
def test_documents_without_statistics_are_refused(document):
    with pytest.raises(InvalidInput):
        parse_statistics(document, Method.QUANTILE, 'x')


def test_what_a_method_lacks_is_named_in_full():
    with pytest.raises(InvalidInput) as caught:
        published_statistics('droid', Method.MEANSTD).need('mean', 'std')
    assert [problem.what for problem in caught.value.problems] == ["has no 'mean'", "has no 'std'"]


def test_a_file_reads_as_the_document_in_it(tmp_path):
    path = tmp_path / 'stats.json'
    path.write_text(json.dumps(BLOCKS))
    assert read_statistics(path, Method.QUANTILE_ROT).need('q99')[0].tolist() == [0.2]


@pytest.mark.parametrize('content', [None, '{"q01": [', b'\xff\xfe'], ids=['absent', 'cut off', 'not text'])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    path = tmp_path / 'stats.json'
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InvalidInput, match=r'stats\.json: cannot be read'):
        read_statistics(path, Method.QUANTILE)


def test_the_first_arm_of_two_is_the_first_half():
    both = published_statistics('umi', Method.QUANTILE)
    assert both.first(10).dim == 10
    np.testing.assert_array_equal(both.first(10).need('q01')[0], both.need('q01')[0][:10])
