"""Where a host name leads, and whether a server may be sent there."""

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class Forbidden(Exception):
    """A host is on this machine or in a private network."""


def resolve(host: str, port: int, *, private: bool) -> str:
    """Return the address that a host's name leads to, as text.

    Whoever connects takes this address, and asks for no other: a name may lead elsewhere the next
    time.

    Args:
        host: Name or address.
        port: Of the service.
        private: Whether it may be this machine, a private network or a special range.

    Raises:
        OSError: The name leads nowhere.
        Forbidden: It, or one of several addresses, is none of the public internet.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        if not private and not is_public(ipaddress.ip_address(text)):
            raise Forbidden(text)
    if not addresses:
        raise OSError("the name has no address")
    return addresses[0]


def is_public(address: Address) -> bool:
    """Tell whether an address is a host's on the public internet.

    An IPv6 address that stands for one of IPv4 is what that one is.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = _inner(address)
        if inner is not None:
            return is_public(inner)
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    return address.is_global and not special


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in _NAT64) or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
