"""A recording of an event camera."""

from dataclasses import dataclass

import numpy as np

from stalwart.core.errors import InputError


@dataclass(frozen=True, eq=False)
class EventStream:
    """Events in the order of their time.

    Attributes:
        t: time stamps [N] in microseconds, int64, that never fall.
        x, y: columns in [0, width) and rows in [0, height), [N], int64.
        polarity: 1 where the light got brighter, 0 where it got darker, [N], int64.
        height, width: of the sensor, in pixels.
        what: where the events come from, for messages.

    Raises:
        InputError: lengths that differ, an event outside of the frame, a falling time stamp, another polarity.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    height: int
    width: int
    what: str = "event stream"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InputError(f"{self.what}: a sensor has at least 1 x 1 pixels, got {self.height} x {self.width}.")
        for name in ("t", "x", "y", "polarity"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or values.dtype.kind not in "iub":
                raise InputError(f"{self.what}: {name} must be integers [N], got {values.dtype} {list(values.shape)}.")
            if len(values) != len(self.t):
                raise InputError(f"{self.what}: {len(values)} values of {name} for {len(self.t)} time stamps.")
            object.__setattr__(self, name, values.astype(np.int64))
        self._require((self.x >= 0) & (self.x < self.width), "x", f"in [0, {self.width})")
        self._require((self.y >= 0) & (self.y < self.height), "y", f"in [0, {self.height})")
        self._require((self.polarity == 0) | (self.polarity == 1), "polarity", "0 or 1")
        falls = np.flatnonzero(np.diff(self.t) < 0)
        if len(falls):
            first = int(falls[0]) + 1
            raise InputError(
                f"{self.what}: time stamps must not fall, but event {first} is at {self.t[first]} us, after "
                f"{self.t[first - 1]} us; sort the events, or replace the file if it is damaged."
            )

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.t)

    def between(self, start: int, end: int) -> "EventStream":
        """Return the events with start <= t < end, in microseconds; memory is shared."""
        first, last = np.searchsorted(self.t, [start, end])
        part = slice(int(first), int(last))
        return EventStream(
            self.t[part], self.x[part], self.y[part], self.polarity[part], self.height, self.width, self.what
        )

    def _require(self, good: np.ndarray, name: str, wanted: str) -> None:
        bad = np.flatnonzero(~good)
        if len(bad):
            first = int(bad[0])
            value = getattr(self, name)[first]
            raise InputError(f"{self.what}: {name} must be {wanted}, but event {first} has {value}.")
