"""What the viewer's page shows: the newest message of everything, how old it is, and whether that is too old.

Callbacks only keep messages here; whoever asks for a picture or for the state pays for making it. What was received is
not trusted: texts are cut, lists that do not match are filled up, and a picture that cannot be read is named.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Duration
from numpy.typing import NDArray
from sensor_msgs.msg import Image

from cosmos3_msgs.msg import ChunkDecision, GuardStatus, PolicyStatus, Verdict
from cosmos3_ros.conversions import image_to_rgb, stamp_to_ns
from engine.contract import COMPOSITIONS, Contract
from engine.errors import ObservationError

VERDICT_STALE_S = 3.0
"""Verdicts, decisions and imagined frames come with every chunk, several a second; after this they are of the past."""

STATUS_STALE_S = 1.0
"""Guard and policy tell their state ten times a second."""

HISTORY_S = 60.0
"""How far the strip of verdicts goes back."""

LARGEST_SIDE_PX = 960
"""Larger pictures are reduced: it is what a page has room for, and cameras of 4K would keep a core busy."""

_LONGEST_HISTORY = 300
_LONGEST_TEXT = 400
_LONGEST_LIST = 32
_DECISIONS = {Verdict.UNKNOWN: 'UNKNOWN', Verdict.OK: 'OK', Verdict.SLOW: 'SLOW', Verdict.STOP: 'STOP'}


@dataclass(frozen=True)
class Arrival[T]:
    """A message, how many came before it on its topic, and when it came by the steady clock [ns]."""

    number: int
    message: T
    arrived_ns: int

    def age_s(self, stamp_ns: int, now_ns: int) -> float:
        """How old it is, by its arrival or by its stamp, whichever is older [s].

        By arrival alone, a camera whose pictures are minutes under way would look live; by stamp alone, so would one
        that fell silent while simulated time stands still.

        Args:
            stamp_ns: Time that it is about; 0 if it has none.
            now_ns: The present, by the clock that stamps are from.
        """
        since_arrival_s = (time.monotonic_ns() - self.arrived_ns) / 1e9
        return max(since_arrival_s, (now_ns - stamp_ns) / 1e9 if stamp_ns else 0.0)


class Newest[T]:
    """Keeps the newest message of a topic; one callback at a time may call :meth:`keep`."""

    def __init__(self) -> None:
        self.arrival: Arrival[T] | None = None

    def keep(self, message: T) -> None:
        """Forget the message before; never waits."""
        before = self.arrival
        self.arrival = Arrival(before.number + 1 if before else 1, message, time.monotonic_ns())


@dataclass(frozen=True)
class Jpeg:
    """A picture as it is sent: its bytes, and the message that it was made of."""

    data: bytes
    source: Arrival[Image]


class PictureSlot(Newest[Image]):
    """The newest picture of a topic, encoded if somebody asks, at most once and not more often than `period_s`.

    Attributes:
        encoded: Pictures encoded so far.
    """

    def __init__(self, topic: str, stale_s: float, quality: int, period_s: float, *, imagined: bool = False) -> None:
        """Empty.

        Args:
            topic: Where the pictures come from.
            stale_s: Age beyond which they are of the past.
            quality: Of the JPEG, 1 to 95.
            period_s: Shortest time between two that are encoded.
            imagined: Their stamps tell the moment that they are about, so that only their arrival makes them old.
        """
        super().__init__()
        self.topic = topic
        self.stale_s = stale_s
        self.imagined = imagined
        self.encoded = 0
        self._quality = quality
        self._period_ns = round(period_s * 1e9)
        self._lock = threading.Lock()  # of those who ask; a callback never takes it
        self._read: tuple[int, NDArray[np.uint8] | None, str] = (0, None, '')
        self._jpeg: Jpeg | None = None
        self._encoded_ns = 0

    def look(self) -> tuple[Arrival[Image] | None, str]:
        """The newest message, and what is wrong with it; empty if nothing is."""
        with self._lock:
            newest = self.arrival
            return newest, self._pixels(newest)[1] if newest else ''

    def jpeg(self) -> Jpeg | str:
        """The newest picture, or why there is none to show."""
        with self._lock:
            newest, made = self.arrival, self._jpeg
            if newest is None:
                return f'{self.topic}: nothing yet'
            rgb, problem = self._pixels(newest)
            if rgb is None:
                return problem
            now_ns = time.monotonic_ns()
            if made is not None and (
                made.source.number == newest.number or now_ns - self._encoded_ns < self._period_ns
            ):
                return made
            try:
                self._jpeg = made = Jpeg(_encode(rgb, self._quality), newest)
            except cv2.error as error:
                problem = f'{self.topic}: cannot be encoded: {error.err}'
                self._read = (newest.number, None, problem)
                return problem
            self._encoded_ns = now_ns
            self.encoded += 1
            return made

    def _pixels(self, newest: Arrival[Image]) -> tuple[NDArray[np.uint8] | None, str]:
        if self._read[0] != newest.number:
            try:
                self._read = (newest.number, image_to_rgb(newest.message, self.topic), '')
            except ObservationError as error:
                self._read = (newest.number, None, '; '.join(str(problem) for problem in error.problems))
        return self._read[1:]

    def describe(self, name: str, path: str, now_ns: int) -> dict[str, Any]:
        """What the page has to know; `ahead_s` is how far the moment that it is about lies ahead of the present."""
        newest, problem = self.look()
        stamp_ns = stamp_to_ns(newest.message.header.stamp) if newest else 0
        return {
            'name': name,
            'topic': self.topic,
            'path': path,
            'number': newest.number if newest else 0,
            'problem': _text(problem),
            'ahead_s': round((stamp_ns - now_ns) / 1e9, 3) if stamp_ns else None,
            **_aged(newest, 0 if self.imagined else stamp_ns, now_ns, self.stale_s),
        }

    def age_s(self, jpeg: Jpeg, now_ns: int) -> float:
        """How old a picture of this slot is that is about to be sent [s]."""
        return jpeg.source.age_s(0 if self.imagined else stamp_to_ns(jpeg.source.message.header.stamp), now_ns)


class Board:
    """Everything that the page shows of one contract's robot.

    Attributes:
        views: Pictures of the contract's views by name, in the order of its composition.
        imagined: Frames of the imagined rollout.
        verdict: What imagination makes of the newest chunk; kept through :meth:`keep_verdict`.
        guard: State of the guard.
        decision: What the guard decided of the newest chunk.
        policy: State of the policy.
    """

    def __init__(self, contract: Contract, now_ns: Callable[[], int], quality: int, period_s: float) -> None:
        """Empty; pictures are encoded with `quality` (1 to 95), each not more often than `period_s`."""
        streams = contract.views.streams
        self._contract = contract
        self._now_ns = now_ns
        self.views = {
            name: PictureSlot(streams[name].topic, streams[name].max_age_s, quality, period_s)
            for name in COMPOSITIONS[contract.views.composition]
        }
        self.imagined = PictureSlot('dynamics/imagined', VERDICT_STALE_S, quality, period_s, imagined=True)
        self.verdict: Newest[Verdict] = Newest()
        self.guard: Newest[GuardStatus] = Newest()
        self.decision: Newest[ChunkDecision] = Newest()
        self.policy: Newest[PolicyStatus] = Newest()
        self._history: deque[tuple[int, int]] = deque(maxlen=_LONGEST_HISTORY)

    def keep_verdict(self, message: Verdict) -> None:
        """Keep a verdict, and remember its decision for the strip."""
        self.verdict.keep(message)
        self._history.append((time.monotonic_ns(), message.decision))

    def state(self, paths: dict[str, str], imagined_path: str, imagination: bool) -> dict[str, Any]:
        """Everything but the pictures themselves, for JSON.

        Args:
            paths: By view, where its picture is served.
            imagined_path: The same for imagined frames.
            imagination: Whether anybody publishes verdicts.
        """
        now_ns, steady_ns = self._now_ns(), time.monotonic_ns()
        history = [((steady_ns - at_ns) / 1e9, number) for at_ns, number in self._history.copy()]
        return {
            'contract': self._contract.name,
            'composite': list(self._contract.views.size),
            'views': [slot.describe(name, paths[name], now_ns) for name, slot in self.views.items()],
            'imagination': imagination,
            'imagined': self.imagined.describe('imagined', imagined_path, now_ns),
            'verdict': _verdict(self.verdict.arrival, now_ns),
            'verdicts': [[round(age_s, 2), _decision(number)] for age_s, number in history if age_s < HISTORY_S],
            'history_s': HISTORY_S,
            'guard': _guard(self.guard.arrival, now_ns),
            'decision': _chunk_decision(self.decision.arrival, now_ns),
            'policy': _policy(self.policy.arrival, now_ns),
        }


def _encode(rgb: NDArray[np.uint8], quality: int) -> bytes:
    height, width = rgb.shape[:2]
    shrink = LARGEST_SIDE_PX / max(height, width)
    if shrink < 1.0:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _aged(arrival: Arrival[Any] | None, stamp_ns: int, now_ns: int, stale_s: float) -> dict[str, Any]:
    age_s = None if arrival is None else round(arrival.age_s(stamp_ns, now_ns), 3)
    return {'age_s': age_s, 'stale_after_s': stale_s, 'stale': age_s is not None and age_s > stale_s}


def _verdict(arrival: Arrival[Verdict] | None, now_ns: int) -> dict[str, Any] | None:
    if arrival is None:
        return None
    message = arrival.message
    columns = zip_longest(message.monitors, message.scores, message.thresholds, fillvalue=None)
    return {
        'decision': _decision(message.decision),
        'text': _text(message.text),
        'sequence': message.sequence,
        'monitors': [
            {'name': _text(name or 'without a name'), 'score': _number(score), 'threshold': _number(threshold)}
            for name, score, threshold in islice(columns, _LONGEST_LIST)
        ],
        'rows': message.rows,
        'rung': _text(message.rung),
        'cost_s': _seconds(message.cost),
        'budget_s': _seconds(message.budget),
        'calibrated': bool(message.calibration),
        **_aged(arrival, stamp_to_ns(message.decided), now_ns, VERDICT_STALE_S),
    }


def _guard(arrival: Arrival[GuardStatus] | None, now_ns: int) -> dict[str, Any] | None:
    if arrival is None:
        return None
    message = arrival.message
    return {
        'state': _text(message.state_name) or f'number {message.state}',
        'reason': _text(message.reason_name),
        'text': _text(message.text),
        'dry_run': message.dry_run,
        'accepted': message.accepted,
        'rejected': message.rejected,
        **_aged(arrival, stamp_to_ns(message.header.stamp), now_ns, STATUS_STALE_S),
    }


def _chunk_decision(arrival: Arrival[ChunkDecision] | None, now_ns: int) -> dict[str, Any] | None:
    if arrival is None:
        return None
    message = arrival.message
    return {
        'accepted': message.accepted,
        'sequence': message.sequence,
        'reason': _text(message.reason_name),
        'text': _text(message.text),
        'pace': _number(message.pace),
        **_aged(arrival, stamp_to_ns(message.decided), now_ns, VERDICT_STALE_S),
    }


def _policy(arrival: Arrival[PolicyStatus] | None, now_ns: int) -> dict[str, Any] | None:
    if arrival is None:
        return None
    message = arrival.message
    return {
        'state': _text(message.state_name) or f'number {message.state}',
        'instruction': _text(message.instruction),
        'text': _text(message.text),
        'chunks': message.chunks,
        'missing': _texts(message.missing_or_stale),
        **_aged(arrival, stamp_to_ns(message.header.stamp), now_ns, STATUS_STALE_S),
    }


def _decision(number: int) -> str:
    return _DECISIONS.get(number, 'UNKNOWN')


def _text(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + '...'


def _texts(texts: Iterable[str]) -> list[str]:
    return [_text(text) for text in islice(texts, _LONGEST_LIST)]


def _number(value: float | None) -> float | str | None:
    """As JSON can hold it: not-a-number, which says that there is none, as null; infinity as JavaScript writes it."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else ('Infinity' if value > 0 else '-Infinity')


def _seconds(duration: Duration) -> float:
    return round(duration.sec + duration.nanosec / 1e9, 3)
