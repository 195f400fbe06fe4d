"""From the tables of runs to evidence, verdicts and statistics."""

from gradexp.analysis.cache import evidence_of
from gradexp.analysis.cells import Cell, Statistic, find_axes, into_cells, resolve_axes, short_names
from gradexp.analysis.collection import Collection, JudgedRun, collect
from gradexp.analysis.comparisons import Comparison, compare, degradation
from gradexp.analysis.conclusion import conclude
from gradexp.analysis.decay import Array
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.judging import judge, judge_evidence, load_rules
from gradexp.analysis.quantities import QUANTITIES, QUANTITY, Quantity
from gradexp.analysis.reading import reading
from gradexp.analysis.rules import RULES
from gradexp.analysis.verdicts import HEALTHY, LEVELS, VERDICTS, Verdict

__all__ = [
    "HEALTHY",
    "LEVELS",
    "QUANTITIES",
    "QUANTITY",
    "RULES",
    "VERDICTS",
    "Array",
    "Cell",
    "Collection",
    "Comparison",
    "Evidence",
    "JudgedRun",
    "Quantity",
    "Statistic",
    "Verdict",
    "collect",
    "compare",
    "conclude",
    "degradation",
    "evidence_of",
    "find_axes",
    "into_cells",
    "judge",
    "judge_evidence",
    "load_rules",
    "reading",
    "resolve_axes",
    "short_names",
]
