"""The schema of a topic: from what users declare to Arrow, how it is stored, how it may change.

A schema is declared as a msgspec Struct, a dataclass or a pyarrow.Schema, and kept with the topic
as an Arrow schema message. Not here: data (`arrow_columns.py`). pyarrow is imported when a schema
is used, never before.
"""

from __future__ import annotations

import base64
import binascii
import types
from datetime import date, datetime
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import inspect

from .errors import DataError, MissingExtraError, UsageError, missing_extra

FIELDS_MAX: Final = 4096
_DEPTH_MAX: Final = 32


def pyarrow() -> Any:
    """The module, or MissingExtraError. With NumPy, which pyarrow can be installed without."""
    try:
        import numpy as np  # noqa: PLC0415 - an extra
        import pyarrow  # noqa: PLC0415 - an extra, and 100 ms of import
    except ImportError as error:
        raise missing_extra("A schema or Arrow data", error.name or "pyarrow", "arrow") from None
    del np
    return pyarrow


def arrow_is_there() -> bool:
    """Whether `pyarrow` would return."""
    try:
        pyarrow()
    except MissingExtraError:
        return False
    return True


def no_schema(topic: str, use: str) -> UsageError:
    """The error for a use of columns where the topic has none.

    Raises:
        MissingExtraError: pyarrow is not installed, which is to be done before all else.
    """
    pyarrow()
    return UsageError(f"the topic has no schema: create it with schema= to {use}", topic=topic)


def declared_schema(declaration: object) -> Any:
    """The pyarrow.Schema of a declaration.

    Args:
        declaration: A msgspec Struct or a dataclass (the class), or a pyarrow.Schema.

    Raises:
        UsageError: It is none of these, or a field has a type that cannot be kept exactly.
        MissingExtraError: pyarrow is not installed.
    """
    pa = pyarrow()
    if isinstance(declaration, pa.Schema):
        schema = declaration.remove_metadata()
        schema = pa.schema([field.remove_metadata() for field in schema])
    elif isinstance(declaration, type):
        schema = pa.schema(_fields(pa, _inspected(declaration), str(declaration.__name__), 0))
    else:
        raise UsageError(
            f"schema is {declaration!r:.80}; give a msgspec Struct, a dataclass or a pyarrow.Schema"
        )
    if not 1 <= len(schema) <= FIELDS_MAX:
        raise UsageError(f"a schema has 1 to {FIELDS_MAX} fields, not {len(schema)}")
    names = schema.names
    for name in names:
        if not name or name.startswith("_") or names.count(name) > 1:
            raise UsageError(
                f"field {name!r}: names are unique, not empty, and do not start with _, which is"
                " kept for _offset, _partition, _timestamp_ms and _key"
            )
    for field in schema:
        _check_type(pa, field.type, field.name, 0)
    return schema


def _inspected(declaration: type) -> inspect.Type:
    try:
        return inspect.type_info(declaration)
    except (TypeError, NameError) as error:
        raise UsageError(f"schema {declaration.__name__}: {error}") from None


def _fields(pa: Any, kind: inspect.Type, where: str, depth: int) -> list[Any]:
    if not isinstance(kind, inspect.StructType | inspect.DataclassType):
        raise UsageError(f"{where} is not a msgspec Struct or a dataclass")
    return [
        _field(pa, field.encode_name, field.type, f"{where}.{field.name}", depth + 1)
        for field in kind.fields
    ]


