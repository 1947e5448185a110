"""The wire: openpi's bytes in both directions, the older markers inbound, and nothing that is not what it claims."""

from __future__ import annotations

import datetime
import pickle

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from engine.serving.wire import Limits, WireError, as_map, pack, unpack
from tests.engine.serving.clients import legacy

KINDS = st.one_of(
    hnp.integer_dtypes(endianness='?'),
    hnp.unsigned_integer_dtypes(endianness='?'),
    hnp.floating_dtypes(endianness='?'),
    hnp.boolean_dtypes(),
    hnp.unicode_string_dtypes(max_len=5),
    hnp.byte_string_dtypes(max_len=5),
)
ARRAYS = hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=9))
VALUES = st.recursive(
    st.one_of(PLAIN, ARRAYS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and (a == b or repr(a) == repr(b) == 'nan')


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_whatever_is_written_is_written_as_openpi_writes_it_and_read_as_openpi_reads_it(value):
    message = pack(value)
    assert message == msgpack_numpy.packb(value)
    assert same(unpack(message), msgpack_numpy.unpackb(message))


@settings(max_examples=60, deadline=None)
@given(ARRAYS)
def test_an_array_in_the_older_markers_is_read(array):
    assert same(unpack(msgpack.packb(legacy(array))), np.ndarray(array.shape, array.dtype, array.tobytes()))


@pytest.mark.parametrize('dtype', ['?', 'u1', '<i8', '<f2', '<f4', '>f8'])
def test_a_number_in_either_marker_keeps_its_type(dtype):
    number = np.ones(1, dtype)[0]
    new = {b'__npgeneric__': True, b'data': number.item(), b'dtype': number.dtype.str}
    old = {b'nd': False, b'type': number.dtype.str, b'data': number.tobytes()}
    assert unpack(msgpack.packb(new)) == unpack(msgpack.packb(old)) == number
    assert unpack(msgpack.packb(new)).dtype == number.dtype


def test_the_bytes_of_an_array_are_these():
    message = bytes.fromhex(
        '81a161' '84'
        'c40b5f5f6e6461727261795f5f' 'c3'
        'c40464617461' 'c408' '0000803f' '00000040'
        'c4056474797065' 'a33c6634'
        'c4057368617065' '9102'
    )  # fmt: skip
    assert pack({'a': np.array([1, 2], '<f4')}) == message
    np.testing.assert_array_equal(unpack(message)['a'], np.array([1, 2], '<f4'))


def test_the_bytes_of_a_number_and_of_an_array_in_the_older_markers_are_these():
    number = bytes.fromhex('83c40d5f5f6e7067656e657269635f5fc3c40464617461cb3fe0000000000000c4056474797065a33c6634')
    assert pack(np.float32(0.5)) == number
    assert unpack(number) == np.float32(0.5)
    older = bytes.fromhex(
        '85c4026e64c3c40474797065a33c6932c4046b696e64c400c4057368617065920102c40464617461c40401000200'
    )
    np.testing.assert_array_equal(unpack(older), np.array([[1, 2]], '<i2'))


def test_arrays_that_were_read_are_read_only_and_take_no_second_copy():
    array = unpack(pack(np.zeros((100, 100))))
    assert not array.flags.writeable
    assert isinstance(array.base, bytes)


SOME_DAY = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def array(**changed: object) -> bytes:
    fields = {b'__ndarray__': True, b'data': b'\0' * 8, b'dtype': '<f4', b'shape': [2]}
    return msgpack.packb(fields | {key.encode(): value for key, value in changed.items()})


@pytest.mark.parametrize(
    ('message', 'words'),
    [
        (b'', 'cannot be read as msgpack'),
        (b'\xc1', 'cannot be read as msgpack'),
        (b'\x81\xa1a', 'cannot be read as msgpack'),
        (pack({'a': 1}) + b'\0', 'cannot be read as msgpack'),
        (b'\xd9\x02\xff\xff', 'cannot be read as msgpack'),
        (pickle.dumps({'a': 1}), 'cannot be read as msgpack'),
        (b'\x91' * 3000 + b'\xc0', 'cannot be read as msgpack'),
        (b'\x91' * 100 + b'\xc0', 'is nested too deeply'),
        (b'\xdd\xff\xff\xff\xff', 'exceeds max_array_len'),
        (b'\xdf\xff\xff\xff\xff', 'exceeds max_map_len'),
        (b'\xc6\xff\xff\xff\xff', 'cannot be read as msgpack'),
        (msgpack.packb([[]] * 300), 'has too many maps and lists'),
        (msgpack.packb([np.float64(0)] * 1100), 'exceeds max_array_len'),
        (pack([np.zeros(1)] * 100), 'has too many arrays'),
        (msgpack.packb({1: 2}), 'cannot be read as msgpack'),
        (msgpack.packb({'k' * 300: 2}), 'has a key that is too long'),
        (msgpack.packb(msgpack.ExtType(5, b'x')), 'has an extension of msgpack'),
        (msgpack.packb(SOME_DAY, datetime=True), 'has a value that is not read'),
        (array(dtype='|O'), 'has a type that is not read'),
        (array(dtype='|O8'), 'has a type that is not read'),
        (array(dtype='|V4'), 'has a type that is not read'),
        (array(dtype='<c8'), 'has a type that is not read'),
        (array(dtype='<f16'), 'has a type that is not read'),
        (array(dtype='<M8[s]'), 'has a type that is not read'),
        (array(dtype='f4,f4'), 'has a type that is not read'),
        (array(dtype=[['a', '<f4']]), 'has a type that is not read'),
        (array(dtype='U0', data=b'', shape=[2**39]), 'has a type that is not read'),
        (array(dtype='<f3'), 'has a type that does not exist'),
        (array(shape=[3]), 'claims another size than it has, got 12 bytes, allowed: 8'),
        (array(shape=[1]), 'claims another size than it has, got 4 bytes, allowed: 8'),
        (array(shape=[2**39, 2**39]), 'claims another size than it has'),
        (array(shape=[-2]), 'has no shape'),
        (array(shape=[True]), 'has no shape'),
        (array(shape=[2.0]), 'has no shape'),
        (array(shape='2'), 'has no shape'),
        (array(shape=[1] * 9), 'has no shape'),
        (array(data='\0' * 8), 'has no bytes as data'),
        (array(data=None), 'has no bytes as data'),
        (msgpack.packb({b'__ndarray__': True}), 'has a type that is not read'),
        (msgpack.packb({b'__npgeneric__': True, b'data': 300, b'dtype': '|u1'}), 'does not fit its type'),
        (msgpack.packb({b'__npgeneric__': True, b'data': [1], b'dtype': '<f4'}), 'is none'),
        (msgpack.packb({**legacy(np.zeros(2)), b'type': '|O'}), 'has a type that is not read'),
        (msgpack.packb({b'nd': False, b'type': '<f8', b'data': b'1'}), 'claims another size'),
    ],
)
def test_what_is_not_what_it_claims_is_refused_by_name(message, words):
    with pytest.raises(WireError, match=words.replace('[', r'\[')):
        unpack(message)


def test_a_message_beyond_its_size_is_not_looked_at():
    with pytest.raises(WireError, match='is too large, got 101 bytes, allowed: at most 100'):
        unpack(b'\xc1' * 101, Limits(size=100))


@pytest.mark.parametrize('value', [np.array([None]), np.zeros(1, 'c16'), np.zeros(1, 'i4,i4'), object()])
def test_what_could_not_be_read_back_is_not_written(value):
    with pytest.raises((ValueError, TypeError)):
        pack({'a': value})


@pytest.mark.parametrize('value', [None, 3, [], 'a', {b'a': 1}])
def test_a_request_is_a_map_with_texts_as_keys(value):
    with pytest.raises(WireError):
        as_map(unpack(msgpack.packb(value)))
