"""Requests to a server: bounded in time, and redirected to no other place than a public one by HTTPS."""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cryotrans_jax.io.files import InputError

TIMEOUT = 30.0  # seconds without a byte after which a server counts as silent
ANSWER = 60.0  # seconds until all headers of an answer are there
LONGEST = 200  # characters of a server's that are shown


class Refused(Exception):
    """A server's answer that is not followed; the message goes after the server's name."""


def opened(url: str, headers: dict[str, str]) -> Any:
    """Open an address.

    Args:
        url: of a file on a server.
        headers: of the request.

    Returns:
        The server's reply, to be closed.

    Raises:
        InputError: it is no address of a server.
        Refused: the server redirects to where it should not.
        OSError, http.client.HTTPException: the server does not answer, or not with the file.
    """
    no_address = InputError(f"{printable(url)} is no address of a server: give one of the form https://...")
    try:
        place = urlsplit(url)
    except ValueError:
        raise no_address from None
    if place.scheme not in ("http", "https") or not place.hostname:
        raise no_address
    opener = urllib.request.build_opener(Redirects(url), Plain(), Secure())
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except (UnicodeError, http.client.InvalidURL) as error:
        raise no_address from error


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to the same server, and to others by HTTPS, but none from the internet into this network."""

    def __init__(self, url: str):
        """From this address on."""
        self.url = urlsplit(url)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request to make instead. Raises Refused where that may not be."""
        if fault := self.fault(urlsplit(newurl)):
            fp.close()
            raise Refused(f"redirects to {printable(newurl)}, which is {fault}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def fault(self, new: SplitResult) -> str:
        """Why a redirect to an address is not followed; empty where it is."""
        if (new.scheme, new.netloc) == (self.url.scheme, self.url.netloc):
            return ""
        if new.scheme != "https":
            return "neither HTTPS nor the same server"
        return "no public address" if private(new.hostname) and not private(self.url.hostname) else ""


def private(host: str | None) -> bool:
    """Whether a name leads to an address that is not one of the internet, such as this machine's own."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):  # the request will find out, or a proxy
        return False
    return any(not ipaddress.ip_address(str(each[4][0]).split("%")[0]).is_global for each in found)


class Connection(http.client.HTTPConnection):
    """A connection whose answers begin within ANSWER seconds."""

    def getresponse(self) -> http.client.HTTPResponse:
        """The answer, with its headers."""
        return in_time(self, super().getresponse)


class SecureConnection(http.client.HTTPSConnection):
    """The same over TLS."""

    def getresponse(self) -> http.client.HTTPResponse:
        """The answer, with its headers."""
        return in_time(self, super().getresponse)


def in_time(connection: http.client.HTTPConnection, answer: Callable[[], Any]) -> Any:
    """The answer; the connection is cut where it does not come in time, though byte after byte may."""
    place, late = connection.sock, threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            place.shutdown(socket.SHUT_RDWR)  # whoever reads from it finds its end

    timer = threading.Timer(ANSWER, cut)
    timer.daemon = True
    timer.start()
    try:
        found = answer()
    finally:
        timer.cancel()
    if late.is_set():  # headers that break off count as whole
        found.close()
        raise TimeoutError(f"no whole answer in {ANSWER:.0f} s")
    return found


class Plain(urllib.request.HTTPHandler):
    """Addresses that begin with http."""

    def http_open(self, req: Any) -> Any:
        """The server's reply."""
        return self.do_open(Connection, req)


class Secure(urllib.request.HTTPSHandler):
    """Addresses that begin with https."""

    def https_open(self, req: Any) -> Any:
        """The server's reply."""
        return self.do_open(SecureConnection, req, context=ssl.create_default_context())


def printable(text: object) -> str:
    """What a server says, in one line, without control characters, cut where it is long."""
    line = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."
