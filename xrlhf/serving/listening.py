"""The address a server listens at, found out before anything slow is done."""

from __future__ import annotations

import socket

from xrlhf.errors import LaunchError, error_line

__all__ = ["is_loopback", "listen", "url_of"]

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host`` and ``port``.

    Args:
        host: A name or an address.
        port: A port; 0 for any that is free.

    Raises:
        LaunchError: No such host here, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise LaunchError(
            f"--host {host} is no name or address that is known here ({error_line(error)}): give one of this "
            "machine's, such as 127.0.0.1, or 0.0.0.0 for all of them"
        ) from error
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise LaunchError(
            f"cannot listen at {host}, port {port} ({error_line(error)}): choose another with --port, or 0 for any "
            "that is free, or another --host"
        ) from error
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket) -> str:
    """Where clients on this machine reach a listening socket."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Whether nobody but this machine can reach a listening socket."""
    host = str(listening.getsockname()[0])
    return host.startswith("127.") or host == "::1"
