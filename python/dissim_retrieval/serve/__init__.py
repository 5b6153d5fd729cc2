"""An HTTP service of a gallery: a page and a JSON API. It needs the extra ``serve``."""

from .app import create_app
from .server import listen, run

__all__ = ["create_app", "listen", "run"]
