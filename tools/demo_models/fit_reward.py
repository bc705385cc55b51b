"""Train a demo reward: Bradley-Terry on noisy preferences, from the body of a language model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from aisp_ray.demo import world
from tools.demo_models import data, tokens, writing
from tools.demo_models.fit import IGNORE, optimise, pad


def train_reward(
    body: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: str, steps: int, batch: int = 8
) -> LlamaForSequenceClassification:
    """A Bradley-Terry reward on noisy preferences, started from the body of a language model.

    Replies are compared with each other, and so are their beginnings up to a full stop. A second head, thrown away
    after training, tags each token (see `writing.tag_ends`): without it the reward stays blind to broken text.
    """
    torch.manual_seed(random.Random(f"head/{seed}").getrandbits(31))
    shape = {k: v for k, v in body.config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    config = LlamaConfig(**{**shape, "num_labels": 1, "tie_word_embeddings": False})
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(body.model.state_dict())
    tagger = torch.nn.Linear(config.hidden_size, len(writing.TAGS))
    noise = torch.Generator().manual_seed(random.Random(f"judgement/{seed}").getrandbits(31))

    def loss_of(step: int) -> torch.Tensor:
        read = read_groups(tokenizer, [data.group(f"{seed}/{step}/{i}") for i in range(batch)])
        hidden = model.model(input_ids=read.ids, attention_mask=read.mask, use_cache=False).last_hidden_state
        tag_loss = F.cross_entropy(tagger(hidden).flatten(0, 1), read.tags.flatten(), ignore_index=IGNORE)
        return tag_loss + group_loss(model.score(hidden)[..., 0], read, noise)

    optimise(torch.nn.ModuleList([model, tagger]), loss_of, steps, peak=2e-3)
    return model.eval()


@dataclass(frozen=True)
class Read:
    """Preference groups as tensors. A node is a place (row, position) whose score is compared; whole replies first."""

    ids: torch.Tensor  # [b, t]
    mask: torch.Tensor  # [b, t]
    tags: torch.Tensor  # [b, t]
    sizes: list[int]  # replies of each group
    nodes: list[list[tuple[int, int]]]
    gold: list[list[float]]  # true score of the text up to each node


def read_groups(tokenizer: PreTrainedTokenizerFast, groups: list[data.Group]) -> Read:
    """Encode groups, tag every reply token, and find the ends of replies and of their sentences."""
    ids, mask, starts = encode_groups(tokenizer, groups)
    tags = torch.full(ids.shape, IGNORE)
    read = Read(ids, mask, tags, [len(g.replies) for g in groups], [], [])
    lengths, row = mask.sum(1).tolist(), 0
    for g in groups:
        prompt = data.prompt_text(g.question)
        nodes = [(row + i, lengths[row + i] - 1) for i in range(len(g.replies))]
        gold = list(g.gold)
        offsets = tokenizer(list(g.replies), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for reply, spans in zip(g.replies, offsets, strict=True):
            ends, start = [end for _, end in spans], int(starts[row])
            names = writing.tag_ends(prompt, reply, ends)
            tags[row, start : start + len(ends)] = torch.tensor([writing.TAGS.index(name) for name in names])
            stops = [(i, end) for i, end in enumerate(ends) if reply[end - 1] in ".!?"]
            nodes += [(row, start + i) for i, _ in stops]
            gold += [world.gold_score(prompt, reply[:end]) for _, end in stops]
            row += 1
        read.nodes.append(nodes)
        read.gold.append(gold)
    return read


def group_loss(scores: torch.Tensor, read: Read, noise: torch.Generator) -> torch.Tensor:
    """Preference loss between the whole replies of a group, plus the same with their beginnings: scores [b, t]."""
    losses, centre = [], []
    for size, nodes, gold in zip(read.sizes, read.nodes, read.gold, strict=True):
        rows, positions = zip(*nodes, strict=True)
        values = scores[list(rows), list(positions)]
        centre.append(values[:size])
        losses.append(preference_loss(values[:size], torch.tensor(gold[:size]), noise))
        losses.append(preference_loss(values, torch.tensor(gold), noise))
    return torch.stack(losses).mean() + 1e-3 * torch.cat(centre).mean().square()


def preference_loss(scores: torch.Tensor, gold: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Bradley-Terry loss over all pairs, each judged once: scores [k], gold [k]."""
    first, second = torch.triu_indices(len(scores), len(scores), 1)
    chance = torch.sigmoid((gold[first] - gold[second]) / data.PREFERENCE_NOISE)
    sign = torch.bernoulli(chance, generator=noise) * 2 - 1  # [pairs]
    return -F.logsigmoid(sign * (scores[first] - scores[second])).mean()


def encode_groups(
    tokenizer: PreTrainedTokenizerFast, groups: list[data.Group]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [b, t], attention mask [b, t] and where each reply starts [b]."""
    dialogues = [g.question.messages for g in groups for _ in g.replies]
    ended = [e for g in groups for e in g.ended]
    return encode_pairs(tokenizer, dialogues, [r for g in groups for r in g.replies], ended)


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast, dialogues: list[list[dict[str, str]]], replies: list[str], ended: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [b, t], attention mask [b, t] and where each reply starts [b]."""
    prompts = tokens.encode_prompts(tokenizer, dialogues)
    rows = [p + r for p, r in zip(prompts, tokens.encode_replies(tokenizer, replies, ended), strict=True)]
    mask = pad([[1] * len(row) for row in rows], 0)
    return pad(rows, tokenizer.pad_token_id), mask, torch.tensor([len(p) for p in prompts])


def score(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: list[list[dict[str, str]]],
    replies: list[str],
    ended: list[bool],
) -> torch.Tensor:
    """Scores [b] at the last token of each prompt and reply."""
    ids, mask, _ = encode_pairs(tokenizer, dialogues, replies, ended)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].float()


@torch.no_grad()
def reward_figures(model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Accuracy on fresh noisy pairs and on their gold order, the spread within a prompt, correlation with gold."""
    groups = [data.group(f"validation/{i}", split="test") for i in range(300)]
    ids, mask, _ = encode_groups(tokenizer, groups)
    scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.view(len(groups), -1)
    rng, noisy, true = random.Random("validation"), [], []
    for row, g in zip(scores.tolist(), groups, strict=True):
        for i, j in combinations(range(len(row)), 2):
            noisy.append(data.prefers_first(rng, g.gold[i], g.gold[j]) == (row[i] > row[j]))
            if abs(g.gold[i] - g.gold[j]) > 1e-6:
                true.append((g.gold[i] > g.gold[j]) == (row[i] > row[j]))
    gold = torch.tensor([g.gold for g in groups])
    pooled = torch.stack([scores - scores.mean(1, True), gold - gold.mean(1, True)]).flatten(1)
    return {
        "pair_accuracy": sum(noisy) / len(noisy),
        "gold_order_accuracy": sum(true) / len(true),
        "spread_within_prompt": scores.std(1).mean().item(),
        "correlation_with_gold_within_prompt": torch.corrcoef(pooled)[0, 1].item(),
    }
