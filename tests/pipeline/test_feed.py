"""Prompts read in a thread arrive in order, bounded, and so do errors."""

import asyncio
import time

import pytest

from aisp_ray.pipeline.feed import Feed


def test_prompts_arrive_in_order_and_are_counted():
    async def go():
        feed = Feed(lambda: iter(range(100)), ahead=3)
        got = [item async for item in feed]
        return got, feed.total

    assert asyncio.run(go()) == (list(range(100)), 100)


def test_the_reader_waits_for_the_taker_and_stops_when_told():
    read = []

    def prompts():
        for i in range(1000):
            read.append(i)
            yield i

    async def go():
        feed = Feed(prompts, ahead=5)
        await anext(feed)
        await asyncio.sleep(0.1)
        ahead = len(read)
        feed.close()
        deadline = time.monotonic() + 5
        while feed._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return ahead, feed._thread.is_alive()

    ahead, alive = asyncio.run(go())
    assert ahead <= 8
    assert not alive


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_no_prompt_is_lost_whoever_is_faster(ahead):
    def slow():
        for i in range(40):
            time.sleep(0.001 * (i % 3 == 0))
            yield i

    async def go():
        got = []
        async for item in Feed(slow, ahead=ahead):
            got.append(item)
            assert len(got) <= item + 1
            if item % 5 == 0:
                await asyncio.sleep(0.002)
        return got

    assert asyncio.run(go()) == list(range(40))


def test_an_error_of_the_reader_is_raised_where_prompts_are_taken():
    def prompts():
        yield 1
        raise ValueError("no such column")

    async def go():
        feed = Feed(prompts)
        assert await anext(feed) == 1
        with pytest.raises(ValueError, match="no such column"):
            await anext(feed)

    asyncio.run(go())
