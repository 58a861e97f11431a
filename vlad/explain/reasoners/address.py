"""Where a server is, from what a user pastes; and whether that is this machine."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

PASTED = ("/chat/completions", "/completions", "/responses", "/models")  # ends of addresses that servers print
EXAMPLE = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Address:
    """A server's base address; `path` has no slash at its end."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def name(self) -> str:
        """Host and port, as messages name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def missing_version(self) -> str:
        """A hint for answers that come from a wrong path; empty where the path has a version already."""
        if any(part[:1] == "v" and part[1:2].isdigit() for part in self.path.split("/")):
            return ""
        return f"; the address may lack its /v1: {self.scheme}://{self.name}{self.path}/v1"


def read_address(base_url: str) -> Address:
    """The address behind a URL; 0.0.0.0 and [::], as servers print them, are this machine.

    Raises:
        ValueError: a URL of another form; a login in it is not repeated.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket that is not closed
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query:
        raise ValueError(f"the server is {base_url.rpartition('@')[2]!r}; expected one such as {EXAMPLE}")
    path = parts.path.rstrip("/")
    for end in PASTED:
        path = path.removesuffix(end).rstrip("/")
    return Address(parts.scheme, {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(host, host), port, path)


def names_this_machine(host: str) -> bool:
    """Whether a host can only be this machine; where a name leads is checked once connected."""
    try:
        return is_loopback(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own, also an IPv4 one written as IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    plain = getattr(ip, "ipv4_mapped", None) or ip
    return plain.is_loopback
