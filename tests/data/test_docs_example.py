"""The page's example of a data set of one's own is what it says."""

import json
import re
from pathlib import Path

from aisp_ray.data.stream import rows_locally

PAGE = Path(__file__).parent.parent.parent / "docs" / "data.md"


def test_the_set_on_the_page_streams(tmp_path):
    source = re.search(r"```python\n(from collections.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    scope = {}
    exec(compile(source, str(PAGE), "exec"), scope)
    path = tmp_path / "riddles.jsonl"
    rows = [{"riddle": "What has keys and no locks?", "solution": "a piano"}, {"riddle": None}, {"other": 1}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    spec = scope["Riddles"](path=str(path), hint="One word.")
    assert spec.check() == []
    found = list(rows_locally(spec))
    assert found[0].prompt_id == "riddles/test/00000000"
    assert found[0].text == "What has keys and no locks? One word."
    assert found[0].meta == {"answer": "a piano"}
    assert [prompt.error for prompt in found[1:]] == ["the row has no riddle"] * 2
