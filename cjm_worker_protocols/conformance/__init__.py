"Check an implementation, and read what to mend."

from .checks import CHECKS as CHECKS, FactoryError as FactoryError, ProbeError as ProbeError, ProtocolError as ProtocolError
from .kit import HypothesisMissing as HypothesisMissing, check as check, check_async as check_async
from .report import ConformanceError as ConformanceError, Finding as Finding, Report as Report

__all__ = ["check", "check_async", "CHECKS", "Report", "Finding", "ConformanceError", "FactoryError", "ProbeError",
           "ProtocolError", "HypothesisMissing"]
