"""A run, an adapter or a plain model as a model of lm-eval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ivon_jax.checks import AT_LEAST_ONE, NOT_NEGATIVE, check
from ivon_jax.ensemble import pool
from ivon_jax.models.sampler import Sampler
from ivon_jax.train.config import BaseName
from ivon_jax.train.data.encoding import token_ids
from ivon_jax.train.data.text_encoding import prompt_tokens
from ivon_jax.train.generate.command import find_writer
from ivon_jax.train.generate.engine import Options, generate
from ivon_jax.train.generate.stop_texts import text_of
from ivon_jax.train.harness.scoring import Pair, Scorer

NAME = "ivon-jax"
# The settings of generation that a task may have, and their defaults.
_DEFAULTS: dict[str, Any] = {
    "until": [],
    "max_gen_toks": 256,
    "do_sample": False,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}


@register_model(NAME)
class IvonJax(TemplateLM):
    """Scores by the average over posterior samples, and writes with the mean.

    A continuation's log-likelihood is the log of the samples' mean probability of it.
    Texts of several samples have no average, so that `generate_until` writes with the
    posterior mean; `ivon-jax generate` has those of the samples.

    Args:
        run: folder of a run.
        adapter: instead of a run: folder of a PEFT adapter.
        model: the adapter's base; or, without one, a model.
        base: with model: number format of the base.
        samples: posterior samples to average; 0 for the mean, None for 10 if there is
            a posterior.
        tau: temperature of the samples.
        prune: share of entries set to zero.
        best: of a run: the posterior of lowest NLL.
        mesh: devices to split the model over.
        batch_size: pairs or texts at a time; lm-eval's "auto" is 8.
        device: not used: JAX has its own choice.
        max_batch_size: not used.

    Raises:
        ValueError: see `open_run`, `open_adapter` and `open_model`.
    """

    def __init__(
        self,
        run: str | None = None,
        adapter: str | None = None,
        model: str | None = None,
        base: BaseName = "f32",
        samples: int | None = None,
        tau: float = 1.0,
        prune: float = 0.0,
        best: bool = False,
        mesh: str = "data=1",
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        rows = 8 if batch_size in (None, "auto") else int(batch_size)
        check("batch_size", rows, AT_LEAST_ONE)
        check("samples", 0 if samples is None else samples, NOT_NEGATIVE)
        folder, peft = (Path(str(x)) if x else None for x in (run, adapter))
        self.writer = find_writer(folder, peft, model, base, mesh, best=best)
        posterior = self.writer.posterior
        if samples is None:
            samples = (posterior.size or 10) if posterior.spread else 0
        self._scorer = Scorer(self.writer, samples, tau, prune, rows)
        self.tokenizer = self.writer.tokenizer
        if self.prefix_token_id is None:
            raise ValueError(f"{self.writer.name}: its tokenizer has no end token")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found: int = self.tokenizer.eos_token_id
        return found

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's caches."""
        return self.writer.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the tokens of a text, as training has them."""
        if add_special_tokens is False:
            return token_ids(self.tokenizer, [string], add_special_tokens=False)[0]
        return prompt_tokens(self.tokenizer, string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Writes a chat by the tokenizer's template."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [
            Pair(context or [self.prefix_token_id], continuation)
            for _, context, continuation in requests
        ]
        found = self._scorer(pairs, show=not disable_tqdm)
        values = zip(pool(found.log_probs), found.greedy, strict=True)
        results = [(float(log_prob), bool(greedy)) for log_prob, greedy in values]
        for (texts, *_), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, in windows; the average is that of whole texts."""
        pairs: list[Pair] = []
        ends = []
        for request in requests:
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(
                tokens, self.prefix_token_id, self.writer.context, 1
            )
            pairs += [Pair(*make_disjoint_window(window)) for window in windows]
            ends.append(len(pairs))
        log_probs = self._scorer(pairs, show=not disable_tqdm).log_probs
        whole = [part.sum(1) for part in np.split(log_probs, ends[:-1], axis=1)]
        return [float(x) for x in pool(np.stack(whole, axis=1))]

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Writes with the posterior mean up to a text of ``until``, or the limit."""
        texts: dict[int, str] = {}
        settings = [_settings(request.args[1]) for request in requests]
        for setting in dict.fromkeys(settings):
            own = [i for i, other in enumerate(settings) if other == setting]
            prompts = [requests[i].args[0] for i in own]
            outputs = generate(self.writer, prompts, setting)
            for index, output in zip(own, outputs, strict=True):
                texts[index] = text_of(self.tokenizer, output.tokens, setting.until)
                self.cache_hook.add_partial(
                    "generate_until", requests[index].args, texts[index]
                )
        return [texts[i] for i in range(len(requests))]


def _settings(asked: dict[str, Any]) -> Options:
    """Reads a task's settings of generation.

    Raises:
        ValueError: one is not implemented.
    """
    for name in asked.keys() - _DEFAULTS.keys():
        raise ValueError(
            f"generate_until: {name} is not implemented, only {', '.join(_DEFAULTS)}"
        )
    values = _DEFAULTS | asked
    until = values["until"] or []
    stops = (until,) if isinstance(until, str) else tuple(filter(None, until))
    temperature = 0.0
    if values["do_sample"]:
        temperature = float(values["temperature"]) or 1.0
    sampler = Sampler(temperature, values["top_k"], values["top_p"], values["min_p"])
    return Options(max_tokens=values["max_gen_toks"], sampler=sampler, until=stops)
