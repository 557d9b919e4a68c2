#!/usr/bin/env python3
"""Send lines over mutual TLS: the client verifies the server, and the server the client.

The script reads as a connection goes:

    main            loads the keys folder and connects
    make_context    reads the PEM files, and sets how the server is verified
    shake_hands     verifies the server, and proves to the server who the client is
    exchange        sends each message, and prints the line that answers it

The words used throughout:

    folder          the PEM files of one side, made by simple_key_generation.py
    chain           a certificate, its issuer's certificate, and so on (fullchain.pem)
    anchor          a self-signed certificate that we trust (ca.pem); a chain must end in one
    list            a CA's list of the certificates that it has revoked (crl.pem)
    alert           TLS's message to a peer that is refused; it says why
    close_notify    TLS's message at the end of a stream; without it, the stream was cut short
"""

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

MAX_LINE = 65536  # bytes, with the newline
TIMEOUT = 10  # seconds for each step: connection, handshake, write, read

# The OIDs of ML-DSA-44, 65 and 87, as DER encodes them (RFC 9881, section 2).
ML_DSA = re.compile(rb"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03[\x11-\x13]")
PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


# --- 1. The main path ------------------------------------------------------------------------


def main() -> int:
    """Send the messages and print the answers. Return the exit status."""
    options = parse_arguments()
    try:
        context = make_context(options.keys)
        raw = socket.create_connection((options.host, options.port), TIMEOUT)
        with raw, wrap(raw, context, options.host) as connection:
            shake_hands(connection)
            if options.verbose:
                say(describe_session(connection), sys.stderr)
            exchange(connection, options.messages)
    except KeyboardInterrupt:
        # End at once: Python must not warn of a socket that is still being connected.
        os._exit(130)
    except (OSError, ValueError, EOFError) as error:
        complain(options.host, options.port, error)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line. Exit with status 2 if one is wrong."""
    parser = argparse.ArgumentParser(
        description="Send lines to simple_https_server.py over mutual TLS, "
        "and print each line that it answers."
    )
    parser.add_argument(
        "--host", default="localhost", help="the server's name or address (%(default)s)"
    )
    parser.add_argument(
        "--port", default=8443, type=int, help="the server's TCP port (%(default)s)"
    )
    parser.add_argument(
        "-k", "--keys", default="keys/client", type=Path, help="PEM files (%(default)s)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show session and server")
    parser.add_argument(
        "messages",
        metavar="MESSAGE",
        nargs="*",
        default=["hola"],
        help="a line (default: hola)",
    )
    options = parser.parse_args()

    # Send the bytes that were typed, whatever the encoding of the terminal.
    options.messages = [os.fsencode(text) + b"\n" for text in options.messages]
    all_lines = all(is_line(message) for message in options.messages)
    if options.port not in range(65536) or not all_lines:
        limit = f"one line of less than {MAX_LINE} bytes"
        parser.error(f"PORT must be 0 to 65535, a MESSAGE {limit}")
    return options


def is_line(message: bytes) -> bool:
    """Tell whether a message is one line, and not too long."""
    return message.count(b"\n") == 1 and len(message) <= MAX_LINE


# --- 2. The keys folder ----------------------------------------------------------------------


def make_context(folder: Path) -> ssl.SSLContext:
    """Return TLS settings from the PEM files in a folder.

    Raises OSError or ValueError, with advice, if that can't be done.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    # Refuse weak keys and digests, whatever openssl.cnf says.
    context.set_ciphers("DEFAULT:@SECLEVEL=2")

    # Debian 12's Python sets this option. With it, a stream that was cut short looks complete.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    # The server must show a certificate for the host that was called. Only the names in its
    # subjectAltName count, and not its commonName (RFC 9525, section 2).
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    context.hostname_checks_common_name = False

    # Verify chains as strictly as RFC 5280 says, and up to an anchor. Python 3.13's
    # create_default_context also sets VERIFY_X509_PARTIAL_CHAIN. It stays off here, because
    # with it a chain could end in any certificate that is loaded below.
    context.verify_flags = ssl.VERIFY_X509_STRICT

    check_files(folder)
    try:
        # OpenSSL asks for the pass phrase only if the key is encrypted.
        context.load_cert_chain(
            folder / "fullchain.pem", folder / "key.pem", password=get_pass_phrase
        )
        context.load_verify_locations(folder / "ca.pem")
        load_own_issuers(context, folder / "fullchain.pem")
        load_lists(context, folder / "crl.pem")
    except OSError as error:
        advice = "SROS_PASSPHRASE wrong or not set, or a damaged file"
        raise ValueError(f"{folder}: {advice}: {error}") from error
    return context


