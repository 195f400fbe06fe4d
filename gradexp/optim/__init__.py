"""How weights change: optimizers, schedules, clipping."""

from gradexp.optim.clipping import CLIPS, Clip
from gradexp.optim.optimizers import OPTIMIZERS, MakeOptimizer
from gradexp.optim.schedules import SCHEDULES, Schedule

__all__ = ["CLIPS", "OPTIMIZERS", "SCHEDULES", "Clip", "MakeOptimizer", "Schedule"]
