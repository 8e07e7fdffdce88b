"""Outputs of many prompts and many models."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Int
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax.checks import AT_LEAST_ONE, NOT_NEGATIVE, check
from ivon_jax.models.sampler import Sampler
from ivon_jax.train.generate.prompts import Content, encode_prompts
from ivon_jax.train.generate.schedule import (
    Decoder,
    Decoding,
    Output,
    PromptJob,
    length_class,
)
from ivon_jax.train.generate.writers import Draw, Writer
from ivon_jax.train.options import unset
from ivon_jax.train.problem import check_vocabulary

_STEPS = 16  # tokens between two looks at what has ended

# The prompt's index, the model, and the number of an output.
Place = tuple[int, int | None, int]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to generate.

    Attributes:
        models: number of posterior samples, each of which makes all outputs; 0 for the
            mean.
        outputs: number of outputs of each prompt and model.
        max_tokens: number of tokens at which an output ends.
        sampler: how tokens are drawn.
        tau: temperature of the posterior: its variance is divided by it.
        prune: share of adapter entries set to zero, lowest signal-to-noise first.
        seed: seed of the tokens that are drawn; the models do not depend on it.
        batch_size: number of different outputs made at a time; changes no result.
        until: texts before the first of which an output ends.
    """

    models: int = 0
    outputs: int = 1
    max_tokens: int = 256
    sampler: Flat[Sampler] = dataclasses.field(default_factory=Sampler)
    tau: float = 1.0
    prune: float = 0.0
    seed: int = 0
    batch_size: int = 32
    until: Annotated[tuple[str, ...], unset("TEXT [TEXT ...]", "none")] = ()

    def __post_init__(self) -> None:
        """Checks each field that does not depend on the writer."""
        check("models", self.models, NOT_NEGATIVE)
        check("outputs", self.outputs, AT_LEAST_ONE)
        check("max_tokens", self.max_tokens, AT_LEAST_ONE)
        check("batch_size", self.batch_size, AT_LEAST_ONE)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: {self.seed} is not in [0, 2^32)")
        if "" in self.until:
            raise ValueError("until: a stop text is empty")

    @property
    def model_ids(self) -> list[int | None]:
        """The index of every model; None is the mean."""
        return [*range(self.models)] or [None]


def generate(
    writer: Writer,
    prompts: Sequence[Content],
    options: Options = Options(),
) -> list[Output]:
    """Makes outputs of every prompt by every model.

    What an output is depends on the seed, its prompt, its model and its number only:
    the first outputs of a larger request are those of a smaller one.

    Args:
        writer: see `open_run`, `open_adapter` and `open_model`.
        prompts: texts, or chats, which are lists of messages.
        options: how many outputs, and how.

    Returns:
        The outputs, by prompt, model and number.

    Raises:
        ValueError: an option does not suit the writer, or a prompt has no tokens, is
            too long, or is refused by the chat template.
    """
    tokens = encode_prompts(writer.tokenizer, prompts)
    found = [
        output
        for grown in stream(writer, tokens, options)
        for output in grown
        if output.finish
    ]
    return sorted(found, key=lambda output: rank(output[:3]))


def rank(place: Place) -> tuple[int, int, int]:
    """Returns what outputs are sorted by: prompt, model and number."""
    prompt, model, number = place
    return int(prompt), -1 if model is None else int(model), int(number)


def stream(
    writer: Writer,
    prompts: Sequence[Int[np.ndarray, " _"]],
    options: Options,
    done: Collection[Place] = (),
    steps: int = _STEPS,
    shapes: set[tuple[int, ...]] | None = None,
) -> Iterator[list[Output]]:
    """Makes the same outputs as `generate`, model by model, as they grow.

    Args:
        writer: the model, or several.
        prompts: their tokens.
        options: how many outputs, and how.
        done: outputs to leave out.
        steps: number of tokens after which to yield.
        shapes: gets the shapes of each decoding that had to be compiled.

    Yields:
        The outputs that grew, some of them finished.

    Raises:
        ValueError: see `generate`.
    """
    variables_of = checked(writer, prompts, options)
    decoding = Decoding(
        writer.module,
        writer.mesh,
        options.sampler,
        writer.stops,
        options.max_tokens,
        jax.random.key(options.seed),
        options.batch_size,
        # A stop text may end with any token, at which the output must end.
        1 if options.until else steps,
        options.until,
        writer.tokenizer,
    )
    done = set(done)
    for model in options.model_ids:
        classes: dict[int, list[PromptJob]] = {}
        for index, tokens in enumerate(prompts):
            missing = [
                i for i in range(options.outputs) if (index, model, i) not in done
            ]
            if missing:
                job = PromptJob(index, tokens, _prompt_key(tokens), missing)
                classes.setdefault(length_class(len(tokens)), []).append(job)
        variables = variables_of(model) if classes else {}
        for _, jobs in sorted(classes.items()):
            decoder = Decoder(decoding, variables, model, jobs)
            for grown in decoder:
                if shapes is not None:
                    shapes |= decoder.shapes
                yield grown


def checked(
    writer: Writer, prompts: Sequence[Int[np.ndarray, " _"]], options: Options
) -> Draw:
    """Checks that a writer can make outputs of prompts, before anything is written.

    Args:
        writer: the model, or several.
        prompts: their tokens.
        options: how many outputs, and how.

    Returns:
        The function that makes the parameters of each model.

    Raises:
        ValueError: see `generate`.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"processes: text is generated by one, not {jax.process_count()}"
        )
    variables_of = writer.drawing(options.models, options.tau, options.prune)
    check_prompts(writer.name, writer.config, prompts, options.max_tokens)
    return variables_of


def check_prompts(
    name: str,
    model_config: Any,
    prompts: Sequence[Int[np.ndarray, " _"]],
    max_tokens: int,
) -> None:
    """Checks that a model has room for prompts and outputs, and knows their tokens.

    Args:
        name: the model's name.
        model_config: its configuration.
        prompts: tokens of the prompts.
        max_tokens: limit of an output's tokens.

    Raises:
        ValueError: it has not, or does not.
    """
    longest = max(map(len, prompts), default=0)
    context = model_config.max_position_embeddings
    if longest + max_tokens > context:
        raise ValueError(
            f"max_tokens: {max_tokens} after the longest prompt of {longest} tokens is"
            f" beyond the model's context of {context}"
        )
    check_vocabulary(name, model_config, prompts)


def _prompt_key(tokens: Int[np.ndarray, " s"]) -> int:
    """Returns 32 bits that identify a prompt, wherever it stands in a file."""
    data = np.ascontiguousarray(tokens, np.int32).tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:4], "little")
