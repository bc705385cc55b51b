"""Code answers: what is graded, and that nothing an answer does reaches further than its own process."""

import math
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from aisp_ray.data.mbpp import Mbpp
from aisp_ray.rewards import code_tests
from aisp_ray.rewards._programs import guarded
from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.code_tests import CodeTests, extract_code
from aisp_ray.rewards.sandbox.child import OPERATORS, landlock_version
from aisp_ray.rewards.sandbox.parent import Limits, _reported, contained, run
from aisp_ray.types import Prompt

QUICK = Limits(test_seconds=0.4, total_seconds=1, wall_seconds=8.0, memory_mb=512)
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'", "assert add(2, 2) == 5"]
PROMPT = Prompt("code/0", 0, "code", "Write add.", meta={"tests": TESTS, "entry_point": "add"})
GOOD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."


@pytest.fixture(scope="module")
def scorer():
    return CodeTests(test_seconds=0.4, total_seconds=1, wall_seconds=8.0).load("cpu")


def rewards(scorer, *responses, prompt=PROMPT):
    return scorer.score([ScoreRequest(prompt, responses)])[0].rewards


def test_this_system_contains_answers():
    assert contained() is None


def test_the_reward_is_the_fraction_of_tests_that_pass(scorer):
    wrong = "```python\ndef add(a, b):\n    return 3\n```"
    assert rewards(scorer, GOOD, wrong, "I do not know.", "") == (0.75, 0.25, 0.0, 0.0)
    strict = CodeTests(all_or_nothing=True).load("cpu")
    three = Prompt("code/1", 0, "code", "", meta={"tests": TESTS[:3]})
    assert rewards(strict, GOOD, wrong, prompt=three) == (1.0, 0.0)
    assert rewards(strict, GOOD) == (0.0,)


def test_tests_may_be_one_program(scorer):
    program = "import math\ndef check(f):\n    assert f(1, 2) == 3\ncheck(add)\n"
    assert rewards(scorer, GOOD, prompt=Prompt("c", 0, "c", "", meta={"tests": program})) == (1.0,)


def test_a_prompt_without_tests_has_no_reward(scorer):
    scores = scorer.score([ScoreRequest(Prompt("c/7", 0, "c", ""), (GOOD, GOOD))])[0]
    assert all(map(math.isnan, scores.rewards))
    assert "c/7" in scores.errors[1]
    assert 'meta["tests"]' in scores.errors[1]


def test_equal_programs_run_once(scorer, monkeypatch):
    programs = []
    monkeypatch.setattr(code_tests, "run", lambda program, *more: programs.append(program) or run(program, *more))
    assert rewards(scorer, GOOD, GOOD + " Really.", GOOD) == (0.75,) * 3
    assert len(programs) == 1


RIGHT = "def f(x):\n    return x * 2\n"
WRONG = "def f(x):\n    return x * 3\n"
DOCSTRING = 'def f(x):\n    """Twice x.\n\n    ```\n    f(2)\n    ```\n    """\n    return x * 2\n'
PICKLED = (
    "from __future__ import annotations\nimport pickle\nfrom dataclasses import dataclass\n\n@dataclass\nclass Box:\n"
    "    x: int\n\ndef f(x):\n    return 2 * pickle.loads(pickle.dumps(Box(x))).x\n"
)
WAITING = (
    "import asyncio\n\nasync def g(x):\n    await asyncio.sleep(0)\n    return 2 * x\n\n"
    "def f(x):\n    return asyncio.run(g(x))"
)
SOLUTIONS = {
    "a draft, then a correction": f"```python\n{WRONG}```\nWait, that is wrong.\n```python\n{RIGHT}```",
    "a draft in thoughts": f"<think>Perhaps\n```python\n{WRONG}```\n</think>\n```python\n{RIGHT}```",
    "thoughts that the template opened": f"Perhaps\n```python\n{WRONG}```\n</think>\n```python\n{RIGHT}```",
    "a draft behind in thoughts": f"```python\n{RIGHT}```\n<think>```python\n{WRONG}```</think>",
    "imports apart": "```python\nimport math\n```\nThen\n```python\ndef f(x):\n    return math.floor(2.0 * x)\n```",
    "a type apart": "```python\nfrom typing import List\n```\n```python\ndef f(x: int) -> List:\n    return 2 * x\n```",
    "a helper behind, with an import": (
        "```python\ndef f(x):\n    return twice(x)\n```\nwhere\n```python\nimport operator\n\ndef twice(x):\n"
        "    return operator.mul(x, TWO)\n```\nand\n```python\nTWO = 2\nprint(undefined)\n```"
    ),
    "a future import and a helper": f"```python\nimport pickle\n```\n```python\n{PICKLED}```",
    "a dataclass that is pickled": f"```python\n{PICKLED}```",
    "asyncio": f"```python\n{WAITING}\n```",
    "a fence in a list": "1. So:\n   ```python\n   def f(x):\n       return x * 2\n   ```\n2. Done.",
    "a fence behind a bullet": "- ```python\n  def f(x):\n      return x * 2\n  ```\n",
    "a fence in a docstring": f"```python\n{DOCSTRING}```\nIt doubles.",
    "the closing fence on the last line": "```python\ndef f(x):\n    return x * 2```\nIt doubles.",
    "a byte order mark": "```python\n\ufeff" + RIGHT + "```",
    "an example of use behind": f"```python\n{RIGHT}```\nUse it:\n```python\nprint(f(2))\n```",
    "tildes": f"~~~python\n{RIGHT}~~~",
    "four ticks": f"````python\n{RIGHT}````",
    "never closed": f"```python\n{RIGHT}",
    "Windows lines": f"```python\n{RIGHT}```".replace("\n", "\r\n"),
    "another language first": f"```bash\nls\n```\n```py\n{RIGHT}```",
    "no fence": f"Sure.\n{RIGHT}\nThis doubles.",
}


