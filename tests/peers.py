"""What the benchmark compares the scripts with: other programs and bare loops."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parent.parent
PHRASES = {"SROS_ROOT_PASSPHRASE": "root", "SROS_PASSPHRASE": "sros"}
PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/share/easy-rsa"
GENERATE, SERVE = "simple_key_generation.py", "simple_https_server.py"
PEM = serialization.Encoding.PEM
HOLA, HELLO = b"hola\n", b"hello\n"
ASYNCIO, BARE = "asyncio's streams", "a bare loop in threads"


class WrongResult(Exception):
    """What was measured did not do what it should have done."""


@dataclass
class Cost:
    """What a process and its children took: seconds, seconds of CPU, and MiB at their peak."""

    wall: float
    cpu: float
    peak: float


# A process begins with the peak of the one that starts it, so a small one must.
SPEND = """import json, resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
wall, usage = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
sys.exit(status != 0)"""


def spend(folder: Path, *command: str | Path, env: dict[str, str] | None = None) -> Cost:
    """Run a command in a folder to its end, which must be a good one."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_PASSPHRASE")}
    result = subprocess.run(
        [sys.executable, "-c", SPEND, *map(str, command)],
        cwd=folder,
        env={**kept, "PATH": PATH, **(PHRASES if env is None else env)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    if result.returncode:
        raise WrongResult(
            f"{Path(command[0]).name}: {result.stderr.strip() or result.returncode}"
        )
    return Cost(*json.loads(result.stdout))


def here(function: str, *arguments: object) -> list[str]:
    """The command that calls one of this file's functions in a process of its own."""
    place = str(Path(__file__).parent)
    call = f"import sys; sys.path.insert(0, {place!r}); import peers; peers.{function}"
    return [sys.executable, "-c", f"{call}({', '.join(repr(str(x)) for x in arguments)})"]


def installed(*programs: str) -> bool:
    """Whether all programs are there; else say that they are passed over."""
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    for program in missing:
        print(f"skipped: {program} is not installed", file=sys.stderr)
    return not missing


def bare_loop(keys: str, count: str) -> None:
    """The floor: the same library calls and the same six files for each node, and no more."""
    root, ca = ((Path(keys, name, "cert.pem")).read_bytes() for name in ("root", "master"))
    crl = Path(keys, "client/crl.pem").read_bytes()
    data, phrase = (
        Path(keys, "master/key.pem").read_bytes(),
        PHRASES["SROS_PASSPHRASE"].encode(),
    )
    signer: Any = serialization.load_pem_private_key(data, phrase)
    model = x509.load_pem_x509_certificate(Path(keys, "client/cert.pem").read_bytes())
    extensions = [*model.extensions]
    for number in range(int(count)):
        key, name = ec.generate_private_key(ec.SECP256R1()), f"n{number}"
        cipher = serialization.BestAvailableEncryption(phrase)
        secret = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, cipher)
        common = x509.NameAttribute(x509.NameOID.COMMON_NAME, name)
        builder = (
            x509.CertificateBuilder(model.issuer, x509.Name([*[*model.subject][:-1], common]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(model.not_valid_before_utc)
            .not_valid_after(model.not_valid_after_utc)
        )
        for each in extensions:
            value = each.value
            if isinstance(value, x509.SubjectKeyIdentifier):
                value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            elif isinstance(value, x509.SubjectAlternativeName):
                value = x509.SubjectAlternativeName([x509.DNSName(name)])
            builder = builder.add_extension(value, each.critical)
        certificate = builder.sign(signer, hashes.SHA256())
        cert = certificate.public_bytes(PEM)
        Path(keys, "master/issued", f"{name}-{certificate.serial_number:X}.pem").write_bytes(
            cert
        )
        Path(keys, name).mkdir(0o700)
        files = {"key": secret, "cert": cert, "fullchain": cert + ca, "ca": root, "crl": crl}
        for file, content in files.items():
            Path(keys, name, f"{file}.pem").write_bytes(content)


def with_trustme(folder: str, count: str) -> None:
    """Make nodes with trustme, which encrypts no keys, under our CA."""
    ca = trustme.CA.from_pem(
        Path(folder, "ca.pem").read_bytes(), Path(folder, "ca.key").read_bytes()
    )
    for number in range(int(count)):
        made = ca.issue_cert(f"n{number}.example", common_name=f"n{number}")
        made.cert_chain_pems[0].write_to_path(Path(folder, f"t{number}.crt"))
        made.private_key_pem.write_to_path(Path(folder, f"t{number}.key"))


PROGRAMS = {  # of each peer: the programs that it takes, what makes its CA, what makes node $1
    "openssl genpkey, req, x509": (
        ["openssl"],
        "cp ../keys/master/key.pem ca-encrypted.key",
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc"
        " -pass env:SROS_PASSPHRASE -out $1.key && openssl req -new -key $1.key"
        " -subj /C=US/CN=$1 -passin env:SROS_PASSPHRASE -out $1.csr && openssl x509 -req"
        " -in $1.csr -CA ca.pem -CAkey ca-encrypted.key -passin env:SROS_PASSPHRASE"
        " -days 365 -extfile openssl.ext -out $1.crt",
    ),
    "easy-rsa": (
        ["easyrsa"],
        "easyrsa init-pki && easyrsa build-ca && cp pki/ca.crt own.pem",
        "easyrsa build-client-full $1 && cp pki/issued/$1.crt .",
    ),
    "cfssl (plain keys)": (
        ["cfssl", "cfssljson"],
        "true",
        'sed "s/NAME/$1/" csr.json | cfssl gencert -loglevel 5 -ca ca.pem -ca-key ca.key'
        " -config cfssl.json - | cfssljson -bare $1 && mv $1.pem $1.crt",
    ),
    "mkcert (plain keys)": (
        ["mkcert"],
        "cp ca.pem rootCA.pem && cp ca.key rootCA-key.pem",
        "mkcert -client -ecdsa -cert-file $1.crt -key-file $1.key $1.example",
    ),
    "minica (plain keys)": (
        ["minica"],
        "minica ca && cp cacert.crt own.pem && rm ca.crt",
        "minica $1",
    ),
}


def make_with(peer: str, folder: Path, count: int) -> Cost | None:
    """Make nodes with a program as its users do, in processes. None: it is not installed."""
    programs, prepare, node = PROGRAMS[peer]
    if not installed(*programs):
        return None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place, keys = Path(name), folder / "keys"
        shutil.copy(keys / "master/cert.pem", place / "ca.pem")
        plain = (
            "openssl pkey -in ../keys/master/key.pem -passin env:SROS_PASSPHRASE -out ca.key"
        )
        usage = "keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n"
        (place / "openssl.ext").write_text(f"basicConstraints=critical,CA:FALSE\n{usage}")
        profile = {"expiry": "8760h", "usages": ["digital signature", "client auth"]}
        (place / "cfssl.json").write_text(json.dumps({"signing": {"default": profile}}))
        request = {"CN": "NAME", "hosts": ["NAME"], "key": {"algo": "ecdsa", "size": 256}}
        (place / "csr.json").write_text(json.dumps(request))
        easy = {"PKI": f"{place}/pki", "ALGO": "ec", "CURVE": "prime256v1", "BATCH": "1"}
        easy |= {"PASSIN": "env:SROS_PASSPHRASE", "PASSOUT": "env:SROS_PASSPHRASE"}
        env = {**PHRASES, "CAROOT": str(place), **{f"EASYRSA_{k}": v for k, v in easy.items()}}
        spend(place, "sh", "-ec", f"{plain} && {prepare}", env=env)
        loop = f"make() {{ {node}; }}; for i in $(seq {count}); do make n$i; done"
        cost = spend(place, "bash", "-eo", "pipefail", "-c", loop, env=env)
        made, own = [*place.glob("n*.crt")], place / "own.pem"
        check_with(
            own if own.exists() else keys / "root/cert.pem", place / "ca.pem", made, count
        )
    return cost


def check_with(anchor: Path, between: Path, certificates: list[Path], count: int) -> None:
    """Have `openssl verify` look at certificates that other programs made."""
    if len(certificates) != count:
        raise WrongResult(f"{len(certificates)} certificates instead of {count}")
    spend(
        anchor.parent,
        "openssl",
        "verify",
        "-CAfile",
        anchor,
        "-untrusted",
        between,
        *certificates,
    )


def server_context(script: str, keys: str) -> ssl.SSLContext:
    """The script's own settings, for the servers that it is compared with."""
    spec = importlib.util.spec_from_file_location("script", script)
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    context: ssl.SSLContext = module.make_context(
        Path(keys), module.read_pass_phrase(Path(keys))
    )
    return context


def serve_asyncio(port: str, script: str, keys: str) -> None:
    """The script's exchange on asyncio's streams."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                writer.write(HELLO if line == HOLA else line)
                await writer.drain()
        writer.close()

    async def serve() -> None:
        context, backlog = server_context(script, keys), 2000
        server = await asyncio.start_server(
            answer, "127.0.0.1", int(port), ssl=context, limit=1 << 17, backlog=backlog
        )
        await server.serve_forever()

    asyncio.run(serve())


def serve_bare(port: str, script: str, keys: str) -> None:
    """The floor: a thread for each connection, which sends back what it reads."""
    context = server_context(script, keys)
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=2000)

    def talk(raw: socket.socket) -> None:
        with suppress(OSError), raw, context.wrap_socket(raw, server_side=True) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65536):
                connection.sendall(HELLO if data == HOLA else data)

    while True:
        Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()


NGINX = """load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; pid nginx.pid; error_log stderr error;
worker_processes 1; worker_rlimit_nofile 8192;
events { worker_connections 4096; }
stream { server { listen 127.0.0.1:PORT ssl backlog=2000; TLS return "hello\\n"; } }
http { access_log off; client_body_temp_path body; proxy_temp_path proxy;
       fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
       server { listen 127.0.0.1:HTTP ssl backlog=2000;
                TLS location / { return 200 "hello\\n"; } } }
"""
NGINX_TLS = """ssl_protocols TLSv1.3; ssl_certificate keys/server/fullchain.pem;
ssl_certificate_key keys/server/key.pem; ssl_password_file passphrase;
ssl_client_certificate keys/server/ca.pem; ssl_verify_client on; ssl_verify_depth 2;
ssl_crl keys/server/crl.pem; ssl_session_tickets off; ssl_session_cache off;"""
S_SERVER = (
    "cat keys/server/ca.pem keys/server/crl.pem >trusted.pem;"
    " exec openssl s_server -quiet -rev -accept 127.0.0.1:PORT -tls1_3 -num_tickets 0"
    " -Verify 2 -verify_return_error -x509_strict"
    " -crl_check_all -verifyCAfile trusted.pem -cert keys/server/cert.pem"
    " -cert_chain keys/server/fullchain.pem -key keys/server/key.pem -pass env:SROS_PASSPHRASE"
)


class Contender:
    """A running server of some name, and what the kernel says of its processes."""

    def __init__(self, name: str, folder: Path, scripts: Path) -> None:
        ports = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ports.append(listener.getsockname()[1])
        self.name, self.port, self.http = name, *ports
        self.answer = b"aloh\n" if name == "openssl s_server" else HELLO
        commands: dict[str, list[str]] = {
            SERVE: [
                sys.executable,
                str(scripts / SERVE),
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
            ],
            "nginx": ["nginx", "-p", str(folder), "-c", "nginx.conf"],
            "openssl s_server": ["sh", "-c", S_SERVER.replace("PORT", str(self.port))],
            ASYNCIO: here("serve_asyncio", self.port, scripts / SERVE, "keys/server"),
            BARE: here("serve_bare", self.port, scripts / SERVE, "keys/server"),
        }
        text = NGINX.replace("TLS", NGINX_TLS).replace("PORT", str(self.port))
        (folder / "nginx.conf").write_text(text.replace("HTTP", str(self.http)))
        (folder / "passphrase").write_text(PHRASES["SROS_PASSPHRASE"])
        self.log = folder / f"{name.split()[0]}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                commands[name],
                cwd=folder,
                env={**os.environ, "PATH": PATH, **PHRASES},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until = time.monotonic() + 20
        while f":{self.port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
            if time.monotonic() > until or self.process.poll() is not None:
                self.stop()
                raise WrongResult(f"{name} does not listen: {self.log.read_text()}")
            time.sleep(0.02)

    def processes(self) -> list[str]:
        """Its process and the children of that."""
        first = str(self.process.pid)
        return [first, *Path(f"/proc/{first}/task/{first}/children").read_text().split()]

    def cpu(self) -> float:
        """Seconds of CPU so far, ended threads included: clock_getcpuclockid(3)."""
        return sum(
            time.clock_gettime((~int(process) << 3) | 2) for process in self.processes()
        )

    def memory(self) -> float:
        """KiB in memory."""
        texts = [Path(f"/proc/{x}/status").read_text() for x in self.processes()]
        return sum(int(x.split("VmRSS:")[1].split()[0]) for x in texts)

    def stop(self) -> None:
        """End it, and its children with it."""
        self.process.terminate()
        self.process.wait(20)
