"""Admission and token buckets."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystyle.config import ServeConfig
from raystyle.serving.errors import RequestError
from raystyle.serving.limits import Admission, Bucket, Rates, capacity, limits, max_cells, max_choices


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 120), st.integers(1, 1000)), max_size=60),
)
def test_a_bucket_never_gives_more_than_a_minutes_worth_and_its_rate(per_minute, steps):
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    granted = []
    for passed_s, amount in steps:
        clock.now_s += passed_s
        if not bucket.take(amount):
            granted.append((clock.now_s, amount))
    for first, (start_s, _) in enumerate(granted):
        total = 0
        for at_s, amount in granted[first:]:
            total += amount
            assert total <= per_minute + (at_s - start_s) * per_minute / 60 + 1e-6


@given(st.integers(1, 1000), st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_a_bucket_gives_after_the_time_it_says_and_not_before(per_minute, amounts):
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    for amount in (min(amount, per_minute) for amount in amounts):
        wait_s = bucket.take(amount)
        if wait_s:
            clock.now_s += 0.9 * wait_s
            assert bucket.take(amount) > 0
            clock.now_s += 0.1 * wait_s + 1e-6
            assert bucket.take(amount) == 0


def test_a_bucket_takes_back_what_was_not_used_but_holds_no_more_than_a_minutes_worth():
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.take(60) == 0
    bucket.give(40)
    assert bucket.take(40) == 0
    clock.now_s += 30
    bucket.give(40)  # 30 have come meanwhile
    assert bucket.take(61) > 0 and bucket.take(60) == 0
    bucket.give(-30)  # more was used than was taken
    assert bucket.take(10) == pytest.approx(40)


@given(st.integers(1, 50), st.lists(st.integers(1, 20), max_size=40), st.randoms())
def test_admission_holds_what_is_in_flight_and_no_more(most, asked, random):
    admission, held = Admission(most), []
    for choices in asked:
        room = most - sum(n for n, _ in held)
        block = admission.admitted(choices)
        if choices <= room:
            block.__enter__()
            held.append((choices, block))
        else:
            with pytest.raises(RequestError) as caught:
                block.__enter__()
            assert caught.value.code == "server_busy" and caught.value.retry_after_s
        if held and random.random() < 0.5:
            held.pop(random.randrange(len(held)))[1].__exit__(None, None, None)
        assert admission.in_flight == sum(n for n, _ in held) <= most


def test_admission_gives_back_what_failed():
    admission = Admission(2)
    with pytest.raises(ValueError), admission.admitted(2):
        raise ValueError
    assert admission.in_flight == 0


def test_an_idle_server_is_drained_at_once_and_takes_no_more():
    admission = Admission(2)
    assert asyncio.run(admission.drain(0.01))
    with pytest.raises(RequestError, match="about to stop"), admission.admitted(1):
        pass


def test_a_drain_tells_all_though_one_is_just_giving_up():
    """Its deadline has passed, and what it cleans up takes a while: such a wait can no longer be brought forward."""

    async def waits(admission: Admission, seconds: float, cleaning_s: float) -> bool:
        with admission.admitted(1):
            try:
                async with admission.waiting_until(asyncio.get_running_loop().time() + seconds):
                    try:
                        await asyncio.sleep(60)
                    finally:
                        await asyncio.sleep(cleaning_s)
            except TimeoutError:
                return admission.is_over
        raise AssertionError

    async def scenario() -> list[bool]:
        admission = Admission(4)
        running = [asyncio.create_task(waits(admission, *times)) for times in ((0.05, 0.3), (60, 0))]
        await asyncio.sleep(0)
        assert not await admission.drain(0.15)
        return await asyncio.gather(*running)

    assert asyncio.run(scenario()) == [True, True]


def test_keys_have_rates_of_their_own():
    rates = Rates(ServeConfig(model_name_or_path="base", requests_per_minute=1))
    rates.take_request("li")
    rates.take_request("wang")
    with pytest.raises(RequestError):
        rates.take_request("li")


def test_tokens_that_a_request_did_not_make_are_its_keys_again():
    rates = Rates(ServeConfig(model_name_or_path="base", tokens_per_minute=100))
    with rates.tokens("li", 100, lambda: 20):
        for key, allowed in (("li", False), ("wang", True)):
            try:
                with rates.tokens(key, 80, lambda: 80):
                    assert allowed
            except RequestError as error:
                assert not allowed and error.code == "rate_limit_exceeded"
    with pytest.raises(ValueError), rates.tokens("li", 80, lambda: 0):
        raise ValueError
    with rates.tokens("li", 80, lambda: 80):
        pass
    with pytest.raises(RequestError, match="101 new tokens"), rates.tokens("li", 101, lambda: 0):
        pass
    assert rates.as_many_as_fit(4096) == 100


def test_no_request_is_taken_that_can_never_be_admitted():
    config = ServeConfig(model_name_or_path="base", max_batch_size=4, max_queue=2, max_n=16)
    assert (capacity(config), max_choices(config), max_cells(config)) == (6, 6, 6)
    told = "\n".join(limits(config))
    assert "choices in flight: 6 (4 on each of 1 replicas, 2 waiting)" in told and "choices of a request: 6" in told
    assert "1000000 bytes" in told and "any number of requests a minute" in told
