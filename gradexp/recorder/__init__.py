"""Rows by name into the tables of a run directory, for training of ours and of anybody's."""

from gradexp.recorder.cadence import CHUNK_SECONDS, CHUNK_STEPS, PROBE_SHARE
from gradexp.recorder.ending import Ending
from gradexp.recorder.life import Life, environment
from gradexp.recorder.recording import Recording, StepTimes, write_layers

__all__ = [
    "CHUNK_SECONDS",
    "CHUNK_STEPS",
    "PROBE_SHARE",
    "Ending",
    "Life",
    "Recording",
    "StepTimes",
    "environment",
    "write_layers",
]
