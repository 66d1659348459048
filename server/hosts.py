"""Hosts that settings name: the one grammar of `allow_hosts` and `media_hosts`.

An entry is a host name (`files.example`), all subdomains of a name (`*.files.example`), an address or a
network (`10.1.0.0/16`), each with an optional port (`files.example:8443`, `[fd00::/8]:9000`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
GRAMMAR = "write a name, *.name, an address or a network such as 10.0.0.0/8, and :port if only one is meant"


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One entry of such a list.

    Attributes:
        name: in lower case; a leading `*.` stands for one or more labels. None for a network.
        port: None covers all ports.
    """

    name: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Parse an entry.

        Raises:
            ValueError: the sentence names the entry and the grammar.
        """
        host, port = text, None
        if match := re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):(\d{1,5})", text):
            host, port = match[1], int(match[2])
        host = host.removeprefix("[").removesuffix("]").lower()
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"{text!r} has no valid port: {GRAMMAR}")
        try:
            return cls(None, ipaddress.ip_network(host), port)
        except ValueError:
            with contextlib.suppress(UnicodeError):
                host = host.encode("idna").decode()
            is_number = re.fullmatch(r"[\d./:]+", host) is not None
            if is_number or len(host) > 253 or not NAME.fullmatch(host):
                raise ValueError(f"{text!r} is no host: {GRAMMAR}") from None
            return cls(host, None, port)

    def covers(self, host: str, port: int, address: Address | None = None) -> bool:
        """Return whether a host is meant.

        Args:
            host: name or address, in lower case.
            address: to which the name resolves; without it, a network covers only literal addresses.
        """
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            if address is None:
                try:
                    address = ipaddress.ip_address(host)
                except ValueError:
                    return False
            return address in self.network
        name = self.name or ""
        return host.endswith(name[1:]) if name.startswith("*.") else host == name
