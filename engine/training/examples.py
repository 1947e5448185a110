"""Batches for every task out of encoded recordings: windows of pictures, states and actions, and the words around them.

    recordings --corpus--> numbers and pictures --autoencoder--> latents --(this)--> batches

Windows are drawn anew for every batch, so that each frame in which one can begin is a sample of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.actions import MODEL_WIDTH, JointCodec, PoseCodec, Poses, quaternion_to_matrix
from engine.contract import Contract
from engine.dynamics import DynamicsTerms
from engine.errors import CosmosError, InvalidInput, Problem
from engine.observation.tokenizer import PromptTokenizer
from engine.policy import canvas_of, caption_of, layout_of, policy_codec
from engine.sequence import (
    TEMPORAL_COMPRESSION,
    Layout,
    forward_dynamics_layout,
    inverse_dynamics_layout,
    latent_frames,
)
from engine.training.answers import Answers
from engine.training.corpus import held_out as kept_for_validation
from engine.training.flow import Batch

Floats = NDArray[np.float64]
_REST_RAD = 0.01  # the servo sags by less
_NONE: NDArray[np.int64] = np.empty(0, np.int64)
_WORDS_DECIDE = ('action', 'policy')  # how things move does not depend on words


@dataclass(frozen=True, eq=False)
class Recorded:
    """What is known of N frames of E episodes, frame after frame.

    Attributes:
        joints: [N, J] rad, measured.
        gripper: [N] closed fraction, measured.
        commanded: [N, J] rad, where the joints were to be one row later.
        commanded_gripper: [N] closed fraction, likewise.
        position: [N, 3] m, of the end effector.
        quaternion: [N, 4], x, y, z, w.
        episode: [N], ascending.
        disturbed: [N], whether something else than the policy moved the arm.
        instructions: Of each episode.
        first: [K, C, h, w], the latents of pictures by themselves: of frames 0, `every`, 2 `every`, ...
        clips: [M, C, T, h, w], the latents of clips.
        starts: [M], frame with which each clip begins.
        every: Frames from one that is encoded by itself to the next.
        answers: What would have been done had something else been asked for; None if nobody knows.
    """

    joints: Floats
    gripper: Floats
    commanded: Floats
    commanded_gripper: Floats
    position: Floats
    quaternion: Floats
    episode: NDArray[np.int64]
    disturbed: NDArray[np.bool_]
    instructions: tuple[str, ...]
    first: NDArray[np.floating]
    clips: NDArray[np.floating]
    starts: NDArray[np.int64]
    every: int = 1
    answers: Answers | None = None


class Examples:
    """Draws batches. For one thread at a time."""

    def __init__(self, recorded: Recorded, contract: Contract, tokenizer: PromptTokenizer, patch: int = 2) -> None:
        """Prepare.

        Args:
            recorded: What there is; at least one episode for training and one for validation.
            contract: Whose rows, views and prompt.
            tokenizer: Of the checkpoint that is trained.
            patch: Edge of a token of vision, in latent cells.

        Raises:
            InvalidInput: Recordings and contract do not fit, or no window fits into an episode.
        """
        self.contract, self._recorded = contract, recorded
        self.chunk, self._patch = contract.timing.chunk_rows, patch
        self._terms = _dynamics_terms(contract)
        self._codec = policy_codec(contract)
        self._check()
        last = np.append(np.nonzero(np.diff(recorded.episode))[0], len(recorded.episode) - 1)
        self._last = last[np.searchsorted(last, np.arange(len(recorded.episode)))]
        self._calm = _since(recorded.episode, recorded.disturbed)
        self._motion = self._deltas()
        self._first, self._clips = cut(recorded.first[:, :, None], patch), cut(recorded.clips, patch)
        canvas, terms, texts = canvas_of(contract), self._terms, recorded.instructions
        self._answers = recorded.answers
        asked = () if self._answers is None else self._answers.texts
        self._ids = [tuple(tokenizer.encode(caption_of(contract, text))) for text in texts]
        self._ids_of_answers = [tuple(tokenizer.encode(caption_of(contract, text))) for text in asked]
        told = [terms.caption(text, canvas) for text in texts] if terms is not None else []
        self._ids_of_dynamics = [tuple(tokenizer.encode(text)) for text in told]
        self._no_ids = tuple(tokenizer.encode(''))
        numbers = {text: number for number, text in enumerate(dict.fromkeys([*texts, *asked]))}
        self._text_numbers = np.array([numbers[text] for text in texts], np.int64)
        self._numbers_of_answers = np.array([numbers[text] for text in asked], np.int64)
        self._windows = self._find_windows()

    def windows(self, task: str, *, held_out: bool = False) -> NDArray[np.int64]:
        """Where windows of a task may begin: frames for 'action', clips for the others; for 'answers' their numbers."""
        return self._windows[task, held_out]

    def prompts(self, task: str) -> tuple[tuple[int, ...], ...]:
        """Token ids of every different prompt of a task."""
        known = {'action': self._ids, 'policy': self._ids, 'answers': self._ids_of_answers}
        return tuple(dict.fromkeys(known.get(task, self._ids_of_dynamics)))

    def beginnings(self, task: str, rows: int, *, held_out: bool = False, disturbed: bool = True) -> NDArray[np.int64]:
        """Those windows that begin within so many rows of the beginning of an episode, or the end of a disturbance."""
        windows = self.windows(task, held_out=held_out)
        frames = self._frames(task, windows)
        return windows[frames - (self._calm[frames] if disturbed else self._begin(frames)) < rows]

    def draw(
        self,
        task: str,
        count: int,
        rng: np.random.Generator,
        *,
        captions: int = 8,
        condition_dropout: float = 0.0,
        hidden: float = 0.0,
        committed: int = 0,
        beginnings: float = 0.0,
        beginning_rows: int = 15,
        answers: float = 0.0,
        held_out: bool = False,
    ) -> Batch:
        """A batch.

        Args:
            task: Of :data:`engine.training.recipe.TASKS`.
            count: Sequences.
            rng: Source of all that is drawn.
            captions: Different prompts at most.
            condition_dropout: Share of sequences without one.
            hidden: Largest share of a picture's tokens that are blank; for 'action'.
            committed: First rows of the chunk that are given; for 'action' and 'policy'.
            beginnings: Share of windows that are drawn from :meth:`beginnings`; for 'action' and 'policy'.
            beginning_rows: How many rows those are.
            answers: Share of sequences, of all of them, that are answers to something else; for 'action', without
                rows that are given.
            held_out: From the episodes that are kept for validation.
        """
        asked = 0
        # First rows that are being executed would say by themselves where an answer leads.
        if task == 'action' and not committed and len(self.windows('answers', held_out=held_out)):
            asked = int(rng.binomial(count, answers))
        told = count - asked
        windows = self.windows(task, held_out=held_out)
        first = self.beginnings(task, beginning_rows, held_out=held_out)
        early = int(rng.binomial(told, beginnings)) if len(first) and task in _WORDS_DECIDE else 0
        parts = (
            (task, first, early),
            (task, windows, told - early),
            ('answers', self.windows('answers', held_out=held_out), asked),
        )
        picked = [
            (kind, self._by_caption(kind, some, share, max(1, round(captions * share / count)), rng))
            for kind, some, share in parts
            if share
        ]
        texts = [self._text(kind, one) for kind, some in picked for one in some]
        chosen, others = (
            np.concatenate([_NONE, *(some for kind, some in picked if kind == name)]) for name in (task, 'answers')
        )
        dropped = rng.random(count) < condition_dropout
        ids, which = _shared([self._no_ids if none else text for none, text in zip(dropped, texts, strict=True)])
        batch = self.batch(task, chosen, ids, which, committed=committed, answers=others)
        if task == 'action' and hidden and batch.vision is not None:
            shown = rng.random(batch.vision.shape[:2]) >= hidden * rng.random((count, 1))
            batch = replace(batch, vision=batch.vision * torch.from_numpy(shown)[..., None])
        return batch

    def batch(
        self,
        task: str,
        windows: NDArray[np.int64],
        ids: tuple[tuple[int, ...], ...] | None = None,
        which: Tensor | None = None,
        *,
        committed: int = 0,
        answers: NDArray[np.int64] = _NONE,
    ) -> Batch:
        """The batch of chosen windows, and of answers behind them, by default each with its own prompt."""
        frames = self._frames(task, windows)
        if ids is None or which is None:
            texts = [self._text(task, one) for one in windows] + [self._text('answers', one) for one in answers]
            ids, which = _shared(texts)
        layout = self.layout(task, committed)
        count = layout.split(self._patch)[0]
        # A latent frame depends on its own and earlier pictures alone, so the first ones of a clip are a shorter clip.
        shown = np.concatenate([frames, self._frames('answers', answers)])
        vision = self._first[shown // self._recorded.every] if task == 'action' else self._clips[windows, :count]
        action = self.chunks(frames) if task in ('action', 'policy') else self.motions(frames)
        if len(answers):
            action = np.concatenate([action, self.answered(answers)])
        padded = torch.zeros(*action.shape[:2], MODEL_WIDTH)
        padded[..., : action.shape[-1]] = torch.from_numpy(action.astype(np.float32))
        return Batch(task, layout, ids, which, torch.from_numpy(vision).float(), padded)

    def shift_of(self, task: str) -> float:
        """Shift of the schedule with which a task is run."""
        if task in ('action', 'policy') or self._terms is None:
            return self.contract.sampler.shift
        return self._terms.shift

    def layout(self, task: str, committed: int = 0) -> Layout:
        """The tokens of a task."""
        if task in ('action', 'policy'):
            return layout_of(self.contract, committed, video=task == 'policy')
        item = layout_of(self.contract).vision
        if item is None or self._terms is None:
            raise InvalidInput('layout', [Problem('task', 'cannot be made of this contract', task)])
        make = {'forward': forward_dynamics_layout, 'inverse': inverse_dynamics_layout}[task]
        domain, width = self._terms.embodiment.domain_id, self._terms.raw_dim
        rows = self._terms.chunk
        return make(chunk=rows, height=item.height, width=item.width, fps=item.fps, domain_id=domain, raw_dim=width)

    @property
    def rest(self) -> Floats:
        """The row of dynamics that stands still, [D]."""
        if self._terms is None:
            return np.empty(0)
        still = Poses(np.zeros((2, 3)), np.tile(np.eye(3), (2, 1, 1)))
        return self._terms.codec().encode_trajectory(still, np.zeros(1))[0]

    def chunks(self, frames: NDArray[np.int64]) -> Floats:
        """State (and history) rows and the chunks that follow, [B, rows, D], in the model's space."""
        found, terms, of = self._recorded, self.contract.embodiment, self._codec
        ahead = np.minimum(frames[:, None] + np.arange(self.chunk), self._last[frames][:, None])
        begin = self._begin(frames)
        back = np.maximum(frames[:, None] - np.arange(terms.history_rows, -1, -1), begin[:, None])
        if isinstance(of, PoseCodec):
            rows = self._policy_deltas[ahead]
            state = of.encode_state(self._poses(frames), found.gripper[frames])[:, None]
            history = self._policy_deltas[back[:, :-1]]
            given = np.concatenate([history, state], axis=1) if terms.state_row else history
            return np.concatenate([given, rows], axis=1)
        rows = of.encode(found.commanded[ahead], found.commanded_gripper[ahead], found.joints[frames][:, None])
        if not terms.clean_rows:
            return rows
        return np.concatenate([of.encode_state(found.joints[back], found.gripper[back]), rows], axis=1)

    def answered(self, answers: NDArray[np.int64]) -> Floats:
        """State (and history) rows of the frames of answers and the chunks that answer, [B, rows, D]."""
        found, of = self._answers, self._codec
        if found is None or not isinstance(of, JointCodec):
            raise InvalidInput('training', [Problem('answers', 'there are none', remedy='cosmos3 train answers')])
        frames = found.frames[answers]
        joints, gripper = found.joints[answers].astype(np.float64), found.gripper[answers].astype(np.float64)
        rows = of.encode(joints, gripper, self._recorded.joints[frames][:, None])
        return np.concatenate([self.chunks(frames)[:, : self.contract.embodiment.clean_rows], rows], axis=1)

    def motions(self, frames: NDArray[np.int64]) -> Floats:
        """Rows of measured motion from frames on, [B, rows, D], as dynamics takes them."""
        rows = 0 if self._terms is None else self._terms.chunk
        return self._motion[np.minimum(frames[:, None] + np.arange(rows), self._last[frames][:, None])]

    # What there is

    def _check(self) -> None:
        terms, found = self.contract.embodiment, self._recorded
        problems = []
        if len(self.contract.robot.arms) != 1:
            problems.append(Problem('robot.arms', 'are more than one', remedy='train with a contract for one arm'))
        if found.joints.shape[1] != len(self.contract.robot.joints):
            given, allowed = str(found.joints.shape[1]), str(len(self.contract.robot.joints))
            problems.append(Problem('joints', 'are not those of the contract', given, allowed))
        item = layout_of(self.contract).vision
        grid = None if item is None else (item.height, item.width)
        if found.first.shape[-2:] != grid or (len(found.clips) and found.clips.shape[-2:] != grid):
            given = f'{found.first.shape[-2:]}, clips {found.clips.shape[-2:]}'
            problems.append(Problem('latents', 'have another size than the contract', given, str(grid)))
        if len(set(found.episode.tolist())) < 2:
            problems.append(Problem('episodes', 'are too few', '', '2 or more', 'record more of them'))
        terms_of = layout_of(self.contract, video=True).vision
        most = max(0 if terms_of is None else terms_of.frames, self._frames_of_dynamics())
        if len(found.clips) and found.clips.shape[2] < most:
            remedy = f'cosmos3 train latents --frames {TEMPORAL_COMPRESSION * (most - 1) + 1}'
            problems.append(Problem('clips', 'are too short', f'{found.clips.shape[2]} latents', f'{most}', remedy))
        problems += _faults_of_answers(found, self.contract)
        if isinstance(self._codec, PoseCodec) and np.isnan(found.position).any():
            problems.append(Problem('poses', 'are missing in some recordings', remedy='use cosmos3 dataset doctor'))
        if isinstance(self._codec, JointCodec) and terms.action_space != 'joint_position':
            problems.append(Problem('action_space', 'is not known here', terms.action_space))
        if problems:
            raise InvalidInput(f'training with contract {self.contract.name}', problems)

    def _frames_of_dynamics(self) -> int:
        return 0 if self._terms is None else latent_frames(self._terms.chunk + 1)

    def _ends_at_rest(self) -> NDArray[np.bool_]:
        """Of each frame whether its episode ends at rest: hand and gripper where they were told to be."""
        found, ends = self._recorded, np.unique(self._last)
        apart = np.abs(found.commanded[ends] - found.joints[ends]).max(axis=1)
        moving = np.abs(found.joints[ends] - found.joints[np.maximum(ends - 1, 0)]).max(axis=1)
        rests = (apart < _REST_RAD) & (moving < _REST_RAD)
        return np.asarray(rests[np.searchsorted(ends, self._last)])

    def _begin(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """First frame of each frame's episode."""
        return np.searchsorted(self._recorded.episode, self._recorded.episode[frames])

    def _poses(self, frames: NDArray[np.int64]) -> Poses:
        found = self._recorded
        return Poses(found.position[frames], quaternion_to_matrix(found.quaternion[frames]))

    def _deltas(self) -> Floats:
        """Row k: the motion from frame k to the next, as dynamics takes it; at rest in the last frame of an episode."""
        count, found = len(self._recorded.episode), self._recorded
        if np.isnan(found.position).any() or np.isnan(found.quaternion).any():
            return np.empty((0, 0))  # recordings without poses teach a policy of joints, and nothing else
        path = Poses(found.position, quaternion_to_matrix(found.quaternion))

        def along(of: PoseCodec) -> Floats:
            # In the last frame of an episode the arm rests, with the gripper wherever it was told to be.
            ends = np.flatnonzero(self._last == np.arange(count))
            rows = of.encode_trajectory(
                Poses(
                    np.vstack([path.position, path.position[-1:]]), np.concatenate([path.rotation, path.rotation[-1:]])
                ),
                found.commanded_gripper,
            )
            still = Poses(path.position[[0, 0]], path.rotation[[0, 0]])
            for end in ends:
                rows[end] = of.encode_trajectory(still, found.commanded_gripper[[end]])[0]
            return rows

        self._policy_deltas = along(self._codec) if isinstance(self._codec, PoseCodec) else np.empty((0, 0))
        return np.empty((0, 0)) if self._terms is None else along(self._terms.codec())

    def _text(self, task: str, window: int) -> tuple[int, ...]:
        """Token ids of the prompt of a window."""
        if self._answers is not None and task == 'answers':
            return self._ids_of_answers[self._answers.text[window]]
        known = self._ids if task in ('action', 'policy') else self._ids_of_dynamics
        return known[self._recorded.episode[self._frames(task, np.array([window]))[0]]]

    def _frames(self, task: str, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames in which windows begin."""
        if task == 'answers':
            return windows if self._answers is None else self._answers.frames[windows]
        return windows if task == 'action' else self._recorded.starts[windows]

    def _numbers(self, task: str, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the texts of windows."""
        if self._answers is not None and task == 'answers':
            return self._numbers_of_answers[self._answers.text[windows]]
        return self._text_numbers[self._recorded.episode[self._frames(task, windows)]]

    def _find_windows(self) -> Mapping[tuple[str, bool], NDArray[np.int64]]:
        found = self._recorded
        disturbed = np.concatenate([[0], np.cumsum(found.disturbed)])

        def calm(frames: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
            ends = np.minimum(frames + rows, self._last[frames] + 1)
            return disturbed[ends] == disturbed[frames]

        frames, clips = np.arange(len(found.episode)), np.arange(len(found.starts))
        # A recording that ends while the arm moves says nothing of what comes after; one that ends at rest does.
        whole = frames + self.chunk - 1 <= self._last
        seen = frames % found.every == 0
        by_task = {'action': frames[seen & calm(frames, self.chunk) & (whole | self._ends_at_rest())]}
        by_task['policy'] = clips[calm(found.starts, self.chunk)] if len(clips) else clips
        # What moved the arm does not matter to what is seen of it.
        by_task['forward'] = by_task['inverse'] = clips if len(self._motion) else clips[:0]
        by_task['answers'] = np.arange(0 if self._answers is None else len(self._answers))
        held: dict[tuple[str, bool], NDArray[np.int64]] = {}
        apart = kept_for_validation(len(found.instructions))
        for task, windows in by_task.items():
            kept = apart[found.episode[self._frames(task, windows)]]
            held[task, True], held[task, False] = windows[kept], windows[~kept]
        if not len(held['action', False]):
            what = 'leave no window without a disturbance'
            raise InvalidInput(
                'training',
                [Problem('episodes', what, str(len(found.instructions)), 'longer ones, or latents of more frames')],
            )
        return held

    def _by_caption(
        self, task: str, windows: NDArray[np.int64], count: int, captions: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Windows of few different instructions, because each has to be read once; no window is favoured for it."""
        if not len(windows):
            problem = Problem('windows', 'are none', task, remedy='encode clips, or leave the task out')
            raise InvalidInput('training', [problem])
        texts = self._numbers(task, windows)
        leaders = texts[rng.integers(len(windows), size=captions)]
        groups = [windows[texts == leader] for leader in leaders]
        shares = [len(part) for part in np.array_split(np.arange(count), captions)]
        picked = [rng.choice(group, share) for group, share in zip(groups, shares, strict=True)]
        return np.concatenate(picked).astype(np.int64)


def _faults_of_answers(found: Recorded, contract: Contract) -> list[Problem]:
    """What is wrong with answers."""
    if found.answers is None:
        return []
    answers, problems = found.answers, []
    shape, allowed = answers.joints.shape[1:], (contract.timing.chunk_rows, len(contract.robot.joints))
    if shape != allowed or contract.embodiment.action_space != 'joint_position':
        problems.append(Problem('answers', 'are not chunks of the contract', str(shape), str(allowed)))
    if len(answers) and (answers.frames.max() >= len(found.episode) or (answers.frames % found.every).any()):
        given, remedy = f'every {found.every}', f'cosmos3 train answers --every {found.every}'
        problems.append(Problem('answers', 'are to pictures that are not encoded', given, remedy=remedy))
    return problems


def _since(episode: NDArray[np.int64], disturbed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each frame the one since which its episode has been going on, or nothing but the policy has moved the arm."""
    numbers = np.arange(len(episode))
    new = np.append(True, (np.diff(episode) != 0) | (disturbed[:-1] & ~disturbed[1:]))
    return np.maximum.accumulate(np.where(new, numbers, 0))


def cut(latents: NDArray[np.floating], patch: int) -> NDArray[np.float16]:
    """Latents [B, C, T, h, w] as tokens [B, T * rows * columns, patch * patch * C], as `patchify` cuts them."""
    batch, channels, frames, height, width = latents.shape
    rows, columns = -(-height // patch), -(-width // patch)
    tokens = np.empty((batch, frames * rows * columns, patch * patch * channels), np.float16)
    for begin in range(0, batch, 1024):  # latents of a large corpus are twice the memory of their tokens
        part = np.asarray(latents[begin : begin + 1024], np.float16)
        filled = np.pad(part, [(0, 0)] * 3 + [(0, rows * patch - height), (0, columns * patch - width)])
        parted = filled.reshape(len(part), channels, frames, rows, patch, columns, patch)
        tokens[begin : begin + len(part)] = parted.transpose(0, 2, 3, 5, 4, 6, 1).reshape(len(part), *tokens.shape[1:])
    return tokens


def _dynamics_terms(contract: Contract) -> DynamicsTerms | None:
    """Terms of the contract's dynamics; None if its embodiment has none."""
    try:
        return DynamicsTerms.of_contract(contract)
    except CosmosError:
        return None


def _shared(texts: Sequence[tuple[int, ...]]) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Each text once, and which one each sequence has."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return tuple(numbers), torch.tensor([numbers[text] for text in texts], dtype=torch.int64)


def row_statistics(recorded: Recorded, contract: Contract) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Mean and standard deviation of state rows and of offsets, by the contract's keys, for a contract to hold.

    Offsets are those of what was recorded, and of answers where there are such.

    Spreads have a floor (joints 0.02, grippers 0.25): a channel that hardly moves is not blown up to noise.
    """
    plain = replace(contract.embodiment, normalization='none', statistics=None, state_statistics=None)
    of = policy_codec(replace(contract, embodiment=plain))
    if not isinstance(of, JointCodec):
        raise InvalidInput('statistics', [Problem('action_space', 'has published ones', plain.action_space)])
    last = np.append(np.nonzero(np.diff(recorded.episode))[0], len(recorded.episode) - 1)
    frames = np.arange(len(recorded.episode))
    ends = last[np.searchsorted(last, frames)]
    ahead = np.minimum(frames[:, None] + np.arange(contract.timing.chunk_rows), ends[:, None])
    rows = of.encode(recorded.commanded[ahead], recorded.commanded_gripper[ahead], recorded.joints[:, None])
    told: Floats = rows.reshape(-1, rows.shape[-1])
    if (answers := recorded.answers) is not None:
        joints = recorded.joints[answers.frames][:, None]
        asked = of.encode(answers.joints.astype(np.float64), answers.gripper.astype(np.float64), joints)
        told = np.concatenate([told, asked.reshape(-1, asked.shape[-1])])
    of_states = of.encode_state(recorded.joints, recorded.gripper)
    for name, table in (('statistics', told), ('state_statistics', of_states)):
        floor = np.full(table.shape[1], 0.02)
        floor[len(contract.robot.joints) :] = 0.25
        spread = np.maximum(table.std(axis=0), floor)
        yield (
            name,
            {'mean': [round(float(x), 4) for x in table.mean(axis=0)], 'std': [round(float(x), 4) for x in spread]},
        )
