"""Saved artifacts changed by hand or by chance, for tests of what is refused."""

import hashlib
import json
import os
import random
from contextlib import contextmanager

DEEP = 100_000


def sealed(text: str) -> str:
    """A description with the checksum that fits its content, where it is one."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(said, dict):
        return text
    said.pop("checksum", None)
    content = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(said | {"checksum": hashlib.sha256(content).hexdigest()})


def of_format_1(said: dict) -> str:
    """A description as it was written before there were checksums."""
    newer = ("checksum", "k", "weights_sha256")
    said = {name: value for name, value in said.items() if name not in newer} | {"format": 1}
    if "pool" in said:
        said["pool"] = json.loads(of_format_1(said["pool"]))
    return json.dumps(said)


def flips(data: bytes, count: int, seed: int = 0):
    """So many copies of the data, each with another bit flipped."""
    for place in random.Random(seed).sample(range(8 * len(data)), min(count, 8 * len(data))):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


@contextmanager
def unprivileged():
    """As a user whom permissions bind."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
