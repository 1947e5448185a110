"""The policy surface: what the cameras see and where the joints are -> a chunk of actions and the imagined video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.actions import (
    MODEL_WIDTH,
    NO_NORMALIZATION,
    JointCodec,
    PoseCodec,
    Poses,
    codec,
    embodiment,
    matrix_to_quaternion,
    quaternion_to_matrix,
)
from engine.errors import ContractError, CosmosError, InvalidInput, ObservationError, Problem
from engine.network.heads import VideoTokens, patchify
from engine.observation.geometry import Canvas, choose_canvas, content_size, fill_margins, fit, latent_crop, to_unit
from engine.observation.on_device import compose_on
from engine.observation.prompts import action_prompt
from engine.observation.views import compose, in_shape
from engine.policy_observation import (
    POSE_COLUMNS,
    Observation,
    PolicyChunk,
    check_numbers,
    check_observation,
    grey_observation,
    gripper_shape,
    instruction_problems,
    pose_shape,
)
from engine.runtime import Stopwatch, Task
from engine.runtime_lanes import hand_out
from engine.sampler import Guidance, flow_unipc_schedule, framework_noise
from engine.sampler_ahead import NoiseAhead
from engine.sequence import Layout, policy_layout
from engine.turns import Priority

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.runtime import Runtime

__all__ = ['POSE_COLUMNS', 'Observation', 'Policy', 'PolicyChunk', 'canvas_of', 'check_observation', 'layout_of']

CAPTIONS_REMEMBERED = 64
"""Instructions whose prompts need not be written anew at every tick."""


class _Noise(NamedTuple):
    """Where a request starts, before what is known is put in place."""

    vision: torch.Tensor
    action: torch.Tensor


class Policy:
    """Turns observations into chunks for one contract. Thread-safe; requests are served one at a time.

    Attributes:
        priority: Of its requests among all that share the weights.
    """

    def __init__(
        self,
        runtime: Runtime,
        contract: Contract,
        *,
        noise_ahead: bool = True,
        pictures_on_device: bool | None = None,
    ) -> None:
        """Use :meth:`engine.Cosmos3.policy`, which checks the contract against the checkpoint first.

        Neither switch changes a chunk.

        Args:
            runtime: Weights and prompts.
            contract: What the policy is for.
            noise_ahead: Draw the noise of the next request while nothing else is to be done; see
                :class:`~engine.sampler_ahead.NoiseAhead`.
            pictures_on_device: Compose the pictures where the network runs; see
                :func:`~engine.observation.on_device.compose_on`. None: if that is a GPU.
        """
        self.runtime = runtime
        self.contract = contract
        self.priority = Priority.POLICY
        self.embodiment = embodiment(contract.embodiment.domain)
        self.codec = policy_codec(contract)
        self.canvas = canvas_of(contract)
        self.layout = layout_of(contract)
        sampler = contract.sampler
        self.schedule = flow_unipc_schedule(sampler.steps, sampler.shift)
        self.guidance = Guidance(sampler.guidance, sampler.guidance_interval, steps=sampler.guidance_steps)
        self._device = runtime.backend.device
        self._on_device = self._device.type == 'cuda' if pictures_on_device is None else pictures_on_device
        # One request at a time composes its picture, and the autoencoder has done with it when it returns.
        self._picture = np.empty((*self.canvas.size, 3), np.uint8)
        self._unit = torch.empty(*self.canvas.size, 3, device=self._device).movedim(-1, 0)
        self._captions = lru_cache(CAPTIONS_REMEMBERED)(partial(caption_of, contract))
        self._ahead = NoiseAhead(self._draw) if noise_ahead else None

    def caption(self, instruction: str) -> str:
        """The prompt that the checkpoint reads for an instruction, in the contract's format."""
        return self._captions(instruction)

    def check_instruction(self, instruction: str) -> None:
        """Do nothing if the policy can follow this instruction.

        Raises:
            ObservationError: It is empty, or longer than the checkpoint can read.
        """
        problems = list(instruction_problems(instruction))
        if problems:
            raise ObservationError('instruction', problems)
        self.runtime.tokenizer.encode(self.caption(instruction))

    def warm_up(self) -> None:
        """Run one inference on grey pictures, so that later ones do not pay for first-time work."""
        self.infer(grey_observation(self.contract))

    def prepare(self, instruction: str) -> None:
        """Compute the prompt's keys and values ahead of the first observation.

        Raises:
            ObservationError: The instruction is empty or too long.
        """
        self.check_instruction(instruction)
        with self.runtime.turn(self.priority):
            self.runtime.prefix(self.caption(instruction))
            if any(self.guidance.mask(self.schedule)):
                self.runtime.prefix('')

    def infer(
        self,
        observation: Observation,
        seed: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
        committed: NDArray[np.floating] | None = None,
    ) -> PolicyChunk:
        """One chunk of actions, and the video that is imagined with it.

        Args:
            observation: Must hold what the contract asks for.
            seed: Of the noise; the same seed and observation give the same chunk.
            cancelled: Asked between denoising steps, and while the request waits for others; True gives it up.
            committed: [K, D], K < rows: the first rows of the chunk, as in :attr:`PolicyChunk.actions`, that will be
                executed whatever comes out. They are given to the network as clean tokens, so that the other rows
                continue them. The published checkpoints were trained with the state (and history) rows clean, or all
                of them; a few leading rows of the chunk is something that the network can read but has not practised.

        Raises:
            ObservationError: The observation or `committed` does not fit the contract; lists every fault.
            Cancelled: `cancelled` returned True.
        """
        check_observation(observation, self.contract)
        given = self._given_rows(observation, committed)
        layout = layout_of(self.contract, len(committed)) if committed is not None else self.layout
        if layout.vision is None:
            raise CosmosError(f'a policy needs vision, got {layout}')
        watch = Stopwatch(self.runtime.backend.device)
        with (
            watch.stage('total', with_waits=True),
            torch.inference_mode(),
            self.runtime.turn(self.priority, watch, cancelled),
        ):
            task = self._task(layout, observation, given, seed, watch)
            if self._device.type != 'cpu':
                self._draw_ahead()  # the processor has little to do while the device denoises
            video, rows = self.runtime.denoise_actions(task, watch, cancelled, self.priority)
            with watch.stage('decode'):
                actions = self._decode(rows, observation)
        for tensor in video.tensors:
            hand_out(tensor)
        self._draw_ahead()
        imagined = VideoTokens(video.finish, layout.vision, self.runtime.backend.patch)
        return PolicyChunk(actions, imagined, observation.instruction, int(seed), dict(watch.seconds))

    @property
    def together(self) -> bool:
        """Whether :meth:`infer_together` saves anything: the backend can denoise several requests at once."""
        return self.runtime.together

    def infer_together(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[PolicyChunk]:
        """A chunk for each of several robots, which share the passes of the network.

        The chunks are those of :meth:`infer` up to the order of sums, and take all as long as the slowest.

        Args:
            observations: Of B robots.
            seeds: Of their noise.
            cancelled: Asked between denoising steps, and while the requests wait for others; gives all of them up.

        Raises:
            ObservationError: One of the observations does not fit the contract.
            Cancelled: `cancelled` returned True.
        """
        for observation in observations:
            check_observation(observation, self.contract)
        given = [self._given_rows(observation, None) for observation in observations]
        watch, item = Stopwatch(self.runtime.backend.device), self.layout.vision
        if item is None:
            raise CosmosError(f'a policy needs vision, got {self.layout}')
        with (
            watch.stage('total', with_waits=True),
            torch.inference_mode(),
            self.runtime.turn(self.priority, watch, cancelled),
        ):
            tasks = [
                self._task(self.layout, observation, rows, seed, watch, alone=False)
                for observation, rows, seed in zip(observations, given, seeds, strict=True)
            ]
            found = self.runtime.denoise_together(tasks, watch, cancelled, self.priority)
            with watch.stage('decode'):
                actions = [self._decode(rows, one) for (_, rows), one in zip(found, observations, strict=True)]
        self._draw_ahead()
        seconds, patch = dict(watch.seconds), self.runtime.backend.patch
        return [
            PolicyChunk(rows, VideoTokens(partial(_itself, video), item, patch), one.instruction, int(seed), seconds)
            for rows, (video, _), one, seed in zip(actions, found, observations, seeds, strict=True)
        ]

    def _task(
        self,
        layout: Layout,
        observation: Observation,
        given: NDArray[np.float32],
        seed: int,
        watch: Stopwatch,
        alone: bool = True,
    ) -> Task:
        """What to denoise for an observation, `alone` or with others. To be called within a turn."""
        vision, action = self._start(observation, given, seed, watch)
        vision = vision if alone else vision.clone()  # two of the same seed have the same memory
        caption = self.caption(observation.instruction)
        return Task(layout, caption, self.schedule, self.guidance, vision=vision, action=action, in_tokens=True)

    def _draw_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.draw_ahead()

    def imagined_video(self, chunk: PolicyChunk) -> NDArray[np.uint8]:
        """Decode the imagined video of a chunk: uint8 [frames, H, W, 3], the composed views at the contract's rate.

        It is for people to see, so requests for actions go first, also while it is being decoded.
        """
        with torch.inference_mode():
            return self.runtime.decode(chunk.latents).numpy()

    def composite(self, observation: Observation) -> NDArray[np.uint8]:
        """The one picture that the network sees, uint8 [H, W, 3] of the contract's size.

        Pictures of another shape than the composition's tiles are letter-boxed, as NVIDIA's evaluation clients do;
        pictures of the right shape are left to the composition to scale.
        """
        views = self.contract.views
        return compose(self._in_shape(observation), views.composition, views.size)

    def _in_shape(self, observation: Observation) -> dict[str, NDArray[np.uint8]]:
        """The contract's pictures, those of another shape than their tiles letter-boxed."""
        views = self.contract.views
        return in_shape(observation.images, views.composition, views.size)

    def _pixels(self, observation: Observation) -> torch.Tensor:
        """The one picture on its canvas, as the autoencoder takes it: float32 [3, H, W] in -1..1, on the device."""
        views = self.contract.views
        if self._on_device:
            shaped = self._in_shape(observation)
            return compose_on(shaped, views.composition, views.size, self.canvas, self._device)
        height, width = views.size
        if content_size(height, width, self.canvas) != views.size:
            return to_unit(fit(self.composite(observation), self.canvas).pixels, self._device, out=self._unit)
        shaped = self._in_shape(observation)
        compose(shaped, views.composition, views.size, out=self._picture[:height, :width])
        fill_margins(self._picture, views.size, self.canvas)
        return to_unit(self._picture, self._device, out=self._unit)

    def _start(
        self, observation: Observation, given: NDArray[np.float32], seed: int, watch: Stopwatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise in tokens, with the observed frame and the given rows in place."""
        device = self._device
        item, rows = self.layout.vision, self.layout.action
        if item is None or rows is None:
            raise CosmosError(f'a policy needs vision and actions, got {self.layout}')
        with watch.stage('compose'):
            pixels = self._pixels(observation)
        with watch.stage('encode'):
            first = self.runtime.vae.encode_frame(pixels)
        with watch.stage('noise'):
            shape = (1, first.shape[1], item.frames, item.height, item.width)
            noise = self._ahead.take(seed, shape) if self._ahead else self._draw(seed, shape)
            # Not copied, although it may be handed out again: the observed frame, whose noise nobody ever looks at, is
            # put in anew for every request, and the solver leaves the sample that it begins with as it is.
            vision = noise.vision.to(device)
            action = noise.action.to(device, copy=True)
            seen = patchify(first[..., : item.height, : item.width], self.runtime.backend.patch)
            vision[: len(seen)] = seen
        action[:, rows.raw_dim :] = 0
        action[: len(given), : rows.raw_dim] = torch.from_numpy(given).to(device)
        return vision, action

    def _draw(self, seed: int, shape: tuple[int, ...]) -> _Noise:
        """Noise of a video of `shape`, cut into tokens, and of the rows."""
        noise, rows = framework_noise(seed, shape), self.layout.action
        if rows is None:
            raise CosmosError(f'a policy needs actions, got {self.layout}')
        action = _leading(noise, seed, (rows.rows, MODEL_WIDTH)).clone()
        return _Noise(patchify(noise, self.runtime.backend.patch), action)

    def _given_rows(self, observation: Observation, committed: NDArray[np.floating] | None) -> NDArray[np.float32]:
        """History, state and committed rows in model space, [history + state + K, raw_dim]."""
        try:
            rows = self._clean_rows(observation)
            if committed is not None:
                rows = np.vstack([rows, self._committed_rows(observation, committed)])
        except InvalidInput as error:
            raise ObservationError('observation', error.problems) from error
        return rows.astype(np.float32)

    def _clean_rows(self, observation: Observation) -> NDArray[np.float64]:
        """History and state rows in model space, [history + state, raw_dim]."""
        terms = self.contract.embodiment
        if not terms.clean_rows:
            return np.zeros((0, terms.raw_action_dim))
        count = terms.clean_rows
        measured = observation.gripper_position if self.contract.robot.grippers else ()
        gripper = np.asarray(measured, np.float64).reshape(gripper_shape(self.contract, count))
        if isinstance(self.codec, PoseCodec):
            return self._pose_rows(self.codec, self._poses(observation), gripper)
        joints = np.asarray(observation.joint_positions, np.float64).reshape(count, -1)
        return self.codec.encode_state(joints, gripper)

    def _committed_rows(self, observation: Observation, committed: NDArray[np.floating]) -> NDArray[np.float64]:
        """Rows of actions in model space, [K, raw_dim]."""
        robot = self.contract.robot
        gripper_at = POSE_COLUMNS * len(robot.arms) if isinstance(self.codec, PoseCodec) else len(robot.joints)
        width = gripper_at + len(robot.grippers)
        most = self.contract.timing.chunk_rows - 1
        rows = np.asarray(committed)
        if rows.ndim != 2 or rows.shape[1] != width or not 1 <= len(rows) <= most:
            what = f'[1..{most}, {width}]'
            raise InvalidInput(
                'observation', [Problem('committed', 'has the wrong shape', str(list(rows.shape)), what)]
            )
        problems = check_numbers('committed', rows, rows.shape)
        if problems:
            raise InvalidInput('observation', problems)
        rows, gripper = rows[:, :gripper_at].astype(np.float64), rows[:, gripper_at:].astype(np.float64)
        if gripper.shape[1] == 1:
            gripper = gripper[:, 0]
        if not isinstance(self.codec, PoseCodec):
            return self.codec.encode(rows, gripper, self._joints(observation))
        start = self._poses(observation)[-1:]
        poses = rows.reshape(*(len(rows), *start.shape[1:]), POSE_COLUMNS)
        path = Poses(
            np.concatenate([start.position, poses[..., :3]]),
            np.concatenate([start.rotation, quaternion_to_matrix(poses[..., 3:])]),
        )
        return self.codec.encode_trajectory(path, gripper)

    @staticmethod
    def _pose_rows(codec: PoseCodec, poses: Poses, gripper: NDArray[np.float64]) -> NDArray[np.float64]:
        """History as framewise deltas between measured poses, then the state row with the absolute pose."""
        state = codec.encode_state(poses[-1:], gripper[-1:])
        if len(gripper) == 1:
            return state
        return np.vstack([codec.encode_trajectory(poses, gripper[1:]), state])

    def _decode(self, rows: torch.Tensor, observation: Observation) -> NDArray[np.float32]:
        generated = rows[self.contract.embodiment.clean_rows :, : self.contract.embodiment.raw_action_dim]
        raw = generated.double().cpu().numpy()
        if isinstance(self.codec, PoseCodec):
            decoded = self.codec.decode(raw, self._poses(observation)[-1])
            poses = np.concatenate([decoded.poses.position, matrix_to_quaternion(decoded.poses.rotation)], axis=-1)
            return np.column_stack([poses.reshape(len(raw), -1), decoded.gripper]).astype(np.float32)
        actions = self.codec.decode(raw, self._joints(observation))
        return np.column_stack([actions.joint_positions, actions.gripper]).astype(np.float32)

    def _joints(self, observation: Observation) -> NDArray[np.float64] | None:
        """Measured joints [J], rad, newest; None if the policy does without."""
        if not self.contract.embodiment.offsets:
            return None
        return np.asarray(observation.joint_positions, np.float64).reshape(-1, len(self.contract.robot.joints))[-1]

    def _poses(self, observation: Observation) -> Poses:
        """Measured end-effector poses, leading shape [rows], with several arms [rows, B]; newest last."""
        rows = max(self.contract.embodiment.clean_rows, 1)
        position = np.asarray(observation.end_effector_position, np.float64)
        quaternion = np.asarray(observation.end_effector_quaternion, np.float64)
        shapes = pose_shape(self.contract, rows, 3), pose_shape(self.contract, rows, 4)
        return Poses(position.reshape(shapes[0]), quaternion_to_matrix(quaternion.reshape(shapes[1])))


def canvas_of(contract: Contract) -> Canvas:
    """The canvas that a contract's composite is fitted to."""
    return choose_canvas(contract.timing.resolution_tier, *contract.views.size)


def layout_of(contract: Contract, committed: int = 0, *, video: bool | None = None) -> Layout:
    """The tokens of a contract's policy, with the first `committed` rows of the chunk given.

    Whether the video is generated is up to `video`, or else to the contract.
    """
    terms, timing = contract.embodiment, contract.timing
    rows, columns = latent_crop(*content_size(*contract.views.size, canvas_of(contract)))
    return policy_layout(
        chunk=timing.chunk_rows,
        height=rows,
        width=columns,
        fps=timing.fps,
        domain_id=embodiment(terms.domain).domain_id,
        raw_dim=terms.raw_action_dim,
        state=terms.state_row,
        history=terms.history_rows,
        committed=committed,
        video=contract.sampler.video if video is None else video,
    )


def caption_of(contract: Contract, instruction: str) -> str:
    """The prompt of a contract's policy for an instruction; '' stays ''."""
    prompt, timing = contract.prompt, contract.timing
    return action_prompt(
        prompt.format,
        instruction,
        viewpoint=prompt.viewpoint,
        description=prompt.description,
        frames=timing.frames,
        fps=timing.fps,
        canvas=canvas_of(contract),
        idle_frames=prompt.idle_frames,
        action_rows=timing.chunk_rows + contract.embodiment.clean_rows,
    )


def policy_codec(contract: Contract) -> JointCodec | PoseCodec:
    """What writes and reads the rows of a contract's policy.

    Raises:
        ContractError: Its embodiment has no rows that a policy could ask for.
    """
    terms = contract.embodiment
    of = embodiment(terms.domain)
    try:
        found = codec(of, terms.action_space, terms.normalizer or terms.normalization)
    except InvalidInput as error:
        raise ContractError(f'contract {contract.name}', error.problems) from error
    if isinstance(found, JointCodec) and terms.offsets:
        return replace(found, offsets=True, state_normalizer=terms.state_normalizer or NO_NORMALIZATION)
    if not isinstance(found, JointCodec | PoseCodec):
        problem = Problem('embodiment.domain', 'has no policy: its rows are neither joints nor poses', terms.domain)
        raise ContractError(f'contract {contract.name}', [problem])
    return found


def _itself(video: torch.Tensor) -> torch.Tensor:
    return video


def _leading(noise: torch.Tensor, seed: int, shape: tuple[int, int]) -> torch.Tensor:
    """Noise of `shape` under the same seed: every modality starts the generator anew, so it is the video's first."""
    count = shape[0] * shape[1]
    return noise.view(-1)[:count].view(shape) if noise.numel() >= count else framework_noise(seed, shape)