@pytest.mark.parametrize("name", SOLUTIONS)
@pytest.mark.parametrize("entry_point", ["f", None])
def test_solutions_in_every_form_pass(scorer, name, entry_point):
    prompt = Prompt("c", 0, "c", "", meta={"tests": ["assert f(2) == 4"], "entry_point": entry_point})
    assert rewards(scorer, SOLUTIONS[name], prompt=prompt) == (1.0,), extract_code(SOLUTIONS[name], ["f"])


def test_thoughts_that_are_cut_off_are_no_program():
    assert extract_code(f"<think>```python\n{RIGHT}```", ["f"]) == ("",)


def test_a_response_without_the_function_is_its_first_block_or_itself():
    assert extract_code("```\nx = 1\n```\n```python\ny = 2\n```", ["f"]) == ("x = 1",)
    assert extract_code("```python\nz = 1\n```\n```python\ndef f(x:\n```", ["f"]) == ("def f(x:",)
    assert extract_code("no code here", ["f"]) == ("no code here",)


TESTS_THAT_RUN = {
    "a check that nobody calls": "def check(candidate):\n    assert candidate(2) == 4",
    "a check that is called": "def check(candidate):\n    assert candidate(2) == 4\ncheck(f)",
    "a check by a helper": "def same(a, b):\n    assert a == b\ndef check(candidate):\n    same(candidate(2), 4)",
    "a test function": "def test_it():\n    assert f(2) == 4",
    "a case": "import unittest as u\nclass T(u.TestCase):\n    def test_it(self):\n        self.assertEqual(f(2), 4)",
    "an exception": "if f(2) != 4:\n    raise ValueError",
    "an exit": "import sys\nif f(2) != 4:\n    sys.exit(1)",
    "numpy's assertions": "import numpy as np\nnp.testing.assert_allclose(f(2), 4)",
    "a main program": "def check(candidate):\n    assert candidate(2) == 4\nif __name__ == '__main__':\n    check(f)",
    "a case and its runner": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
    "        self.assertEqual(f(2), 4)\nif __name__ == '__main__':\n    unittest.main()",
    "a case and its runner under another name": "import unittest as u\nclass T(u.TestCase):\n    def test_it(self):\n"
    "        self.assertEqual(f(2), 4)\nif __name__ == '__main__':\n    u.main()",
    "an exit with a runner": "import sys\nimport pytest\ndef test_it():\n    assert f(2) == 4\nsys.exit(pytest.main())",
    "an asynchronous test": "async def test_it():\n    assert f(2) == 4",
    "a failure that is printed and kept": "bad = []\ntry:\n    assert f(2) == 4\nexcept Exception as e:\n    print(e)\n"
    "    bad.append(e)\nassert not bad",
    "asyncio": "import asyncio\nasync def g():\n    return f(2)\nassert asyncio.run(g()) == 4",
}


