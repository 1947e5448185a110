"""Sampling several sensor streams as of one moment.

Cameras and joint states arrive at their own rates, with their own delays. A policy needs one value of each that belong
together. Each stream has a :class:`StreamBuffer`, a short history in order of time. :func:`reference_stamp` picks the
moment, :func:`sample_all` takes from each stream its newest value not newer than that moment, and says by name what is
missing, and why. There is no interpolation and no filling in: a gap is reported as a gap.

Nothing here knows ROS; times are integers in nanoseconds of one clock that the caller chooses. Everything may be called
from several threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from engine.errors import ObservationError, Problem

_MS = 1_000_000
DEFAULT_FUTURE_TOLERANCE_NS = 50 * _MS  # clocks of two computers synchronised by NTP differ by less
DEFAULT_JUMP_NS = 1_000 * _MS  # no transport reorders messages by more than this


class Timeline(Enum):
    """Which time of a message counts as the time of its content."""

    HEADER = 'header'  # the acquisition time that the driver wrote into the header
    RECEIVE = 'receive'  # the time of arrival: for drivers that leave the header empty or run on another clock


class Reason(Enum):
    """Why a stream has no sample to offer."""

    NEVER_RECEIVED = 'never received'
    STALE = 'stale'
    FUTURE = 'only from the future'


@dataclass(frozen=True)
class Sample[T]:
    """One value of a stream, taken as of a moment.

    Attributes:
        stream: Name of the stream.
        stamp_ns: Time of the value, in the timeline of its stream.
        receive_ns: Time it arrived.
        age_ns: How old it was when it was asked for; negative if it is newer than the moment asked for, which happens
            only within the stream's tolerance for future stamps.
        value: The value.
    """

    stream: str
    stamp_ns: int
    receive_ns: int
    age_ns: int
    value: T


@dataclass(frozen=True)
class Missing:
    """A stream that has no sample to offer.

    Attributes:
        stream: Name of the stream.
        reason: Why.
        age_ns: Age of the value that comes closest; None if nothing was ever received.
        max_age_ns: Oldest age that is accepted.
    """

    stream: str
    reason: Reason
    age_ns: int | None
    max_age_ns: int

    def problem(self) -> Problem:
        """The same for an error message, times in seconds."""
        value = '' if self.age_ns is None else f'{self.age_ns / 1e9:.3f} s old'
        return Problem(self.stream, self.reason.value, value, f'at most {self.max_age_ns / 1e9:.3f} s old')

    def explained(self, rejected: str = '') -> str:
        """The same for a status, such as 'wrist (stale, 0.41 s > 0.25 s)'; `rejected`: why the latest was not kept."""
        text = self.reason.value
        if self.age_ns is not None and self.reason is Reason.STALE:
            text += f', {self.age_ns / 1e9:.2f} s > {self.max_age_ns / 1e9:.2f} s'
        elif self.age_ns is not None:
            text += f', {-self.age_ns / 1e9:.2f} s ahead'
        if rejected:
            text += f'; the latest message was not usable: {rejected}'
        return f'{self.stream} ({text})'


@dataclass(frozen=True)
class StreamCounts:
    """What happened to a stream since its creation.

    Attributes:
        received: Values pushed.
        rejected_future: Values refused because their stamp was further in the future than is tolerated.
        reordered: Values that arrived after a newer one and were put in their place.
        clock_resets: Times the history was dropped because stamps jumped back.
    """

    received: int = 0
    rejected_future: int = 0
    reordered: int = 0
    clock_resets: int = 0


@dataclass(frozen=True)
class _Entry[T]:
    stamp_ns: int
    receive_ns: int
    value: T = field(repr=False)


class StreamBuffer[T]:
    """The recent history of one stream.

    Choose `depth` so that it spans the largest delay between streams: with joint states at 1 kHz and images that come
    100 ms late, fewer than 100 would leave no joint state as old as the image.
    """

    def __init__(
        self,
        name: str,
        max_age_ns: int,
        depth: int = 64,
        *,
        timeline: Timeline = Timeline.HEADER,
        future_tolerance_ns: int = DEFAULT_FUTURE_TOLERANCE_NS,
        jump_ns: int = DEFAULT_JUMP_NS,
    ) -> None:
        """Make an empty buffer.

        Args:
            name: Name of the stream, used in every report.
            max_age_ns: Oldest age at which a value may still be used.
            depth: Number of values kept.
            timeline: Whether the header's or the receive time counts.
            future_tolerance_ns: How far a stamp may lie ahead of the clock, or of the moment asked for.
            jump_ns: A stamp this much older than the newest one means that the clock was set back: history is dropped.

        Raises:
            ValueError: A number is not positive (tolerance: negative).
        """
        if max_age_ns <= 0 or depth <= 0 or jump_ns <= 0 or future_tolerance_ns < 0:
            raise ValueError(
                f'{name}: max_age_ns, depth and jump_ns must be positive, future_tolerance_ns not negative'
            )
        self.name = name
        self.max_age_ns = max_age_ns
        self.timeline = timeline
        self._future_tolerance_ns = future_tolerance_ns
        self._jump_ns = jump_ns
        self._entries: deque[_Entry[T]] = deque(maxlen=depth)
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(StreamCounts.__dataclass_fields__, 0)
        self._nearest_rejected_ns: int | None = None

    def push(self, stamp_ns: int, receive_ns: int, value: T) -> bool:
        """Add a value; return whether it was kept.

        Args:
            stamp_ns: Acquisition time from the message's header (ignored with :attr:`Timeline.RECEIVE`).
            receive_ns: Time of arrival, by the clock that also gives the moments to sample at.
            value: The value; it is kept as it is, not copied.
        """
        if self.timeline is Timeline.RECEIVE:
            stamp_ns = receive_ns
        with self._lock:
            self._counts['received'] += 1
            if stamp_ns > receive_ns + self._future_tolerance_ns:
                self._counts['rejected_future'] += 1
                self._nearest_rejected_ns = stamp_ns
                return False
            self._nearest_rejected_ns = None
            self._insert(_Entry(stamp_ns, receive_ns, value))
            return True

    def _insert(self, entry: _Entry[T]) -> None:
        entries = self._entries
        if entries and entry.stamp_ns < entries[-1].stamp_ns - self._jump_ns:
            entries.clear()
            self._counts['clock_resets'] += 1
        newer = []
        while entries and entries[-1].stamp_ns > entry.stamp_ns:
            newer.append(entries.pop())
        if entries and entries[-1].stamp_ns == entry.stamp_ns:
            entries.pop()  # the same moment again: the later word counts
        self._counts['reordered'] += bool(newer)
        entries.append(entry)
        entries.extend(reversed(newer))

    def as_of(self, reference_ns: int, now_ns: int | None = None) -> Sample[T] | Missing:
        """Return the newest value not newer than `reference_ns`.

        If every value is newer, the oldest is returned provided that it lies within the tolerance for future stamps.

        Args:
            reference_ns: The moment to sample at.
            now_ns: The present, if that is later: a value must not be older than `max_age_ns` *now*, however well it
                fits the reference. None: age is counted from `reference_ns`.
        """
        asked_ns = reference_ns if now_ns is None else max(reference_ns, now_ns)
        with self._lock:
            entry = self._entry_as_of(reference_ns)
            rejected_ns = self._nearest_rejected_ns
        if entry is None:
            if rejected_ns is None:
                return Missing(self.name, Reason.NEVER_RECEIVED, None, self.max_age_ns)
            return Missing(self.name, Reason.FUTURE, asked_ns - rejected_ns, self.max_age_ns)
        if entry.stamp_ns > reference_ns + self._future_tolerance_ns:
            return Missing(self.name, Reason.FUTURE, reference_ns - entry.stamp_ns, self.max_age_ns)
        age_ns = asked_ns - entry.stamp_ns
        if age_ns > self.max_age_ns:
            return Missing(self.name, Reason.STALE, age_ns, self.max_age_ns)
        return Sample(self.name, entry.stamp_ns, entry.receive_ns, age_ns, entry.value)

    def _entry_as_of(self, reference_ns: int) -> _Entry[T] | None:
        for entry in reversed(self._entries):
            if entry.stamp_ns <= reference_ns:
                return entry
        return self._entries[0] if self._entries else None

    def newest_stamp_ns(self) -> int | None:
        """Time of the newest value, or None."""
        with self._lock:
            return self._entries[-1].stamp_ns if self._entries else None

    def clear(self) -> None:
        """Forget the history, as on activation or when the clock was set back."""
        with self._lock:
            self._entries.clear()
            self._nearest_rejected_ns = None

    @property
    def counts(self) -> StreamCounts:
        """What happened so far."""
        with self._lock:
            return StreamCounts(**self._counts)


@dataclass(frozen=True)
class Snapshot:
    """All streams as of one moment.

    Attributes:
        reference_ns: The moment.
        samples: What was found, by stream.
        missing: What was not, in the order of the streams.
    """

    reference_ns: int
    samples: Mapping[str, Sample[object]]
    missing: tuple[Missing, ...]

    @property
    def complete(self) -> bool:
        """Whether every stream has a sample."""
        return not self.missing

    @property
    def spread_ns(self) -> int:
        """Time between the oldest and the newest sample; 0 with fewer than two."""
        stamps = [sample.stamp_ns for sample in self.samples.values()]
        return max(stamps) - min(stamps) if stamps else 0

    @property
    def oldest_age_ns(self) -> int:
        """Age of the oldest sample; 0 if there is none."""
        return max((sample.age_ns for sample in self.samples.values()), default=0)

    def require(self) -> None:
        """Do nothing if the snapshot is complete.

        Raises:
            ObservationError: It is not; names every stream that is missing, why, and by how much.
        """
        if self.missing:
            raise ObservationError('streams', [missing.problem() for missing in self.missing])


def sample_all(buffers: Iterable[StreamBuffer[object]], reference_ns: int, now_ns: int | None = None) -> Snapshot:
    """Sample every stream as of `reference_ns`; arguments as for :meth:`StreamBuffer.as_of`."""
    found = [buffer.as_of(reference_ns, now_ns) for buffer in buffers]
    samples = {sample.stream: sample for sample in found if isinstance(sample, Sample)}
    return Snapshot(reference_ns, samples, tuple(item for item in found if isinstance(item, Missing)))


def reference_stamp(buffers: Iterable[StreamBuffer[object]], now_ns: int) -> int:
    """Return the newest moment up to which every live stream is known: the oldest of their newest stamps.

    Up to that moment nothing is outstanding, so sampling at it gives the same values whether the streams are live or
    played back from a recording, and however they were delayed. Streams that are silent (nothing within their maximum
    age) have no say, or one dead camera would hold the moment back and make the others look wrong; :func:`sample_all`
    names them. Without any live stream it is `now_ns`.

    Args:
        buffers: The streams.
        now_ns: The present.
    """
    newest = ((buffer, buffer.newest_stamp_ns()) for buffer in buffers)
    live = [stamp for buffer, stamp in newest if stamp is not None and now_ns - stamp <= buffer.max_age_ns]
    return min(*live, now_ns) if live else now_ns
