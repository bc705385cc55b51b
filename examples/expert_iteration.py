"""Search, train on what it found, search again: `python examples/expert_iteration.py` (needs `pip install trl`).

Expert iteration on the demo policy. Each round draws responses with a search, exports the best of each prompt against
the worst as preference pairs, and makes some DPO steps; the next round searches with the trained policy. The same loop
runs a second time with best-of-n at equal generated tokens. The table shows what each round's policy says WITHOUT a
search, by a single draw per prompt, on prompts that no round trained on: the reward that was optimised, the held-out
judge, the gold score.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLICY = ROOT / "aisp_ray" / "demo" / "models" / "policy"
SETTINGS = {"rounds": 3, "prompts": 24, "heldout": 24, "tokens": 4096, "steps": 30, "search": "aisp_population"}
MEASURES = ("reward", "demo_judge", "demo_gold")


def job(name, *words):
    subprocess.run([sys.executable, ROOT / "jobs" / f"{name}.py", *words], cwd=ROOT, check=True, stdout=sys.stderr)


def search(policy, method, out, settings):
    """Responses to this loop's prompts; every one is kept."""
    budget = f"generated_tokens:{settings['tokens']}"
    words = [f"policy.model={policy}", f"method={method}", f"budget={budget}", f"baseline={method}"]
    job("eval", *words, "data=demo_tuning", f"limit={settings['prompts']}", "run.particles=true", "judges=[]",
        "report=false", "run.address=local", f"out={out}")  # fmt: skip


def train(policy, pairs, to, steps):
    """DPO on the exported pairs; returns the folder of the trained policy."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    keys = {"per_device_train_batch_size": 8, "learning_rate": 2e-5, "beta": 0.1, "seed": 0, "bf16": False}
    args = DPOConfig(
        output_dir=str(to), max_steps=steps, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, **keys,
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy, dtype="float32"),
        args=args,
        train_dataset=load_dataset("parquet", data_files=str(pairs / "data" / "train-*.parquet"), split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(to))
    tokenizer.save_pretrained(to)
    return to


def measure(policy, out, settings):
    """Means over held-out prompts of single draws, without a search."""
    from aisp_ray.report.rows import read_rows

    words = [f"policy.model={policy}", "method=best_of_n", "method.best_of_n.n=1", "method.best_of_n.kappa=1"]
    job("eval", *words, "data=demo", f"limit={settings['heldout']}", "report=false", "run.address=local", f"out={out}")
    rows = read_rows(str(out)).to_pylist()
    values = [{"reward": r["reward"], **dict(zip(r["judge_names"], r["judge_rewards"], strict=True))} for r in rows]
    known = {name: [one[name] for one in values if one.get(name) is not None] for name in MEASURES}
    return {name: sum(numbers) / len(numbers) for name, numbers in known.items()}


def loop(method, to, settings):
    """(generated tokens, what the policy reaches without a search) before the first round and after each."""
    from aisp_ray.report.rows import read_rows

    policy, reached = POLICY, [(0, measure(POLICY, to / "round0" / "heldout", settings))]
    for number in range(1, settings["rounds"] + 1):
        here = to / f"round{number}"
        search(policy, method, here / "search", settings)
        job("export", f"out={here / 'search'}", f"to={here / 'pairs'}", "format=preference", "pairs=2",
            "min_margin=0.3", "response_similarity=0.95")  # fmt: skip
        policy = train(policy, here / "pairs", here / "policy", settings["steps"])
        tokens = sum(read_rows(str(here / "search"))["num_generated_tokens"].to_pylist())
        reached.append((tokens, measure(policy, here / "heldout", settings)))
    return reached


def table(loops):
    lines = ["| fed by | round | tokens of the search | reward | held-out judge | gold |", "|---|---|---|---|---|---|"]
    for method, reached in loops.items():
        for number, (tokens, means) in enumerate(reached):
            shown = " | ".join(f"{means[name]:.3f}" for name in MEASURES)
            lines.append(f"| {method} | {number} | {tokens:,} | {shown} |")
    return "\n".join(lines)


def main(to="outputs/expert_iteration", *words):
    settings = SETTINGS | {key: type(SETTINGS[key])(value) for key, value in (word.split("=") for word in words)}
    try:
        import trl  # noqa: F401
    except ImportError:
        sys.exit("this trains with TRL: pip install trl")
    folder = (ROOT / to).resolve()
    loops = {method: loop(method, folder / method, settings) for method in (settings["search"], "best_of_n")}
    (folder / "table.json").write_text(json.dumps(loops, indent=1))
    print(f"means of single draws on {settings['heldout']} held-out prompts; {settings}\n\n{table(loops)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
