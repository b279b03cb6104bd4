"""A file system of a few MiB that can be filled up, for those who may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kill_roles import LOG, check_log, go_on

import millstream

if TYPE_CHECKING:
    from zygote import Report, Zygote

SIZE = "3m"


@contextlib.contextmanager
def small_file_system(directory: Path) -> Iterator[Path | None]:
    """Mount one at `directory`; None for those who may not."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield directory if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(directory)], check=True)


def fill_and_kill(zygote: Zygote, directory: Path, seed: int, kills: int) -> int:
    """Kill that many processes that write to a full disk; 0 if there is none to be had."""
    with small_file_system(directory) as place:
        if place is None:
            return 0
        path = place / "store"
        with millstream.open(path) as store:
            store.create_topic(LOG, partitions=2, segment_bytes="256KiB")
            for topic in ("work", "keyed"):
                store.create_topic(topic, retention_bytes="4KiB", segment_bytes="4KiB")
        reports: list[Report] = []
        for number in range(kills):
            with zygote.spawn("small_disk", path, seed + number) as child:
                child.hear(40 * (number % 5))
                reports += child.kill()
            (place / "ballast").unlink(missing_ok=True)
            for _ in range(2):
                with millstream.open(path) as store:
                    check_log(store, reports)
                    go_on(store)
        return kills
