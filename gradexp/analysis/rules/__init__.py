"""What runs are judged by. Importing this package registers every rule."""

from gradexp.analysis.rules import depth, growth, progress, units
from gradexp.analysis.rules.registry import RULES, Rule

__all__ = ["RULES", "Rule", "depth", "growth", "progress", "units"]
