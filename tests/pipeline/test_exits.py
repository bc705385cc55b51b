"""How a run ends: an exit by somebody else's code is never a success."""

import asyncio
import io

import pytest

from aisp_ray.data.prompts import Prompts
from aisp_ray.data.stream import parse_record
from aisp_ray.errors import FAILED, REFUSED, RefusedError
from aisp_ray.pipeline.exits import Ending
from aisp_ray.pipeline.progress import Screen


async def leave(code):
    raise SystemExit(code)


async def in_the_task(code):
    await leave(code)


async def in_another_task(code):
    await asyncio.create_task(leave(code))


async def in_a_group(code):
    async with asyncio.TaskGroup() as group:
        group.create_task(leave(code))


async def in_a_thread(code):
    await asyncio.to_thread(lambda: (_ for _ in ()).throw(SystemExit(code)))


@pytest.mark.parametrize("code", [0, None, "bye", 3])
@pytest.mark.parametrize("where", [in_the_task, in_another_task, in_a_group, in_a_thread])
@pytest.mark.parametrize("guarded", [False, True])
def test_an_exit_from_anywhere_is_a_failure(where, code, guarded):
    shown = io.StringIO()
    ending = Ending(Screen(shown), "out")

    async def main():
        return await ending.guard(where(code)) if guarded else await where(code)

    assert ending.run(main) == FAILED
    assert "SystemExit" in shown.getvalue()


def test_a_refusal_is_a_sentence_without_its_place(capsys):
    async def main():
        raise RefusedError("give another out, not s3://k:s@b")

    assert Ending(Screen(io.StringIO()), "out").run(main) == REFUSED
    assert capsys.readouterr().err == "error: give another out, not s3://***@b\n"


def test_a_parser_that_exits_is_an_error_of_its_row():
    class Leaving(Prompts):
        def parse(self, row):
            raise SystemExit(0)

    assert "SystemExit" in parse_record({"row": {"prompt": "x"}}, Leaving(path="x")).error
