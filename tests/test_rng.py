from __future__ import annotations

from aisp_ray.rng import derive_seed, generator, prompt_key


def test_names_are_hashed_with_type_and_boundaries():
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed("a", "b") != derive_seed("b", "a")


def test_seeds_are_64_bits_and_the_same_on_every_run():
    assert derive_seed("x", 1) == derive_seed("x", 1)
    assert all(0 <= derive_seed(i) < 2**64 for i in range(100))
    assert max(derive_seed(i) for i in range(100)) > 2**62


def test_prompts_and_runs_have_their_own_keys():
    keys = {prompt_key(seed, f"demo/test/{i:08d}") for seed in range(10) for i in range(100)}
    assert len(keys) == 1000


def test_generators_with_one_name_draw_the_same():
    assert generator("a", 1).random() == generator("a", 1).random()
    assert generator("a", 1).random() != generator("a", 2).random()
