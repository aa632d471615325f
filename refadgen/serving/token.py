"""Makes a bearer token: `python -m refadgen.serving.token NAME` prints it and its entry for `access.tokens`."""

import hashlib
import secrets
import sys


def main() -> None:
    """Prints the token and its hash, and keeps neither."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    token = secrets.token_urlsafe(32)
    print(f"token, shown this once: {token}")
    print(f"access.tokens entry:    {sys.argv[1]}:{hashlib.sha256(token.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
