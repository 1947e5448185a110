"""What a LeRobot policy of type `cosmos3` is: weights or a server, a contract, and how rows are played."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from engine.errors import CosmosError, InvalidInput, Problem

if TYPE_CHECKING:
    from engine.contract import Contract

BACKENDS = ('local', 'remote')
VIEW = (3, 180, 320)
"""Shape that views are declared with, [C, H, W]; pictures of any other size are as good."""


def not_trained_here() -> NoReturn:
    """Say that LeRobot does not train this policy.

    Raises:
        CosmosError: Always.
    """
    raise CosmosError(
        'lerobot_policy_cosmos3 runs Cosmos 3 checkpoints and does not train them: there is no loss, no optimiser and '
        'no parameter here -> train the checkpoint outside of LeRobot, then name the result with --policy.checkpoint'
    )


@PreTrainedConfig.register_subclass('cosmos3')
@dataclass
class Cosmos3Config(PreTrainedConfig):
    """Configuration of :class:`~lerobot_policy_cosmos3.modeling_cosmos3.Cosmos3Policy`.

    Attributes:
        contract: Name or path of the contract.
        backend: `local`: weights in this process. `remote`: a policy server.
        checkpoint: Of `local`: directory, or hub id when the network is there. A directory below that of this
            configuration may be named relative to it.
        dtype: Of `local`: computing precision, as :func:`engine.load` takes it.
        compiled: Of `local`: folder that `cosmos3 compile` made of the checkpoint.
        preset: Of `local`: how the sampler is run, `reference` or `fast`.
        warm_up: Of `local`: run one inference when the policy is made, or the first chunk comes late.
        url: Of `remote`: `ws://HOST:PORT`.
        dialect: Of `remote`: what the server speaks.
        api_key_variable: Of `remote`: environment variable with the key that the server asks for.
        deadline_s: Of `remote`: longest time from a request to its chunk, s.
        n_action_steps: Rows of a chunk that `select_action` plays before it makes the next one.
        seed: Of the noise in the first episode; the next episode has the next one.
        save_predicted_video: Of `local`: keep what was imagined, for the films of `lerobot-eval`.
        columns: Names of the contract's columns in the order in which the robot has them; empty for the contract's own.
        degrees: Whether the robot's joints are in degrees.
        gripper_open: What the robot says of an open gripper.
        gripper_closed: What it says of a closed one.
    """

    contract: str = ''
    backend: str = 'local'
    checkpoint: str = ''
    dtype: str = 'float32'
    compiled: str | None = None
    preset: str = 'reference'
    warm_up: bool = True
    url: str = ''
    dialect: str = 'cosmos-framework'
    api_key_variable: str | None = None
    deadline_s: float = 5.0
    n_action_steps: int = 8
    seed: int = 0
    save_predicted_video: bool = False
    columns: list[str] | None = None
    degrees: bool = False
    gripper_open: float = 0.0
    gripper_closed: float = 1.0

    def __post_init__(self) -> None:
        """Name the features of the contract, unless features were given."""
        super().__post_init__()
        self.rtc_config: Any = None  # lerobot-rollout puts its own here
        if self.contract and not self.input_features:
            self.input_features = self.wanted_inputs()
        if self.contract and not self.output_features:
            self.output_features = self.wanted_outputs()

    def load_contract(self) -> Contract:
        """The contract, its sampler run as the preset says.

        Raises:
            ContractError: There is none, or something is wrong with it or the preset; lists every fault.
        """
        from engine.contract import load_contract, with_preset

        return with_preset(load_contract(self._near(self.contract)), self.preset)

    @property
    def checkpoint_source(self) -> str:
        """Where the checkpoint is: in the folder of this configuration, or what `checkpoint` says."""
        return self._near(self.checkpoint)

    @property
    def api_key(self) -> str | None:
        """The key for the server; None if there is none."""
        return os.environ.get(self.api_key_variable) if self.api_key_variable else None

    def _near(self, name: str) -> str:
        beside = Path(self.pretrained_path or '.') / name
        return str(beside) if name and self.pretrained_path and beside.exists() else name

    # What LeRobot asks

    def wanted_inputs(self) -> dict[str, PolicyFeature]:
        """The features that the contract's policy looks at."""
        contract = self.load_contract()
        views = {f'{OBS_IMAGES}.{view}': PolicyFeature(FeatureType.VISUAL, VIEW) for view in contract.views.streams}
        return {OBS_STATE: PolicyFeature(FeatureType.STATE, (_width(contract),)), **views}

    def wanted_outputs(self) -> dict[str, PolicyFeature]:
        """The feature that it makes."""
        return {ACTION: PolicyFeature(FeatureType.ACTION, (_width(self.load_contract()),))}

    def validate_features(self) -> None:
        """Do nothing if options and features fit the contract.

        Raises:
            InvalidInput: They do not; lists every fault.
        """
        problems = [*self._option_problems(), *self._source_problems()]
        if self.contract:
            problems += [*self._column_problems(), *self._feature_problems()]
        if problems:
            raise InvalidInput('policy cosmos3', problems)

    def _option_problems(self) -> Iterator[Problem]:
        if not self.contract:
            yield Problem('contract', 'is missing', remedy='--policy.contract=NAME or a path')
        elif self.n_action_steps > (rows := self.load_contract().timing.chunk_rows):
            yield Problem('n_action_steps', 'is more than a chunk has', str(self.n_action_steps), f'up to {rows}')
        if self.n_action_steps < 1:
            yield Problem('n_action_steps', 'is no number of rows', str(self.n_action_steps), 'from 1 on')
        if self.n_obs_steps != 1:
            what = 'are not chosen here: the contract says how many states are looked at'
            yield Problem('n_obs_steps', what, str(self.n_obs_steps), '1')
        if self.seed < 0:
            yield Problem('seed', 'is negative', str(self.seed), 'from 0 on')
        if self.gripper_open == self.gripper_closed:
            yield Problem('gripper_closed', 'is that of an open gripper', f'{self.gripper_closed:g}')
        if self.use_amp:
            yield Problem('use_amp', 'would change what the engine calculates in', 'true', 'false', 'see dtype')
        if self.use_peft:
            yield Problem('use_peft', 'is not to be had: there are no parameters here', 'true', 'false')

    def _source_problems(self) -> Iterator[Problem]:
        if self.backend not in BACKENDS:
            yield Problem('backend', 'is not known', repr(self.backend), ', '.join(BACKENDS))
        elif self.backend == 'local':
            if not self.checkpoint:
                yield Problem('checkpoint', 'is missing', remedy='--policy.checkpoint=DIRECTORY, or backend remote')
        else:
            if not self.url:
                yield Problem('url', 'is missing', remedy='--policy.url=ws://HOST:PORT, or backend local')
            if self.api_key_variable and not self.api_key:
                yield Problem('api_key_variable', 'names a variable that is not set', self.api_key_variable)
            if self.save_predicted_video:
                yield Problem('save_predicted_video', 'is not to be had: servers keep what they imagine', 'true')

    def _column_problems(self) -> Iterator[Problem]:
        from lerobot_policy_cosmos3.columns import order_problems

        contract = self.load_contract()
        if self.columns:
            yield from order_problems(self.columns, contract)
        if self.save_predicted_video and not contract.sampler.video:
            yield Problem('save_predicted_video', f'is not to be had: contract {contract.name} makes no video', 'true')
        if self.degrees and contract.embodiment.action_space != 'joint_position':
            yield Problem('degrees', 'are asked for where there are poses and no joints', 'true', 'false')

    def _feature_problems(self) -> Iterator[Problem]:
        """Everything in which the features that were given differ from the contract's."""
        given = {**(self.input_features or {}), **(self.output_features or {})}
        known = {key: feature for key, feature in given.items() if feature.type is not FeatureType.VISUAL}
        for key, wanted in {**self.wanted_inputs(), **self.wanted_outputs()}.items():
            if key not in given:
                remedy = '--rename_map maps keys' if wanted.type is FeatureType.VISUAL else ''
                yield Problem(key, 'is missing', remedy=f'given: {", ".join(given) or "none"}; {remedy}'.rstrip('; '))
            elif key in known and tuple(known[key].shape) != tuple(wanted.shape):
                names = ', '.join(self._names())
                yield Problem(key, 'has another shape', str(list(known[key].shape)), f'{list(wanted.shape)}: {names}')

    def _names(self) -> tuple[str, ...]:
        from lerobot_policy_cosmos3.columns import column_names

        return column_names(self.load_contract())

    @property
    def observation_delta_indices(self) -> None:
        """Only the newest observation."""
        return

    @property
    def action_delta_indices(self) -> list[int]:
        """A chunk."""
        return list(range(self.load_contract().timing.chunk_rows))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return

    def get_optimizer_preset(self) -> NoReturn:
        """There is none.

        Raises:
            CosmosError: Always.
        """
        not_trained_here()

    def get_scheduler_preset(self) -> NoReturn:
        """There is none.

        Raises:
            CosmosError: Always.
        """
        not_trained_here()


def _width(contract: Contract) -> int:
    from lerobot_policy_cosmos3.columns import column_names

    return len(column_names(contract))
