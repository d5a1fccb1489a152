from types import SimpleNamespace

import pytest

from g2g_utils.cache import Cache


def test_cache_forgets_the_least_recently_used():
    cache, made = Cache(100), []

    def value(name, size=40):
        return cache.get(name, lambda: made.append(name) or SimpleNamespace(nbytes=size))

    value("a"), value("b"), value("a"), value("c")
    assert made == ["a", "b", "c"] and "b" not in cache and "a" in cache
    assert cache.nbytes <= cache.limit
    value("huge", 1000)
    assert "huge" in cache and len(cache) == 1  # the newest stays, however large


def test_cache_keeps_nothing_of_a_failure():
    cache = Cache(10)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert "a" not in cache and len(cache) == 0


def test_cleared_cache_is_empty():
    cache = Cache(10)
    cache.get("a", lambda: SimpleNamespace(nbytes=4))
    cache.clear()
    assert len(cache) == cache.nbytes == 0
