"""From the tables of runs to evidence, verdicts and statistics."""

from gradexp.analysis.cache import evidence_of
from gradexp.analysis.cells import Cell, Statistic, find_axes, into_cells, resolve_axes, short_names
from gradexp.analysis.collection import Collection, JudgedRun, collect
from gradexp.analysis.comparisons import Comparison, compare, degradation
from gradexp.analysis.conclusion import conclude, judge_again, take_rules
from gradexp.analysis.decay import Array
from gradexp.analysis.diagnosis import Diagnosis, diagnose
from gradexp.analysis.evidence import Evidence
from gradexp.analysis.judging import judge, judge_evidence
from gradexp.analysis.quantities import QUANTITIES, QUANTITY, Quantity
from gradexp.analysis.reading import reading
from gradexp.analysis.rules import RULES
from gradexp.analysis.rules_file import load_rules, own_rules, rules_of
from gradexp.analysis.verdicts import HEALTHY, LEVELS, VERDICTS, Verdict, counted, place_of

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
    "Diagnosis",
    "Evidence",
    "JudgedRun",
    "Quantity",
    "Statistic",
    "Verdict",
    "collect",
    "compare",
    "conclude",
    "counted",
    "degradation",
    "diagnose",
    "evidence_of",
    "find_axes",
    "into_cells",
    "judge",
    "judge_again",
    "judge_evidence",
    "load_rules",
    "own_rules",
    "place_of",
    "reading",
    "resolve_axes",
    "rules_of",
    "short_names",
    "take_rules",
]
