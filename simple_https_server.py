#!/usr/bin/env python3
"""Answer lines over mutual TLS: the server verifies its clients, and they verify the server.

`hola` and HTTP requests are answered with `hello`, other lines with themselves.

The script reads as a connection goes:

    main            loads the keys folder, listens, and waits for signals
    make_context    reads the PEM files, and sets how clients are verified
    listen          opens a socket for each address of the host
    accept_clients  accepts clients, and hands each one to a thread, which serves it:
    shake_hands     verifies the client, and proves to the client who the server is
    answer_lines    answers line by line, until the client closes
    close_politely  closes so that the client can still read the last answer

The words used throughout:

    folder          the PEM files of one side, made by simple_key_generation.py
    chain           a certificate, its issuer's certificate, and so on (fullchain.pem)
    anchor          a self-signed certificate that we trust (ca.pem); a chain must end in one
    list            a CA's list of the certificates that it has revoked (crl.pem)
    alert           TLS's message to a peer that is refused; it says why
    close_notify    TLS's message at the end of a stream; without it, the stream was cut short
"""

from __future__ import annotations

import argparse
import errno
import getpass
import os
import re
import signal
import socket
import ssl
import sys
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, active_count
from typing import Any, TextIO

MAX_LINE = 65536  # bytes, with the newline
MAX_CONNECTIONS = 2000  # clients served at once; further ones wait in the system's queue
MIN_THREADS = 8  # kept, even while there are fewer clients
TIMEOUT = 5  # seconds for the whole handshake, and for the client to close after us
IDLE_TIMEOUT = 60  # seconds in which a connection must read or write something
PAUSE = 0.5  # seconds before another try to accept, and for last answers at the end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

HTTP_REQUEST = re.compile(r"[A-Z]+ \S+ HTTP/1\.\d")
HTTP_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"

# The OIDs of ML-DSA-44, 65 and 87, as DER encodes them (RFC 9881, section 2).
ML_DSA = re.compile(rb"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03[\x11-\x13]")
PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


class Shared:
    """What all threads share. A reload replaces the context, for the clients after it."""

    def __init__(self, context: ssl.SSLContext, verbose: bool) -> None:
        self.context = context
        self.verbose = verbose


class PassPhrase:
    """The pass phrase of key.pem. It is typed once at most: a reload does not ask again."""

    def __init__(self) -> None:
        self.typed: str | None = None

    def get(self) -> str:
        """Return the pass phrase. Raises OSError if there is no terminal to type it at."""
        if "SROS_PASSPHRASE" in os.environ:
            return os.environ["SROS_PASSPHRASE"]

        if self.typed is None:
            # Without a terminal, getpass would read standard input. This raises OSError.
            os.close(os.open("/dev/tty", os.O_RDWR))
            self.typed = getpass.getpass("Enter PEM pass phrase:")
        return self.typed


# --- 1. The main path ------------------------------------------------------------------------


