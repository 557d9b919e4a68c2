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
    alert           TLS's error message, such as for a refused peer; it hints at the reason
    close_notify    TLS's message at the end of a stream; without it, the stream was cut short
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # A Ctrl-C that comes during the imports waits for main.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

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

# OpenSSL's words for a key that does not match the first certificate of the chain.
MISMATCHES = ("key values mismatch", "key type mismatch", "no certificate assigned")

# The OIDs of ML-DSA-44, 65 and 87, as DER encodes them (RFC 9881, section 2).
ML_DSA = re.compile(rb"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03[\x11-\x13]")
PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")

# What openssl.cnf sets for TLS 1.3, and Python can't (before 3.15). Case does not matter.
OPENSSL_SETTING = re.compile(r"(?im)^\s*(?:\w+\.)?(Ciphersuites|\w*SignatureAlgorithms)\s*=")


class OutputError(Exception):
    """An output that can't be written, such as a file on a full disk."""


# --- 1. The main path ------------------------------------------------------------------------


def main() -> int:
    """Send the messages and print the answers. Return the exit status."""
    options = parse_arguments()
    keep_outputs_blocking()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        context = make_context(options.keys)
        raw = connect(options.host, options.port)
        with raw, wrap(raw, context, options.host) as connection:
            shake_hands(connection)
            if options.verbose:
                say(describe_session(connection), sys.stderr)
            exchange(connection, options.messages)
    except OutputError as error:
        # The reader of a pipe, such as `head`, may leave when it has seen enough.
        if not isinstance(error.__cause__, BrokenPipeError):
            complain("cannot print", error)
        return 1
    except (OSError, ValueError) as error:
        what = "no exchange with"
        # An alert means that the server has refused us.
        if describe_error(error).startswith("alert "):
            what = "refused by"
        complain(f"{what} {options.host} port {options.port}", error)
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
    if options.port not in range(65536):
        parser.error(f"argument --port: {options.port} is not in 0..65535")
    for message in options.messages:
        if not is_line(message):
            parser.error(f"a MESSAGE must be one line of less than {MAX_LINE} bytes")
    return options


def is_line(message: bytes) -> bool:
    """Tell whether a message is one line, and not too long."""
    return message.count(b"\n") == 1 and len(message) <= MAX_LINE


def keep_outputs_blocking() -> None:
    """Undo what the parent process may have set: lines would be lost if a reader is slow."""
    for stream in (sys.stdout, sys.stderr):
        # Python has no stream if it was closed when the script started.
        if stream is not None:
            os.set_blocking(stream.fileno(), True)


# --- 2. The keys folder ----------------------------------------------------------------------


def make_context(folder: Path) -> ssl.SSLContext:
    """Return TLS settings from the PEM files in a folder.

    Raises OSError or ValueError, with the name of the file, if that can't be done.
    """
    context = new_context()

    # The server must show a certificate for the host that was called. Only the names in its
    # subjectAltName count, and not its commonName (RFC 9525, section 2).
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    context.hostname_checks_common_name = False

    # Verify chains with OpenSSL's additional checks of RFC 5280, and up to an anchor. Python
    # 3.13's create_default_context also sets VERIFY_X509_PARTIAL_CHAIN. It stays off here,
    # because with it a chain could end in any certificate that is loaded below.
    context.verify_flags = ssl.VERIFY_X509_STRICT

    check_openssl(folder / "fullchain.pem")
    load_anchors(context, folder)
    load_lists(context, folder / "crl.pem")
    load_identity(context, folder, read_pass_phrase(folder / "key.pem"))
    return context


def new_context() -> ssl.SSLContext:
    """Return settings for TLS 1.3, whatever openssl.cnf says. Raises ValueError."""
    file = openssl_cnf()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except ssl.SSLError as error:
        raise ValueError(f"{file}: {describe_error(error)}") from error

    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options &= ~ssl.OP_NO_TLSv1_3

    # Refuse weak keys and digests. A higher level stays.
    if context.security_level < 2:
        context.set_ciphers("DEFAULT:@SECLEVEL=2")

    # Debian 12's Python sets this option. With it, a stream that was cut short looks complete.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    # The server needs another round trip if the first key share is of a group that it does not
    # use. Before OpenSSL 3.5, it uses prime256v1, as every compliant TLS 1.3 peer can (RFC
    # 8446, section 9.1).
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        if context.security_level > 3:
            raise ValueError(f"{file}: a SECLEVEL above 3 excludes the group prime256v1")
        context.set_ecdh_curve("prime256v1")

    check_openssl_cnf(context)
    return context


