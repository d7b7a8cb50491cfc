"""Reports: one record of one or many runs, saved as JSON and as one HTML page that works offline."""

from stalwart.report.certificates import Certificates, certify, with_verdicts
from stalwart.report.conversion import Conversion
from stalwart.report.environment import environment
from stalwart.report.judged import evaluate
from stalwart.report.schema import SCHEMA_VERSION, Report, RunReport
from stalwart.report.side_by_side import side_by_side
from stalwart.report.spikes import Spikes, watch_spikes

__all__ = [
    "SCHEMA_VERSION",
    "Certificates",
    "Conversion",
    "Report",
    "RunReport",
    "Spikes",
    "certify",
    "environment",
    "evaluate",
    "side_by_side",
    "watch_spikes",
    "with_verdicts",
]
