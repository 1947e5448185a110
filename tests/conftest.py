"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

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