def check_files(folder: Path) -> None:
    """Look for problems that OpenSSL does not explain. Raises OSError or ValueError."""
    # OpenSSL does not name the file that is missing.
    for name in ("key.pem", "fullchain.pem", "ca.pem"):
        with (folder / name).open():
            pass

    if ssl.OPENSSL_VERSION_INFO < (3, 5) and uses_ml_dsa(folder / "fullchain.pem"):
        found = f"this Python's ssl has {ssl.OPENSSL_VERSION}"
        raise ValueError(f"{folder}: ML-DSA takes OpenSSL 3.5, {found}")


def uses_ml_dsa(chain: Path) -> bool:
    """Tell whether a certificate in a chain has an ML-DSA key or signature."""
    for certificate in PEM_CERTIFICATE.findall(chain.read_text(errors="replace")):
        # If it is damaged, OpenSSL will say so.
        with suppress(ValueError):
            if ML_DSA.search(ssl.PEM_cert_to_DER_cert(certificate)):
                return True
    return False


def get_pass_phrase() -> str:
    """Return the pass phrase. Raises OSError if there is no terminal to type it at."""
    if "SROS_PASSPHRASE" in os.environ:
        return os.environ["SROS_PASSPHRASE"]

    # Without a terminal, getpass would read standard input. This raises OSError.
    os.close(os.open("/dev/tty", os.O_RDWR))
    return getpass.getpass("Enter PEM pass phrase:")


def load_own_issuers(context: ssl.SSLContext, chain: Path) -> None:
    """Add our own issuers to a context, for peers that don't send theirs.

    Some programs, such as Chromium, send only their own certificate. If our CA has issued it,
    our issuers are theirs, too. These CAs become intermediates and not anchors, because they
    are not self-signed: a chain through them must still end in an anchor.
    """
    anchors = [anchor["subject"] for anchor in context.get_ca_certs()]

    # In the standard library, only a context parses certificates. It lists only CAs.
    reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    reader.load_verify_locations(chain)
    fields = reader.get_ca_certs()
    encodings = reader.get_ca_certs(binary_form=True)

    for certificate, encoding in zip(fields, encodings, strict=True):
        self_signed = certificate["subject"] == certificate["issuer"]
        # A cross-certificate has an anchor's name. Through it, a chain would go on to a higher
        # CA, which is no anchor here, and fail.
        replaces_anchor = certificate["subject"] in anchors
        if not self_signed and not replaces_anchor:
            context.load_verify_locations(cadata=encoding)


def load_lists(context: ssl.SSLContext, lists: Path) -> None:
    """Add the revocation lists to a context, if the folder has any."""
    # A link that leads nowhere is an error here, and not a folder without lists.
    if os.path.lexists(lists):
        context.load_verify_locations(lists)
        # Check the whole chain, because a CA may be revoked, too.
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


# --- 3. The connection -----------------------------------------------------------------------


