import pytest

from progrpo.backoff import Backoff


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("progrpo.backoff.time.monotonic", lambda: now[0])
    return now


def test_pauses_double_up_to_the_longest_and_begin_anew(clock):
    backoff = Backoff(longest_s=5)
    assert [backoff.pause_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.pause_s() == 1


def test_patience_counts_from_what_last_got_through(clock):
    backoff = Backoff(first_s=2, patience_s=10)
    clock[0] += 8
    assert backoff.pause_s() == 2  # ends just in time
    clock[0] += 2
    assert backoff.pause_s() is None
    backoff.reset()
    assert backoff.pause_s() == 2


def test_a_longer_pause_that_was_asked_for_is_kept(clock):
    backoff = Backoff(patience_s=10)
    assert [backoff.pause_s(asked_s) for asked_s in (7, 1, 30)] == [7, 2, None]
