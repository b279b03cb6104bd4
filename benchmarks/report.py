"""Results as a document to keep and a table to read."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness import Outcome, Sample

Document = dict[str, object]
_PACKAGES = ("millstream", "apsw", "lz4", "msgspec", "xxhash", "zstandard")


def document(outcomes: Sequence[Outcome], seed: int, records: int) -> Document:
    """Everything needed to judge the numbers later, raw samples included."""
    about = {
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "seed": seed,
        "records": records,
    }
    return {"workloads": {each.name: {**asdict(each), **about} for each in outcomes}}


def merge(path: Path, new: Document) -> None:
    """Replace the workloads measured now in the machine's file and keep the others."""
    old = json.loads(path.read_text()) if path.exists() else {"workloads": {}}
    old["workloads"].update(new["workloads"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(old, indent=1, sort_keys=True) + "\n")
    print(f"\nwritten to {path.name}", file=sys.stderr)


def machine() -> dict[str, object]:
    """What the numbers were measured on; no names."""
    return {
        "system": platform.system(),
        "release": platform.release().split("-")[0],
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "processor": _processor(),
    }


def machine_name() -> str:
    """Name of the machine's file of results."""
    name = f"{platform.system()}-{platform.machine()}-{os.cpu_count()}-processors"
    return re.sub(r"[^a-z0-9-]+", "-", name.lower())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def table(results: Document) -> str:
    """The medians of all contestants, and each target with what was measured."""
    lines: list[str] = []
    workloads = results["workloads"]
    assert isinstance(workloads, dict)
    for name, workload in workloads.items():
        rounds = workload["rounds"]
        lines += ["", f"{name}: {workload['title']}  [{workload['durability']}]"]
        for contestant in rounds[0]:
            samples = [samples[contestant] for samples in rounds]
            lines.append(f"  {contestant:<20} {_describe(samples)}")
        for target in workload["targets"]:
            verdict = "met" if target["met"] else "MISSED"
            lines.append(
                f"  -> {target['contestant']} {target['text']}:"
                f" {_number(target['measured'])} {verdict}"
            )
    return "\n".join(lines)


def _describe(samples: Sequence[Sample]) -> str:
    """Medians, with the range of the rate."""
    parts = []
    for metric in samples[0]:
        values = [sample[metric] for sample in samples]
        text = f"{metric} {_number(statistics.median(values))}"
        if metric == "rate" and len(values) > 1:
            text += f" ({_number(min(values))}-{_number(max(values))})"
        parts.append(text)
    return ", ".join(parts)


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if value >= 10_000:
        return f"{value / 1e3:.0f}k"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