def _field(pa: Any, name: str, kind: inspect.Type, where: str, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        raise UsageError(f"{where}: types are nested too deeply")
    nullable = False
    if isinstance(kind, inspect.UnionType):
        rest = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
        nullable = len(rest) < len(kind.types)
        if len(rest) != 1:
            raise UsageError(f"{where}: a column has one type, or one type and None")
        kind = rest[0]
    return pa.field(name, _type(pa, kind, where, depth), nullable=nullable)


def _type(pa: Any, kind: inspect.Type, where: str, depth: int) -> Any:
    simple = {
        inspect.BoolType: pa.bool_(),
        inspect.IntType: pa.int64(),
        inspect.FloatType: pa.float64(),
        inspect.StrType: pa.string(),
        inspect.BytesType: pa.binary(),
        inspect.DateType: pa.date32(),
    }
    if type(kind) in simple:
        return simple[type(kind)]
    if isinstance(kind, inspect.DateTimeType):
        return pa.timestamp("us", None if kind.tz is False else "UTC")
    if isinstance(kind, inspect.LiteralType) and all(isinstance(v, str) for v in kind.values):
        return pa.string()
    if isinstance(kind, inspect.ListType):
        return pa.list_(_field(pa, "item", kind.item_type, f"{where}[]", depth + 1))
    if isinstance(kind, inspect.StructType | inspect.DataclassType):
        return pa.struct(_fields(pa, kind, where, depth))
    raise UsageError(
        f"{where}: {type(kind).__name__} has no column; use int, float, bool, str, bytes,"
        " datetime, date, a list or a nested Struct, each with None or without"
    )


def _check_type(pa: Any, kind: Any, where: str, depth: int) -> None:
    """Refuse what does not come back as it was, as columns or as JSON."""
    if depth > _DEPTH_MAX:
        raise UsageError(f"field {where}: types are nested too deeply")
    t = pa.types
    if t.is_list(kind) or t.is_large_list(kind):
        _check_type(pa, kind.value_type, f"{where}[]", depth + 1)
        return
    if t.is_struct(kind):
        for field in kind:
            _check_type(pa, field.type, f"{where}.{field.name}", depth + 1)
        return
    if t.is_timestamp(kind):
        if kind.unit == "ns":
            raise UsageError(f"field {where}: nanoseconds have no JSON form; use timestamp('us')")
        if kind.tz not in (None, "UTC"):
            raise UsageError(f"field {where}: use the time zone UTC, or none")
        return
    plain = (
        (t.is_integer(kind) or t.is_boolean(kind) or t.is_date32(kind))
        or (t.is_float32(kind) or t.is_float64(kind) or t.is_string(kind))
        or (t.is_large_string(kind) or t.is_binary(kind) or t.is_large_binary(kind))
    )
    if not plain:
        raise UsageError(
            f"field {where}: {kind} cannot be kept; use integers, float32, float64, bool, string,"
            " binary, date32, timestamp, and lists and structs of these"
        )


# --- stored form ---------------------------------------------------------------------------------


def stored_form(schema: Any) -> str:
    """The schema as text for the catalog."""
    return base64.b64encode(schema.serialize()).decode("ascii")


@lru_cache(maxsize=256)
def stored_schema(text: str) -> Any:
    """The pyarrow.Schema of its stored form.

    Raises:
        DataError: It is not what `stored_form` writes.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow()
    try:
        return message_schema(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DataError) as error:
        raise DataError(f"a stored schema does not decode: {error}") from None


@lru_cache(maxsize=256)
def message_schema(message: bytes) -> Any:
    """The pyarrow.Schema of an Arrow schema message.

    Raises:
        DataError: It is none.
        MissingExtraError: pyarrow is not installed.
    """
    pa = pyarrow()
    try:
        return pa.ipc.read_schema(pa.py_buffer(message))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"not an Arrow schema: {error}") from None


# --- evolution -----------------------------------------------------------------------------------


def check_evolution(before: Any, after: Any) -> None:
    """Refuse a change that old batches could not follow, or old readers would misread.

    Columns may be added if they are nullable, and types may become wider.

    Raises:
        UsageError: The difference, a line per field.
    """
    pa = pyarrow()
    faults = [
        f"  - {name}: {before.field(name).type} (a column cannot be removed)"
        for name in before.names
        if name not in after.names
    ]
    for field in after:
        if field.name not in before.names:
            if not field.nullable:
                faults.append(f"  + {field.name}: {field.type} not null (make it nullable)")
            continue
        old = before.field(field.name)
        if not _widens(pa, old.type, field.type):
            faults.append(f"  ~ {field.name}: {old.type} -> {field.type} (only to a wider type)")
        elif old.nullable and not field.nullable:
            faults.append(f"  ~ {field.name}: nullable -> not null (there may be nulls)")
    if faults:
        lines = "\n".join(faults)
        raise UsageError(
            f"the schema cannot change like this:\n{lines}\n"
            "Add columns that are nullable, make types wider, or copy to another topic"
        )


def _widens(pa: Any, old: Any, new: Any) -> bool:
    if old.equals(new):
        return True
    t = pa.types
    if t.is_integer(old) and t.is_integer(new):
        signed = (t.is_signed_integer(old), t.is_signed_integer(new))
        return new.bit_width > old.bit_width and signed != (True, False)
    if t.is_integer(old) and t.is_float64(new):
        return bool(old.bit_width <= 32)  # a double holds these exactly
    return (
        (t.is_float32(old) and t.is_float64(new))
        or (t.is_string(old) and t.is_large_string(new))
        or (t.is_binary(old) and t.is_large_binary(new))
        or (t.is_timestamp(old) and t.is_timestamp(new) and _finer(old, new))
    )


def _finer(old: Any, new: Any) -> bool:
    return old.tz == new.tz and ["s", "ms", "us"].index(old.unit) < ["s", "ms", "us"].index(
        new.unit
    )


# --- rows ----------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def row_type(text: str) -> type:
    """A msgspec Struct that takes the JSON rows of a stored schema, strictly."""
    return _struct("Row", stored_schema(text))


def _struct(name: str, fields: Any) -> type:
    pa = pyarrow()
    parts: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    renamed: dict[str, str] = {}
    for number, field in enumerate(fields):
        kind = _python_type(pa, field.type)
        # Any name is a name in JSON, but not in Python.
        renamed[f"f{number}"] = field.name
        if field.nullable:
            parts.append((f"f{number}", kind | None, None))
        else:
            parts.append((f"f{number}", kind))
    return msgspec.defstruct(
        name, parts, rename=renamed, forbid_unknown_fields=True, gc=False, kw_only=True
    )


def _python_type(pa: Any, kind: Any) -> Any:  # noqa: PLR0911 - a type each
    t = pa.types
    if t.is_integer(kind):
        bits = kind.bit_width
        if t.is_unsigned_integer(kind):
            limit = None if bits == 64 else (1 << bits) - 1  # Meta takes no larger one
            return Annotated[int, msgspec.Meta(ge=0, le=limit)]
        return Annotated[int, msgspec.Meta(ge=-(1 << bits - 1), le=(1 << bits - 1) - 1)]
    if t.is_floating(kind):
        return float
    if t.is_boolean(kind):
        return bool
    if t.is_timestamp(kind):
        return Annotated[datetime, msgspec.Meta(tz=kind.tz is not None)]
    if t.is_date32(kind):
        return date
    if t.is_struct(kind):
        return _struct("Nested", list(kind))
    if t.is_list(kind) or t.is_large_list(kind):
        item = _python_type(pa, kind.value_type)
        return types.GenericAlias(list, (item | None if kind.value_field.nullable else item,))
    return bytes if t.is_binary(kind) or t.is_large_binary(kind) else str
