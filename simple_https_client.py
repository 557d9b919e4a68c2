#!/usr/bin/env python3
"""Send lines to simple_https_server.py over mutual TLS, and print each line that it answers."""

import argparse
import getpass
import os
import re
import socket
import ssl
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

MAX_LINE = 65536  # bytes, with its newline
ML_DSA = [  # the OIDs of ML-DSA-44, 65 and 87 in DER (RFC 9881, section 2)
    bytes.fromhex("0609608648016503040311"),
    bytes.fromhex("0609608648016503040312"),
    bytes.fromhex("0609608648016503040313"),
]
TIMEOUT = 10  # seconds for each step: connection, handshake, write, read


def say(text: str, stream: TextIO) -> None:
    """Print one line, escaped: text from a peer must not forge lines or steer the terminal."""
    line = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    codec = getattr(stream, "encoding", None) or "utf-8"  # which may lack what a peer writes
    print(line.encode(codec, "backslashreplace").decode(codec) + "\n", end="", file=stream, flush=True)


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
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate of the server
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers("DEFAULT:@SECLEVEL=2")  # no weak keys or digests, whatever openssl.cnf says
    context.hostname_checks_common_name = False  # subjectAltName only (RFC 9525, 2)
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


def converse(connection: ssl.SSLSocket, messages: list[bytes]) -> None:
    """Send each message and print its answer; raise OSError."""
    unread = b""
    for number, message in enumerate(messages):
        with suppress(OSError):  # after a refusal; its alert is still there to be read
            connection.sendall(message)
        deadline = time.monotonic() + TIMEOUT
        while b"\n" not in unread:
            unread += (data := connection.recv(MAX_LINE))
            if not data or len(unread) > MAX_LINE or time.monotonic() > deadline:
                raise ConnectionError("no answer, or one that is cut short, too long or too slow")
        answer, _, unread = unread.partition(b"\n")
        if number == 0:  # TLS 1.3 does not tell a client earlier that it was accepted
            say("connected", sys.stdout)
        say(f"read: [{answer.decode(errors='backslashreplace')}]", sys.stdout)
    with suppress(OSError):
        connection.unwrap()  # sends close_notify; all answers are here, whatever comes back


def main() -> int:
    """Send the messages; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="localhost", help="the server's name or address (%(default)s)")
    parser.add_argument("--port", default=8443, type=int, help="the server's TCP port (%(default)s)")
    parser.add_argument("-k", "--keys", default="keys/client", type=Path, help="PEM files (%(default)s)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show session and server")
    parser.add_argument("messages", metavar="MESSAGE", nargs="*", help="a line (default: hola)")
    options = parser.parse_args()
    messages = [os.fsencode(text) + b"\n" for text in options.messages or ["hola"]]
    if options.port not in range(65536) or any(len(x) > MAX_LINE or x.count(b"\n") > 1 for x in messages):
        parser.error(f"PORT must be 0 to 65535, a MESSAGE one line of less than {MAX_LINE} bytes")
    try:
        context = make_context(options.keys)
        raw = socket.create_connection((options.host, options.port), TIMEOUT)
        with context.wrap_socket(raw, suppress_ragged_eofs=False, server_hostname=options.host) as tls:
            tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if options.verbose:
                names: Any = tls.getpeercert()
                pairs = sum(names["subject"], names.get("subjectAltName", ()))
                say(f"{tls.cipher()}, {', '.join(f'{k}={v}' for k, v in pairs)}", sys.stderr)
            converse(tls, messages)  # the server is verified, and its name
    except KeyboardInterrupt:
        os._exit(130)  # closes what is open
    except (OSError, ValueError, EOFError) as error:
        words = re.sub(r"\[[^]]*\] |\S+ (?=alert )| ?\(?_ssl\.c:\d+[):] ?", "", str(error)) or "end of input"
        what = "refused by" if "alert " in words else "no exchange with"
        say(f"simple_https_client.py: error: {what} {options.host} port {options.port}: {words}", sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # all is flushed; a closed standard output must not fail once more
