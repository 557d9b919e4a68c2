#!/usr/bin/env python3
"""Answer lines over mutual TLS: `hola` and HTTP requests with `hello`, others with themselves."""

import argparse
import errno
import functools
import getpass
import os
import re
import signal
import socket
import ssl
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread, active_count
from typing import Any, TextIO

MAX_LINE = 65536  # bytes, with its newline
ML_DSA = [  # the OIDs of ML-DSA-44, 65 and 87 in DER (RFC 9881, section 2)
    bytes.fromhex("0609608648016503040311"),
    bytes.fromhex("0609608648016503040312"),
    bytes.fromhex("0609608648016503040313"),
]
MAX_CONNECTIONS = 2000  # served at once; newcomers wait in the system's queue
TIMEOUT = 5  # seconds for the whole handshake, and for a peer to close after us
IDLE_TIMEOUT = 60  # seconds without a byte read or written
PAUSE = 0.5  # seconds until the next try without resources, and for last answers at the end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(text: str, stream: TextIO) -> None:
    """Print one line, escaped: text from a peer must not forge lines or steer the terminal."""
    line = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    codec = getattr(stream, "encoding", None) or "utf-8"  # which may lack what a peer writes
    with suppress(OSError):  # serve on, even if nobody reads
        print(line.encode(codec, "backslashreplace").decode(codec) + "\n", end="", file=stream, flush=True)


def complain(where: str, error: Exception) -> None:
    """Print an error line in the words of OpenSSL or the system, without their numbers."""
    words = re.sub(r"\[[^]]*\] |\S+ (?=alert )| ?\(?_ssl\.c:\d+[):] ?", "", str(error)) or "end of input"
    say(f"simple_https_server.py: error: {where}: {words}", sys.stderr)


@functools.cache  # a reload does not ask again
def ask_passphrase() -> str:
    """Return the pass phrase typed at the terminal; raise OSError where there is none."""
    os.close(os.open("/dev/tty", os.O_RDWR))  # without one, getpass would read standard input
    return getpass.getpass("Enter PEM pass phrase:")


def uses_ml_dsa(chain: Path) -> bool:
    """Whether a certificate in a file has an ML-DSA key or signature. Raises OSError."""
    text = chain.read_text(errors="replace")
    for block in re.findall("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL):
        with suppress(ValueError):  # is damaged, which OpenSSL will say
            certificate = ssl.PEM_cert_to_DER_cert(block)
            if any(algorithm in certificate for algorithm in ML_DSA):
                return True
    return False


def make_context(keys: Path) -> ssl.SSLContext:
    """Return TLS settings from the PEM files in `keys`; raise ValueError with advice."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers("DEFAULT:@SECLEVEL=2")  # no weak keys or digests, whatever openssl.cnf says
    context.num_tickets = 0  # a resumed session skips the client's certificate
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VERIFY_X509_STRICT  # not PARTIAL_CHAIN: reach a self-signed one
    # Some Pythons (3.11.2 of Debian 12) set this, and a stream cut short would look like a clean end.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    for name in ("key.pem", "fullchain.pem", "ca.pem"):
        (keys / name).open().close()  # OpenSSL's error would not name the file
    if ssl.OPENSSL_VERSION_INFO < (3, 5) and uses_ml_dsa(keys / "fullchain.pem"):
        raise ValueError(f"{keys}: ML-DSA takes OpenSSL 3.5, this Python's ssl has {ssl.OPENSSL_VERSION}")
    try:
        password = os.environ.get("SROS_PASSPHRASE", ask_passphrase)  # for an encrypted key only
        context.load_cert_chain(keys / "fullchain.pem", keys / "key.pem", password)
        context.load_verify_locations(keys / "ca.pem")
        (chain := ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).load_verify_locations(keys / "fullchain.pem")
        for ca, der in zip(chain.get_ca_certs(), chain.get_ca_certs(True), strict=True):
            if ca["subject"] not in (ca["issuer"], *(x["subject"] for x in context.get_ca_certs())):
                context.load_verify_locations(cadata=der)  # no further anchor: for peers that send no issuers
        if os.path.lexists(keys / "crl.pem"):  # a link to nowhere is an error, not no list
            context.load_verify_locations(keys / "crl.pem")
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    except OSError as error:
        raise ValueError(f"{keys}: SROS_PASSPHRASE wrong or not set, or a damaged file: {error}") from error
    return context


def listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`, all on one port; raise OSError."""
    listeners: list[socket.socket] = []
    for name in ("127.0.0.1", "::1") if host == "localhost" else (host,):  # RFC 6761, 6.3
        number = listeners[0].getsockname()[1] if listeners else port
        family, _, _, _, address = socket.getaddrinfo(name, number, type=socket.SOCK_STREAM)[0]
        try:  # create_server sets SO_REUSEADDR and IPV6_V6ONLY
            listeners.append(socket.create_server(address, family=family, backlog=MAX_CONNECTIONS))
        except OSError as error:
            if not listeners or error.errno == errno.EADDRINUSE:  # else there is no IPv6
                raise
    return listeners


def converse(connection: ssl.SSLSocket) -> None:
    """Answer line by line until the peer's close_notify, HTTP only once; raise OSError."""
    say("accepted", sys.stdout)
    with connection.makefile("rb") as lines:
        while line := lines.readline(MAX_LINE):
            if not line.endswith(b"\n"):
                raise ConnectionError(f"a line cut short, or longer than {MAX_LINE} bytes")
            text = line.decode(errors="backslashreplace").rstrip("\r\n")
            say(f"read: [{text}]", sys.stdout)
            if re.fullmatch(r"[A-Z]+ \S+ HTTP/1\.\d", text):
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
                )
                deadline = time.monotonic() + IDLE_TIMEOUT
                while lines.read1(MAX_LINE):  # headers, until the peer closes
                    if time.monotonic() > deadline:
                        raise TimeoutError("an HTTP request without an end")
            else:
                connection.sendall(b"hello\n" if line == b"hola\n" else line)
    say("closed", sys.stdout)


