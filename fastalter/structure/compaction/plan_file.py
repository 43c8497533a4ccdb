"""A compaction plan as JSON, and back: a plan is read as any file from elsewhere, each error naming key and place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastalter.artifacts import atomic_path
from fastalter.errors import FastalterError, MaskError
from fastalter.structure.compaction.attributes import Value
from fastalter.structure.compaction.cut import Cut

if TYPE_CHECKING:
    from fastalter.structure.compaction.plan import CompactionPlan

KIND, VERSION = "fastalter compaction plan", 1
MAX_SIZE = 2**31
"""Longer axes than any weight has; a damaged file must not decide what is allocated."""


def plan_to_json(plan: CompactionPlan) -> dict[str, Any]:
    """Plain data. Positions that several axes share are written once, and named by their number."""
    positions: list[list[int]] = []
    number: dict[tuple[int, ...], int] = {}

    def numbered(index: Tensor) -> int:
        key = tuple(index.tolist())
        if key not in number:
            number[key] = len(positions)
            positions.append(list(key))
        return number[key]

    def axes(cut: Mapping[int, Tensor]) -> dict[str, int]:
        return {str(axis): numbered(index) for axis, index in cut.items()}

    tensors = {
        name: {"shape": list(cut.shape), "keep": axes(cut.kept), **({"zero": axes(cut.zero)} if cut.zero else {})}
        for name, cut in plan.tensors.items()
    }
    return {
        "kind": KIND,
        "version": VERSION,
        "tensors": tensors,
        "attributes": {path: _changes_to_json(changes) for path, changes in plan.attributes.items()},
        "layer_norms": dict(plan.layer_norms),
        "attentions": list(plan.attentions),
        "emptied": list(plan.emptied),
        "folds": [list(pair) for pair in plan.folds],
        "positions": positions,
    }


def plan_from_json(document: object) -> CompactionPlan:
    """The inverse of `plan_to_json`.

    Raises:
        MaskError: naming the key and the place in it.
    """
    from fastalter.structure.compaction.plan import CompactionPlan

    root = _mapping(document, "the plan")
    if root.get("kind") != KIND:
        raise MaskError(f"kind is {_shown(root.get('kind'))}: not a {KIND}; give the file that compact wrote")
    if root.get("version") != VERSION:
        raise MaskError(f"version is {_shown(root.get('version'))}, this fastalter reads {VERSION}; compact again")
    known = {"kind", "version", "tensors", "attributes", "layer_norms", "attentions", "emptied", "folds", "positions"}
    if extra := sorted(set(root) - known):
        raise MaskError(f"there is an unknown entry {_shown(extra[0])}; compact again")
    tables = [_positions(row, f"positions[{i}]") for i, row in enumerate(_list(root.get("positions"), "positions"))]
    tensors = _mapping(root.get("tensors"), "tensors")
    attributes = _mapping(root.get("attributes"), "attributes")
    norms = _mapping(root.get("layer_norms"), "layer_norms")
    return CompactionPlan(
        tensors={name: _cut(entry, tables, f"tensors[{_shown(name)}]") for name, entry in tensors.items()},
        attributes={path: _changes(entry, f"attributes[{_shown(path)}]") for path, entry in attributes.items()},
        layer_norms={path: _number(count, f"layer_norms[{_shown(path)}]") for path, count in norms.items()},
        attentions=_texts(root.get("attentions"), "attentions"),
        emptied=_texts(root.get("emptied"), "emptied"),
        folds=[_pair(row, f"folds[{i}]") for i, row in enumerate(_list(root.get("folds"), "folds"))],
    )


def write_plan(plan: CompactionPlan, path: str | os.PathLike[str]) -> None:
    """As a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plan_to_json(plan)) + "\n", encoding="utf-8")


def read_plan(path: str | os.PathLike[str]) -> CompactionPlan:
    """From a JSON file, or from a safetensors file's metadata. Raises MaskError naming the file."""
    place = Path(path)
    try:
        text = _text(place)
    except (OSError, FastalterError) as error:
        raise MaskError(f"{place}: cannot be read ({error}); give the plan that compact wrote") from error
    return plan_from_text(text, str(place))


def plan_from_text(text: str, place: str) -> CompactionPlan:
    """From JSON text; `place` says in messages where it came from."""
    try:
        return plan_from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise MaskError(f"{place}: not JSON ({type(error).__name__}); compact again") from error
    except MaskError as error:
        raise MaskError(f"{place}: {error}") from error


