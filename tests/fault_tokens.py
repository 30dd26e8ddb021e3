"""Bearer tokens for tests: of the right shape, and the same in every run."""

import base64
import hashlib


def make_token(name: str) -> str:
    digest = hashlib.sha256(f"a token for {name}".encode()).digest()
    return "omni_" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def sha256(token: str) -> str:
    """As a configuration has it."""
    return hashlib.sha256(token.encode()).hexdigest()