def serve(raw: socket.socket, address: Any, context: ssl.SSLContext, verbose: bool) -> None:
    """Serve one client, in a thread of its own, from the handshake to the end."""
    peer = f"{address[0]} port {address[1]}"
    wrap = functools.partial(context.wrap_socket, server_side=True, suppress_ragged_eofs=False)
    with suppress(OSError), wrap(raw, do_handshake_on_connect=False) as connection:
        try:
            connection.settimeout(TIMEOUT)
            connection.do_handshake()  # verifies the client; if it fails, an alert tells it why
            connection.settimeout(IDLE_TIMEOUT)
            for option in (socket.TCP_NODELAY, getattr(socket, "TCP_QUICKACK", socket.TCP_NODELAY)):
                connection.setsockopt(socket.IPPROTO_TCP, option, 1)  # or lines wait for a delayed ACK
            if verbose:
                names: Any = connection.getpeercert()
                pairs = sum(names["subject"], names.get("subjectAltName", ()))
                say(f"{peer}: {connection.cipher()}, {', '.join(f'{k}={v}' for k, v in pairs)}", sys.stderr)
            converse(connection)
        except (OSError, ValueError) as error:
            complain(peer, error)
        connection.settimeout(TIMEOUT)
        with suppress(OSError, ValueError):
            connection.unwrap()  # sends close_notify, and takes the peer's
        connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + TIMEOUT
        while connection.recv(MAX_LINE) and time.monotonic() < deadline:
            pass  # closing on unread data resets, and a reset can destroy an alert on its way


def accept(listener: socket.socket, contexts: list[ssl.SSLContext], verbose: bool) -> None:
    """Give every newcomer a thread, for ever."""
    while True:
        try:
            Thread(target=serve, args=(*listener.accept(), contexts[0], verbose), daemon=True).start()
        except (OSError, RuntimeError) as error:  # out of descriptors or threads
            complain("cannot accept", error)
            time.sleep(PAUSE)
        while active_count() > MAX_CONNECTIONS:
            time.sleep(PAUSE)


def main() -> int:
    """Serve until a signal ends it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="localhost", help="name or address to listen on (%(default)s)")
    parser.add_argument("--port", default=8443, type=int, help="TCP port (%(default)s); 0: any")
    parser.add_argument("-k", "--keys", default="keys/server", type=Path, help="PEM files (%(default)s)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show sessions and peers")
    options = parser.parse_args()
    if options.port not in range(65536):
        parser.error(f"argument --port: {options.port} is not in 0..65535")
    try:
        contexts = [make_context(options.keys)]  # SIGHUP puts another one there
        listeners = listen(options.host, options.port)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, EOFError) as error:
        complain(f"cannot serve {options.host} port {options.port}", error)
        os._exit(1)  # closes what is open
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # in all threads; sigwait takes them
    for listener in listeners:
        Thread(target=accept, args=(listener, contexts, options.verbose), daemon=True).start()
    say(f"listening on {options.host} port {listeners[0].getsockname()[1]}", sys.stderr)
    while (number := signal.sigwait(SIGNALS)) == signal.SIGHUP:
        try:
            contexts[0] = make_context(options.keys)
        except (OSError, ValueError, EOFError) as error:
            complain("cannot reload, the old keys stay in force", error)
    time.sleep(PAUSE)
    os._exit(0 if number == signal.SIGTERM else 130)  # whoever still talks is cut off


if __name__ == "__main__":
    sys.exit(main())
