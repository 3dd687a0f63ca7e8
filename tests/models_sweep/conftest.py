"""The libraries of the sweep beside a CPU's torch, and the record of a run in build/models/sweep.json."""

from __future__ import annotations

import datetime
import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

RECORD = Path(__file__).parents[2] / "build" / "models" / "sweep.json"
PACKAGES = ("torch", "timm", "transformers", "segmentation-models-pytorch", "torchvision")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # configurations only: nothing is looked up, let alone downloaded


@pytest.fixture(scope="session", autouse=True)
def torchvision_without_operators() -> None:
    """torchvision's operators are built for one torch each; no network needs them, but its import needs their names."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Record:
    """Collects what the stages told; xdist hands every report to the process that writes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if report.when == "call" and "stage" in told:
            self.rows.append(told | {"passed": report.passed, "seconds": round(report.duration, 2)})

    def pytest_sessionfinish(self) -> None:
        if self.rows and RECORD.parent.is_dir():
            versions = {package: version(package) for package in PACKAGES}
            record = {"date": datetime.date.today().isoformat(), "versions": versions}
            RECORD.write_text(json.dumps(record | {"rows": [*earlier(record, self.rows), *self.rows]}, indent=1))


def earlier(record: dict[str, object], rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """What was recorded on the same day with the same packages and has not run again: a sweep may be run in parts."""
    if not RECORD.exists():
        return []
    before = json.loads(RECORD.read_text())
    again = {(row["model"], row["stage"]) for row in rows}
    same = {key: before[key] for key in record} == record
    return [row for row in before["rows"] if same and (row["model"], row["stage"]) not in again]


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(), "sweep-record")
