"""What the tests of policies share: prompts, proposals, and settings from a YAML for a small checkpoint."""

from aisp_ray import config
from aisp_ray.controls.laws import OpenLoop
from aisp_ray.types import Message, Prompt, Proposal, Sampling

DIALOGUE = (Message("user", "Is it?"), Message("assistant", "It is."), Message("user", "Whose, then? 🙂"))
PROMPTS = (
    Prompt("set/test/00000000", 0, "set", "Why do cats knead?", (Message("user", "Why do cats knead?"),)),
    Prompt(
        "set/test/00000001",
        1,
        "set",
        "\n\nHuman: Is it?\n\nAssistant: It is.\n\nHuman: Whose, then? 🙂\n\nAssistant:",
        DIALOGUE,
    ),
)
STEERED = Proposal(0, 4, OpenLoop(horizon=6, mean=None, sigma=0.7))
SAMPLED = Proposal(1, 4, sampling=Sampling(temperature=1.0, top_p=0.9))


def settings(name, checkpoint, **more):
    """The YAML's settings, for a small checkpoint on the CPU."""
    values = config.read_choice("policy", name)
    small = {"model": str(checkpoint), "dtype": "float32", "num_gpus": 0, "max_new_tokens": 10, "slots": 4}
    return config.build({**values, **small, **more}, "policy")


def load(spec):
    return spec.load("cpu")


def rollouts(policy, prompt, proposal, seed=0):
    """One proposal, drawn to its end in this thread."""
    ticket = policy.engine.submit(policy.request(prompt, proposal, seed))
    while True:
        for number, result in policy.engine.step():
            if number == ticket:
                if isinstance(result, Exception):
                    raise result
                return policy.finish(result)


def length_reward(prompt, responses):
    return [float(len(response)) for response in responses]
