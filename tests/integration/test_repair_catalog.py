"""Repair of a store whose catalog is lost, damaged or of another time; on real directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import apsw
import pytest

import millstream
from millstream import (
    DataError,
    LockedError,
    Store,
    TopicPartition,
    UsageError,
    plan_repair,
    repair,
)
from millstream.cli.main import main
from millstream.database_file import CHECKED_VFS


def fill(path: Path) -> None:
    with millstream.open(path) as store:
        store.create_topic("t", partitions=2, compression="lz4")
        for number in range(6):
            store.append("t", b"%d" % number, partition=number % 2)
            if number == 3:
                store.roll("t", 0)
        store.create_topic("transactions")
        for number in range(3):
            with store.transaction() as transaction:
                transaction.append("transactions", b"%d" % number)
                transaction.commit_offsets("g", {TopicPartition("t", 0): number + 1})
                if number == 1:
                    transaction.abort()
        store.append("transactions", b"plain")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "store")
    return tmp_path / "store"


def values(store: Store, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in store.read(topic)]


def catalog_files(path: Path) -> list[Path]:
    return sorted(path.glob("catalog.db*"))


def segments(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*.segment")}


ALL = [b"%d" % number for number in range(6)]


def test_there_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for call in (plan_repair, repair):
        with pytest.raises(UsageError, match="no store"):
            call(tmp_path / "empty")
    assert [] == list((tmp_path / "empty").iterdir())


def test_nobody_may_have_it_open(path: Path) -> None:
    with millstream.open(path) as store:
        for call in (plan_repair, repair):
            with pytest.raises(LockedError, match="close it"):
                call(path)
        assert ALL == values(store)
    assert plan_repair(path).empty
    assert repair(path).empty


@pytest.mark.parametrize("show", [True, False])
def test_the_catalog_is_missing(path: Path, show: bool) -> None:
    for file in catalog_files(path):
        file.unlink()
    before = segments(path)
    planned = plan_repair(path)
    assert ("catalog.db is missing", 3) == (planned.actions[0].reason, planned.undecided)
    assert before == segments(path)
    assert not (path / "catalog.db").exists()

    done = repair(path, show_undecided=show)

    assert [] == [*done.lost, *done.refused]
    for _ in range(2):
        with millstream.open(path) as store:
            assert ["t", "transactions"] == [info.name for info in store.topics()]
            assert ALL == values(store)
            shown = [b"0", b"1", b"2"] if show else []
            assert [*shown, b"plain"] == values(store, "transactions")
            assert store.verify(deep=True).ok
            assert [] == store.groups()
    with millstream.open(path) as store:
        assert 3 == store.append("t", b"more", partition=0).offset
        with store.transaction() as transaction:
            transaction.append("transactions", b"new")
        assert b"new" == values(store, "transactions")[-1]
    assert plan_repair(path).empty
    report = json.loads((path / str(done.report_path)).read_text())
    assert report["actions"][0]["reason"] == "catalog.db is missing"


def test_a_store_was_opened_without_its_catalog(path: Path) -> None:
    """Which is refused, and leaves an empty catalog behind."""
    for file in catalog_files(path):
        file.unlink()
    for _ in range(2):
        with pytest.raises(DataError, match="missing"):
            millstream.open(path)

    repair(path)

    with millstream.open(path) as store:
        assert ALL == values(store)


def test_the_catalog_is_that_of_another_store(path: Path, tmp_path: Path) -> None:
    with millstream.open(tmp_path / "other") as store:
        store.create_topic("t")
        store.append("t", b"other")
    for file in catalog_files(path):
        file.unlink()
    shutil.copy(tmp_path / "other/catalog.db", path / "catalog.db")

    done = repair(path)

    assert [] == [*done.lost, *done.refused]
    with millstream.open(path) as store:
        assert ALL == values(store)
        assert store.verify(deep=True).ok


@pytest.mark.parametrize("damage", ["garbage", "cut", "header", "empty"])
def test_the_catalog_is_damaged(path: Path, damage: str) -> None:
    catalog = path / "catalog.db"
    content = catalog.read_bytes()
    bad = {
        "garbage": Random(1).randbytes(len(content)),
        "cut": content[: len(content) // 2],
        "header": b"x" * 100 + content[100:],
        "empty": b"",
    }[damage]
    catalog.write_bytes(bad)

    repair(path)

    with millstream.open(path) as store:
        assert ALL == values(store)
        assert store.verify(deep=True).ok
    assert bad in {file.read_bytes() for file in (path / "quarantine").iterdir()}


def test_what_can_be_read_of_a_damaged_catalog_is_kept(path: Path) -> None:
    """A page of the offsets of groups is bad; topics, transactions and checkpoints are not."""
    with millstream.open(path) as store, store.transaction() as transaction:
        transaction.put_checkpoint("c", b"kept")
    connection = apsw.Connection(str(path / "catalog.db"), vfs=CHECKED_VFS)
    query = "SELECT rootpage FROM sqlite_schema WHERE name = 'group_partitions'"
    ((page,),) = connection.execute(query).fetchall()
    connection.close()
    content = bytearray((path / "catalog.db").read_bytes())
    content[4096 * (page - 1) : 4096 * page] = b"\xff" * 4096
    (path / "catalog.db").write_bytes(content)

    done = repair(path)

    assert 0 == done.undecided
    with millstream.open(path) as store:
        assert ALL == values(store)
        assert [b"0", b"2", b"plain"] == values(store, "transactions")
        assert b"kept" == store.checkpoint("c")
        assert "lz4" == store.topic("t").config.compression
        assert ["g"] == store.groups()
        assert {} == store.group("g").offsets
        assert store.verify(deep=True).ok


def test_the_catalog_is_older_than_the_log(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t", partitions=2)
        store.append("t", b"0", partition=0)
    older = {file.name: file.read_bytes() for file in catalog_files(path)}
    with millstream.open(path) as store:
        store.append("t", b"1", partition=1)
        store.create_topic("later")
        store.append("later", b"x")
        for number in range(3):
            with store.transaction() as transaction:
                transaction.append("t", b"hidden %d" % number, partition=0)
    for file in catalog_files(path):
        file.unlink()
    for name, content in older.items():
        (path / name).write_bytes(content)
    with millstream.open(path) as store, pytest.raises(DataError, match="older"):
        values(store)

    done = repair(path)

    assert ([], 3) == (done.refused, done.undecided)
    with millstream.open(path) as store:
        assert [b"0", b"1"] == values(store)
        assert [b"x"] == values(store, "later")
        store.append("t", b"2", partition=0)
        with store.transaction() as transaction:
            transaction.append("t", b"3", partition=1)
        assert [b"0", b"1", b"2", b"3"] == values(store)
        assert store.verify(deep=True).ok


def test_a_topic_the_catalog_does_not_know_is_entered(path: Path, tmp_path: Path) -> None:
    database = apsw.Connection(str(path / "catalog.db"), vfs=CHECKED_VFS)
    database.execute("PRAGMA foreign_keys = ON; DELETE FROM topics WHERE name = 't'").fetchall()
    database.close()
    # A number no partition has would have as many of them looked for.
    shutil.copytree(path / "topics/t/0", path / "topics/t/99999999999999999999")
    with millstream.open(path, read_only=True) as store:
        (finding,) = store.verify().findings
    assert ("misplaced", "topics/t") == (finding.kind, finding.path)
    assert "topic 't', which the catalog does not know" in finding.problem

    strange = ("t", 99999999999999999999, "topics/t/99999999999999999999")
    assert [strange] == [each[:3] for each in repair(path).refused]

    with millstream.open(path) as store:
        assert ALL == values(store)
        assert [strange] == [each[:3] for each in store.verify(deep=True).findings]


def test_a_partition_beyond_those_of_its_topic_is_named_and_left_alone(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(path / "topics/t/0", path / "topics/t/2")
    (path / "topics/t/3").mkdir()
    kept = segments(path)

    for done in (plan_repair(path), repair(path)):
        assert ([], []) == (done.actions, done.lost)
        assert [("t", 2, "topics/t/2")] == [each[:3] for each in done.refused]
    with millstream.open(path) as store:
        assert ALL == values(store)
        (finding,) = store.verify().findings
    assert ("t", 2, "topics/t/2", "misplaced") == (*finding[:3], finding.kind)
    assert "topic 't' has 2" in finding.problem
    for command in (["verify"], ["repair"], ["repair", "--yes"], ["doctor"]):
        assert 4 == main(["--dir", str(path), "--output", "tsv", *command])
        assert "partition 2, and topic 't' has 2" in capfd.readouterr().out
    assert kept == segments(path)


@pytest.mark.parametrize("lost", [False, True], ids=["catalog", "no catalog"])
def test_a_copied_topic_is_named_and_left_alone(path: Path, lost: bool) -> None:
    """Its segments are those of another topic, which goes on; what is what the user must say."""
    shutil.copytree(path / "topics/t/0", path / "topics/zz copy/0")
    if lost:
        for file in catalog_files(path):
            file.unlink()
    kept = segments(path)

    for call in (plan_repair, repair, plan_repair, repair):
        done = call(path)
        (refused,) = done.refused
        assert ("topics/zz copy", True) == (refused.path, "topic 't'" in refused.reason)
    assert [] == done.actions
    assert kept == segments(path)
    with millstream.open(path) as store:
        assert ALL == values(store)
        (finding,) = store.verify(deep=True).findings
        assert ("misplaced", "topics/zz copy") == (finding.kind, finding.path)
        assert refused.reason == finding.problem
        assert "zz copy" not in {info.name for info in store.topics()}


def test_the_rest_of_a_deletion_is_not_brought_back(path: Path) -> None:
    database = apsw.Connection(str(path / "catalog.db"), vfs=CHECKED_VFS)
    database.execute("PRAGMA foreign_keys = ON; DELETE FROM topics WHERE name = 't'").fetchall()
    database.close()
    (path / "topics/t/deleted").touch()

    assert repair(path).empty


def test_a_rebuild_that_was_cut_off_is_finished(path: Path, tmp_path: Path) -> None:
    """Killed after each rename: the old catalog away, the new one not yet there."""
    (path / "catalog.db").write_bytes(b"x" * 4096)
    shutil.copytree(path, tmp_path / "whole")
    repair(tmp_path / "whole")
    (path / "quarantine").mkdir()
    (path / "catalog.db").rename(path / "quarantine/catalog.db.0")
    shutil.copy(tmp_path / "whole/catalog.db", path / "catalog.db.rebuilt")
    with pytest.raises(DataError, match="missing"):
        millstream.open(path)

    repair(path)

    with millstream.open(path) as store:
        assert ALL == values(store)
    assert plan_repair(path).empty


def test_a_damaged_segment_and_a_missing_catalog(path: Path) -> None:
    for file in catalog_files(path):
        file.unlink()
    segment = min((path / "topics/t/0").glob("*.segment"))
    content = bytearray(segment.read_bytes())
    content[330] ^= 1
    segment.write_bytes(content)
    planned = plan_repair(path)

    done = repair(path)

    assert [("t", 0, 0, 1)] == [each[:4] for each in done.lost]
    assert planned.lost == done.lost
    with millstream.open(path) as store:
        assert [b"1", b"2", b"3", b"4", b"5"] == values(store)


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_a_lost_catalog_is_told_by_whoever_looks_and_repaired_as_planned(
    path: Path, capfd: pytest.CaptureFixture[str], empty: bool
) -> None:
    for file in catalog_files(path):
        file.unlink()
    if empty:
        (path / "catalog.db").touch()
    for _ in range(2):
        with pytest.raises(DataError, match="millstream repair"):
            millstream.open(path, read_only=True)
    at = ["--dir", str(path)]
    assert 4 == main([*at, "consume", "t", "-e"])
    assert "millstream repair" in capfd.readouterr().err
    assert 2 == main([*at, "check"])
    assert capfd.readouterr().out.startswith("MILLSTREAM CRITICAL - there are topics, but")
    assert 4 == main([*at, "verify", "--explain", "--json"])
    document = json.loads(capfd.readouterr().out)
    assert ["catalog"] == [each["kind"] for each in document["findings"]]

    plan = plan_repair(path)
    done = repair(path)

    assert plan.undecided == done.undecided == 3
    assert [each.action for each in plan.actions] == [each.action for each in done.actions]
    assert "groups, checkpoints and settings" in plan.actions[0].action


def test_repair_on_the_command_line(
    path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_DIR", str(path))
    assert 0 == main(["repair"])
    assert "nothing to repair" in capfd.readouterr().err
    segment = min((path / "topics/t/0").glob("*.segment"))
    content = bytearray(segment.read_bytes())
    content[330] ^= 1
    segment.write_bytes(content)

    assert 4 == main(["consume", "t", "-e"])
    assert "`millstream verify --explain`" in capfd.readouterr().err
    assert 4 == main(["verify", "--deep", "--explain", "--json"])
    document = json.loads(capfd.readouterr().out)
    assert ("rotten", 1) == (document["findings"][0]["kind"], document["repair"]["lost"][0]["end"])
    assert 4 == main(["repair"])
    printed = capfd.readouterr()
    assert "write anew, up to offset" in printed.out
    assert "nothing was changed" in printed.err
    assert 0 == main(["repair", "--yes", "--output", "json"])
    assert json.loads(capfd.readouterr().out)["done"] is True
    assert 0 == main(["verify", "--deep", "--explain"])
    capfd.readouterr()
    for file in catalog_files(path):
        file.unlink()
    (path / "catalog.db").write_bytes(b"no database")
    assert 4 == main(["verify", "--explain", "--json"])
    document = json.loads(capfd.readouterr().out)
    assert "catalog" == document["findings"][0]["kind"]
    assert "make the catalog anew" in document["repair"]["actions"][0]["action"]
    assert 5 == main(["--dir", str(path / "nowhere"), "repair"])
    with millstream.open(path.parent / "open"):
        assert 3 == main(["--dir", str(path.parent / "open"), "repair"])
