"""A schema as JSON: what `topics create --schema` takes and `topics describe` shows.

An object of field names and types: `{"id": "int64", "tags": {"list?": "string"}}`. Types have
Arrow's names; `?` behind one lets the field be null. Which types a topic can keep is decided by
`create_topic`, not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from millstream import missing_extra

_BYTES_MAX: Final = 1 << 20
_DEPTH_MAX: Final = 32
_UTC: Final = ", tz=UTC]"


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("A topic with a schema", "pyarrow", "arrow") from None
    return pyarrow


def read_schema(path: str) -> Any:
    """The pyarrow.Schema in a file.

    Raises:
        click.ClickException: It cannot be read, or is none; the message names the file and field.
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    try:
        with Path(path).open("rb") as file:
            content = file.read(_BYTES_MAX + 1)
        return pa.schema(_fields(pa, _parsed(content), "", 0))
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{path} is no schema: {error}") from None


def _parsed(content: bytes) -> dict[str, object]:
    if len(content) > _BYTES_MAX:
        raise ValueError("it is larger than 1 MiB")
    fields = json.loads(content, object_pairs_hook=_once)
    if not isinstance(fields, dict):
        raise ValueError(  # noqa: TRY004 - of the file, not of an argument
            'it is not an object of fields: {"id": "int64", "name": "string?"}'
        )
    return fields


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _fields(pa: Any, fields: Mapping[str, object], where: str, depth: int) -> list[Any]:
    return [_field(pa, name, kind, where + name, depth) for name, kind in fields.items()]


def _field(pa: Any, name: str, declared: object, where: str, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        raise ValueError(f"field {where[:80]!r}: types are nested too deeply")
    if isinstance(declared, str):
        return pa.field(name, _plain(pa, declared.removesuffix("?"), where), declared[-1:] == "?")
    if not isinstance(declared, dict) or len(declared) != 1:
        raise ValueError(
            f'field {where!r}: a type is a name, {{"list": type}} or {{"struct": {{...}}}}'
        )
    ((kind, inner),) = declared.items()
    word = kind.removesuffix("?")
    if word in {"list", "large_list"}:
        item = _field(pa, "item", inner, f"{where}[]", depth + 1)
        nested = pa.list_(item) if word == "list" else pa.large_list(item)
    elif word == "struct" and isinstance(inner, dict):
        nested = pa.struct(_fields(pa, inner, f"{where}.", depth + 1))
    else:
        raise ValueError(f"field {where!r}: {kind!r} is not list, large_list or struct of fields")
    return pa.field(name, nested, kind[-1:] == "?")


def _plain(pa: Any, word: str, where: str) -> Any:
    zoned = word.startswith("timestamp[") and word.endswith(_UTC)
    try:
        found = pa.type_for_alias(word.removesuffix(_UTC) + "]" if zoned else word)
    except ValueError:
        raise ValueError(
            f"field {where!r}: {word!r} is no type; write int8 to int64, uint8 to uint64, float32,"
            " float64, bool, string, binary, date32, timestamp[us] or timestamp[us, tz=UTC]"
        ) from None
    return pa.timestamp(found.unit, "UTC") if zoned else found


def schema_fields(schema: Any) -> dict[str, object]:
    """A pyarrow.Schema as such a JSON object.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa = _pyarrow()
    return {field.name: _shown(pa, field) for field in schema}


def _shown(pa: Any, field: Any) -> object:
    mark, kind = "?" if field.nullable else "", field.type
    if pa.types.is_struct(kind):
        return {f"struct{mark}": {each.name: _shown(pa, each) for each in kind}}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        word = "list" if pa.types.is_list(kind) else "large_list"
        return {f"{word}{mark}": _shown(pa, kind.value_field)}
    return f"{kind}{mark}"
