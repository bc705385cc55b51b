"""Code answers: what is graded, and that nothing an answer does reaches further than its own process."""

import math
import socket
import threading
import time

import psutil
import pytest

from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.code_tests import CodeTests, extract_code
from aisp_ray.rewards.sandbox.parent import Limits, contained, run
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


def test_equal_programs_run_once(scorer):
    scores = scorer.score([ScoreRequest(PROMPT, (GOOD, GOOD + " Really.", GOOD))])[0]
    assert scores.num_calls == 1
    assert scores.rewards == (0.75,) * 3


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\nx = 1\n```\n```python\ndef add(a):\n    pass\n```", "def add(a):\n    pass"),
        ("```\nx = 1\n```", "x = 1"),
        ("```bash\nls\n```\n```py\nx = 2\n```", "x = 2"),
        ("```python\ndef add(a):\n    return a", "def add(a):\n    return a"),
        ("Sure.\ndef add(a):\n    return a\nThis adds things up.", "def add(a):\n    return a"),
        ("def add(a): return a", "def add(a): return a"),
        ("no code here", "no code here"),
    ],
)
def test_the_program_is_found_in_the_response(response, code):
    assert extract_code(response, "add") == code


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
    assert time.monotonic() - started < 25


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