def _text(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] != b"{" or head[:1] == b"{":
        return path.read_text(encoding="utf-8", errors="replace")
    from fastalter.checkpoint.config_text import PLAN_KEY
    from fastalter.checkpoint.reader import read_checkpoint

    text = read_checkpoint(path).metadata.get(PLAN_KEY)
    if text is None:
        raise MaskError("its metadata holds no plan")
    return text


def _changes_to_json(changes: Mapping[str, tuple[Value, Value]]) -> dict[str, list[int | list[int]]]:
    return {
        name: [list(value) if isinstance(value, tuple) else value for value in pair] for name, pair in changes.items()
    }


def _shown(value: object) -> str:
    from fastalter.checkpoint.names import shown

    return shown(repr(value))


def _wrong(place: str, wanted: str, value: object) -> MaskError:
    return MaskError(f"{place} is {_shown(value)}, but must be {wanted}; compact again")


def _mapping(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    return value


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(place, "a list", value)
    return value


def _texts(value: object, place: str) -> list[str]:
    for i, item in enumerate(_list(value, place)):
        if not isinstance(item, str):
            raise _wrong(f"{place}[{i}]", "a name", item)
    return list(_list(value, place))


def _number(value: object, place: str, least: int = 1) -> int:
    if type(value) is not int or not least <= value < MAX_SIZE:
        raise _wrong(place, f"a whole number of {least} or more", value)
    return value


def _positions(value: object, place: str) -> Tensor:
    numbers = [_number(item, f"{place}[{i}]", least=0) for i, item in enumerate(_list(value, place))]
    if not numbers or any(first >= second for first, second in pairwise(numbers)):
        raise MaskError(f"{place} must be ascending positions, at least one; compact again")
    return torch.tensor(numbers, dtype=torch.int64)


def _cut(value: object, tables: list[Tensor], place: str) -> Cut:
    entry = _mapping(value, place)
    shape = tuple(_number(n, f"{place}.shape[{i}]") for i, n in enumerate(_list(entry.get("shape"), f"{place}.shape")))

    def axes(key: str) -> dict[int, Tensor]:
        of_axis = _mapping(entry.get(key, {}), f"{place}.{key}")
        return {_axis(a, shape, f"{place}.{key}"): _table(n, tables, f"{place}.{key}[{a}]") for a, n in of_axis.items()}

    kept, zero = axes("keep"), axes("zero")
    for key, chosen in (("keep", kept), ("zero", zero)):
        for axis, index in chosen.items():
            if int(index[-1]) >= shape[axis]:
                where = f"{place}.{key}[{axis}]"
                raise MaskError(f"{where} names position {int(index[-1])} of an axis of {shape[axis]}; compact again")
    for axis, index in zero.items():
        if axis in kept and not bool(torch.isin(index, kept[axis]).all()):
            raise MaskError(f"{place}.zero[{axis}] names positions that do not stay; compact again")
    return Cut(shape, kept, zero)


def _axis(text: str, shape: tuple[int, ...], place: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) >= len(shape):
        raise MaskError(f"{place} names axis {_shown(text)} of a tensor of {len(shape)} axes; compact again")
    return int(text)


def _table(value: object, tables: list[Tensor], place: str) -> Tensor:
    number = _number(value, place, least=0)
    if number >= len(tables):
        raise MaskError(f"{place} is {number}, and there are {len(tables)} lists of positions; compact again")
    return tables[number]


def _changes(value: object, place: str) -> dict[str, tuple[Value, Value]]:
    found: dict[str, tuple[Value, Value]] = {}
    for name, change in _mapping(value, place).items():
        where = f"{place}.{name}"
        before, after = _two(change, where)
        found[name] = _value(before, f"{where}[0]"), _value(after, f"{where}[1]")
        if type(found[name][0]) is not type(found[name][1]) or not name.isidentifier() or name.startswith("_"):
            raise _wrong(where, "a plain attribute's value before and after", change)
    return found


def _value(value: object, place: str) -> Value:
    if isinstance(value, list):
        return tuple(_number(n, f"{place}[{i}]") for i, n in enumerate(value))
    return _number(value, place)


def _pair(value: object, place: str) -> tuple[str, str]:
    first, second = _two(value, place)
    if not isinstance(first, str) or not isinstance(second, str):
        raise _wrong(place, "the paths of a layer and of the norm behind it", value)
    return first, second


def _two(value: object, place: str) -> list[Any]:
    row = _list(value, place)
    if len(row) != 2:
        raise _wrong(place, "a pair", value)
    return row
