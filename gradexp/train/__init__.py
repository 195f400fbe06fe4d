"""The training half: the loop, one run, checkpoints."""

from gradexp.train.observer import EpochEnd, Observer, Progress, Start
from gradexp.train.run import Outcome, execute, run_dir

__all__ = ["EpochEnd", "Observer", "Outcome", "Progress", "Start", "execute", "run_dir"]
