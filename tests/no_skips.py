"""A pytest plugin, `-p no_skips`: skipped tests fail, because they did not test anything."""

import pytest


def pytest_collectreport(report):
    if report.skipped:
        pytest.exit(f"{report.nodeid} must not skip here: {report.longrepr[2]}", returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"must not skip here: {report.longrepr[2]}"
    return report
