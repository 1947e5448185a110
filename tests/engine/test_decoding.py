"""Reading token after token gives the scores of reading everything at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint import open_checkpoint
from engine.errors import InvalidInput
from engine.network.decoding import Reading


@pytest.fixture(params=['tiny_checkpoint', 'tiny_edge_checkpoint'])
def transformer(request: pytest.FixtureRequest):
    path: Path = request.getfixturevalue(request.param)
    return open_checkpoint(path).load_transformer('cpu', torch.float64)


@pytest.mark.parametrize('offloaded', [False, True])
def test_scores_are_those_of_the_whole_text(transformer, offloaded: bool) -> None:
    if offloaded:
        transformer.offload_understanding()
    ids = torch.randint(0, transformer.config.vocab_size, (23,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = transformer.logits(transformer.understand(ids))
        reading = Reading(transformer, capacity=23)
        found = [reading.read(ids[:9]), *(reading.read(token[None]) for token in ids[9:])]
    torch.testing.assert_close(torch.stack(found), whole[8:], atol=1e-9, rtol=1e-9)
    assert reading.length == 23


def test_a_text_beyond_the_capacity_is_refused_and_nothing_is_lost(transformer) -> None:
    ids = torch.arange(6)
    with torch.inference_mode():
        reading = Reading(transformer, capacity=4)
        with pytest.raises(InvalidInput, match='1 to 4'):
            reading.read(ids)
        reading.read(ids[:3])
        with pytest.raises(InvalidInput, match='one at a time'):
            reading.read(ids[3:5])
        with pytest.raises(InvalidInput, match='capacity'):
            reading.read(ids[:0])
        expected = transformer.logits(transformer.understand(ids[:4]))[-1]
        torch.testing.assert_close(reading.read(ids[3:4]), expected, atol=1e-9, rtol=1e-9)
        with pytest.raises(InvalidInput, match='1 to 0'):
            reading.read(ids[4:5])
    with pytest.raises(InvalidInput, match='capacity'):
        Reading(transformer, capacity=0)
