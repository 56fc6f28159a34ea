"""A report on runs: what they have learned and how training went, in a page that any browser opens."""

from ssl_core.report.page import check_report as check_report
from ssl_core.report.page import has_report as has_report
from ssl_core.report.page import write_report as write_report
from ssl_core.report.verdict import Verdict as Verdict
from ssl_core.report.verdict import verdicts as verdicts
