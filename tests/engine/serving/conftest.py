"""Contracts, and servers whose policy answers at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import engine
from engine.serving.server import BackgroundServer
from tests.engine.serving.clients import Instant, serving


@pytest.fixture(scope='session')
def droid() -> engine.Contract:
    """The contract of the published policy: 540 x 640."""
    return engine.load_contract('droid_joint_pos')


@pytest.fixture
def instant(droid: engine.Contract) -> Instant:
    return Instant(droid)


@pytest.fixture
def server(instant: Instant, droid: engine.Contract) -> Iterator[BackgroundServer]:
    with serving(instant, droid) as running:
        yield running