def openssl_cnf() -> Path:
    """Return OpenSSL's configuration file (openssl-env(7))."""
    usual = Path(ssl.get_default_verify_paths().openssl_capath).with_name("openssl.cnf")
    return Path(os.environ.get("OPENSSL_CONF", usual))


def check_openssl_cnf(context: ssl.SSLContext) -> None:
    """Check openssl.cnf for settings that Python can't override. Raises ValueError.

    Settings in files that openssl.cnf includes are not found.
    """
    file = openssl_cnf()
    protocols = [cipher["protocol"] for cipher in context.get_ciphers()]
    if "TLSv1.3" not in protocols:
        raise ValueError(f"{file}: Ciphersuites leaves no cipher for TLS 1.3")

    # These settings may exclude what our own key needs, or the peer.
    with suppress(OSError):
        for setting in OPENSSL_SETTING.findall(file.read_text(errors="replace")):
            warn(f"{file}: {setting} applies, as Python can't override it")


def check_openssl(chain: Path) -> None:
    """Check that OpenSSL knows the algorithms of a chain. Raises OSError or ValueError."""
    if ssl.OPENSSL_VERSION_INFO < (3, 5) and uses_ml_dsa(chain):
        found = f"this Python's ssl has {ssl.OPENSSL_VERSION}"
        raise ValueError(f"{chain}: ML-DSA takes OpenSSL 3.5, {found}")


def uses_ml_dsa(chain: Path) -> bool:
    """Tell whether a certificate in a chain has an ML-DSA key or signature."""
    for certificate in PEM_CERTIFICATE.findall(chain.read_text(errors="replace")):
        # If it is damaged, OpenSSL will say so.
        with suppress(ValueError):
            if ML_DSA.search(ssl.PEM_cert_to_DER_cert(certificate)):
                return True
    return False


def load_pem(context: ssl.SSLContext, file: Path) -> None:
    """Load certificates and lists from a file. Raises ValueError that names the file."""
    try:
        context.load_verify_locations(file)
    except OSError as error:
        words = describe_error(error).replace("PEM lib", "the file is damaged")
        raise ValueError(f"{file}: {words}") from error
    # A file that has only lists can be loaded, too.
    if context.cert_store_stats()["x509"] == 0:
        raise ValueError(f"{file}: has no certificate")


def load_anchors(context: ssl.SSLContext, folder: Path) -> None:
    """Load the anchors, and our own issuers for peers that don't send theirs.

    Some programs, such as Chromium, send only their own certificate. If our CA has issued it,
    our issuers are theirs, too. These CAs become intermediates and not anchors, because they
    are not self-signed: a chain through them must still end in an anchor.

    Raises ValueError if a file can't be loaded.
    """
    load_pem(context, folder / "ca.pem")
    anchors = [anchor["subject"] for anchor in context.get_ca_certs()]

    # In the standard library, only a context parses certificates. It lists only CAs.
    chain = folder / "fullchain.pem"
    reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_pem(reader, chain)
    fields: Any = reader.get_ca_certs()
    encodings = reader.get_ca_certs(binary_form=True)

    for certificate, encoding in zip(fields, encodings, strict=True):
        # A self-signed certificate would become an anchor.
        self_signed = certificate["subject"] == certificate["issuer"]
        # A cross-certificate has an anchor's name. Through it, a chain would go on to a higher
        # CA, which is no anchor here, and fail.
        replaces_anchor = certificate["subject"] in anchors
        if self_signed or replaces_anchor:
            continue

        # OpenSSL would prefer an expired one to a renewed one that the peer sends.
        begin = ssl.cert_time_to_seconds(certificate["notBefore"])
        end = ssl.cert_time_to_seconds(certificate["notAfter"])
        if not begin <= time.time() <= end:
            warn(f"{chain}: our own CA's certificate has expired, or is not valid yet")
            continue
        # Before 3.12, Python raises here what OpenSSL could not read in openssl.cnf.
        with suppress(ssl.SSLError):
            context.load_verify_locations(cadata=encoding)


