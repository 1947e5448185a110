"""The policy itself: LeRobot's batches of tensors in, chunks of rows out; weights here, or a policy server."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_ros.continuation import LEAST_NEW_ROWS
from engine.contract import TEMPORAL_COMPRESSION
from engine.errors import CosmosError, InvalidInput, ObservationError, Problem
from lerobot_policy_cosmos3.columns import Columns
from lerobot_policy_cosmos3.configuration_cosmos3 import Cosmos3Config, not_trained_here
from lerobot_policy_cosmos3.processor_cosmos3 import make_cosmos3_pre_post_processors
from lerobot_policy_cosmos3.rollout_rate import check_rollout_rate

if TYPE_CHECKING:
    from engine.contract import Contract
    from engine.policy import Observation, Policy, PolicyChunk
    from engine.serving.client import RemotePolicy

_LOG = logging.getLogger(__name__)
_CONFIG = 'config.json'


class Cosmos3Policy(PreTrainedPolicy):
    """Cosmos 3 as a LeRobot policy.

    The elements of a batch are inferred one after another, each with noise of its own, so what comes of one does not
    depend on the others.

    Attributes:
        contract: What the policy is for.
        last_predicted_latents: What was imagined with the newest chunks, [B, C, frames, h, w], as far as their rows are
            played; `lerobot-eval` takes it away. None unless `save_predicted_video` is set.
    """

    config_class = Cosmos3Config
    name = 'cosmos3'

    def __init__(self, config: Cosmos3Config, **_handed_to_every_policy: Any) -> None:
        """Load the weights, or find out how the server is reached; it is connected when it is first asked.

        Raises:
            CosmosError: Options, contract, features, checkpoint or rate do not fit each other; lists every fault.
        """
        super().__init__(config)
        config.validate_features()
        self.contract = config.load_contract()
        check_rollout_rate(self.contract.timing.fps)
        self._columns = Columns.of(
            self.contract,
            config.columns,
            degrees=config.degrees,
            gripper_open=config.gripper_open,
            gripper_closed=config.gripper_closed,
        )
        self._policy = _open(config, self.contract)
        self._begun = self._width = 0
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **options: Any
    ) -> Self:
        """The policy of a folder with LeRobot's `config.json`, or of a Cosmos 3 checkpoint.

        Args:
            pretrained_name_or_path: The folder, or the checkpoint: then `contract` has to be among the options.
            config: In place of the one that is found there.
            **options: Fields of :class:`Cosmos3Config` that shall be otherwise, and LeRobot's own.

        Raises:
            CosmosError: See :meth:`__init__`.
        """
        if config is None:
            config = _find_config(pretrained_name_or_path, options)
        policy = cls(config, **options)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write configuration and processors; the weights stay where they are."""
        write_folder(self.config, save_directory)

    # What LeRobot asks

    def reset(self) -> None:
        """A new episode begins, in every element of the batch."""
        self._begun += self._width
        self._width = self._count = 0
        self._rows: deque[Tensor] = deque()
        self._states: list[deque[NDArray[np.float64]]] = []
        self.last_predicted_latents: Tensor | None = None
        if hasattr(self._policy, 'reset'):
            self._policy.reset()  # a server forgets the states of this robot

    def select_action(self, batch: dict[str, Any], **_noise: Any) -> Tensor:
        """The next row of each element, [B, D]; a new chunk where the rows of the last one have been played."""
        self._note(batch)
        if not self._rows:
            chunk = self._infer(batch, None)
            self._rows.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._rows.popleft()

    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int = 0,
        prev_chunk_left_over: Tensor | None = None,
        **_noise: Any,
    ) -> Tensor:
        """A chunk of each element, [B, rows, D]; with real-time chunking there are more rows if the arm had to wait.

        Args:
            batch: An observation, as the preprocessor leaves it.
            inference_delay: How many rows will be played while this chunk is made.
            prev_chunk_left_over: [T, D] rows of the chunk before that are still to be played, the next one first. As
                many of them as will be played become the beginning of this chunk, and the policy continues them.

        Raises:
            ObservationError: The observation does not fit the contract; lists every fault.
            ServerError: The server gave no chunk.
        """
        if self.contract.embodiment.history_rows:
            what = 'are needed at every row, and a whole chunk is asked for only now and then'
            raise ObservationError('policy cosmos3', [Problem('earlier states', what, remedy='use select_action')])
        began = time.perf_counter()
        self._note(batch)
        left = _left_rows(prev_chunk_left_over)
        chunk = self._infer(batch, self._committed(inference_delay, left))
        handed = 0 if prev_chunk_left_over is None else prev_chunk_left_over.shape[-2]
        if self.config.rtc_config is None or (handed and len(left) == handed):
            return chunk  # there may be more rows left than were handed on
        return _held(chunk, len(left), math.ceil((time.perf_counter() - began) * self.contract.timing.fps))

    def supports_rtc(self) -> bool:
        """Whether chunks can continue the one before: only with weights in this process."""
        return self.config.backend == 'local'

    def init_rtc_processor(self) -> None:
        """Called by LeRobot once its options of real-time chunking are known, before a robot is connected.

        Raises:
            InvalidInput: With them, chunks would not continue each other; lists every fault.
        """
        terms, problems = self.config.rtc_config, []
        if not terms.enabled:
            what = 'plays a chunk behind the rows that are left, long after what it was made from'
            problems.append(Problem('inference.rtc.enabled', what, 'false', 'true', 'or --inference.type=sync'))
        if terms.execution_horizon < 1:
            what = 'hands no row on to the next chunk'
            problems.append(Problem('inference.rtc.execution_horizon', what, str(terms.execution_horizon), 'from 1 on'))
        if problems:
            raise InvalidInput('policy cosmos3', problems)

    def get_optim_params(self) -> NoReturn:
        """There are none.

        Raises:
            CosmosError: Always.
        """
        not_trained_here()

    def forward(self, batch: dict[str, Tensor]) -> NoReturn:
        """There is no loss.

        Raises:
            CosmosError: Always.
        """
        not_trained_here()

    def decode_predicted_latents(self, latents: Tensor) -> NDArray[np.uint8]:
        """The film of what was imagined: uint8 [T, H, W, 3], the elements of the batch beside each other.

        Args:
            latents: One after another along the frames, what :attr:`last_predicted_latents` was after each chunk.
        """
        steps = self.config.n_action_steps
        films = [self._decoded(piece)[: steps + 1] for piece in latents.split(_latent_frames(steps), dim=2)]
        return np.concatenate([films[0][:1], *(film[1:] for film in films)])  # each begins with what was observed

    # Parts

    def _decoded(self, piece: Tensor) -> NDArray[np.uint8]:
        runtime = self._local.runtime
        with torch.inference_mode():
            films = [runtime.decode(one.to(runtime.backend.device)).numpy() for one in piece.split(1)]
        return np.concatenate(films, axis=2)

    @property
    def _local(self) -> Policy:
        """The policy, if its weights are in this process."""
        if self.config.backend != 'local':
            raise CosmosError('a remote policy keeps no imagined videos')
        return self._policy

    def _note(self, batch: Mapping[str, Any]) -> None:
        """Keep the states of a batch, as many as the contract looks at."""
        states = self._columns.from_robot(_state(batch, len(self._columns.names)))
        if self._width not in (0, len(states)):
            what = 'has another size than since the last reset'
            raise ObservationError('observation', [Problem('batch', what, str(len(states)), str(self._width))])
        rows = max(1, self.contract.embodiment.clean_rows)
        if not self._width:
            self._width = len(states)
            self._states = [deque([state] * rows, maxlen=rows) for state in states]
        for kept, state in zip(self._states, states, strict=True):
            kept.append(state)

    def _infer(self, batch: Mapping[str, Any], committed: NDArray[np.float64] | None) -> Tensor:
        chunks = [self._chunk(batch, index, committed) for index in range(self._width)]
        self._count += 1
        if self.config.save_predicted_video:
            kept = _latent_frames(self.config.n_action_steps)
            self.last_predicted_latents = torch.cat([chunk.latents[:, :, :kept] for chunk in chunks])
        rows = np.stack([self._columns.to_robot(chunk.actions.astype(np.float64)) for chunk in chunks])
        return torch.from_numpy(rows.astype(np.float32)).to(batch[OBS_STATE].device)

    def _chunk(self, batch: Mapping[str, Any], index: int, committed: NDArray[np.float64] | None) -> PolicyChunk:
        observation = self._observation(batch, index)
        # As the closed loop does it: the episode and the number of the chunk decide the noise.
        episode = self.config.seed + self._begun + index
        seed = int(np.random.SeedSequence([episode, self._count]).generate_state(1)[0]) % 2**31
        return self._policy.infer(observation, seed, committed=committed)

    def _observation(self, batch: Mapping[str, Any], index: int) -> Observation:
        from engine.policy import Observation

        state = np.stack(self._states[index])
        problems = [*_picture_problems(batch, index, self.contract), *self._columns.problems(state)]
        task = batch.get('task') or ''
        instruction = task if isinstance(task, str) else task[index]
        if not instruction.strip():
            problems.append(Problem('task', 'is empty', remedy='say what to do: --task, or the task of the data set'))
        if problems:
            raise ObservationError(f'observation for contract {self.contract.name}', problems)
        pictures = {view: _picture(batch[f'{OBS_IMAGES}.{view}'][index]) for view in self.contract.views.streams}
        return Observation(pictures, instruction, **self._columns.fields(state))

    def _committed(self, delay: int, rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The rows that will be played while the next chunk is made, [K, D]; None if there are none."""
        if 0 < len(rows) < delay:
            _LOG.warning(
                '%d rows will be played while a chunk is made, and %d are handed on: the next chunk may jump; see '
                '--inference.rtc.execution_horizon',
                delay,
                len(rows),
            )
        count = min(delay, len(rows), self.contract.timing.chunk_rows - LEAST_NEW_ROWS)
        return self._columns.from_robot(rows[:count]) if count > 0 else None


def _open(config: Cosmos3Config, contract: Contract) -> Policy | RemotePolicy:
    """Whatever makes the chunks."""
    if config.backend == 'remote':
        from engine.serving.client import RemotePolicy

        return RemotePolicy(
            config.url,
            contract,
            dialect_name=config.dialect,
            api_key=config.api_key,
            deadline_s=config.deadline_s,
        )
    import engine

    model = engine.load(config.checkpoint_source, config.device or 'cpu', config.dtype, compiled=config.compiled)
    policy = model.policy(contract)
    if config.warm_up:
        policy.warm_up()
    return policy


def _left_rows(left: Tensor | None) -> NDArray[np.float64]:
    """The rows that are still to be played, [T, D].

    LeRobot fills up with zeros what it has not enough of; a row of zeros throughout is none of a policy.
    """
    if left is None:
        return np.empty((0, 0))
    rows = left.detach().to('cpu', torch.float64).numpy().reshape(left.shape[-2:])
    known = np.flatnonzero(rows.any(axis=1))
    return rows[: known[-1] + 1] if len(known) else rows[:0]


def _held(chunk: Tensor, left: int, passed: int) -> Tensor:
    """A chunk that begins where the arm is, although LeRobot will drop as many rows as have passed by the clock.

    It does so even if fewer were left, or none as at the beginning: the arm stands still then, and would jump. So the
    next row is put in once for each row that could not be played, and once more, for LeRobot's clock runs a little
    longer than ours.
    """
    if passed < left:
        return chunk
    waiting = chunk[:, left : left + 1].expand(-1, passed - left + 1, -1)
    return torch.cat([chunk[:, :left], waiting, chunk[:, left:]], dim=1)


def _latent_frames(rows: int) -> int:
    """Latent frames that hold the observed frame and the next `rows`."""
    return 1 + math.ceil(rows / TEMPORAL_COMPRESSION)


# Batches


def _state(batch: Mapping[str, Any], width: int) -> NDArray[np.float64]:
    """The measured states of a batch, [B, D]."""
    found = batch.get(OBS_STATE)
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != width:
        value = str(list(found.shape)) if isinstance(found, Tensor) else 'nothing'
        raise ObservationError('observation', [Problem(OBS_STATE, 'has not the columns', value, f'[batch, {width}]')])
    return found.detach().to('cpu', torch.float64).numpy()


def _picture_problems(batch: Mapping[str, Any], index: int, contract: Contract) -> Iterator[Problem]:
    for view in contract.views.streams:
        key = f'{OBS_IMAGES}.{view}'
        found = batch.get(key)
        if not isinstance(found, Tensor):
            given = ', '.join(name for name in batch if name.startswith(OBS_IMAGES)) or 'none'
            yield Problem(key, 'is missing', remedy=f'given: {given}; --rename_map maps keys')
        elif found.ndim != 4 or found.shape[1] != 3:
            yield Problem(key, 'is no RGB picture', str(list(found.shape)), '[batch, 3, height, width]')
        elif found.dtype != torch.uint8 and not 0 <= float(found[index].min()) <= float(found[index].max()) <= 1:
            low, high = float(found[index].min()), float(found[index].max())
            yield Problem(key, 'is out of range', f'{low:.3g} to {high:.3g}', '0 to 1, or bytes')


def _picture(picture: Tensor) -> NDArray[np.uint8]:
    """[3, H, W] in 0..1, or bytes, to uint8 [H, W, 3]; levels that were bytes before are those again."""
    levels = picture if picture.dtype == torch.uint8 else (picture * 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


# Folders


def _find_config(place: str | Path, options: dict[str, Any]) -> Cosmos3Config:
    """The configuration of a folder or a checkpoint, changed by the fields in `options`, which are taken out."""
    fields = {field.name for field in dataclasses.fields(Cosmos3Config)}
    changed = {name: options.pop(name) for name in fields & options.keys()}
    if is_folder(place) or not (Path(place).is_dir() or 'contract' in changed):
        loading = {name: options[name] for name in ('revision', 'cache_dir', 'token') if name in options}
        found = dataclasses.replace(PreTrainedConfig.from_pretrained(place, **loading), **changed)
        found.pretrained_path = Path(place)
        return found
    return Cosmos3Config(checkpoint=str(place), **changed)


def is_folder(place: str | Path) -> bool:
    """Whether this is a folder with the `config.json` of such a policy, and no checkpoint."""
    try:
        found = json.loads((Path(place) / _CONFIG).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get('type') == Cosmos3Policy.name


def write_folder(config: Cosmos3Config, folder: Path) -> None:
    """Write what `--policy.path` reads: `config.json` and the processors. Checkpoint and contract stay where they are.

    Raises:
        InvalidInput: The options do not fit each other, or the folder holds another `config.json`.
    """
    config.validate_features()
    if (folder / _CONFIG).exists() and not is_folder(folder):
        what, remedy = 'holds the config.json of something else', 'choose another folder'
        raise InvalidInput('policy cosmos3', [Problem(str(folder), what, remedy=remedy)])
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: _lasting(getattr(config, name), folder) for name in ('checkpoint', 'contract', 'compiled')}
    lasting = dataclasses.replace(config, **places, pretrained_path=None)
    lasting._save_pretrained(folder)
    for pipeline in make_cosmos3_pre_post_processors(lasting):
        pipeline.save_pretrained(folder)


def _lasting(name: str | None, folder: Path) -> str | None:
    """A path that is right whatever the working directory is; what is no path, or lies in the folder, stays."""
    if not name or (folder / name).exists() or not Path(name).exists():
        return name
    return str(Path(name).resolve())
