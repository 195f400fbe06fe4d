"""What is measured: gradients at every step; signal, units and certificates at every probe."""

from gradexp.probes import signal as _signal  # noqa: F401  importing it registers its probe
from gradexp.probes.looking import Prober, ProbeRows, ProbeSet, Subject, most_at_once
from gradexp.probes.registry import PROBES, Look, Measured, Probe, Stack, added_columns

__all__ = [
    "PROBES",
    "Look",
    "Measured",
    "Probe",
    "ProbeRows",
    "ProbeSet",
    "Prober",
    "Stack",
    "Subject",
    "added_columns",
    "most_at_once",
]
