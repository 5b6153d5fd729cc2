"""Runs the application on a socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from .access import is_loopback

#: Connections at a time; more are answered with 503.
MAX_CONNECTIONS = 1000
#: Seconds that running requests have when the service is stopped.
SHUTDOWN_SECONDS = 5


def listen(host: str, port: int, *, token: str | None) -> tuple[socket.socket, str]:
    """A socket at this address, and the URL of the page.

    Port 0 is a free one. Raises ValueError if other machines can reach the address and there is no token, or if the
    address cannot be used.
    """
    if token is None and not is_loopback(host):
        raise ValueError(
            f"token: expected one, because other machines can reach {host}, got none. Set DISSIM_TOKEN or --token,"
            " or leave --host at 127.0.0.1."
        )
    if not 0 <= port < 1 << 16:
        raise ValueError(f"port: expected 0 to 65535, got {port}.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ValueError(f"port: expected a free address, got {host}:{port}: {reason}. Choose another.") from error
    # asyncio does this only for sockets that name TCP. Without it, an answer in two packets takes 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name = f"[{host}]" if ":" in host else host
    return listening, f"http://{name}:{listening.getsockname()[1]}/"


def run(app: FastAPI, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until the process gets SIGINT or SIGTERM. Calls `started` when it answers requests."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    Server(config).run(sockets=[listening])
