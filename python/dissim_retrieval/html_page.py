"""Pages of HTML without external files, made of templates."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .atomic import atomic_write


def write_page(path: str | Path, package: str, template: str, **values: Any) -> None:
    """Write the template of a package with these values, atomically. A value that the template lacks is an error."""
    environment = Environment(loader=PackageLoader(package, "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template(template).render(**values)
    with atomic_write(path) as file:
        file.write(page.encode())


def data_uri(kind: str, content: bytes) -> str:
    """An image of a MIME type image/`kind` as the value of an attribute."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
