"""Event cameras: recordings, their files, frames, and a simulated camera."""

from stalwart.data.events.camera import record
from stalwart.data.events.frames import frames
from stalwart.data.events.read import READERS, read_events
from stalwart.data.events.stream import EventStream

__all__ = ["READERS", "EventStream", "frames", "read_events", "record"]
