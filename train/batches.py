"""From examples to padded batches of token ids.

Shapes: r rows of a batch, k texts in a row (1 unless packed), s padded length of a
row, n examples, c classes. All arrays are NumPy; the caller decides what goes to which
device.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.train.fields import shown
from ivon_jax.train.processes import divide
from ivon_jax.train.tasks import Example


class Batch(NamedTuple):
    """A right-padded batch; a pytree, so it can be passed to a jitted step.

    Every array is one of rows, so a batch is split by splitting all of them alike.

    Attributes:
        tokens: token ids, a row's texts one after another; those beyond the last one
            mean nothing.
        lengths: number of tokens of each text; a decoder predicts the answer from a
            text's last.
        labels: index of the right class, or the number to predict.
        weights: 1, or 0 for a text that only fills the batch up.
        seconds: where in each text its second part begins; None for decoders.
    """

    tokens: Int[np.ndarray, "r s"]
    lengths: Int[np.ndarray, "r k"]
    labels: Int[np.ndarray, "r k"] | Float[np.ndarray, "r k"]
    weights: Float[np.ndarray, "r k"]
    seconds: Int[np.ndarray, "r k"] | None = None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        tokens: token ids of each prompt, int32, not padded.
        labels: class indices, int32; or numbers, float32.
        pad_id: what padding is filled with.
        seconds: where each one's second text begins; None for decoders.
    """

    tokens: tuple[Int[np.ndarray, " _"], ...]
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, " n"]
    pad_id: int = 0
    seconds: Int[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def widths(self, pack: int = 1) -> list[int]:
        """What rows of `pack` of these examples can be padded to."""
        ordered = np.sort(self.lengths)
        shortest, longest = ordered[:pack].sum(), ordered[-pack:].sum()
        sums = ordered if pack == 1 else np.arange(shortest, longest + 1)
        return sorted({bucket(int(length)) for length in sums})

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of tokens of every prompt."""
        return np.array([len(ids) for ids in self.tokens], np.int32)


def answer_tokens(
    tokenizer: Any, words: Sequence[str], leading_space: bool
) -> Int[np.ndarray, " c"]:
    """The token that stands for each label word.

    Args:
        tokenizer: a tokenizer in the manner of `transformers`.
        words: the label words in class order.
        leading_space: whether to take the token of " word" or of "word".

    Raises:
        ValueError: a word is not a single token, or two words share one. The
            message gives the pieces, and says so if the other setting would do.
    """
    pieces = _pieces(tokenizer, words, leading_space)
    problem = _problem(words, pieces)
    if problem is None:
        return np.array([ids[0] for ids in pieces], np.int32)
    index, why = problem
    space = " " if leading_space else ""
    other = _problem(words, _pieces(tokenizer, words, not leading_space)) is None
    hint = "without" if leading_space else "with"
    named = tokenizer.convert_ids_to_tokens(pieces[index])
    raise ValueError(
        f"answer word {shown(space + words[index])} {why}: {shown(list(named))}"
        + (f"; all words are single tokens {hint} a leading space" if other else "")
    )


def _pieces(
    tokenizer: Any, words: Sequence[str], leading_space: bool
) -> list[list[int]]:
    """Tokens of each word where it follows a prompt.

    At the start of a text they may be others: there the tokenizers of Llama 2 and
    Mistral add a blank of their own.
    """
    before, space = ":", " " if leading_space else ""
    cut = len(tokenizer.encode(before, add_special_tokens=False))
    whole = [
        tokenizer.encode(before + space + word, add_special_tokens=False)
        for word in words
    ]
    return [ids[cut:] for ids in whole]


def _problem(
    words: Sequence[str], pieces: Sequence[Sequence[int]]
) -> tuple[int, str] | None:
    """Index of the first word that cannot be an answer, and what is wrong."""
    seen: dict[int, str] = {}
    for i, (word, ids) in enumerate(zip(words, pieces, strict=True)):
        if len(ids) != 1:
            return i, f"is {len(ids)} tokens, not one, for this tokenizer"
        if ids[0] in seen:
            return i, f"is the same token as {shown(seen[ids[0]])}"
        seen[ids[0]] = word
    return None


def encode(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None = None
) -> Encoded:
    """Tokenises prompts, with the special tokens the tokenizer adds by default.

    Of several processes each tokenises its share, and all get the whole.

    Args:
        tokenizer: a tokenizer in the manner of `transformers`.
        examples: at least one.
        max_length: most tokens a prompt may have; None for no limit.

    Raises:
        ValueError: no examples, a prompt without tokens, or one beyond the limit:
            cutting it would cut the question or the cue the answer follows.
    """
    if not examples:
        raise ValueError("no examples to encode")
    # Said explicitly: a tokenizer file may switch both on.
    prompts = [example.prompt for example in examples]

    def tokenise(share: Sequence[str]) -> Sequence[Sequence[int]]:
        return tokenizer(share, padding=False, truncation=False)["input_ids"]

    tokens = tuple(divide(tokenise, prompts))
    for number, ids in enumerate(tokens, 1):
        if not ids.size:
            raise ValueError(f"the prompt of example {number} has no tokens")
    if max_length is not None:
        longest = int(np.argmax([ids.size for ids in tokens]))
        if tokens[longest].size > max_length:
            over = sum(ids.size > max_length for ids in tokens)
            raise ValueError(
                f"{over} of {len(tokens)} prompts are longer than the limit of "
                f"{max_length} tokens; the longest, example {longest + 1}, has "
                f"{tokens[longest].size}: {shown(prompts[longest])}"
            )
    return Encoded(tokens, _labels(examples), _pad_id(tokenizer))


def encode_texts(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> Encoded:
    """Tokenises what an encoder reads; of long texts the end of the longer is cut.

    Of several processes each tokenises its share, and all get the whole.

    Args:
        tokenizer: a tokenizer in the manner of `transformers`.
        examples: at least one.
        max_length: most tokens of a text, or of two together.

    Raises:
        ValueError: no examples, or nothing left of one.
    """
    if not examples:
        raise ValueError("no examples to encode")

    def tokenise(share: Sequence[tuple[str, ...]]) -> list[list[int]]:
        encoded = tokenizer(
            *map(list, zip(*share, strict=True)),
            padding=False,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
        )
        pairs = zip(encoded["token_type_ids"], encoded["input_ids"], strict=True)
        return [
            [types.index(1) if 1 in types else len(types), *ids] for types, ids in pairs
        ]

    rows = divide(
        tokenise, [example.texts or (example.prompt,) for example in examples]
    )
    seconds = np.array([row[0] for row in rows])
    tokens = tuple(row[1:] for row in rows)
    if not all(ids.size for ids in tokens):
        raise ValueError("the tokenizer makes no tokens of a text")
    return Encoded(tokens, _labels(examples), _pad_id(tokenizer), seconds)


def _labels(examples: Sequence[Example]) -> np.ndarray:
    labels = [example.label for example in examples]
    return np.array(labels, np.float32 if isinstance(labels[0], float) else np.int32)


def _pad_id(tokenizer: Any) -> int:
    pad_id = getattr(tokenizer, "pad_token_id", None)
    return 0 if pad_id is None else int(pad_id)


def bucket(length: int) -> int:
    """Rounds a length up to one of few, each of which is compiled for once.

    Multiples of 8, from 64 on at least an eighth apart: 24 of them up to 512.

    Example:
        >>> [bucket(length) for length in (1, 8, 9, 64, 65, 73)]
        [8, 8, 16, 64, 72, 88]
    """
    size = 8
    while size < length:
        size = max(size + 8, -(-size * 9 // 64) * 8)
    return size


def collate(
    encoded: Encoded, indices: Int[np.ndarray, "r k"], pad_to: int | None = None
) -> Batch:
    """Puts the chosen examples into rows, padded on the right to their `bucket`.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        pad_to: another width to pad to; None for the bucket of the longest row.
    """
    lengths = encoded.lengths[indices]
    width = bucket(int(lengths.sum(1).max())) if pad_to is None else pad_to
    tokens = np.full((len(indices), width), encoded.pad_id, np.int32)
    for row, chosen in zip(tokens, indices, strict=True):
        texts = np.concatenate([encoded.tokens[i] for i in chosen])
        row[: len(texts)] = texts
    seconds = None if encoded.seconds is None else encoded.seconds[indices]
    weights = np.ones(indices.shape, np.float32)
    return Batch(tokens, lengths, encoded.labels[indices], weights, seconds)


def arrange(lengths: Int[np.ndarray, " b"], pack: int) -> Int[np.ndarray, "r k"]:
    """Puts a batch's texts into rows of `pack` each that are about equally long.

    Sorted by length they are dealt out to the rows, there and back again: of two in a
    row the longest gets the shortest, the second longest the second shortest.

    Args:
        lengths: of the texts; `pack` divides their number.
        pack: texts in a row. One in a row stays in its place.

    Example:
        >>> arrange(np.array([3, 9, 4, 7]), 2).tolist()
        [[1, 0], [3, 2]]
    """
    if pack == 1:
        return np.arange(len(lengths))[:, None]
    dealt = np.argsort(-lengths, kind="stable").reshape(pack, -1)
    dealt[1::2] = dealt[1::2, ::-1]
    return dealt.T


@runtime_checkable
class BatchStream(Protocol):
    """An endless iterator of batches whose position can be stored."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The position, as plain JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave, forward or back."""
        ...


def train_batches(
    encoded: Encoded,
    batch_size: int,
    seed: int,
    *,
    pack: int = 1,
    rows: Int[np.ndarray, " r"] | None = None,
) -> BatchStream:
    """An endless stream of training batches.

    Every epoch is a new permutation of all examples, a function of the seed alone.
    An epoch's last examples share a batch with the next one's first, so all batches
    are full and none is dropped.

    Args:
        encoded: the examples.
        batch_size: examples in a batch, over all processes.
        seed: any non-negative integer.
        pack: examples in a row, see `arrange`. Which a batch has does not change.
        rows: which of each batch's rows to return, None for all. The padded length is
            that of the whole batch, the same on every process.

    Raises:
        ValueError: the batch size is not positive, or no multiple of `pack`.
    """
    import grain

    if batch_size < 1 or batch_size % pack:
        raise ValueError(f"batch size {batch_size} is not a multiple of {pack}, >= 1")
    mine = slice(None) if rows is None else rows
    lengths = encoded.lengths

    def batch(indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        placed = chosen[arrange(lengths[chosen], pack)]
        longest = int(lengths[placed].sum(1).max())
        return collate(encoded, placed[mine], bucket(longest))

    # grain shuffles epoch e with seed + e: with seeds 0, 1, 2 used as they are, one
    # run's second epoch would be the next run's first. Hashing takes them apart.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(encoded)).shuffle(seed=spread).repeat()
    stream = order.batch(batch_size, drop_remainder=True, batch_fn=batch)
    # Padding takes microseconds; threads that read ahead would only have to be
    # stopped again when training is interrupted.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(stream.to_iter_dataset(options))


def eval_batches(
    encoded: Encoded, batch_size: int
) -> list[tuple[Batch, Int[np.ndarray, " rows"]]]:
    """Every example once, sorted by length so that little is padding.

    All batches have `batch_size` rows; the last is filled up with repeats of weight
    0, which come last.

    Returns:
        Batches, each with the indices that its real rows had; they come first.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        missing = batch_size - len(indices)
        batch = collate(encoded, np.pad(indices, (0, missing), "edge")[:, None])
        batch.weights[len(indices) :] = 0
        batches.append((batch, indices))
    return batches


def common_prefix_length(encoded: Encoded) -> int:
    """Number of tokens all prompts begin with, at least one short of each prompt.

    The key-value cache of that prefix can be computed once for all of them; every
    prompt must keep a token of its own to predict from.
    """
    prompts = [ids.tolist() for ids in encoded.tokens]
    # What the first and the last in dictionary order share, all between share.
    first, last = min(prompts), max(prompts)
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return min(shared, min(map(len, prompts)) - 1)
