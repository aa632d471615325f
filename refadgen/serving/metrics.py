"""Prometheus metrics, through Ray's own: every node exports them, with one series per replica.

Ray puts `ray_` before the names. Metrics are made on first use, so that importing this module registers nothing.
"""

import functools

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]


@functools.cache
def _requests() -> Counter:
    return Counter("refadgen_requests", "HTTP requests answered.", tag_keys=("route", "status"))


@functools.cache
def _request_seconds() -> Histogram:
    return Histogram("refadgen_request_seconds", "Time to answer.", boundaries=_SECONDS, tag_keys=("route",))


@functools.cache
def _images() -> Counter:
    return Counter("refadgen_images", "Images made, by status.", tag_keys=("status",))


@functools.cache
def _cache() -> Counter:
    return Counter("refadgen_cache_lookups", "Lookups in a cache.", tag_keys=("cache", "hit"))


@functools.cache
def _waiting() -> Gauge:
    return Gauge("refadgen_waiting_images", "Images of a replica that wait for a place in a batch.")


@functools.cache
def _rows() -> Histogram:
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    return Histogram("refadgen_batch_rows", "Images in a denoising step.", boundaries=sizes)


@functools.cache
def _step_seconds() -> Histogram:
    return Histogram("refadgen_step_seconds", "Time of a denoising step.", boundaries=_SECONDS)


def count_request(route: str, status: int, seconds: float) -> None:
    """One answered request. route: the pattern, not the path, so that the number of series stays small."""
    _requests().inc(tags={"route": route, "status": str(status)})
    _request_seconds().observe(seconds, tags={"route": route})


def count_image(status: str) -> None:
    """One image, `done` or `failed`."""
    _images().inc(tags={"status": status})


def count(cache: str, *, hit: bool) -> None:
    """One lookup in `cache`."""
    _cache().inc(tags={"cache": cache, "hit": str(hit).lower()})


def observe_step(num_rows: int, num_waiting: int, seconds: float) -> None:
    """One denoising step of a replica."""
    _rows().observe(num_rows)
    _waiting().set(num_waiting)
    _step_seconds().observe(seconds)
