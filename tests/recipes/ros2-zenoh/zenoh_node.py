"""Runs a zenoh router, a talker or a listener by its name, with the keys in keys/NAME."""

import base64
import json
import os
import signal
import sys
from pathlib import Path

import zenoh
from cryptography.hazmat.primitives import serialization as pem

# The topic chatter of ROS 2's demo nodes, in domain 0: its name, its type, the type's hash.
CHATTER = (
    "0/chatter/std_msgs::msg::dds_::String_/"
    "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
)


def open_session(name: str) -> zenoh.Session:
    """Open a session as NAME.json5 says, with the key of NAME decrypted in memory."""
    config = zenoh.Config.from_file(f"{name}.json5")

    encrypted = Path("keys", name, "key.pem").read_bytes()
    key = pem.load_pem_private_key(encrypted, os.environb[b"SROS_PASSPHRASE"])
    plain = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    text = json.dumps(base64.b64encode(plain).decode())

    # A router listens, the others connect.
    if name == "router":
        config.insert_json5("transport/link/tls/listen_private_key_base64", text)
    else:
        config.insert_json5("transport/link/tls/connect_private_key_base64", text)
    return zenoh.open(config)


def talk(session: zenoh.Session) -> None:
    """Publish each line of standard input."""
    publisher = session.declare_publisher(CHATTER)
    for line in sys.stdin:
        publisher.put(line.strip())
        print(f"said: [{line.strip()}]", flush=True)


def listen(session: zenoh.Session) -> None:
    """Print what is published, until Ctrl-C."""
    subscriber = session.declare_subscriber(CHATTER)
    print("listening", flush=True)
    for sample in subscriber:
        print(f"heard: [{sample.payload.to_string()}]", flush=True)


def main() -> None:
    """Run the node that is named on the command line."""
    name = sys.argv[1]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    zenoh.init_log_from_env_or("warn")
    try:
        session = open_session(name)
    except zenoh.ZError as error:
        sys.exit(f"zenoh_node.py: error: {error}")
    with session:
        if name == "router":
            print("routing", flush=True)
            signal.pause()
        elif name == "talker":
            talk(session)
        else:
            listen(session)


main()