def load_lists(context: ssl.SSLContext, lists: Path) -> None:
    """Load the revocation lists, if the folder has any. Raises ValueError."""
    # A dangling symlink is an error, not a missing list.
    if not os.path.lexists(lists):
        warn(f"{lists} is missing: revoked peers are let in")
        return

    before = context.cert_store_stats()["x509"]
    load_pem(context, lists)
    found = context.cert_store_stats()
    if found["x509"] != before:
        raise ValueError(f"{lists}: has a certificate, which we would trust; take it out")
    if found["crl"] == 0:
        raise ValueError(f"{lists}: has no revocation list")

    # Check the whole chain, because a CA may be revoked, too.
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def load_identity(context: ssl.SSLContext, folder: Path, pass_phrase: bytes) -> None:
    """Load our own key and chain. Raises ValueError that names the file."""
    key = folder / "key.pem"
    chain = folder / "fullchain.pem"
    try:
        # A pass phrase is always given, or OpenSSL itself would ask for it.
        context.load_cert_chain(chain, key, password=pass_phrase)
    except (OSError, ValueError) as error:
        words = describe_error(error)
        if words == "PEM lib":
            words = "the pass phrase is wrong, or the file is damaged"
            if b"SROS_PASSPHRASE" in os.environb:
                words = "SROS_PASSPHRASE is wrong, or the file is damaged"
        elif words in MISMATCHES:
            words = f"does not match the first certificate in {chain}"
        elif words.startswith(("ee key", "ca key", "ca md")):
            # OpenSSL finds a certificate too weak.
            key = chain
        raise ValueError(f"{key}: {words}") from error


def read_pass_phrase(key: Path) -> bytes:
    """Return a key's pass phrase: from the environment, or typed at the terminal.

    A key that is not encrypted has an empty one. Raises OSError or ValueError.
    """
    if b"SROS_PASSPHRASE" in os.environb:
        return os.environb[b"SROS_PASSPHRASE"]
    if b"ENCRYPTED" not in key.read_bytes():
        return b""

    try:
        # Without a terminal, getpass would read standard input.
        os.close(os.open("/dev/tty", os.O_RDWR))
        return os.fsencode(getpass.getpass("Enter PEM pass phrase:"))
    except UnicodeError:
        # This error's message would reveal part of the input.
        raise ValueError(f"{key}: the pass phrase is not text in this locale") from None
    except EOFError:
        raise ValueError(f"{key}: no pass phrase was typed") from None
    except OSError:
        problem = "SROS_PASSPHRASE is not set, and there is no terminal to ask at"
        raise ValueError(f"{key}: {problem}") from None


# --- 3. The connection -----------------------------------------------------------------------


def connect(host: str, port: int) -> socket.socket:
    """Return a TCP connection to a host. Raises OSError."""
    # `localhost` is this machine, by IPv6 or IPv4 (RFC 6761, section 6.3).
    if host.lower().removesuffix(".") == "localhost":
        with suppress(OSError):
            return socket.create_connection(("::1", port), TIMEOUT)
        host = "127.0.0.1"
    return socket.create_connection((host, port), TIMEOUT)


