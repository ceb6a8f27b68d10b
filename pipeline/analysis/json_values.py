"""Reports and comparisons as JSON values: the output of `gnp report --json` and `gnp compare --json`."""

from dataclasses import asdict
from typing import Any

from pipeline.analysis.paired_statistics import Comparisons
from pipeline.analysis.report import PooledSuccess, Report, Success
from pipeline.results.intervals import CONFIDENCE, PooledGain, PooledRate, Rate


def report_values(report: Report) -> dict[str, Any]:
    """A report: every rate with its count, denominator and 95% interval. Keys are the fields of its classes."""
    return {
        "confidence": CONFIDENCE,
        "success": [_success(row) for row in report.success],
        "transfer": [_success(row) for row in report.transfer],
        "white_box": [_success(row) for row in report.white_box],
        "accuracy": [{**asdict(row), "correct": _rate(row.correct)} for row in report.accuracy],
        "joint": report.joint,
        "images": report.images,
        "unscored": report.unscored,
        "missing_shards": report.missing_shards,
        "missing_results": report.missing_results,
    }


def comparison_values(comparisons: Comparisons) -> dict[str, Any]:
    """Comparisons of attacks: every gain with its counts, its 95% interval and, on a single target, McNemar's p."""
    return {
        "confidence": CONFIDENCE,
        "each": [
            {**asdict(row), "gain": row.gain, "interval": row.interval, "p_value": row.p_value}
            for row in comparisons.by_target
        ],
        "together": [{**asdict(row), "gain": _rate(row.gain)} for row in comparisons.pooled],
    }


def _success(row: Success | PooledSuccess) -> dict[str, Any]:
    return {**asdict(row), "rates": {name: _rate(rate) for name, rate in row.rates.items()}}


def _rate(rate: Rate | PooledRate | PooledGain) -> dict[str, Any]:
    return {**asdict(rate), "rate": rate.rate, "interval": rate.interval}
