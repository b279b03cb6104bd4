import dataclasses
from datetime import timedelta

import pytest

from millstream.config import (
    PARTITIONS_MAX,
    TopicConfig,
    check_group_name,
    check_internal_name,
    check_partition_count,
    check_topic_name,
    is_internal,
)
from millstream.errors import DataError, FormatVersionError, UsageError


def test_options_arrive_in_users_units() -> None:
    config = TopicConfig.from_options(
        retention="7d", retention_bytes="10GB", segment_bytes="1MiB", segment_ms=timedelta(hours=1)
    )

    assert config == TopicConfig(
        retention_ms=604_800_000,
        retention_bytes=10_000_000_000,
        segment_bytes=1_048_576,
        segment_ms=3_600_000,
    )


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'retain'.*compression.*retention.*segment_ms"):
        TopicConfig.from_options(retain="7d")


def test_the_same_field_is_given_once() -> None:
    with pytest.raises(UsageError, match="second time"):
        TopicConfig.from_options(retention="7d", retention_ms=5)


def test_options_change_only_what_they_name_and_none_clears() -> None:
    config = TopicConfig(retention_ms=5, compression="lz4")

    assert config.with_options(retention=None) == TopicConfig(compression="lz4")
    assert config.with_options() == config


@pytest.mark.parametrize(
    "options",
    [
        {"retention_ms": 0},
        {"retention_ms": True},
        {"retention_bytes": -1},
        {"compression": "gzip"},
        {"compression": None},
        {"segment_bytes": 4095},
        {"segment_bytes": 2**31 + 1},
        {"segment_bytes": None},
        {"segment_ms": 0},
        {"segment_ms": None},
        {"retention": "soon"},
        {"retention": 1.5},
        {"retention_bytes": "many"},
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_the_option(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TopicConfig.from_options(**options)


def test_the_stored_form_keeps_everything() -> None:
    config = TopicConfig(
        retention_ms=1, retention_bytes=2, compression="zstd", segment_bytes=4096, segment_ms=3
    )

    assert TopicConfig.from_json(config.to_json()) == config


def test_a_missing_stored_field_takes_its_default() -> None:
    assert TopicConfig.from_json('{"retention_ms": 5}') == TopicConfig(retention_ms=5)


def test_a_stored_field_of_a_newer_version_is_refused() -> None:
    with pytest.raises(FormatVersionError, match="shape"):
        TopicConfig.from_json('{"shape": true}')


@pytest.mark.parametrize("text", ["", "[]", "7", '{"retention_ms": "7d"}', '{"segment_ms": null}'])
def test_a_damaged_stored_form_is_a_data_error(text: str) -> None:
    with pytest.raises(DataError):
        TopicConfig.from_json(text)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TopicConfig().retention_ms = 1  # type: ignore[misc]  # what the test is about


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 200, "..."])
def test_a_topic_name_is_a_directory_name(name: str) -> None:
    assert check_topic_name(name) == name
    assert not is_internal(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 201, "\u00e9", "a\n", "@a"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a topic name"):
        check_topic_name(name)


def test_internal_names_have_two_parts_below_state() -> None:
    assert check_internal_name("@state/p/op") == "@state/p/op"
    assert is_internal("@state/p/op")
    for name in ("@state/p", "@state/../x", "@state/p/op/x", "@other/p/op", "state/p/op"):
        with pytest.raises(UsageError):
            check_internal_name(name)


@pytest.mark.parametrize("count", [0, -1, PARTITIONS_MAX + 1, True, 1.0, "3"])
def test_the_number_of_partitions_is_bounded(count: int) -> None:
    with pytest.raises(UsageError, match="partitions"):
        check_partition_count(count)


def test_a_group_name_is_printable_and_short() -> None:
    assert check_group_name("Rechnung \u00fc 7/a") == "Rechnung \u00fc 7/a"
    for name in ("", "a\nb", "x" * 201, "\ud800"):
        with pytest.raises(UsageError, match="group name"):
            check_group_name(name)
