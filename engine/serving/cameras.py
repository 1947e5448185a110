"""Which field of a request holds which view, and composites that clients made themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from engine.errors import InvalidInput
from engine.observation.geometry import Pixels
from engine.observation.views import ASPECT_TOLERANCE, COMPOSITIONS, Size, Tile, compose, extent, resize, view_size
from engine.serving.base import IMAGE, Fields

if TYPE_CHECKING:
    from engine.contract import Contract

WRIST: Final = 'observation/wrist_image_left'
EXTERIORS: Final = ('exterior_1', 'exterior_2')


def exterior_key(number: int) -> str:
    """Key of an exterior camera; dialects count from 0 or from 1."""
    return f'observation/exterior_image_{number}_left'


def view_keys(contract: Contract, base: int = 1) -> dict[str, str]:
    """Key of each view of the contract.

    Args:
        contract: Names the views.
        base: Number of the first exterior camera.
    """
    known = {'wrist': WRIST, 'main': IMAGE}
    known |= {view: exterior_key(base + index) for index, view in enumerate(EXTERIORS)}
    return {
        view: known.get(view, f'observation/{view}_image') for view in COMPOSITIONS[contract.views.composition].views
    }


def counted_from(fields: Fields, contract: Contract, base: int) -> int:
    """Where a client that may count its exterior cameras from 0 or from 1 begins: at `base`, if in doubt."""
    wanted = [view for view in contract.views.streams if view in EXTERIORS]
    for first in (base, 1 - base):
        if wanted and all(exterior_key(first + EXTERIORS.index(view)) in fields for view in wanted):
            return first
    return base


def read_views(fields: Fields, keys: Mapping[str, str], remedy: str = '') -> dict[str, Pixels]:
    """Each view as it was sent. The policy letter-boxes those of another shape than their place in the composite."""
    found = {view: fields.picture(key, remedy) for view, key in keys.items()}
    return {view: picture for view, picture in found.items() if picture is not None}


def read_composite(fields: Fields, contract: Contract) -> dict[str, Pixels]:
    """The views of a composite that the client made, after it was scaled to the contract's size.

    Bilinear, half-pixel centres, cut off to whole levels, whatever the aspect ratio: cosmos-framework's rule, to the
    bit.
    """
    picture = fields.picture(IMAGE)
    if picture is None:
        return {}
    composition, size = contract.views.composition, contract.views.size
    tiles = _tiles(composition, size)
    if tiles is None:
        allowed = ', '.join(view_keys(contract).values())
        fields.problem(IMAGE, f'cannot be taken apart at {size[0]} rows', '', allowed, 'send the views one by one')
        return {}
    return _cut(resize(picture, size), composition, tiles)


def squeeze(fields: Fields, views: Mapping[str, Pixels], contract: Contract) -> dict[str, Pixels]:
    """The views as cosmos-framework's server composes them: scaled into their places, whatever their aspect ratio.

    What the policy would do with them by itself is the same to the bit for views of the right shape; they are returned
    as they are.
    """
    composition, size = contract.views.composition, contract.views.size
    wanted, tiles = view_size(composition, size), _tiles(composition, size)
    in_shape = all(_is_of_shape((view.shape[0], view.shape[1]), wanted) for view in views.values())
    if in_shape or tiles is None or set(views) != set(contract.views.streams):
        return dict(views)
    try:
        return _cut(compose(views, composition, size), composition, tiles)
    except InvalidInput as error:
        fields.problems += error.problems
        return {}


@lru_cache(maxsize=64)
def _tiles(composition: str, size: Size) -> tuple[Tile, ...] | None:
    """Where views lie in a composite, such that composing them again gives just this composite; None if nowhere."""
    join, wanted = COMPOSITIONS[composition].join, view_size(composition, size)
    for height in range(size[0], 0, -1):
        whole, tiles = join((height, size[1]))
        if whole == size:
            return tiles if all(_is_of_shape(extent(tile), wanted) for tile in tiles) else None
    return None


def _is_of_shape(size: Size, wanted: Size) -> bool:
    """Whether the policy takes a view of this size as it is, without letter-boxing it."""
    return abs(size[0] * wanted[1] / (size[1] * wanted[0]) - 1) < ASPECT_TOLERANCE


def _cut(composite: Pixels, composition: str, tiles: tuple[Tile, ...]) -> dict[str, Pixels]:
    names = COMPOSITIONS[composition].views
    return {name: composite[rows, columns] for name, (rows, columns) in zip(names, tiles, strict=True)}
