"""HTTP requests with time limits, and with redirects only to the same server or to public ones by HTTPS."""

import http.client
import ipaddress
import socket
import urllib.request
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cryotrans_jax.io.files import InputError

TIMEOUT = 30.0  # s without a byte
LONGEST = 200  # characters of a server's text that are printed


class Refused(Exception):
    """A redirect that is not followed; the message is to follow the server's name."""


def open_url(url: str, headers: dict[str, str]) -> Any:
    """Request a file from a server.

    Raises:
        InputError: the address is not one of a server.
        Refused: the server redirects to a place that is not allowed.
        OSError, http.client.HTTPException: the server does not answer, or not with the file.
    """
    no_address = InputError(f"{printable(url)} is no address of a server: give one of the form https://...")
    try:
        place = urlsplit(url)
    except ValueError:
        raise no_address from None
    if place.scheme not in ("http", "https") or not place.hostname:
        raise no_address
    opener = urllib.request.build_opener(Redirects(url))
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except (UnicodeError, http.client.InvalidURL) as error:
        raise no_address from error


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to the same server, and to others by HTTPS, but not from the internet to a private address."""

    def __init__(self, url: str):
        """Start from this address."""
        self.url = urlsplit(url)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request to make instead; raise Refused where it is not allowed."""
        if fault := self.fault(urlsplit(newurl)):
            fp.close()
            raise Refused(f"redirects to {printable(newurl)}, which is {fault}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def fault(self, new: SplitResult) -> str:
        """Why a redirect to an address is not allowed; "" if it is."""
        if (new.scheme, new.netloc) == (self.url.scheme, self.url.netloc):
            return ""
        if new.scheme != "https":
            return "neither HTTPS nor the same server"
        return "no public address" if private(new.hostname) and not private(self.url.hostname) else ""


def private(host: str | None) -> bool:
    """Whether a host name has an address outside the public internet, such as this machine's own."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):  # the request itself, or a proxy, will fail
        return False
    return any(not ipaddress.ip_address(str(each[4][0]).split("%")[0]).is_global for each in found)


def printable(text: object) -> str:
    """A server's text in one line, without control characters, at most LONGEST characters of it."""
    line = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."
