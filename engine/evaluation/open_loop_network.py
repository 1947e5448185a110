"""A checkpoint's surfaces as open loop wants them: chunks of moments, imagined windows, the codec by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.actions import PoseCodec
from engine.dynamics import Dynamics
from engine.errors import ContractError, InvalidInput, Problem
from engine.evaluation.open_loop import Moment
from engine.evaluation.open_loop_dynamics import Picture, Tile, Window
from engine.evaluation.open_loop_pictures import Frames
from engine.observation.geometry import LATENT_PIXELS, choose_canvas, content_size, fit, latent_crop, to_unit
from engine.observation.views import COMPOSITIONS, compose, in_shape
from engine.policy import Observation, PolicyChunk

Floats = NDArray[np.float64]


class Answers(Protocol):
    """The policy surface of a checkpoint, or a policy server."""

    def infer(self, observation: Observation, seed: int = 0) -> PolicyChunk:
        """A chunk of actions."""


class NetworkPolicy:
    """The policy surface of a checkpoint, or a policy server."""

    def __init__(self, policy: Answers) -> None:
        self._policy = policy

    def __call__(self, moment: Moment, seed: int) -> Floats:
        """A chunk [K, D] of what was seen at a moment."""
        state = moment.state
        observation = Observation(
            moment.views,
            moment.instruction,
            state.get('joint_positions'),
            state.get('gripper_position'),
            state.get('end_effector_position'),
            state.get('end_effector_quaternion'),
        )
        return self._policy.infer(observation, seed).actions.astype(np.float64)


class NetworkImaginer:
    """The dynamics surface of a checkpoint, made for a contract."""

    def __init__(self, dynamics: Dynamics, windows: int = 1, *, detailed: bool = False) -> None:
        """Take a surface.

        Args:
            dynamics: Which one.
            windows: That are imagined one after another, each from the last frame of the one before.
            detailed: Whether what changes little keeps the first picture; see :mod:`engine.dynamics_detail`.

        Raises:
            ContractError: It was made for whole pictures, without a contract.
            InvalidInput: Its embodiment's rows are no deltas of poses, or `windows` is no count.
        """
        if dynamics.contract is None:
            raise ContractError('open loop', [Problem('dynamics', 'has no contract to compose views by')])
        if windows < 1:
            raise InvalidInput('open loop', [Problem('windows', 'are no count', str(windows), '1 or more')])
        self._dynamics, self._views, self._windows = dynamics, dynamics.contract.views, windows
        self._codec, self._detailed = dynamics.terms.codec(), detailed

    @property
    def rows(self) -> int:
        """Rows of all windows that follow each other."""
        return self._windows * self._dynamics.terms.chunk

    @property
    def codec(self) -> PoseCodec:
        """Of the terms."""
        return self._codec

    def composite(self, views: Mapping[str, Picture]) -> Picture:
        """As the policy sees it."""
        terms = self._views
        return compose(in_shape(views, terms.composition, terms.size), terms.composition, terms.size)

    def _cut(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what is imagined of pictures of a size."""
        rows, columns = latent_crop(*content_size(*size, choose_canvas(self._dynamics.terms.tier, *size)))
        return rows * LATENT_PIXELS, columns * LATENT_PIXELS

    def shown(self, frames: Frames) -> Frames:
        """Reduced to the canvas if they must be, and cut to whole latents."""
        size = (frames.shape[1], frames.shape[2])
        (height, width), canvas = self._cut(size), choose_canvas(self._dynamics.terms.tier, *size)
        return fit(frames, canvas).pixels[:, :height, :width]

    def tiles(self, size: tuple[int, int]) -> Mapping[str, Tile]:
        """Each view's part; pixels on the border of two views count for neither."""
        whole, layout = self._views.size, COMPOSITIONS[self._views.composition]
        content = content_size(*whole, choose_canvas(self._dynamics.terms.tier, *whole))
        cuts = zip(layout.views, layout.tiles(whole), strict=True)
        return {
            view: (_scaled(tile[0], content[0] / whole[0], size[0]), _scaled(tile[1], content[1] / whole[1], size[1]))
            for view, tile in cuts
        }

    def through_codec(self, frames: Frames) -> Frames:
        """Encoded, cut as the network gets it, and decoded."""
        runtime, size = self._dynamics.runtime, (frames.shape[1], frames.shape[2])
        height, width = (pixels // LATENT_PIXELS for pixels in self._cut(size))
        pixels = to_unit(fit(frames, choose_canvas(self._dynamics.terms.tier, *size)).pixels)
        with torch.inference_mode():
            with runtime.turn(self._dynamics.priority):
                latents = runtime.encode(pixels.to(runtime.backend.device))[..., :height, :width]
            decoded: Frames = runtime.decode(latents).numpy()
        return decoded

    def imagine(self, window: Window, rows: NDArray[np.float32], seed: int) -> Frames:
        """One window after another."""
        rollout = self._dynamics.imagine(window.views, rows, window.instruction, seed)
        return rollout.detailed if self._detailed else rollout.frames

    def actions(self, window: Window, seed: int) -> NDArray[np.float32]:
        """Of the real video."""
        return self._dynamics.actions_from_video(window.frames, window.instruction, seed)


def _scaled(part: slice, scale: float, limit: int) -> slice:
    return slice(int(np.ceil(part.start * scale)), min(int(part.stop * scale), limit))
