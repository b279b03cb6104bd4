"""The doctor finds what is wrong with a store and its machine, and says what to do about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import apsw
import pytest
from simulated_stores import log_of

import millstream
from millstream import Diagnosis, StorageError, diagnose
from millstream.cli.main import main
from millstream.database_file import CHECKED_VFS
from millstream.machine_checks import file_system, free_space, judge_sync, process_limits, rights
from millstream.owner_catalog import DatabasePlace, OwnerCatalog
from millstream.posix_facts import Limits, Mount, Space, mount_of
from millstream.tail import POISONED_BY_SYNC, Slot
from millstream.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t", partitions=2)
        store.append("t", b"0", partition=0)
        store.roll("t", 0)
        store.append("t", b"1", partition=0)
    return tmp_path / "store"


def troubles(path: Path, *checks: str, **options: ManualClock) -> list[Diagnosis]:
    """What is not fine, of those checks."""
    found = [each for each in diagnose(path, **options) if each.check in checks]
    assert found
    return [each for each in found if each.level != "ok"]


STORE_CHECKS = ("catalog", "logs", "files", "clock", "limits", "rights", "processes", "versions")


def test_a_healthy_store_has_no_findings(path: Path) -> None:
    with millstream.open(path) as store:
        store.create_topic("begun-at-its-end", partitions=4)
        store.append("begun-at-its-end", b"x", partition=3)
    assert [] == troubles(path, *STORE_CHECKS)
    before = sorted(path.rglob("*"))
    diagnose(path)
    assert before == sorted(path.rglob("*"))


def test_it_works_beside_a_writer(path: Path) -> None:
    with millstream.open(path) as store:
        store.append("t", b"more")
        assert [] == troubles(path, *STORE_CHECKS)
        (users,) = (each for each in diagnose(path) if each.check == "processes")
        assert "a process has the store open for writing" == users.message


def test_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        diagnose(tmp_path / "nowhere")


def test_a_torn_tail_and_leftovers_are_told(path: Path) -> None:
    directory = path / "topics/t/0"
    segment = max(directory.glob("*.segment"))
    segment.write_bytes(segment.read_bytes() + b"torn" * 40)
    (directory / "00000000000000000009.segment.tmp").touch()
    (directory / f"{77:020d}.index").touch()
    (directory / "notes.txt").touch()
    (path / "other.txt").touch()
    (path / "quarantine").mkdir()
    (path / "quarantine/catalog.db.0").write_bytes(b"x" * 2048)

    messages = [each.message for each in troubles(path, "logs", "files", "quarantine")]

    assert [
        "nothing of Millstream's",
        "1 files of 2 KiB were taken out of the log",
        "left by a crash, or being written",
        "an index without its segment",
        "nothing of Millstream's",
        "a torn tail of 160 bytes, never acknowledged",
    ] == messages
    assert all(each.level == "info" for each in troubles(path, "logs", "files", "quarantine"))


def test_damage_is_an_error_that_names_the_way_out(path: Path) -> None:
    segment = max((path / "topics/t/0").glob("*.segment"))
    content = bytearray(segment.read_bytes())
    content[30] ^= 1
    segment.write_bytes(content)

    (finding,) = troubles(path, "logs")

    assert ("error", f"topics/t/0/{segment.name}") == (finding.level, finding.path)
    assert "millstream repair" in finding.remedy


def test_a_catalog_that_is_damaged_or_does_not_know_a_topic(path: Path) -> None:
    database = apsw.Connection(str(path / "catalog.db"), vfs=CHECKED_VFS)
    database.execute("PRAGMA foreign_keys = ON; DELETE FROM topics").fetchall()
    database.close()
    (finding,) = troubles(path, "files")
    assert ("error", "topics/t") == (finding.level, finding.path)
    (path / "catalog.db").write_bytes(b"no database at all")
    (finding,) = troubles(path, "catalog")
    assert "error" == finding.level
    (path / "catalog.db").unlink()
    (finding,) = troubles(path, "catalog")
    assert "catalog.db is missing" == finding.message


def test_a_clock_behind_the_log_or_never_set(path: Path) -> None:
    (finding,) = troubles(path, "clock", clock=ManualClock(1_750_000_000_000))
    assert "behind the newest append" in finding.message
    (finding,) = troubles(path, "clock", clock=ManualClock(1_000_000))
    assert "never set" in finding.message


def test_a_partition_whose_sync_failed(path: Path) -> None:
    with millstream.open(path) as store:
        log = log_of(store)
        log.slot[Slot.POISONED] = POISONED_BY_SYNC
        (finding,) = troubles(path, "logs")
        assert ("error", "topics/t/0") == (finding.level, finding.path)
        log.slot[Slot.POISONED] = 0


TABLE = """21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:30 / /data rw - nfs4 host:/x rw
31 21 0:31 / /data/local\\040disk rw - xfs /dev/sdb rw,nobarrier
broken line
"""


def test_the_mount_of_a_path_is_the_innermost() -> None:
    found = {path: mount_of(path, TABLE) for path in ("/a", "/data", "/database", "/data/x")}
    assert ["ext4", "nfs4", "ext4", "nfs4"] == [
        each.type if each else "" for each in found.values()
    ]
    inner = mount_of("/data/local disk/store", TABLE)
    assert inner is not None
    assert ("xfs", "/data/local disk") == (inner.type, inner.path)
    assert mount_of("/a", "") is None


@pytest.mark.parametrize(
    ("kind", "options", "level"),
    [
        ("ext4", "rw", "ok"),
        ("ext4", "ro", "error"),
        ("ext4", "rw,barrier=0", "error"),
        ("nfs4", "rw", "error"),
        ("fuse.sshfs", "rw", "error"),
        ("tmpfs", "rw", "warning"),
        ("overlay", "rw", "warning"),
    ],
)
def test_file_systems_are_judged(kind: str, options: str, level: str) -> None:
    finding = file_system(Mount("/", kind, frozenset(options.split(","))))

    assert level == finding.level
    assert bool(finding.remedy) == (level != "ok")
    assert "info" == file_system(None).level


@pytest.mark.parametrize(
    ("free_mib", "total_mib", "level"),
    [(5000, 10_000, "ok"), (400, 10_000, "warning"), (100, 200, "error")],
)
def test_free_space_is_judged(free_mib: int, total_mib: int, level: str) -> None:
    (finding,) = free_space(Space(free_mib << 20, total_mib << 20, 0, 0))
    assert level == finding.level
    files = list(free_space(Space(1 << 40, 1 << 40, 1, 1000)))
    assert ["ok", "warning"] == [each.level for each in files]


def test_limits_and_syncs_are_judged() -> None:
    assert ["ok"] == [each.level for each in process_limits(Limits(None, None), 9999)]
    assert ["ok"] == [each.level for each in process_limits(Limits(1024, None), 100)]
    few = list(process_limits(Limits(1024, 1 << 20), 1000))
    assert ["warning", "warning"] == [each.level for each in few]
    assert "ulimit -n 2064" == few[0].remedy
    levels = [judge_sync(median, 100).level for median in (0.001, 0.5, 20, 80)]
    assert ["warning", "ok", "ok", "warning"] == levels


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def may_not_write(path: str) -> list[str]:
        return ["read", "write"] if path.endswith("hidden") else []

    monkeypatch.setattr("millstream.machine_checks.refused", may_not_write)
    (tmp_path / "hidden").touch()
    (tmp_path / "fine").touch()

    (finding,) = rights(str(tmp_path), ["", "fine", "hidden", "gone"])

    assert ("error", "may not read or write", "hidden") == (
        finding.level,
        finding.message,
        finding.path,
    )


def test_the_doctor_on_the_command_line(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["--dir", str(path), "doctor", "--json"])
    document = json.loads(capfd.readouterr().out)
    assert {"versions", "file system", "free space", "sync", "logs"} <= {
        each["check"] for each in document["findings"]
    }
    worst = {each["level"] for each in document["findings"]} & {"warning", "error"}
    assert code == (1 if worst else 0)
    (path / "catalog.db").unlink()
    assert 4 == main(["--dir", str(path), "doctor"])
    assert "error" == capfd.readouterr().out.splitlines()[1].split("\t")[0]
    assert 5 == main(["--dir", str(path / "nowhere"), "doctor"])


def test_transactions_that_wait_for_a_lost_database_are_found_and_given_up(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = path.with_name("my.db")
    with millstream.open(path) as store:
        catalog = store._engine.catalog
        owner = OwnerCatalog(catalog).acquire("dead", "locks/dead.lock")
        place = DatabasePlace(str(database), "uid", "locks/dead.lock")
        OwnerCatalog(catalog).set_terms(owner.id, None, place)

    (finding,) = troubles(path, "transactions")
    assert str(database) in finding.message
    assert "--lost-database" in finding.remedy
    arguments = ["repair", "--dir", str(path), "--lost-database", str(database)]
    assert 4 == main(arguments)
    assert 0 == main([*arguments, "--yes"])
    assert "1 transaction aborted" in capsys.readouterr().err
    assert [] == troubles(path, "transactions", "catalog")
    database.touch()
    assert 2 == main(arguments)


def test_files_that_cannot_be_seen_end_no_look_at_the_rest(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # As a directory that belongs to somebody else, for whoever runs the tests: also for root.
    shutil.rmtree(path / "topics/t")
    (path / "topics/t").symlink_to("t")
    (path / "lost+found").symlink_to("lost+found")

    found = diagnose(path)

    (unseen,) = [each for each in found if each.path == "topics/t"]
    assert ("rights", "error") == (unseen.check, unseen.level)
    assert "cannot list a directory" in unseen.message
    assert {"sync", "catalog", "limits", "file system"} <= {each.check for each in found}
