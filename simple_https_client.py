#!/usr/bin/env python3
"""Send lines to simple_https_server.py over mutual TLS, and print each line that it answers."""

import argparse
import getpass
import os
import re
import socket
import ssl
import sys
from pathlib import Path
from typing import Any, TextIO

MAX_LINE = 65536  # bytes, with its newline
TIMEOUT = 10  # seconds for each step: connection, handshake, write, read


def say(text: str, stream: TextIO) -> None:
    """Print one line, escaped: text from a peer must not forge lines or steer the terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    print(line, file=stream, flush=True)


def ask_passphrase() -> str:
    """Return the pass phrase that is typed at the terminal; raise ValueError without one."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))  # getpass would turn to standard input
    except OSError:
        raise ValueError("key.pem is encrypted: set SROS_PASSPHRASE or use a terminal") from None
    return getpass.getpass("Enter PEM pass phrase:")


def make_context(keys: Path) -> ssl.SSLContext:
    """Return TLS settings from the PEM files in `keys`; raise OSError or ValueError."""
    for name in ("key.pem", "fullchain.pem", "ca.pem"):
        (keys / name).open().close()  # OpenSSL's error would not name the file
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate of the server
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers("DEFAULT:@SECLEVEL=2")  # no RSA under 2048 bits, no SHA-1
    context.hostname_checks_common_name = False  # subjectAltName only (RFC 9525, 2)
    # Without VERIFY_X509_PARTIAL_CHAIN: every chain must reach a self-signed certificate.
    context.verify_flags = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_TRUSTED_FIRST
    suspect = "wrong pass phrase, damaged key.pem or fullchain.pem, or unsupported type of key"
    try:
        password = os.environ.get("SROS_PASSPHRASE", ask_passphrase)  # for an encrypted key only
        context.load_cert_chain(keys / "fullchain.pem", keys / "key.pem", password)
        suspect = "damaged ca.pem or crl.pem"
        context.load_verify_locations(keys / "ca.pem")
        anchors = [ca["subject"] for ca in context.get_ca_certs()]
        chain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        chain.load_verify_locations(keys / "fullchain.pem")
        for ca, der in zip(chain.get_ca_certs(), chain.get_ca_certs(True), strict=True):
            if ca["subject"] not in (ca["issuer"], *anchors):  # such a one would widen trust
                context.load_verify_locations(cadata=der)  # for peers that send no issuers
        if (keys / "crl.pem").exists():
            context.load_verify_locations(keys / "crl.pem")
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    except ssl.SSLError as error:
        raise ValueError(f"{error}: {suspect}") from error
    return context


def exchange(host: str, port: int, context: ssl.SSLContext, options: argparse.Namespace) -> None:
    pass
