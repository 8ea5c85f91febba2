"""What all tests share: the real data where they are, a cache, no windows."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import matplotlib
import pytest

from brainspeech.cache import Cache

matplotlib.use("Agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a command that a script starts with &
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the real data; the test is skipped where it is not."""
    folder = Path(os.environ.get("BRAINSPEECH_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"the real data are not here: {folder} has no folder 'data' (set BRAINSPEECH_SHARED)")
    return folder


@pytest.fixture
def tmp_cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of the real data did not run, and why."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "data" in report.keywords]
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped if isinstance(report.longrepr, tuple))
    terminalreporter.write_line(f"data tests skipped: {len(skipped)}")
    for reason, count in reasons.items():
        terminalreporter.write_line(f"  {count} x {reason}")
