"""Templates of figures and pages, and their files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nio_pydra.system.files import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render", "write_changed"]


def render(template: str, **values: Any) -> str:
    """Return the text of a template of this folder. Values are escaped; a missing one is an error."""
    return _environment().get_template(template).render(**values)


def write_changed(text: str, path: Path) -> Path:
    """Write a text file, unless it has this content already."""
    content = text.encode()
    if not path.exists() or path.read_bytes() != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return path


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("nio_pydra.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
