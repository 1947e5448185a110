"""What the reports have in common: one HTML file with everything in it, which loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { margin-bottom: 0.1em; } h2 { margin-top: 1.6em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 0.6em 0; font-size: 13px; }
td, th { border-bottom: 1px solid #e3e3e3; padding: 3px 10px; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
td.words, th.words { text-align: left; white-space: normal; }
figure { display: inline-block; margin: 0.5em 1em 0.5em 0; vertical-align: top; }
figcaption { font-size: 13px; color: #555; }
img, video { max-width: 100%; }
video { width: 540px; }
.scroll { overflow-x: auto; }
.note { color: #555; font-size: 13px; max-width: 62em; }
"""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page of these parts, each a piece of HTML."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = '\n'.join(parts)
    path.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n', encoding='utf-8')


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A table; with `words` all columns are text, else numbers behind a first column of names."""
    kind = ' class="words"' if words else ''
    first = ''.join(f'<th{kind}>{escape(name)}</th>' for name in head)
    body = ''.join('<tr>' + ''.join(f'<td{kind}>{escape(text)}</td>' for text in row) + '</tr>' for row in rows)
    return f'<div class="scroll"><table><tr>{first}</tr>{body}</table></div>'


def picture(title: str, png: bytes) -> str:
    """A plot under its title."""
    return f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="{data(png, "image/png")}">'


def provenance_table(values: Mapping[str, Any]) -> str:
    """Where the figures come from, one line for each."""
    return '<h2>Where this comes from</h2>' + table(('what', ''), list(flat(values)), words=True)


def flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """Nested values as names and texts; what is empty is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f'{prefix}{name}: ')
        elif value not in (None, ''):
            yield f'{prefix}{name}'.replace('_', ' '), str(value)


def data(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'