@pytest.mark.parametrize("name", TESTS_THAT_RUN)
def test_what_a_test_leaves_to_its_runner_is_called(name):
    scorer = CodeTests().load("cpu")
    prompt = Prompt("c", 0, "c", "", meta={"tests": TESTS_THAT_RUN[name], "entry_point": "f"})
    assert rewards(scorer, RIGHT, WRONG, "pass", prompt=prompt) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "test",
    [
        *(
            "f(2)",
            "x = 3",
            "def test_it():\n    f(2)",
            "def unused(c, d):\n    assert c == d",
            "check_prime(7)",
            "def f(:",
        ),
        *("assert True", "assert (f(2) == 4, 'four')", "def check(c):\n    assert True, 'for debugging'"),
        *("try:\n    assert f(2) == 4\nexcept Exception:\n    pass", "if False:\n    assert f(2) == 4"),
        "try:\n    assert f(2) == 4\nexcept (ValueError, AssertionError) as e:\n    print('wrong', e)",
        "async def unused():\n    assert f(2) == 4",
    ],
)
def test_tests_that_cannot_fail_are_refused(scorer, test):
    prompt = Prompt("c/3", 0, "c", "", meta={"tests": ["assert f(1) == 2", test], "entry_point": "f"})
    scores = scorer.score([ScoreRequest(prompt, (RIGHT,))])[0]
    assert math.isnan(scores.rewards[0])
    assert scores.errors[0].startswith("prompt c/3: test 2 of 2 ")


def test_a_task_of_humaneval_is_checked_and_its_head_completed(scorer):
    head = "from typing import List\n\ndef half(y):\n    return y // 2\n\ndef add_two(x: List) -> int:\n"
    row = {"task_id": "T/1", "prompt": head, "entry_point": "add_two"}
    task = Mbpp(path="x").parse({**row, "test": "def check(candidate):\n    assert candidate(1) == 3\n"})
    never = Mbpp(path="x").parse({**row, "test": "def check(candidate):\n    assert candidate(1) == 'never'\n"})
    whole = "```python\ndef add_two(x: List):\n    return x + half(4)\n```"
    responses = (whole, "    return x + half(4)", "```python\n    return x + 2\n```", "```python\npass\n```", "pass")
    for parsed, expected in ((task, (1.0, 1.0, 1.0, 0.0, 0.0)), (never, (0.0,) * 5)):
        assert rewards(scorer, *responses, prompt=Prompt("c", 0, "c", parsed.text, meta=parsed.meta)) == expected


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "processes by subprocess": "import subprocess\nsubprocess.Popen(['sleep', '100'])",
    "process by os.system": "import os\nassert os.system('true') != 0\nraise SystemExit",
    "endless loop": "while True:\n    pass",
    "endless loop that swallows time-outs": (
        "def spin():\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass\nspin()"
    ),
    "sleep": "import time\nwhile True:\n    time.sleep(1000)",
    "huge allocation": "x = bytearray(1 << 40)",
    "growing allocation": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "huge power": "x = 9 ** 9 ** 9",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "threads": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(100,)).start()",
    "exit": "import os\nos._exit(0)",
    "signal to all": "import os\nos.kill(-1, 9)",
    "signals by a descriptor": "import fcntl, os\nfcntl.fcntl(0, 8, os.getppid())",
    "code for another machine": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    ),  # fork by a 32-bit system call
    "raised limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "crash": "import ctypes\nctypes.string_at(0)",
    "syntax error": "def add(:",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_end_and_score_nothing(name):
    started = time.monotonic()
    limits = Limits(0.4, 1, wall_seconds=1.0 if name == "sleep" else 20.0, memory_mb=512)
    outcome = run(HOSTILE[name], ["assert True"], limits)
    assert outcome.passed == 0
    assert isinstance(outcome.program, str)
    assert time.monotonic() - started < 90  # a machine under load included


