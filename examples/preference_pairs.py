"""From a search to a DPO step: `python examples/preference_pairs.py` (the last part needs `pip install trl`).

1. Evaluate two methods and keep every response.
2. Export the best and the worst response of each prompt as a preference pair.
3. Train the policy on the pairs for a few steps.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLICY = ROOT / "aisp_ray" / "demo" / "models" / "policy"


def job(name, *words):
    subprocess.run([sys.executable, ROOT / "jobs" / f"{name}.py", *words], cwd=ROOT, check=True)


def train(pairs, to):
    """A few steps of DPO on the exported pairs; returns the trainer's last loss."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=str(to), max_steps=3, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(POLICY),
        args=settings,
        train_dataset=load_dataset(str(pairs), split="train"),
        processing_class=AutoTokenizer.from_pretrained(POLICY),
    )
    return trainer.train().training_loss


def main(to="outputs/preference_pairs"):
    out, pairs = f"{to}/eval", f"{to}/pairs"
    job("eval", "method=[best_of_n,aisp]", "budget=64", "limit=6", "run.particles=true", "report=false", f"out={out}")
    job("export", f"out={out}", "format=preference", f"to={pairs}")
    try:
        import trl  # noqa: F401
    except ImportError:
        print("the pairs are ready; `pip install trl` to train on them")
        return
    print(f"DPO loss after 3 steps: {train(ROOT / pairs, ROOT / to / 'dpo'):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
