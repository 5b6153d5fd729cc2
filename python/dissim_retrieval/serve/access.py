"""Who may use the service, and how large a request may be.

Without a token, programs on this machine may search, and nobody may write. With one, anyone who sends it may search
and write, from anywhere.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_TOKEN = 16
READ_ONLY = "The service was started without a token, so it only reads. Start it with --token to write."

#: The page uses its own files only. No other site may show it in a frame.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a name or an address of a host means this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str | None) -> None:
    """Raise ValueError if a token is too easy to guess."""
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or any(map(str.isspace, token))):
        raise ValueError(
            f"token: expected at least {MIN_TOKEN} ASCII characters without spaces, got {len(token)} characters."
            " `openssl rand -hex 16` makes one."
        )


class Access:
    """Middleware: checks a request before its body is read, and adds security headers to every answer.

    A body may have `max_upload` bytes, that of a search in JSON `max_search`. More is not read.

    Without a token, a page of another site must not reach the service through the user's browser. So the name in the
    Host header must be one of this machine, whatever address the site's own name resolves to (DNS rebinding), and
    requests that scripts of other sites send are denied by their Origin. Browsers send no Origin for an image or a
    link, but a Sec-Fetch-Site, which tells whether another site has it.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_upload: int, max_search: int) -> None:
        self.app, self.token, self.max_upload, self.max_search = app, token, max_upload, max_search

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = self.max_search if _route_path(scope) == "/api/search" else self.max_upload
        too_large = f"body: expected at most {limit:,} bytes, got more."
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, too_large)
            return message

        problem = self._problem(scope)
        if problem is None and _content_length(scope) > limit:
            problem = _denied(413, too_large)
        await (problem or self.app)(scope, receive_within_limit, send_with_headers)

    def _problem(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        headers, path = Headers(scope=scope), _route_path(scope)
        if self.token is not None:
            if not path.startswith("/api/") or self._has_token(headers.get("authorization", "")):
                return None
            return _denied(401, "Authorization: expected the token of the service as 'Bearer TOKEN'.")
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_loopback(_host_name(f"//{host}")):
            return _denied(403, f"Host: expected a name of this machine, as localhost, got {host!r}.")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _denied(403, f"Origin: expected a page of this service, got {origin!r}.")
        site = headers.get("sec-fetch-site", "none")
        if path.startswith("/api/") and site not in ("same-origin", "none"):
            return _denied(403, f"Sec-Fetch-Site: expected a page of this service, got {site!r}.")
        if scope["method"] not in ("GET", "HEAD") and not path.startswith("/api/search"):
            return _denied(403, READ_ONLY)
        return None

    def _has_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        assert self.token is not None
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode())
        return scheme.lower() == "bearer" and same


def _content_length(scope: MutableMapping[str, Any]) -> int:
    """0 if the header is missing or no number; then the body is counted while it is read."""
    given = Headers(scope=scope).get("content-length", "")
    return int(given) if given.isascii() and given.isdigit() else 0


def _route_path(scope: MutableMapping[str, Any]) -> str:
    """The path as the routes see it: without that under which the application is mounted."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if not below or below.startswith("/") else path


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _denied(status: int, reason: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"detail": reason}, status, headers)
