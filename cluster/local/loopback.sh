# Sourced by the scripts beside it: what Ray listens on, it listens on loopback alone (not Ray Serve's replicas: README.md).
# Without the first setting, Ray replaces 127.0.0.1 by the machine's own address and listens on all of them. It is Ray's
# rule for macOS and Windows, whatever the name says; other nodes cannot join such a Ray.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_AUTH_MODE=disabled # on loopback only; cluster/ elsewhere uses tokens
export RAY_DISABLE_IMPORT_WARNING=1 RAY_USAGE_STATS_ENABLED=0