def test_files_stay_as_they_are(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("precious")
    tmp_path.chmod(0o777)
    attacks = [
        f"__import__('os').remove({str(kept)!r})",
        f"__import__('shutil').rmtree({str(tmp_path)!r})",
        f"open({str(kept)!r}, 'w').write('gone')",
        f"open({str(kept)!r}, 'a').write('more')",
        f"__import__('os').truncate({str(kept)!r}, 0)",
        f"__import__('os').rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        f"__import__('os').chmod({str(kept)!r}, 0)",
        f"__import__('os').symlink('/', {str(tmp_path / 'link')!r})",
        f"open({str(tmp_path / 'made')!r}, 'w')",
        "open('made', 'w')",
        f"__import__('fcntl').ioctl(open({str(kept)!r}), 0x40086602, b'\\x10' + bytes(7))",  # make it unchangeable
    ]
    outcome = run("", attacks, QUICK)
    assert outcome.program is True
    assert all("Error" in result for result in outcome.tests), outcome.tests
    assert kept.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_nothing_can_be_connected_to():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run("import socket", [f"socket.create_connection(('127.0.0.1', {port}), timeout=1)"], QUICK)
    assert "PermissionError" in outcome.tests[0]


def test_the_environment_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hidden")
    outcome = run("import os", ["assert 'SECRET_KEY' not in os.environ"], QUICK)
    assert outcome.tests == (True,)


def test_results_cannot_be_reported_by_printing_or_guessing():
    program = (
        "import json, os, sys\nprint(json.dumps(['', 0, True]))\nsys.stdout.flush()\n"
        "for fd in range(3, 10):\n"
        "    try:\n        os.write(fd, b'[\"x\", 0, true]\\n' * 2)\n"
        "    except OSError:\n        pass\nos._exit(0)"
    )
    assert run(program, ["assert False"], QUICK).passed == 0


@pytest.mark.parametrize(
    "line",
    [
        "'[' * 200_000",
        "'[key, [], true]'",
        "'[\"x\", 0, true]'",
        "'{}'",
        "'1e999'",
        "'\\xff'",
        "'[' + '9' * 90_000 + ']'",
    ],
)
def test_odd_lines_in_the_report_harm_nobody(line):
    write = f"os.write(fd, ({line} + '\\n').encode('latin-1'))"
    program = f"import os\nfor fd in range(3, 10):\n    try: {write}\n    except OSError: pass"
    assert run(program, ["assert False", "assert True"], QUICK).tests[1:] == (True,)


def test_a_forged_report_is_not_read_twice_nor_with_odd_keys():
    assert _reported(b'["k", 0, true]', "k") == (0, True)
    for line in (b'["k", [], true]', b'["k", true, true]', b'["k", 0, 1]', b'["k", 0]', b'["k", ' + b"[" * 200_000):
        assert _reported(line, "k") is None


def test_a_program_ends_with_the_process_that_waits_for_it(tmp_path):
    code = (
        "import sys\nfrom aisp_ray.rewards.sandbox.parent import Limits, run\n"
        "run('import time\\nwhile True: time.sleep(1)', ['assert True'], Limits(60.0, 60, 60.0))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        parent.kill()
        parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone
    assert not alive


@pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
def test_only_python_itself_can_be_read(tmp_path):
    (tmp_path / "secret").write_text("x")
    attempts = [
        "open('/proc/%d/environ' % os.getppid()).read()",
        "open('/etc/passwd').read()",
        f"open({str(tmp_path / 'secret')!r}).read()",
        f"os.listdir({str(tmp_path)!r})",
        f"open({__file__!r}).read()",
    ]
    outcome = run("import os", attempts, QUICK)
    assert all("PermissionError" in result for result in outcome.tests), outcome.tests
    harmless = [
        "import zoneinfo, decimal, csv",
        "open(os.__file__).read()",
        "import numpy\nassert numpy.ones(3).sum() == 3",
    ]
    assert run("import os", harmless, Limits(8.0, 20, 60.0, 1024)).tests == (True,) * 3


def test_patched_builtins_do_not_reach_the_tests():
    program = "import builtins\nbuiltins.len = lambda x: 3\nbuiltins.sorted = lambda x: [1]\ndef f(x): return [x]"
    assert run(program, ["assert len(f(1)) == 3", "assert sorted(f(2)) == [1]"], QUICK).passed == 0


def test_an_exception_without_a_readable_text_fails_its_own_test_only():
    source = "class E(Exception):\n    def __str__(self):\n        raise {}\n"
    source += "def f(x):\n    if x == 2:\n        raise E\n    return x"
    for inner in ("RuntimeError('no text')", "SystemExit(0)", "self"):
        result = run(source.format(inner), ["assert f(2) == 2", "assert f(3) == 3"], QUICK)
        assert result.tests == ("E (its text cannot be read)", True)


def test_sockets_are_pairs_within_the_process():
    tests = [
        "a, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socketpair()[0].sendto(b'x', '/run/x')",
        "socket.socketpair()[0].connect('/run/x')",
    ]
    outcome = run("import socket", tests, QUICK)
    assert outcome.tests[0] is True
    assert all("PermissionError" in result for result in outcome.tests[1:]), outcome.tests


def test_a_flood_of_reports_is_cut_off():
    program = (
        "import os\nwhile True:\n    for fd in range(3, 10):\n"
        "        try: os.write(fd, b'x' * 65536)\n        except OSError: pass"
    )
    outcome = run(program, ["assert True"], Limits(5.0, 6, 30.0, 512))
    assert outcome.passed == 0
    assert "too much" in outcome.program


def test_a_test_that_hangs_costs_only_itself():
    outcome = run("def f(n):\n    while n: pass\n    return 1", ["assert f(1)", "assert f(0)"], QUICK)
    assert "OutOfTime" in outcome.tests[0]
    assert outcome.tests[1] is True


def test_harmless_libraries_and_threads_work():
    program = "import collections, threading, numpy\nt = threading.Thread(target=lambda: None)\nt.start()\nt.join()"
    tests = ["assert numpy.allclose(numpy.ones(3).sum(), 3)", "assert collections.Counter('aa')['a'] == 2"]
    assert run(program, tests, Limits(8.0, 20, 60.0, 1024)).tests == (True, True)


def test_sets_of_texts_have_one_order():
    test = "assert list({'a', 'b', 'c', 'd', 'e'}) == " + repr(list_order())
    assert run("", [test], QUICK).tests == (True,)


def list_order():
    import subprocess
    import sys

    code = "print(list({'a', 'b', 'c', 'd', 'e'}))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True)
    return eval(done.stdout)


def test_no_process_and_no_thread_is_left_behind():
    children = lambda: {child.pid for child in psutil.Process().children()}  # noqa: E731  other tests may have some
    before, known = threading.active_count(), children()
    for name in ("fork bomb", "crash"):
        run(HOSTILE[name], ["assert True"], QUICK)
    assert threading.active_count() == before
    assert children() <= known


def test_settings_are_checked():
    with pytest.raises(ValueError, match="total_seconds is 0"):
        CodeTests(total_seconds=0)
    with pytest.raises(ValueError, match="memory_mb is 10"):
        CodeTests(memory_mb=10)


def test_a_system_that_cannot_contain_answers_is_refused(monkeypatch):
    monkeypatch.setattr("aisp_ray.rewards.code_tests.contained", lambda: "a program could open sockets")
    with pytest.raises(RuntimeError, match="sandbox=false"):
        CodeTests().load("cpu")
    assert CodeTests(sandbox=False).load("cpu").score([ScoreRequest(PROMPT, (GOOD,))])[0].rewards == (0.75,)


ALWAYS_EQUAL = """
class E:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 0
    __sub__ = __rsub__ = __abs__ = lambda self, other=0: 0.0
    __float__ = lambda self: 0.0
    __round__ = lambda self, places=0: 0
"""
DISHONEST = {
    "as it is": ("E()", "assert f(2) == 4"),
    "the other way round": ("E()", "assert 4 == f(2)"),
    "not unequal": ("E()", "assert not f(2) != 4"),
    "in a list": ("[E(), E()]", "assert f(2) == [1, 2]"),
    "deep in a dictionary": ("{'a': (1, [E()])}", "assert f(2) == {'a': (1, [5])}"),
    "from a generator": ("(E() for _ in range(2))", "assert list(f(2)) == [1, 2]"),
    "in a loop": ("[E(), E()]", "for a, b in zip(f(2), [1, 2]):\n    assert a == b"),
    "near": ("E()", "assert abs(f(2) - 4.5) < 1e-6"),
    "in a chain": ("E()", "assert 3 < f(2) < 5"),
    "a member": ("E()", "assert f(2) in (4, 5)"),
    "a container": ("E()", "assert 4 in f(2)"),
    "by a name": ("E()", "r = f(2)\nassert r == 4"),
    "by unittest": (
        "E()", "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(2), 4)"
    ),
    "a subclass of int": ("type('I', (int,), {'__eq__': lambda s, o: True})()", "assert f(2) == 4"),
    "with a hidden class": ("type('M', (type,), {'__mro__': ()})('N', (E,), {})()", "assert f(2) == 4"),
    "of the library": ("__import__('unittest.mock').mock.ANY", "assert f(2) == 4"),
    "under a known name": ("type('int', (E,), {'__module__': 'builtins'})()", "assert f(2) == 4"),
    "by operator": ("E()", "import operator\nassert operator.eq(f(2), 4)"),
    "by an imported operator": ("E()", "from operator import eq\nassert eq(4, f(2))"),
    "by a renamed operator": ("E()", "from operator import eq as same\nassert same(f(2), 4)"),
    "by a renamed module": ("E()", "import operator as op\nassert op.eq(f(2), 4)"),
    "by an operator's other name": ("E()", "import operator\nassert operator.__eq__(4, f(2))"),
    "by its own method": ("E()", "assert f(2).__eq__(4)"),
    "in a match": ("[E()]", "match f(2):\n    case [4]:\n        pass\n    case _:\n        assert False"),
    "as the solution": ("E()", "assert Solution().f(2) == 4"),
}  # fmt: skip
HONEST = {
    "a fraction": ("fractions.Fraction(4)", "assert f(2) == 4"),
    "a decimal": ("decimal.Decimal(4)", "assert f(2) == 4\nassert abs(f(2) - 4) < 1"),
    "counted": ("collections.Counter('aab')", "assert f(2) == {'a': 2, 'b': 1}"),
    "named": ("collections.namedtuple('P', 'x y')(1, 2)", "assert f(2) == (1, 2)"),
    "an array": ("numpy.array([1, 2])", "import numpy\nassert numpy.allclose(f(2), [1, 2])"),
    "a data class": ("make()", "r = f(2)\nassert (r.x, r.y) == (1, 2)\nassert r == Point(1, 2) != Point(2, 1)"),
    "a class of the tests'": (
        "4.0",
        "class Near:\n    def __eq__(self, o): return abs(o - 4) < 1\nassert f(2) == Near()",
    ),
    "a class that asks its base": (
        "4",
        "class N(int):\n    def __eq__(self, o):\n        return super().__eq__(o)\n    __hash__ = int.__hash__\n"
        "assert N(4) == f(2)",
    ),
    "operators that are asked for": ("make() - make()", "assert Point(3, 4) - Point(1, 1) == Point(2, 3)"),
    "None": ("None", "assert f(2) is None\nassert f(2) == None"),
    "by operator": ("make()", "import operator\nassert operator.eq(f(2), Point(1, 2)) and f(2).__eq__(Point(1, 2))"),
    "in a match": ("[4]", "match f(2):\n    case [4]:\n        pass\n    case _:\n        assert False"),
    "itself": ("(a := [], a.append(a), a)[2]", "assert f(2) is not None and f(2) != [1]"),
}
POINT = """
import collections, decimal, fractions, numpy
from dataclasses import dataclass
@dataclass
class Point:
    x: int
    y: int
    def __sub__(self, other):
        return Point(self.x - other.x, self.y - other.y)
def make():
    return Point(1, 2)
"""


def graded(scorer, before, value, test):
    method = f"class Solution:\n    def f(self, x):\n        return {value}"
    made = f"```python\n{before}\ndef f(x):\n    return {value}\n{method}\n```"
    return rewards(scorer, made, prompt=Prompt("c", 0, "c", "q", meta={"tests": [test], "entry_point": "f"}))[0]


@pytest.mark.parametrize("kind", DISHONEST)
def test_an_object_that_claims_to_equal_everything_is_no_right_answer(scorer, kind):
    value, test = DISHONEST[kind]
    assert graded(scorer, ALWAYS_EQUAL, value, test) == 0.0


@pytest.mark.parametrize("kind", HONEST)
def test_objects_that_are_equal_stay_right(scorer, kind):
    value, test = HONEST[kind]
    assert graded(scorer, POINT, value, test) == 1.0


def test_a_guarded_test_keeps_what_it_checks():
    for test in TESTS:
        assert "__compare__('Eq'" in guarded(test)
    assert guarded("def (") == "def ("
    names = {"__compare__": lambda name, a, b, _: OPERATORS[name](a, b), "__pair__": lambda a, b, _: (a, b)}
    exec(
        guarded("assert 1 < 2 <= 2 != 3\nassert 5 - 2 == 3 and 'a' in 'ab' and not 1 == 2\nassert None is None"), names
    )
