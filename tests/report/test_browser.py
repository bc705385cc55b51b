"""The page in a real browser: it opens from a file without network, searches, sorts, and shows a prompt."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from chromium import browse, find
from made_rows import made_error, made_row, write_output

from aisp_ray.report.figures.evaluation import best_reward, paired_scatter
from aisp_ray.report.write import make_report

pytest.importorskip("aiohttp", reason="aiohttp drives the browser")
pytestmark = pytest.mark.skipif(find() is None, reason="no Chromium or Chrome is installed")

METHODS = ("best_of_n", "noise_only", "aisp")
VISIBLE = "[...document.querySelectorAll('.item')].map((item) => item.querySelector('small').textContent.split(' ')[0])"


def made_page(folder: Path, prompts: int, different: int = 1000) -> str:
    """A report's page; rows beyond `different` prompts repeat earlier numbers, so that many are quickly made."""
    made = {(method, i): made_row(method, i, 0) for method in METHODS for i in range(min(prompts, different))}
    names = {i: {"ordinal": i, "prompt_id": f"made/test/{i:08d}"} for i in range(prompts)}
    rows = [made[method, i % different] | names[i] for method in METHODS for i in range(prompts)]
    rows[prompts + 7]["response"] = "<script>document.title = 'taken over'</script> the ZEBRA crossed"
    rows.append(made_error("aisp", prompts, 0))
    return Path(make_report(str(write_output(folder / "out", rows))).page).as_uri()


async def choose(tab, name: str, value: str) -> None:
    await tab.evaluate(f"{name}.value = {value!r}; {name}.dispatchEvent(new Event('change')); null")


async def search(tab, text: str, count: int) -> list[str]:
    script = f"document.getElementById('search').value = {text!r};"
    await tab.evaluate(script + "document.getElementById('search').dispatchEvent(new Event('input')); null")
    await tab.until(f"report.shown.length === {count}")
    return await tab.evaluate(VISIBLE)


def keep(tab, name: str, tmp_path: Path):
    """A screenshot, kept where REPORT_SCREENSHOTS says."""
    return tab.screenshot(Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path)) / f"{name}.png")


def test_the_page_searches_sorts_and_opens_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", (best_reward, paired_scatter))
    url = made_page(tmp_path, 60)
    figures = len(list((tmp_path / "out" / "report" / "figures").glob("*.svg")))
    rewards = {m: [made_row(m, i, 0)["reward"] for i in range(60)] for m in METHODS}
    gains = [a - b for a, b in zip(rewards["aisp"], rewards["best_of_n"], strict=True)]

    async def visit(tab):
        await tab.until("document.body?.dataset.ready === 'true'")
        assert await tab.evaluate("document.querySelectorAll('figure svg').length") == figures > 2
        assert (await tab.evaluate(VISIBLE))[0] == "made/test/00000000"

        await choose(tab, "order", "gain")
        best = max(range(60), key=lambda i: gains[i])
        assert (await tab.evaluate(VISIBLE))[0] == f"made/test/{best:08d}"
        shown = await tab.evaluate("document.querySelector('.item i').textContent")
        assert shown == f"+{gains[best]:.3f}"

        await choose(tab, "filter", "losses")
        assert await tab.evaluate("report.shown.length") == sum(g < -1e-6 for g in gains)
        await choose(tab, "filter", "errors")
        assert await tab.evaluate(VISIBLE) == ["made/test/00000060"]
        await choose(tab, "filter", "all")

        assert await search(tab, "zebra CROSSED", 1) == ["made/test/00000007"]
        await tab.evaluate("document.querySelector('.item').click(); null")
        cards = await tab.evaluate("[...document.querySelectorAll('.card')].map((card) => card.textContent)")
        assert [card.split("reward")[0] for card in cards] == list(METHODS)
        assert f"reward {rewards['aisp'][7]:.3f}".replace("-", "\u2212") in cards[2]
        assert "<script>" in cards[1]
        assert await tab.evaluate("document.title") == "made"
        assert await tab.evaluate("document.querySelector('mark').textContent") == "ZEBRA"
        assert await tab.evaluate("location.hash") == "#made%2Ftest%2F00000007"

        await search(tab, "", 61)
        await tab.evaluate("document.getElementById('list').focus(); null")
        await tab.key("ArrowDown")
        assert await tab.evaluate(
            "report.chosen === report.shown[report.shown.findIndex((e) => e.id.endsWith('07')) + 1]"
        )

        found = []
        for theme in ("light", "dark"):
            found.append(await colours(tab, theme))
            await keep(tab, theme, tmp_path)
        assert found[0] != found[1]
        before = await colours(tab, "light")
        await tab.evaluate("document.getElementById('theme').click(); null")
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") != before

        assert [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))] == []
        assert tab.problems == []

    browse(url, visit, tmp_path)


def test_an_address_that_names_no_prompt_opens_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    url = made_page(tmp_path, 8)

    async def visit(tab):
        for place in ("#%", "#%E0%A4%A", "#nothing"):
            for address in ("about:blank", url + place):
                await tab.call("Page.navigate", url=address)
            await tab.until(f"document.body?.dataset.ready === 'true' && location.hash === {place!r}")
            assert await tab.evaluate("report.chosen.id") == "made/test/00000000"
        assert tab.problems == []

    browse(url, visit, tmp_path)


def colours(tab, theme: str):
    script = f"document.documentElement.dataset.theme = {theme!r}; getComputedStyle(document.body).backgroundColor"
    return tab.evaluate(script)


async def timed(tab, change: str) -> float:
    """Milliseconds from a change of the controls to the new list."""
    script = f"(() => {{ const t = performance.now(); {change}; report.refresh(); return performance.now() - t }})()"
    return await tab.evaluate(script)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_stays_quick_with_ten_thousand_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())
    url = made_page(tmp_path, 10_000)

    async def visit(tab):
        loaded = await tab.until("document.body?.dataset.ready === 'true' && performance.now()", 120)
        assert loaded < 30_000
        assert await tab.evaluate("document.querySelectorAll('.item').length") < 60
        await tab.evaluate("document.getElementById('list').scrollTop = 9990 * 46; null")
        await asyncio.sleep(0.2)
        assert "made/test/00009995" in await tab.evaluate(VISIBLE)
        assert await timed(tab, "order.value = 'gain'") < 2_000
        assert await timed(tab, "document.getElementById('search').value = 'zebra'") < 4_000
        assert await tab.evaluate(VISIBLE) == ["made/test/00000007"]
        await keep(tab, "ten_thousand", tmp_path)

    try:
        browse(url, visit, tmp_path)
    finally:
        shutil.rmtree(tmp_path / "out")
