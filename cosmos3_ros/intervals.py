"""How much a count can be trusted: see :mod:`engine.evaluation.statistics`, where it is computed."""

from __future__ import annotations

from engine.evaluation.statistics import Z95, wilson

__all__ = ['Z95', 'wilson']
