"""Unknown keys in what is meant for Ray Serve's own schemas, which ignore them silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from sdxl_ray.errors import UserError, nearest


def require_known(
    plain: Any, model: type[BaseModel], path: str, where: str, known: Iterable[str] | None = None
) -> None:
    """Require that every key of a mapping is a field of its schema, and the same below it.

    path: dotted path of the mapping, empty at the top. known: the keys of the mapping itself, default: the fields of
    `model`. Raises UserError, one line that begins with `where`: the path of the key and the nearest name.
    """
    if not isinstance(plain, Mapping):
        return
    names = set(model.model_fields if known is None else known)
    for key, value in plain.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in names:
            raise UserError(f"{where}: no setting {here!r}: {nearest(str(key), names)}")
        below = _section(model.model_fields[key].annotation) if key in model.model_fields else None
        if below is None:
            continue
        entries = value if isinstance(value, list) else [value]
        for index, entry in enumerate(entries):
            require_known(entry, below, f"{here}[{index}]" if isinstance(value, list) else here, where)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The schema inside `X`, `Optional[X]`, `List[X]` or `Union[Dict, X]`; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)
