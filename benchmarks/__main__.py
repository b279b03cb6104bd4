"""`python -m benchmarks`: run the workloads, print a table, write the results as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.harness import Context, run, work
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parse, measure, report."""
    if sys.argv[1:2] == ["--worker"]:
        work(WORKLOADS, *sys.argv[2:5])
        return
    options = _parser().parse_args()
    names = options.only.split(",") if options.only else [each.name for each in WORKLOADS]
    unknown = set(names) - {each.name for each in WORKLOADS}
    if unknown:
        sys.exit(f"no such workload: {', '.join(sorted(unknown))}")
    records = options.records or (2_000 if options.quick else 1_000_000)
    seconds = 0.05 if options.quick else 1.5
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="millstream-bench-", dir=options.dir) as directory:
        base = Context(directory, "", records, seconds, options.seed, options.quick)
        outcomes = [
            run(workload, base, rounds, inline=options.quick)
            for workload in WORKLOADS
            if workload.name in names
        ]
    document = report.document(outcomes, options.seed, records)
    print(report.table(document))
    if options.json:
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    elif not options.quick:
        report.merge(RESULTS / f"{report.machine_name()}.json", document)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="names of workloads, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--records", type=int, help="instead of 1,000,000")
    parser.add_argument("--seed", type=int, default=0, help="makes other records")
    parser.add_argument("--dir", help="where to write; default: the system's temporary directory")
    parser.add_argument("--json", help="write the results there instead of benchmarks/results")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: few records, one process, no files"
    )
    return parser


if __name__ == "__main__":
    main()
