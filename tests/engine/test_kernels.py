"""The engine's own products: right, the same bits however the work is cut, and never needed."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import stat
import subprocess
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_models import WINDOW, drive, request, tiny

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.cpu import build, kernels
from aisp_ray.engine.cpu.attention import KernelAttention
from aisp_ray.engine.cpu.kernels import Kernels
from aisp_ray.engine.factory import build_engine
from aisp_ray.engine.rowcache import Suffixes
from aisp_ray.engine.scheduler import FastEngine
from aisp_ray.engine.slots import Ways
from aisp_ray.lm.attention import Call
from aisp_ray.lm.prefixes import LayerLayout, Prefix

needs_compiler = pytest.mark.skipif(kernels.load() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def own() -> Kernels:
    found = kernels.load()
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(scope="module")
def variants(own: Kernels) -> list[Kernels]:
    """The same source for vectors of 4, 8 and 16 floats, whatever this machine has; not kept in the user's folder."""
    base = [*build.compiler(), "-O1", *build.FLAGS[1:], *kernels.DEFINES, *(("-fopenmp",) if own.threaded else ())]
    return [Kernels(build.opened([*base, f"-DVL={n}"], apart=True), own.threaded) for n in (4, 8, 16)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without optimising, where only the compiling matters."""
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))


@pytest.fixture(scope="module")
def quickly_compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache that holds the library of `quick`'s command."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        build._kept([*build.compiler(), "-O0", *build.FLAGS[1:], *kernels.DEFINES])
    return cache


@pytest.fixture
def threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("outputs", "inputs", "bias"),
    [(96, 64, False), (101, 64, True), (7, 3, True), (33, 1100, False), (64, 512, True), (40, 1024, True)],
)
def test_linear_layers_of_any_size(variants: list[Kernels], outputs: int, inputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    weight, other = torch.randn(outputs, inputs), torch.randn(5, 2)
    b = torch.randn(outputs) if bias else None
    for own in variants:
        packed, _ = own.pack([weight, other])
        for rows in (1, 2, 5, 6, 7, 13, 16, 33, 70):
            x = torch.randn(rows, inputs)
            expected = torch.nn.functional.linear(x, weight, b)
            torch.testing.assert_close(own.linear(x, packed, b), expected, atol=1e-4, rtol=1e-4)


def test_a_row_of_a_linear_layer_has_the_same_bits_among_any_number_of_rows(
    variants: list[Kernels], threads_kept: None
) -> None:
    weight, x = torch.randn(70, 700), torch.randn(40, 700)
    results = []
    for own in variants:
        (packed,) = own.pack([weight])
        torch.set_num_threads(1)
        whole = own.linear(x, packed, None)
        for rows in (1, 3, 8, 17):
            assert torch.equal(own.linear(x[:rows], packed, None), whole[:rows])
        torch.set_num_threads(2)
        assert torch.equal(own.linear(x, packed, None), whole)
        results.append(whole)
    assert torch.equal(results[0], results[1])  # nor do vectors change them
    assert torch.equal(results[0], results[2])


class Case:
    """One layer's attention of rows at random positions, two prompts and an idle row among them."""

    def __init__(self, heads: int, group: int, dims: tuple[int, int], window: int | None):
        torch.manual_seed(1)
        self.layout = LayerLayout(heads, *dims, torch.float32, torch.device("cpu"), window)
        self.slots, draw = 6, torch.randn
        self.suffixes = Suffixes([self.layout], self.slots, 150, "cpu")
        for buffer in self.suffixes.buffers():
            buffer.normal_()
        self.suffixes.step.copy_(torch.tensor([0, 3, 127, 128, 149, 17]))
        kept = [length if window is None else min(length, window - 1) for length in (90, 11)]
        a, b = (
            Prefix((1,) * n, None, [draw(1, heads, k, dims[0])], [draw(1, heads, k, dims[1])], [n - k], draw(4), 0)
            for n, k in zip((90, 11), kept, strict=True)
        )
        self.owners = [a, b, a, None, a, b]
        self.query = draw(6, heads * group, 1, dims[0])

    def run(self, own: Kernels, rows: list[int] | None = None, **options: object) -> torch.Tensor:
        """Of all rows or only some of them; the others are idle."""
        owners = [owner if rows is None or i in rows else None for i, owner in enumerate(self.owners)]
        attention = KernelAttention(self.suffixes, own)
        attention.assign(owners)
        attention.begin_step()
        return attention.attend(Call(0, self.query, self.query, self.query, 0.3, options))[:, 0]

    def expected(self, softcap: float | None = None, s_aux: torch.Tensor | None = None) -> torch.Tensor:
        """In float64, one row and head at a time."""
        layout, keys_held, values_held = self.suffixes.layer(0)
        count = self.query.shape[1]
        out = torch.zeros(self.slots, count, layout.value_dim, dtype=torch.float64)
        for row, owner in enumerate(self.owners):
            if owner is None:
                continue
            at = int(self.suffixes.step[row])
            for head in range(count):
                group = head // (count // layout.num_heads)
                own = [blocks[:, row, group].flatten(0, 1)[: at + 1] for blocks in (keys_held, values_held)]
                keys, values = (
                    torch.cat([prompt[0, group], mine]).double()
                    for prompt, mine in zip((owner.keys[0], owner.values[0]), own, strict=True)
                )
                logits = keys @ self.query[row, head, 0].double() * 0.3
                if softcap:
                    logits = softcap * torch.tanh(logits / softcap)
                if layout.window is not None:
                    logits[: -layout.window] = -torch.inf
                if s_aux is not None:
                    logits = torch.cat([logits, s_aux[head : head + 1].double()])
                out[row, head] = logits.softmax(0)[: len(values)] @ values
        return out


CASES = [
    (2, 2, (16, 16), None),
    (1, 1, (8, 8), None),
    (3, 5, (24, 20), None),
    (2, 8, (64, 64), 40),
    (1, 2, (16, 5), 140),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("extra", ["nothing", "soft-cap", "sinks"])
def test_attention_over_prompts_and_suffixes(variants: list[Kernels], case: tuple, extra: str) -> None:
    one = Case(*case)
    options = {"soft-cap": {"softcap": 2.0}, "sinks": {"s_aux": torch.randn(one.query.shape[1])}}.get(extra, {})
    expected = one.expected(**options)
    for own in variants:
        torch.testing.assert_close(one.run(own, **options).double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_row_attends_with_the_same_bits_whoever_is_beside_it(
    variants: list[Kernels], case: tuple, threads_kept: None
) -> None:
    one = Case(*case)
    torch.set_num_threads(1)
    whole = one.run(variants[0])
    for own in variants:
        torch.set_num_threads(2)
        assert torch.equal(one.run(own), whole)
        for rows in ([0], [2, 4], [5, 1, 0]):
            found = one.run(own, rows)
            assert torch.equal(found[rows], whole[rows])
            assert not found[[i for i in range(6) if i not in rows]].any()


def test_very_far_logits_are_no_nan(own: Kernels) -> None:
    one = Case(1, 1, (16, 16), None)
    one.query *= 1e4
    torch.testing.assert_close(one.run(own).double(), one.expected(), atol=1e-4, rtol=1e-4)


@needs_compiler
def test_the_engine_uses_them_unless_told() -> None:
    model = tiny("llama")
    assert FastEngine(model, 4, tile=4).fingerprint["kernels"] == ["linear", "attention"]
    assert FastEngine(model, 4, tile=4, ways=Ways(kernels=False)).fingerprint["kernels"] == []
    assert FastEngine(tiny("llama", torch.bfloat16), 4, tile=4).fingerprint["kernels"] == []


@needs_compiler
def test_a_window_that_the_kernels_dropped_would_be_seen_at_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the model then runs by PyTorch's operations."""
    real = kernels.Kernels.attend

    def wide(self: Kernels, layer: kernels.Layer, *rest: object) -> torch.Tensor:
        layer.window = 0
        return real(self, layer, *rest)

    monkeypatch.setattr(kernels.Kernels, "attend", wide)
    model, work = tiny("mistral"), [request(WINDOW + 5, 3, 10, OpenLoop(10, None, 1.0))]
    with caplog.at_level(logging.WARNING, "aisp_ray"):
        engine = build_engine(model, slots=4, max_new_tokens=10)
    assert (engine.fingerprint["engine"], engine.fingerprint["kernels"]) == ("fast", [])
    (record,) = caplog.records
    assert "without the engine's own kernels, slower: its numbers behind a shared prefix differ" in record.getMessage()
    plain = drive(build_engine(model, "plain"), work)
    assert [item.token_ids for item in drive(engine, work)[0].items] == [item.token_ids for item in plain[0].items]


@needs_compiler
def test_an_engine_that_failed_holds_no_memory_when_the_next_one_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[FastEngine]] = []
    alive: list[int] = []
    real = FastEngine.__init__

    def noted(self: FastEngine, *args: object, **named: object) -> None:
        alive.append(sum(one() is not None for one in built))
        built.append(weakref.ref(self))
        real(self, *args, **named)

    monkeypatch.setattr(FastEngine, "__init__", noted)

    def nothing(_: Kernels, layer: kernels.Layer, *rest: torch.Tensor) -> torch.Tensor:
        return rest[-1].new_zeros(len(rest[-1]), 1, layer.heads * layer.group, layer.value_dim)

    monkeypatch.setattr(kernels.Kernels, "attend", nothing)
    assert build_engine(tiny("llama"), slots=4, max_new_tokens=10).fingerprint["kernels"] == []
    assert alive == [0, 0]


def test_no_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with caplog.at_level(logging.INFO, "aisp_ray"):
        assert kernels.load.__wrapped__() is None
    assert "no C compiler found" in caplog.text


def script(folder: Path, text: str) -> str:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_fails_is_no_error_and_its_words_are_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", script(tmp_path, "echo 'what is a float' >&2; exit 1"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO, "aisp_ray"):
        assert kernels.load.__wrapped__() is None
    assert "what is a float" in caplog.text
    assert list((tmp_path / "cache").rglob("*")) == [tmp_path / "cache" / "aisp_ray"]  # nothing is left behind


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_they_are_compiled_once_for_each_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real, calls = subprocess.run, []
    monkeypatch.setattr(subprocess, "run", lambda command, **more: calls.append(command) or real(command, **more))
    for _ in range(2):
        assert kernels.load.__wrapped__() is not None
    assert len(calls) == 1
    (kept,) = (tmp_path / "aisp_ray").iterdir()
    assert kept.suffix == ".so"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_home_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernels.load.__wrapped__() is not None
    assert (tmp_path / "file").is_file()


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_no_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert kernels.load.__wrapped__() is not None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def changed(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def writable_by_others(path: Path) -> None:
    path.chmod(0o666)


def linked(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.so"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@needs_compiler
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("harm", [cut_short, changed, writable_by_others, linked])
def test_a_library_that_is_not_whole_and_ours_alone_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quickly_compiled: Path, harm: Callable[[Path], None]
) -> None:
    shutil.copytree(quickly_compiled, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [*build.compiler(), *build.FLAGS, *kernels.DEFINES]
    with monkeypatch.context() as patch:
        patch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again without a reason"))
        path = build._kept(command)
    assert build._is_ours(path)
    harm(path)
    assert not build._is_ours(path)
    found = Kernels(build.opened(command), threaded=False)
    (packed,) = found.pack([torch.ones(3, 5)])
    assert torch.equal(found.linear(torch.ones(2, 5), packed, None), torch.full((2, 3), 5.0))
    assert build._is_ours(path)


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_another_users_folder_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "aisp_ray").mkdir()
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    assert kernels.load.__wrapped__() is not None
    assert list((tmp_path / "aisp_ray").iterdir()) == []


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_folder_that_others_could_write_to_is_closed_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "aisp_ray").mkdir()
    (tmp_path / "aisp_ray").chmod(0o777)
    build._kept([*build.compiler(), *build.FLAGS])
    assert (tmp_path / "aisp_ray").stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_folder_that_nothing_may_run_from_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = ctypes.CDLL

    def library(path: str) -> ctypes.CDLL:
        if path.startswith(str(tmp_path)):
            raise OSError("failed to map segment from shared object")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", library)
    assert kernels.load.__wrapped__() is not None


@pytest.mark.parametrize("value", ["gcc 'x", "/nowhere/cc", "false"])
def test_a_compiler_that_is_none_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv("CC", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.load.__wrapped__() is None


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_warnings_that_are_no_text_and_flags_that_are_too_fast_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (real, *rest) = build.compiler()
    monkeypatch.setenv(
        "CC", script(tmp_path, f"printf '\\377\\376' >&2; exec {real} {' '.join(rest)} -ffast-math \"$@\"")
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert kernels.load.__wrapped__() is not None
    assert float(torch.tensor(1e-40) * 0.5) > 0.0  # denormal numbers of the whole process


@needs_compiler
@pytest.mark.parametrize(
    ("x", "bias"),
    [
        (torch.ones(2, 8, dtype=torch.bfloat16), None),
        (torch.ones(2, 8, dtype=torch.float64), None),
        (torch.ones(2, 7), None),
        (torch.ones(2, 8), torch.ones(5, dtype=torch.bfloat16)),
        (torch.ones(2, 8), torch.ones(4)),
    ],
)
def test_what_c_would_misread_is_refused(own: Kernels, x: torch.Tensor, bias: torch.Tensor | None) -> None:
    (packed,) = own.pack([torch.ones(5, 8)])
    with pytest.raises(ValueError, match=r"the kernels take torch\.float32 \[.*\] on cpu"):
        own.linear(x, packed, bias)


def double_query(case: Case) -> None:
    case.query = case.query.double()


def narrow_query(case: Case) -> None:
    case.query = case.query[..., :8]


def short_query(case: Case) -> None:
    case.query = case.query[:5]  # the last row of the tile is in a lane


def half_prompt(case: Case) -> None:
    case.owners[0].keys[0] = case.owners[0].keys[0].half()


def strided_prompt(case: Case) -> None:
    values = case.owners[0].values
    values[0] = values[0].transpose(1, 2).contiguous().transpose(1, 2)


def fewer_values_than_keys(case: Case) -> None:
    case.owners[0].values[0] = case.owners[0].values[0][:, :, 1:].contiguous()


def short_suffixes(case: Case) -> None:
    case.suffixes.keys[0] = case.suffixes.keys[0][:, :, :, :64].contiguous()


def positions_in_32_bits(case: Case) -> None:
    case.suffixes.step = case.suffixes.step.int()


def position_behind_the_end(case: Case) -> None:
    case.suffixes.step[1] = 150


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (double_query, r"a query are torch\.float64"),
        (narrow_query, "a query are"),
        (short_query, "6 rows, the query 5"),
        (half_prompt, r"a prompt's keys are torch\.float16"),
        (strided_prompt, "not contiguous"),
        (fewer_values_than_keys, "a prompt's values"),
        (short_suffixes, "the suffixes' keys"),
        (positions_in_32_bits, r"positions are torch\.int32"),
        (position_behind_the_end, "position 150 of a suffix of 150"),
    ],
)
def test_what_attention_in_c_would_misread_is_refused(own: Kernels, harm: Callable[[Case], None], says: str) -> None:
    one = Case(2, 2, (16, 16), None)
    one.run(own)
    harm(one)
    with pytest.raises(ValueError, match=says):
        one.run(own)


def test_sinks_that_do_not_fit_are_refused(own: Kernels) -> None:
    with pytest.raises(ValueError, match=r"sinks are torch\.float32 \[3\]"):
        Case(2, 2, (16, 16), None).run(own, s_aux=torch.ones(3))


@needs_compiler
def test_a_layer_that_python_describes_otherwise_does_not_compile() -> None:
    wrong = [define.replace("LAYER_BYTES=88", "LAYER_BYTES=80") for define in kernels.DEFINES]
    assert wrong != list(kernels.DEFINES)
    with pytest.raises(subprocess.CalledProcessError) as error:
        build.opened([*build.compiler(), *build.FLAGS, *wrong], apart=True)
    assert "another Layer" in error.value.stderr


@needs_compiler
def test_the_kernels_read_and_write_nothing_beyond_their_arrays(tmp_path: Path) -> None:
    """All of them, on arrays of exactly the size that they may touch, under AddressSanitizer and UBSan."""
    program, sanitize = tmp_path / "sanitized", "-fsanitize=address,undefined"
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    run = partial(subprocess.run, capture_output=True, text=True, errors="replace", timeout=300)
    command = [*build.compiler(), sanitize, "-fno-sanitize-recover=all", "-O1", "-march=native", "-ffp-contract=off"]
    if run([*command, str(tmp_path / "empty.c"), "-o", str(program)]).returncode or run([program]).returncode:
        pytest.skip("this compiler has no AddressSanitizer")
    source, here = Path(build.__file__).parent, Path(__file__).parent
    made = run([*command, f"-I{source}", str(here / "sanitized.c"), "-o", str(program), "-lm"])
    assert made.returncode == 0, made.stderr
    done = run([program])
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-3000:]


def test_a_strided_bias_is_read_right(own: Kernels) -> None:
    bias = torch.arange(10.0)[::2]
    (packed,) = own.pack([torch.zeros(5, 8)])
    assert torch.equal(own.linear(torch.ones(1, 8), packed, bias)[0], bias)


def test_another_default_dtype_changes_nothing(own: Kernels) -> None:
    one = Case(2, 2, (16, 16), None)
    expected = one.run(own)
    torch.set_default_dtype(torch.bfloat16)
    try:
        (packed,) = own.pack([torch.ones(40, 8, dtype=torch.float32)])
        assert packed.panels.dtype == torch.float32
        assert torch.equal(one.run(own), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_memory_is_an_exception(own: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        aisp_linear = aisp_attend = staticmethod(lambda *_: 1)

    (packed,) = own.pack([torch.ones(5, 8)])
    one = Case(2, 2, (16, 16), None)
    monkeypatch.setattr(own, "_library", Failing)
    with pytest.raises(MemoryError):
        own.linear(torch.ones(1, 8), packed, None)
    with pytest.raises(MemoryError):
        one.run(own)


@needs_compiler
def test_weights_that_only_look_plain_are_left_to_pytorch() -> None:
    class Wrapped(torch.Tensor):
        pass

    model = tiny("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Wrapped), requires_grad=False)
    assert type(layer.weight) is not torch.nn.Parameter
    assert FastEngine(model, 4, tile=4).fingerprint["kernels"] == ["attention"]


@needs_compiler
def test_halved_tiles_keep_the_packed_weights() -> None:
    engine = FastEngine(tiny("llama"), 4, tile=4)
    before = engine.slots.body.packing
    engine.slots.give_up(engine.slots.tiles[0], RuntimeError())
    assert engine.slots.free().body.packing is before
    assert engine.fingerprint["tile"] == engine.slots.count == 2
    assert engine.fingerprint["kernels"] == ["linear", "attention"]


@needs_compiler
def test_other_dtypes_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: pytest.fail("compiled"))
    FastEngine(tiny("llama", torch.bfloat16), 4, tile=4)
