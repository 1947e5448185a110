"""Promises of the shelf from which the nodes of one process take their weights."""

from __future__ import annotations

from pathlib import Path

from cosmos3_ros.shared_model import ModelShelf


def test_weights_that_are_in_use_are_shared(tiny_checkpoint: Path) -> None:
    shelf, told = ModelShelf(), []
    first = shelf.load(str(tiny_checkpoint))
    again = shelf.load(str(tiny_checkpoint), report=told.append)
    assert again.runtime is first.runtime
    assert told == ['the checkpoint is loaded already, and shared']


def test_who_loads_the_same_weights_once_more_is_told_what_keeps_them_from_being_shared(tiny_checkpoint: Path) -> None:
    shelf, told = ModelShelf(), []
    first = shelf.load(str(tiny_checkpoint), dtype='bfloat16')
    other = shelf.load(str(tiny_checkpoint), report=told.append)
    assert other.runtime is not first.runtime
    assert 'the checkpoint is loaded already, but otherwise (dtype bfloat16, not float32): once more' in told


def test_of_what_nobody_uses_any_more_nothing_is_said(tiny_checkpoint: Path) -> None:
    shelf, told = ModelShelf(), []
    shelf.load(str(tiny_checkpoint), dtype='bfloat16')
    shelf.load(str(tiny_checkpoint), report=told.append)
    assert not any('already' in text for text in told)
