"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# torch.compile compiles four programs to see which vector instructions the compiler knows: half a minute, for nothing.
os.environ.setdefault('TORCHINDUCTOR_VEC_ISA_OK', '1')

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Real DROID, UMI and driving recordings that lie beside a developer's checkout; the product never needs them."""
    data = REPOSITORY.parent / 'shared' / 'data'
    if not data.is_dir():
        pytest.skip(f'no real recordings beside this checkout (looked for {data.name} in {data.parent.name})')
    return data