def main() -> int:
    """Serve until SIGINT or SIGTERM. Return the exit status."""
    options = parse_arguments()
    pass_phrase = PassPhrase()
    try:
        shared = Shared(make_context(options.keys, pass_phrase), options.verbose)
        listeners = listen(options.host, options.port)
        start_threads(listeners, shared)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        complain(f"cannot serve {options.host} port {options.port}", error)
        return 1

    port = listeners[0].getsockname()[1]
    say(f"listening on {options.host} port {port}", sys.stderr)

    received = signal.sigwait(SIGNALS)
    while received == signal.SIGHUP:
        try:
            shared.context = make_context(options.keys, pass_phrase)
        except (OSError, ValueError, EOFError) as error:
            complain("cannot reload, the old keys stay in force", error)
        received = signal.sigwait(SIGNALS)

    # Let the threads answer what has arrived. A second signal ends that, too.
    signal.sigtimedwait(SIGNALS, PAUSE)
    if received == signal.SIGTERM:
        return 0
    return 130


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line. Exit with status 2 if one is wrong."""
    parser = argparse.ArgumentParser(
        description="Answer lines over mutual TLS: `hola` and HTTP requests with `hello`, "
        "others with themselves."
    )
    parser.add_argument(
        "--host", default="localhost", help="name or address to listen on (%(default)s)"
    )
    parser.add_argument(
        "--port", default=8443, type=int, help="TCP port (%(default)s); 0: any"
    )
    parser.add_argument(
        "-k", "--keys", default="keys/server", type=Path, help="PEM files (%(default)s)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show sessions and peers")
    options = parser.parse_args()
    if options.port not in range(65536):
        parser.error(f"argument --port: {options.port} is not in 0..65535")
    return options


# --- 2. The keys folder ----------------------------------------------------------------------


def make_context(folder: Path, pass_phrase: PassPhrase) -> ssl.SSLContext:
    """Return TLS settings from the PEM files in a folder.

    Raises OSError or ValueError, with advice, if that can't be done.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    # Refuse weak keys and digests, whatever openssl.cnf says.
    context.set_ciphers("DEFAULT:@SECLEVEL=2")

    # Debian 12's Python sets this option. With it, a stream that was cut short looks complete.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    # A client that resumes a session with a ticket does not show its certificate again.
    context.num_tickets = 0

    # Clients must show a certificate. It may have any name: all clients of our CA are let in.
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = False

    # Verify chains as strictly as RFC 5280 says, and up to an anchor. Python 3.13's
    # create_default_context also sets VERIFY_X509_PARTIAL_CHAIN. It stays off here, because
    # with it a chain could end in any certificate that is loaded below.
    context.verify_flags = ssl.VERIFY_X509_STRICT

    check_files(folder)
    try:
        # OpenSSL asks for the pass phrase only if the key is encrypted.
        context.load_cert_chain(
            folder / "fullchain.pem", folder / "key.pem", password=pass_phrase.get
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


# --- 3. Listening and accepting --------------------------------------------------------------


def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets, all on one port. Raises OSError."""
    if host != "localhost":
        return [open_listener(host, port)]

    # `localhost` is this machine, by IPv4 and IPv6 (RFC 6761, section 6.3).
    first = open_listener("127.0.0.1", port)
    # If the port was 0, the system has chosen one.
    port = first.getsockname()[1]
    try:
        return [first, open_listener("::1", port)]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            first.close()
            raise
        # This machine has no IPv6.
        return [first]


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the first address of a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    # create_server sets SO_REUSEADDR, so that a server can be restarted at once.
    return socket.create_server(address, family=family, backlog=MAX_CONNECTIONS)


def start_threads(listeners: list[socket.socket], shared: Shared) -> None:
    """Begin to accept and serve clients. Raises RuntimeError if there are no threads."""
    # All threads inherit this mask, so signals are left to sigwait in main.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    crew = Crew(shared)
    for listener in listeners:
        Thread(target=accept_clients, args=(listener, crew), daemon=True).start()


def accept_clients(listener: socket.socket, crew: Crew) -> None:
    """Accept clients for ever, and hand each one to a thread of the crew."""
    while True:
        try:
            accept_client(listener, crew)
        except (OSError, RuntimeError) as error:
            # The system has no more descriptors or threads for us until other clients leave.
            complain("cannot accept", error)
            time.sleep(PAUSE)
        while active_count() > MAX_CONNECTIONS:
            time.sleep(PAUSE)


def accept_client(listener: socket.socket, crew: Crew) -> None:
    """Accept one client. Raises OSError or RuntimeError if there are too many."""
    raw, address = listener.accept()
    try:
        crew.hand_over(raw, address)
    except RuntimeError:
        raw.close()
        raise


class Crew:
    """The threads that serve clients, each of them one client at a time.

    A thread that has served its client waits for the next one. That costs less than a new
    thread for each client. If all are busy, a new thread joins them.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.clients: SimpleQueue[tuple[socket.socket, Any]] = SimpleQueue()
        self.lock = Lock()  # guards the two numbers
        self.threads = 0
        self.idle = 0  # threads that wait, less the clients that wait for one
        for _ in range(MIN_THREADS):
            self.start_thread()

    def start_thread(self) -> None:
        """Add a thread. Raises RuntimeError if there are too many."""
        Thread(target=self.work, daemon=True).start()
        self.threads += 1
        self.idle += 1

    def hand_over(self, raw: socket.socket, address: Any) -> None:
        """Have a thread serve a client. Raises RuntimeError if there are too many."""
        with self.lock:
            if self.idle == 0:
                self.start_thread()
            self.idle -= 1
        self.clients.put((raw, address))

    def work(self) -> None:
        """Serve one client after the other. This is what each thread does."""
        while True:
            raw, address = self.clients.get()
            serve(raw, address, self.shared)
            with self.lock:
                if self.threads > MIN_THREADS:
                    self.threads -= 1
                    return
                self.idle += 1


# --- 4. One client ---------------------------------------------------------------------------


def serve(raw: socket.socket, address: Any, shared: Shared) -> None:
    """Serve one client, from the handshake to the end of its connection."""
    peer = f"{address[0]} port {address[1]}"

    # Outside of the inner block, an error means that the client has gone.
    with suppress(OSError), wrap(raw, shared.context) as connection:
        try:
            shake_hands(connection)
            if shared.verbose:
                say(f"{peer}: {describe_session(connection)}", sys.stderr)
            say("accepted", sys.stdout)
            answer_lines(connection)
            say("closed", sys.stdout)
        except (OSError, ValueError) as error:
            complain(peer, error)
        close_politely(connection)


def wrap(raw: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a connection for TLS. Nothing is sent yet, and nothing is verified."""
    return context.wrap_socket(
        raw,
        server_side=True,
        do_handshake_on_connect=False,
        # A stream that is cut short must raise an error.
        suppress_ragged_eofs=False,
    )


def shake_hands(connection: ssl.SSLSocket) -> None:
    """Verify the client, and prove to the client who we are. Raises OSError if that fails.

    do_handshake has OpenSSL verify, with the settings from make_context, that

    - the client has the private key of its certificate;
    - a chain leads from this certificate to an anchor;
    - the certificate is meant for clients (extendedKeyUsage: clientAuth);
    - each certificate in the chain has a valid signature, is within its validity period, and
      keeps to the limits that the CAs above it set (such as pathlen and nameConstraints);
    - each CA in the chain has a list that has not expired, and no certificate is on it.

    If one of these fails, OpenSSL sends an alert that says which.
    """
    connection.settimeout(TIMEOUT)
    connection.do_handshake()
    connection.settimeout(IDLE_TIMEOUT)

    # Send each answer at once, not when the client has acknowledged the one before.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # Acknowledge at once, too: a client without TCP_NODELAY may hold back its first line.
    if hasattr(socket, "TCP_QUICKACK"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def describe_session(connection: ssl.SSLSocket) -> str:
    """Return the session's cipher and the client's names."""
    certificate: Any = connection.getpeercert()
    names = [*certificate.get("subjectAltName", ())]
    for attributes in certificate["subject"]:
        names.extend(attributes)
    words = ", ".join(f"{kind}={name}" for kind, name in names)
    return f"{connection.cipher()}, {words}"


def answer_lines(connection: ssl.SSLSocket) -> None:
    """Answer one line after the other until the client's close_notify. Raises OSError."""
    with connection.makefile("rb") as lines:
        while line := lines.readline(MAX_LINE):
            if not line.endswith(b"\n"):
                raise ConnectionError(f"a line cut short, or longer than {MAX_LINE} bytes")
            text = line.decode(errors="backslashreplace").rstrip("\r\n")
            say(f"read: [{text}]", sys.stdout)

            if HTTP_REQUEST.fullmatch(text):
                answer_http(connection, lines)
            elif line == b"hola\n":
                connection.sendall(b"hello\n")
            else:
                connection.sendall(line)


def answer_http(connection: ssl.SSLSocket, lines: BufferedReader) -> None:
    """Answer an HTTP request, and read what follows it until the client closes."""
    connection.sendall(HTTP_ANSWER)
    deadline = time.monotonic() + IDLE_TIMEOUT
    while lines.read1(MAX_LINE):
        if time.monotonic() > deadline:
            raise TimeoutError("an HTTP request without an end")


def close_politely(connection: ssl.SSLSocket) -> None:
    """Close so that the client can read our last answer, or the alert. Raises OSError."""
    connection.settimeout(TIMEOUT)

    # Send close_notify, and wait for the client's. This fails if the handshake has failed.
    with suppress(OSError, ValueError):
        connection.unwrap()

    # TLS ends here. From now on, recv returns what arrives by TCP: read until the client
    # closes. Closing with unread data would reset the connection, and a reset can destroy an
    # answer.
    connection.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + TIMEOUT
    while connection.recv(MAX_LINE) and time.monotonic() < deadline:
        pass


# --- 5. Output -------------------------------------------------------------------------------


def complain(what: str, error: Exception) -> None:
    """Print an error line."""
    say(f"simple_https_server.py: error: {what}: {describe_error(error)}", sys.stderr)


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

    # Go on serving, even if the line can't be printed.
    with suppress(OSError):
        # The newline is part of the text, so that lines of several threads don't mix.
        print(text + "\n", end="", file=stream, flush=True)


def escape(character: str) -> str:
    """Return a printable character as it is, and any other as a code, such as \\x1b."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


if __name__ == "__main__":
    # Threads may still serve clients. This ends them.
    os._exit(main())
