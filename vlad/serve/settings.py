"""What an operator may decide: who may do what, and how much of it."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

SHORTEST_KEY = 16  # characters


@dataclass(frozen=True)
class Settings:
    """Limits and rights of one server.

    Attributes:
        host: the address it listens at. Any but a loopback one asks for a key.
        key: clients send it as `Authorization: Bearer KEY`; None: everybody on this machine may do everything.
        origins: addresses of other pages ("https://mes.example") whose scripts may call it.
        read_only: it scores and explains; detectors stay as they are.
        max_body: bytes of one request; twelve times as much may be on its way at once.
        max_pixels: H * W of a picture, looked up before it is decoded.
        max_pictures: of one request.
        queue: pictures waiting or in work; beyond, clients are told to come again.
        batch_size: pictures of one pass; None: 1 on a CPU, where more gain nothing, else 8.
        timeout: seconds for one request.
        reasoner: who explains, as `vlad.explain` takes it.
        keep: folder in which scored pictures are kept, with their lines; None: none is.

    Raises:
        ValueError: a limit below 1, a short key, or an address for others without a key.
    """

    host: str = "127.0.0.1"
    key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    read_only: bool = False
    max_body: int = 32 * 2**20
    max_pixels: int = 40_000_000
    max_pictures: int = 64
    queue: int = 64
    batch_size: int | None = None
    timeout: float = 60.0
    reasoner: str = "clip"
    keep: Path | None = None

    def __post_init__(self) -> None:
        limits = ("max_body", "max_pixels", "max_pictures", "queue", "batch_size", "timeout")
        for name in limits:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if self.max_pictures > self.queue:
            raise ValueError(f"a request of {self.max_pictures} pictures would never fit a queue of {self.queue}")
        if self.key is not None and (len(self.key) < SHORTEST_KEY or not self.key.isascii()):
            raise ValueError(f"the key has {len(self.key)} characters; take {SHORTEST_KEY} or more of a random text")
        if self.key is None and not self.loopback:
            raise ValueError(
                f"at {self.host} other machines can reach the server, and it has no key: put a long random text into "
                "the environment variable VLAD_SERVE_KEY or a file (--key-file), or leave --host at 127.0.0.1"
            )
        if "*" in self.origins:
            raise ValueError("origins are named one by one; '*' would let every page on the net use this server")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
