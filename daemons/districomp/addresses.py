"""Addresses as texts: how people write them, and whom they belong to. Pure."""

import ipaddress
from typing import Any
from urllib.parse import urlsplit, urlunsplit


def address_text(name: tuple[Any, ...]) -> str:
    """A socket's name for people: HOST:PORT, an IPv4 address without its IPv6 clothes."""
    host = plain_host(str(name[0]))
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"


def reachable_host(name: tuple[Any, ...]) -> str:
    """The host of a socket's name, as one can connect to it: a link-local address with its interface (RFC 4007, 11)."""
    host = str(name[0])
    has_interface = len(name) > 3 and name[3] and "%" not in host
    return f"{host}%{name[3]}" if has_interface else host


def host_of(text: str) -> str:
    """The host of an `address_text`."""
    return text.rpartition(":")[0].strip("[]") or text


def plain_host(host: str) -> str:
    """An address as people write it: not IPv4 mapped into IPv6."""
    try:
        mapped = getattr(ipaddress.ip_address(host), "ipv4_mapped", None)
    except ValueError:
        return host
    return str(mapped) if mapped is not None else host


def address_group(host: str) -> str:
    """Whom an address belongs to, as far as limits go: an IPv4 address, or the /64 of an IPv6 address.

    Not so a link-local one: every machine of a network has that /64, and one must not use up what all may do.
    """
    try:
        address = ipaddress.ip_address(plain_host(host).partition("%")[0])
    except ValueError:
        return host
    if address.version == 4 or address.is_link_local:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False).network_address)


def is_everywhere(host: str) -> bool:
    """Whether this is the address that means every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def near(host: str) -> str:
    """Where a listener on this address is to be reached from its own machine."""
    return "127.0.0.1" if is_everywhere(host) else host


def reached_url(url: str, host: str) -> str:
    """A data port's URL for who reached the coordinator at `host`: that host in place of 0.0.0.0 or [::].

    What is no URL stays as it is: whoever connects finds that out.
    """
    try:
        parts = urlsplit(url)
        if parts.hostname is None or not is_everywhere(parts.hostname) or (parts.port or 0) < 0:
            return url
    except ValueError:
        return url
    host = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host))