def wrap(raw: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Return a connection for TLS. Nothing is sent yet, and nothing is verified."""
    return context.wrap_socket(
        raw,
        # A certificate has names without a final dot, and addresses without a zone (%eth0).
        server_hostname=host.partition("%")[0].removesuffix("."),
        do_handshake_on_connect=False,
        # A stream that is cut short must raise an error.
        suppress_ragged_eofs=False,
    )


def shake_hands(connection: ssl.SSLSocket) -> None:
    """Verify the server, and send it the proof of who we are. Raises OSError if that fails.

    do_handshake makes OpenSSL check, with the settings from make_context, that

    - the server has the private key of its certificate;
    - a chain leads from this certificate to an anchor;
    - the certificate may be used by servers: if it has a keyUsage or an extendedKeyUsage,
      they allow it (serverAuth);
    - the certificate has the name or address of the host (subjectAltName);
    - each certificate in the chain has a valid signature, is within its validity period, and
      keeps to the limits that the CAs above it set (such as pathlen and nameConstraints);
    - if the folder has a crl.pem: it has a list of each CA in the chain, the list has not
      expired, and no certificate is on it.

    If one of these fails, OpenSSL sends an alert, which hints at the reason. Our own error
    line gives it exactly. In TLS 1.3, this function returns before the server has verified us.
    The server's first answer means that it has accepted us.
    """
    connection.do_handshake()

    # Send each line at once, not when the server has acknowledged the one before.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def describe_session(connection: ssl.SSLSocket) -> str:
    """Return the session's cipher and the server's names."""
    cipher: Any = connection.cipher()
    certificate: Any = connection.getpeercert()
    names = [*certificate.get("subjectAltName", ())]
    for attributes in certificate["subject"]:
        names.extend(attributes)
    words = ", ".join(f"{kind}={name}" for kind, name in names)
    return f"{connection.version()}, {cipher[0]}, {words}"


def exchange(connection: ssl.SSLSocket, messages: list[bytes]) -> None:
    """Send each message and print its answer. Raises OSError or OutputError."""
    unread = b""
    for number, message in enumerate(messages):
        # A second line, if it has already arrived, would be taken for the next answer.
        if unread:
            raise ConnectionError("more than one line answers a message")

        # If the server has refused us, this may fail. Go on: its alert can still be read.
        with suppress(OSError):
            connection.sendall(message)
        answer, unread = read_line(connection, unread)

        # The first answer means that the server has accepted us.
        if number == 0:
            say("connected", sys.stdout)
        # Bytes that are not UTF-8 become surrogates, which are escaped when they are printed.
        say(f"read: [{answer.decode(errors='surrogateescape')}]", sys.stdout)

    # Send close_notify, and don't wait for the server's: all answers have arrived.
    connection.setblocking(False)
    with suppress(OSError):
        connection.unwrap()


def read_line(connection: ssl.SSLSocket, unread: bytes) -> tuple[bytes, bytes]:
    """Return a line without its end, and what was read after it. Raises OSError."""
    deadline = time.monotonic() + TIMEOUT
    while b"\n" not in unread and len(unread) < MAX_LINE:
        connection.settimeout(time_left(deadline))
        data = connection.recv(MAX_LINE)
        if not data:
            raise ConnectionError("the server closed before the end of its answer")
        unread += data
    connection.settimeout(TIMEOUT)

    line, _, rest = unread.partition(b"\n")
    if len(line) >= MAX_LINE:
        raise ConnectionError(f"an answer longer than {MAX_LINE} bytes")
    # LF or CR LF ends a line.
    return line.removesuffix(b"\r"), rest


def time_left(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError after it."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


# --- 4. Output -------------------------------------------------------------------------------


def complain(what: str, error: Exception) -> None:
    """Print an error line."""
    with suppress(OutputError):
        say(f"simple_https_client.py: error: {what}: {describe_error(error)}", sys.stderr)


def warn(text: str) -> None:
    """Print a warning."""
    with suppress(OutputError):
        say(f"simple_https_client.py: warning: {text}", sys.stderr)


def describe_error(error: Exception) -> str:
    """Return the words of OpenSSL or the system for an error, without its codes.

    For example, `[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)` becomes
    `alert unknown ca`.
    """
    # An error of our own may begin with the name of a folder that looks like a code.
    if not isinstance(error, OSError):
        return str(error)

    words = re.sub(r"^\[[^]]*\] ", "", str(error))
    words = re.sub(r" ?\(?_ssl\.c:\d+[):] ?", "", words)
    # Some alerts lack the word, such as `tlsv1 unrecognized name`.
    words = re.sub("^(sslv3|tlsv1|tlsv13|ssl/tls) (alert )?", "alert ", words)
    if words == "internal error":
        return "OpenSSL can't use what the peer sent (internal error)"
    return words or "end of input"


def say(text: str, stream: TextIO | None) -> None:
    """Print a line, and escape what is not printable: a peer must not forge lines.

    Raises OutputError.
    """
    # Python has no stream if it was closed when the script started.
    if stream is None:
        return
    if not text.isprintable():
        text = escape(text)

    # The stream's encoding may lack characters that a peer sends.
    text = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        raise OutputError(describe_error(error)) from error


def escape(text: str) -> str:
    """Return a text with codes, such as \\x1b, for what is not printable.

    A backslash of the text is doubled beside them. In a text without codes, it is not: what a
    peer has typed may look like a code.
    """
    # repr does so, and is fast. Split what is between its quotation marks at the text's own
    # backslashes.
    parts = repr(text)[1:-1].split("\\\\")
    # A byte that is not UTF-8 was decoded as a surrogate, such as FF as U+DCFF.
    return "\\\\".join(part.replace("\\udc", "\\x") for part in parts)


if __name__ == "__main__":
    try:
        # End here: Python would try again to flush a standard output that can't be written.
        os._exit(main())
    except KeyboardInterrupt:
        # With -W default, Python would warn of a socket that is being connected.
        os._exit(130)
