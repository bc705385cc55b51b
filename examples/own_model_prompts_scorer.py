"""Your model, your prompts, your reward function: `python examples/own_model_prompts_scorer.py`.

Replace the three definitions at the top. `MODEL` is a path, a hub id, or "demo:policy", the tiny model of this package,
which needs no download.
"""

from aisp_ray import best_responses

MODEL = "demo:policy"
PROMPTS = [
    "Could you help me brew the coffee? It tastes bitter.",
    "How do I clean the oven? I have little time.",
]


def reward(prompt, responses):
    """Short answers that use many different words. Any numbers will do: a classifier's, a unit test's, a rule's."""
    return [len(set(text.lower().split())) / 10 - len(text) / 1000 for text in responses]


def main():
    found = best_responses(MODEL, PROMPTS, reward, method="aisp", budget=32, n=8, seed=0)
    plain = best_responses(MODEL, PROMPTS, reward, method="best_of_n", budget=32, seed=0)
    for ours, theirs in zip(found, plain, strict=True):
        print(f"\n{ours.prompt}")
        print(f"  aisp       {ours.reward:6.2f}  {ours.response}")
        print(f"  best of n  {theirs.reward:6.2f}  {theirs.response}")
    print(f"\n{found}\n{plain}")


if __name__ == "__main__":
    main()