def wrap(raw: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Return a connection for TLS. Nothing is sent yet, and nothing is verified."""
    return context.wrap_socket(
        raw,
        server_hostname=host,
        do_handshake_on_connect=False,
        # A stream that is cut short must raise an error.
        suppress_ragged_eofs=False,
    )


def shake_hands(connection: ssl.SSLSocket) -> None:
    """Verify the server, and send it the proof of who we are. Raises OSError if that fails.

    do_handshake has OpenSSL verify, with the settings from make_context, that

    - the server has the private key of its certificate;
    - a chain leads from this certificate to an anchor;
    - the certificate is meant for servers (extendedKeyUsage: serverAuth);
    - the certificate has the name or address of the host (subjectAltName);
    - each certificate in the chain has a right signature, has begun and has not expired, and
      keeps to the limits that the CAs above it set (such as pathlen and nameConstraints);
    - each CA in the chain has a list that has not expired, and no certificate is on it.

    If one of these fails, OpenSSL sends an alert that says which. In TLS 1.3 this function
    returns before the server has verified us. Its first answer tells that it has accepted us.
    """
    connection.do_handshake()

    # Send each line at once, not when the server has acknowledged the one before.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def describe_session(connection: ssl.SSLSocket) -> str:
    """Return the session's cipher and the server's names."""
    certificate: Any = connection.getpeercert()
    names = [*certificate.get("subjectAltName", ())]
    for attributes in certificate["subject"]:
        names.extend(attributes)
    words = ", ".join(f"{kind}={name}" for kind, name in names)
    return f"{connection.cipher()}, {words}"


def exchange(connection: ssl.SSLSocket, messages: list[bytes]) -> None:
    """Send each message and print its answer. Raises OSError."""
    unread = b""
    for number, message in enumerate(messages):
        # If the server has refused us, this may fail. Go on: its alert can still be read.
        with suppress(OSError):
            connection.sendall(message)
        answer, unread = read_line(connection, unread)

        # The first answer tells that the server has accepted us.
        if number == 0:
            say("connected", sys.stdout)
        say(f"read: [{answer.decode(errors='backslashreplace')}]", sys.stdout)

    # Send close_notify. All answers have arrived, so errors no longer matter.
    with suppress(OSError):
        connection.unwrap()


def read_line(connection: ssl.SSLSocket, unread: bytes) -> tuple[bytes, bytes]:
    """Return a line without its newline, and what was read after it. Raises OSError."""
    deadline = time.monotonic() + TIMEOUT
    while b"\n" not in unread:
        data = connection.recv(MAX_LINE)
        unread += data
        if not data or len(unread) > MAX_LINE or time.monotonic() > deadline:
            raise ConnectionError("no answer, or one that is cut short, too long or too slow")
    line, _, rest = unread.partition(b"\n")
    return line, rest


# --- 4. Output -------------------------------------------------------------------------------


def complain(host: str, port: int, error: Exception) -> None:
    """Print an error line. If the error is an alert, the server has refused us."""
    words = describe_error(error)
    what = "no exchange with"
    if "alert " in words:
        what = "refused by"
    say(f"simple_https_client.py: error: {what} {host} port {port}: {words}", sys.stderr)


def describe_error(error: Exception) -> str:
    """Return the words of OpenSSL or the system for an error, without its codes.

    For example, `[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)` becomes
    `alert unknown ca`.
    """
    words = re.sub(r"\[[^]]*\] ", "", str(error))
    words = re.sub(r" ?\(?_ssl\.c:\d+[):] ?", "", words)
    words = re.sub(r"\S+ (?=alert )", "", words)
    return words or "end of input"


def say(text: str, stream: TextIO | None) -> None:
    """Print a line, and escape what is not printable: a peer must not forge lines."""
    # Python has no stream if it was closed when the script started.
    if stream is None:
        return
    if not text.isprintable():
        text = "".join(escape(character) for character in text)

    # The stream's encoding may lack characters that a peer sends.
    text = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
    print(text, file=stream, flush=True)


def escape(character: str) -> str:
    """Return a printable character as it is, and any other as a code, such as \\x1b."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


if __name__ == "__main__":
    # End here: Python would try again to flush a standard output that can't be written.
    os._exit(main())
