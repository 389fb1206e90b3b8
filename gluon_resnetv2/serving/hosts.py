"""Whether a request is meant for this server, as far as a browser tells.

Any page may have its visitor's browser send requests here (it then says so in Origin), and may have
its own name lead to this machine, so as to read the answers, too (DNS rebinding; the name is then
in Host).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
from collections.abc import Iterable

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.serving.protocol import Refused, shown

LOOPBACK = ("localhost", "127.0.0.1", "::1")
AUTHORITY = re.compile(r"(\[[^\[\]]+\]|[^\[\]:@/?#\s]+?)\.?(?::(\d*))?")  # a host, and its port
PORTS = {"http": "80", "https": "443"}
KEPT = 256  # verdicts that are remembered: most clients send the same again and again


class Hosts:
    """The names by which a server may be asked for.

    Args:
        names: hosts without port that others reach this server by, as behind a proxy.
        address: that it listens on. On loopback, or where there are names, a Host has to be one of
            them, of the machine's own for itself, or the address that the client is connected to.

    Raises:
        UserError: one of the names is none.
    """

    def __init__(self, names: Iterable[str] = (), address: str = "0.0.0.0"):
        for name in names:
            if not _is_host(name):
                raise UserError(f"--allow-host takes a name or address without port, not {name!r}")
        self._names = {name.lower() for name in names}
        self._any = not self._names and not ipaddress.ip_address(address).is_loopback
        self._fault_of = functools.lru_cache(KEPT)(self._fault)

    def check(self, scope: dict) -> None:
        """Raises Refused where the request of an ASGI scope comes from elsewhere."""
        host = origin = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    raise Refused("there is more than one Host")
                host = value
            elif name == b"origin":
                origin = value
        fault = self._fault_of(host, origin, scope["server"][0])
        if fault:
            raise Refused(fault, 403)

    def _fault(self, host, origin, here):
        host, origin = (
            None if value is None else value.decode("latin-1").lower() for value in (host, origin)
        )
        if host is not None and not self._any:
            name, _ = _parts(host)
            if name not in (*LOOPBACK, *self._names, here):
                return f"Host {shown(host)} is not one of this server's; --allow-host names others"
        if origin is not None:
            scheme, _, authority = origin.partition("://")
            name, port = _parts(authority, PORTS.get(scheme))
            same = name and (name, port) == _parts(host or "", PORTS.get(scheme))
            if not same and name not in self._names:
                return f"Origin {shown(origin)} is not this server; --allow-host names others"
        return None


def _is_host(text):
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return _parts(text) == (text, None)


def _parts(authority, port=None):
    """The name or address, and the port where there is one, of what is in a Host or Origin."""
    found = AUTHORITY.fullmatch(authority)
    return (found[1].strip("[]"), found[2] or port) if found else ("", None)
