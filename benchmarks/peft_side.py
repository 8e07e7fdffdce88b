"""SmolLM2 with rank-8 adapters on q and v by PEFT on torch: training and prediction.

Prompts are padded on the left. With `prefix` what all prompts begin with is computed
once a batch, by transformers' cache, as one would write it by hand.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Contestant, Values
from benchmarks.prompts import Prompts

Forward = Callable[[Sequence[Sequence[int]]], Any]


def training(path: str, prefix: bool = False, compiled: bool = False) -> Contestant:
    """Steps of Adam on the file's batches.

    Args:
        path: file of `Prompts`.
        prefix: whether the common prefix is computed once.
        compiled: whether by torch.compile, with dynamic shapes.
    """
    import torch

    prompts = Prompts.read(path)
    model = load(prompts).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    called = torch.compile(model, dynamic=True) if compiled else model
    logits_of = forward(called, prompts, prefix)

    def work(index: int) -> Values:
        chosen = prompts.batches[index]
        labels = torch.tensor([prompts.labels[i] for i in chosen])
        logits = logits_of([prompts.tokens[i] for i in chosen])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    return Contestant(work, _one_of_each_length(prompts))


def prediction(
    path: str, samples: int, batch_size: int, merged: bool = False, prefix: bool = False
) -> Contestant:
    """Predictions of all prompts by several adapters, one after another.

    Args:
        path: file of `Prompts`.
        samples: number of adapters.
        batch_size: prompts at a time, sorted by length.
        merged: whether each adapter is merged into the weights for its passes.
        prefix: whether the common prefix is computed once a batch.
    """
    import torch

    prompts = Prompts.read(path)
    model = load(prompts, samples).eval()
    logits_of = forward(model, prompts, prefix)
    order = sorted(range(len(prompts.tokens)), key=lambda i: len(prompts.tokens[i]))

    def passes() -> Any:
        found = []
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found.append(logits_of([prompts.tokens[i] for i in chosen]))
        return torch.log_softmax(torch.cat(found), -1)

    @torch.no_grad()
    def work(index: int) -> Values:
        total: Any = 0
        for name in list(model.peft_config):
            model.set_adapter(name)
            if merged:
                model.merge_adapter([name])
            total = total + passes().exp() / samples
            if merged:
                model.unmerge_adapter()
        return {"mean_largest": float(total.max(-1).values.mean())}

    return Contestant(work)


def load(prompts: Prompts, adapters: int = 1) -> Any:
    """Loads the model with fresh adapters."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    gguf = Path(prompts.gguf)
    base = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]
    )
    model: Any = get_peft_model(base, config)
    for i in range(1, adapters):
        model.add_adapter(f"sample{i}", config)
    return model


def forward(model: Any, prompts: Prompts, prefix: bool) -> Forward:
    """Returns the function from token ids to the answers' logits."""
    import torch

    columns = torch.tensor(prompts.answers)
    shared = prompts.prefix if prefix else 0
    first = torch.tensor([prompts.tokens[0][:shared]])

    def logits(texts: Sequence[Sequence[int]]) -> Any:
        own = [text[shared:] for text in texts]
        longest = max(map(len, own))
        tokens = np.zeros((len(own), longest), np.int64)
        mask = np.zeros_like(tokens)
        for row, seen, text in zip(tokens, mask, own, strict=True):
            row[longest - len(text) :] = text
            seen[longest - len(text) :] = 1
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(tokens),
            "attention_mask": torch.tensor(mask),
            "use_cache": False,
        }
        if shared:
            past = model(input_ids=first, use_cache=True, logits_to_keep=1)
            past.past_key_values.batch_repeat_interleave(len(own))
            whole = torch.cat(
                [torch.ones(len(own), shared).long(), inputs["attention_mask"]], 1
            )
            inputs |= {
                "attention_mask": whole,
                "position_ids": (whole.cumsum(1) - 1).clamp(0)[:, shared:],
                "past_key_values": past.past_key_values,
                "use_cache": True,
            }
        return model(**inputs, logits_to_keep=1).logits[:, -1, columns]

    return logits


def _one_of_each_length(prompts: Prompts) -> tuple[int, ...]:
    """Returns a batch of each padded length."""
    longest = [max(len(prompts.tokens[i]) for i in own) for own in prompts.batches]
    return tuple({length: i for i, length in enumerate(longest)}.values())
