"""The cache that is bounded in bytes."""

import threading

from refadgen.engine.cache import ByteBoundedCache


def filled(*sizes: int, max_bytes: int = 10) -> ByteBoundedCache[str]:
    """A cache of values "0", "1", … of these sizes."""
    cache: ByteBoundedCache[str] = ByteBoundedCache(max_bytes)
    for key, size in enumerate(sizes):
        cache.put(key, str(key), size)
    return cache


def kept(cache: ByteBoundedCache[str], *keys: int) -> list[int]:
    return [key for key in keys if cache.get(key) is not None]


def test_what_was_put_comes_back():
    cache = filled(3, 4)
    assert cache.get(0) == "0"
    assert cache.get(1) == "1"
    assert cache.get(2) is None
    assert (len(cache), cache.num_bytes) == (2, 7)


def test_the_bound_itself_is_allowed():
    assert kept(filled(5, 5), 0, 1) == [0, 1]


def test_what_was_put_longest_ago_goes_first():
    cache = filled(4, 4, 4)
    assert kept(cache, 0, 1, 2) == [1, 2]
    assert cache.num_bytes == 8


def test_reading_counts_as_use():
    cache = filled(4, 4)
    cache.get(0)
    cache.put(2, "2", 4)
    assert kept(cache, 0, 1, 2) == [0, 2]


def test_as_many_go_as_must():
    cache = filled(3, 3, 3, 8)
    assert kept(cache, 0, 1, 2, 3) == [3]
    assert cache.num_bytes == 8


def test_a_key_put_again_has_the_new_value_and_size():
    cache = filled(9)
    cache.put(0, "new", 2)
    assert (cache.get(0), len(cache), cache.num_bytes) == ("new", 1, 2)


def test_a_key_put_again_counts_as_used():
    cache = filled(4, 4)
    cache.put(0, "0", 4)
    cache.put(2, "2", 4)
    assert kept(cache, 0, 1, 2) == [0, 2]


def test_too_large_a_value_is_not_kept_and_drives_nothing_out():
    cache = filled(4, 4, 11)
    assert kept(cache, 0, 1, 2) == [0, 1]
    assert cache.num_bytes == 8


def test_too_large_a_value_does_not_leave_the_old_one_under_its_key():
    cache = filled(4)
    cache.put(0, "too large", 11)
    assert cache.get(0) is None
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_without_room_nothing_is_kept():
    cache = filled(1, max_bytes=0)
    assert cache.get(0) is None
    assert cache.num_bytes == 0


def test_threads_share_it():
    cache: ByteBoundedCache[int] = ByteBoundedCache(100)
    wrong: list[object] = []

    def work(start: int) -> None:
        for n in range(start, start + 2000):
            cache.put(n % 37, n % 37, 1 + n % 37)
            found = cache.get((n * 7) % 37)
            if found not in (None, (n * 7) % 37):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [key for key in range(37) if cache.get(key) is not None]
    assert not wrong
    assert left
    assert cache.num_bytes == sum(1 + key for key in left) <= 100
