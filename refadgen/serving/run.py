"""The endpoint on loopback, with a Ray of its own, in the foreground: `make serve` and `cluster/local/serve.sh`.

    python -m refadgen.serving.run [--port N] [config=FILE] [section.field=value …]

Ray's own `serve run` has no port. Exit codes: 0 ended by Ctrl-C, 2 bad input.
"""

import argparse
import socket
import sys
from collections.abc import Sequence

from ray.serve import Application

HOST = "127.0.0.1"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", default="8000", metavar="N", help=f"of {HOST}; without it 8000")
    parser.add_argument("settings", nargs="*", metavar="section.field=value", help="see refadgen/config/serve.py")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C. Returns the exit code."""
    options = parse_arguments(arguments)
    try:
        port = free_port(options.port)
        application = _application(options.settings)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import ray
    from ray import serve

    ray.init(address="local", namespace="serve")
    try:
        start(application, port, blocking=True)
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


def start(application: Application, port: int, *, blocking: bool = False) -> None:
    """Serves the application on loopback. Ray is running, and nothing is served on it yet.

    blocking: until Ctrl-C, which is raised as KeyboardInterrupt.
    """
    from ray import serve

    serve.start(http_options={"host": HOST, "port": port})
    serve.run(application, name="refadgen", blocking=blocking)


def free_port(text: str, host: str = HOST) -> int:
    """Raises: ValueError where `text` is no port, or nobody can listen there."""
    port = int(text) if text.isascii() and text.isdecimal() else 0
    if not 0 < port < 65536:
        raise ValueError(f"--port {text}: must be a number from 1 to 65535")
    with socket.socket() as probe:
        # As the server does: connections that a server before it has closed do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port {port}: cannot listen on {host}:{port} ({error.strerror}); give another one "
                "(make serve PORT=8100)"
            ) from error
    return port


def _application(settings: Sequence[str]) -> Application:
    """The application with the settings of the command line. Raises: ValueError."""
    from refadgen.serving.app import build

    pairs = [word.partition("=") for word in settings]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{wrong[0]!r}: not of the form section.field=value")
    return build({name: value for name, _, value in pairs})


if __name__ == "__main__":
    sys.exit(main())
