"""Which outputs are made when: as soon as there is room, the next ones start.

Results do not depend on it, for what an output draws depends on its key only.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, PyTree

from ivon_jax.models.sampler import Sampler
from ivon_jax.train.data.layout import bucket
from ivon_jax.train.generate import programs
from ivon_jax.train.generate.stop_texts import before, text_of
from ivon_jax.train.pod.runtime import naming_memory
from ivon_jax.train.pod.sharding import BATCH_AXES

_GROUP = 4  # rows that share a prompt, where there are enough prompts
_FEWEST = 8  # rows below which a step is no faster: it reads all weights anyway
_PER_ROW = 16  # outputs at a time for each row, at most
_SHORTEST = 64  # tokens that rows have room for at first
_MEAN = 2**32 - 1  # stands for the mean among the samples' indices


class PromptJob(NamedTuple):
    """A prompt, and the numbers of the outputs to make of it.

    Attributes:
        prompt: the prompt's index.
        tokens: its tokens.
        key: identifies the tokens in the keys of the outputs, 32 bits.
        outputs: numbers of the outputs.
    """

    prompt: int
    tokens: Int[np.ndarray, " s"]
    key: int
    outputs: Sequence[int]


class Output(NamedTuple):
    """One output, finished or not.

    Attributes:
        prompt: index of the prompt.
        model: index of the posterior sample; None for the mean.
        output: number of the output, among those of prompt and model.
        tokens: its tokens, those of the stop token or stop text included.
        log_prob: sum over the tokens, in nats, under the model without temperature
            and filters.
        finish: "stop" after a stop token or text, "length" at the limit; None if it
            goes on.
    """

    prompt: int
    model: int | None
    output: int
    tokens: Int[np.ndarray, " t"]
    log_prob: float
    finish: str | None


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What all outputs have in common.

    Attributes:
        module: the model.
        mesh: the devices.
        sampler: how tokens are drawn.
        stops: tokens that end an output.
        limit: maximal number of tokens of an output.
        key: key of all draws.
        rows: number of different outputs made at a time, rounded up to what the mesh
            can split.
        steps: number of tokens between two looks at the rows.
        until: stop texts, with which an output ends, too; they need single steps.
        tokenizer: makes the text of tokens.
    """

    module: nn.Module
    mesh: Mesh
    sampler: Sampler
    stops: tuple[int, ...]
    limit: int
    key: Key[Array, ""]
    rows: int
    steps: int
    until: tuple[str, ...] = ()
    tokenizer: Any = None


def length_class(tokens: int) -> int:
    """Returns the length of buffers for prompts: a power of two, at least 32.

    Prompts of one class are decoded together, by the same programs.
    """
    return max(32, 1 << (tokens - 1).bit_length())


class Decoder:
    """Makes outputs of one set of parameters and of prompts of one length class.

    Attributes:
        shapes: numbers of prompts and rows, and lengths of their buffers, of each
            decoding that had to be compiled.
    """

    def __init__(
        self,
        decoding: Decoding,
        variables: PyTree,
        model: int | None,
        jobs: Collection[PromptJob],
    ) -> None:
        """Prepares the work.

        Args:
            decoding: what all outputs have in common.
            variables: the parameters.
            model: index of the posterior sample; None for the mean.
            jobs: at least one prompt with outputs, all of one length class.
        """
        self.shapes: set[tuple[int, ...]] = set()
        self._decoding, self._variables, self._model = decoding, variables, model
        self._waiting = sorted(jobs, key=lambda job: len(job.tokens), reverse=True)
        self._full = layout = _layout(decoding, self._waiting)
        self._layout = layout.few if layout.groups == 1 and layout.few else layout
        count = self._layout.slots
        self._jobs: list[PromptJob | None] = [None] * self._layout.groups
        self._left: list[list[int]] = [[] for _ in self._jobs]  # still to start
        self._numbers = np.zeros(count, np.int32)  # of the output of each slot
        self._busy = np.zeros(count, bool)
        self._row = np.zeros(count, np.int32)
        self._prompts: Any = None
        self._state: Any = None

    def __iter__(self) -> Iterator[list[Output]]:
        """Yields the outputs that grew, some of them finished, every few tokens."""
        while grown := self._next():
            yield grown

    def _next(self) -> list[Output]:
        """Starts what there is room for, and adds tokens; empty if all is done."""
        # Not around the loop above: the mesh would be set in the caller's code, too.
        with (
            jax.set_mesh(self._decoding.mesh),
            naming_memory(
                f"decoding of {self._full.rows} outputs at a time",
                "lower --batch-size, or split more with --mesh",
            ),
        ):
            return self._advance() if self._fill() else []

    def _fill(self) -> bool:
        """Starts outputs in free rows; returns whether any is busy."""
        where, used = np.zeros_like(self._busy), self._used
        for group, left in enumerate(self._left):
            slots = self._layout.slots_of(group)
            if self._waiting and not (left or self._busy[slots].any()):
                self._load(group, self._waiting.pop())
                left = self._left[group]
            free = np.flatnonzero(~self._busy[slots])[: len(left)] + slots.start
            rows = sorted(self._layout.rows_of(group) - used)
            if len(free) and rows:
                # All in one row, which is shared until they differ.
                self._numbers[free], self._row[free] = left[: len(free)], rows[0]
                where[free] = True
                del left[: len(free)]
        if where.any():
            keys = np.array([job.key if job else 0 for job in self._jobs], np.uint32)
            self._state = programs.start(
                self._state,
                self._prompts,
                where,
                self._row,
                self._decoding.key,
                np.repeat(keys, self._layout.per_group),
                np.uint32(_MEAN if self._model is None else self._model),
                self._numbers,
            )
            self._busy |= where
        return bool(self._busy.any())

    @property
    def _used(self) -> set[int]:
        """The rows of the busy outputs."""
        return set(self._row[self._busy].tolist())

    def _load(self, group: int, job: PromptJob) -> None:
        """Reads a prompt into a group's buffer."""
        self._jobs[group], self._left[group] = job, list(job.outputs)
        width = length_class(len(job.tokens))
        tokens = np.zeros((1, min(bucket(len(job.tokens)), width)), np.int32)
        tokens[0, : len(job.tokens)] = job.tokens
        one = programs.prefill(
            self._decoding.module,
            self._variables,
            tokens,
            np.array([len(job.tokens)], np.int32),
        )
        if self._state is None:
            layout = self._layout
            capacity = min(_SHORTEST, bucket(self._decoding.limit))
            sizes = (layout.groups, width, layout.rows, layout.slots, capacity)
            self._prompts, self._state = programs.fresh(one, *sizes)
        self._prompts = programs.place(self._prompts, one, group)

    def _advance(self) -> list[Output]:
        """Adds tokens to all outputs."""
        decoding = self._decoding
        # Some are waited for before others start, for that takes time too.
        some = max(1, int(self._busy.sum()) // 8)
        self._state = state = programs.decode(
            decoding.module,
            self._variables,
            self._prompts,
            self._state,
            decoding.sampler,
            np.array(decoding.stops or (-1,), np.int32),
            decoding.limit,
            decoding.steps,
            some if self._others else 2**30,
            self._layout is self._full,
        )
        lengths = self._prompts.cache.keys.shape[3], state.cache.keys.shape[3]
        self.shapes.add((self._layout.groups, self._layout.rows, *lengths))
        outputs = state.outputs._replace(keys=None)
        row, tokens, counts, log_probs, live, waits = map(
            np.array, jax.tree.leaves(outputs)
        )
        grown = [
            self._output(
                slot, tokens[slot, : counts[slot]], float(log_probs[slot]), live[slot]
            )
            for slot in np.flatnonzero(self._busy).tolist()
        ]
        ended = np.zeros_like(live)
        ended[self._busy] = [output.finish is not None for output in grown]
        if (ended & live).any():  # by a text, of which the compiled loop knows nothing
            self._state, live = programs.end(self._state, ended), live & ~ended
        self._busy &= live
        self._row = row
        if (waits & live).any():
            self._arrange(self._full)
        elif few := self._fewer():
            self._arrange(few)
        self._make_room(int(counts[live].max(initial=0)))
        return grown

    @property
    def _others(self) -> bool:
        """Whether there are outputs still to start."""
        return bool(self._waiting) or any(self._left)

    def _output(
        self, slot: int, tokens: np.ndarray, log_prob: float, live: np.bool_
    ) -> Output:
        job = self._jobs[slot // self._layout.per_group]
        assert job is not None
        if not math.isfinite(log_prob):
            raise ValueError(f"prompt {job.prompt}: the model's logits are not finite")
        decoding = self._decoding
        stopped = tokens[-1] in decoding.stops
        if decoding.until and not stopped:
            text = text_of(decoding.tokenizer, tokens)
            stopped = before(text, decoding.until) != text
        finish = "stop" if stopped else None if live else "length"
        number = int(self._numbers[slot])
        return Output(job.prompt, self._model, number, tokens.copy(), log_prob, finish)

    def _make_room(self, longest: int) -> None:
        """Lets buffers grow by the double, and shrink when they are mostly empty."""
        fitting = max(_SHORTEST, 1 << longest.bit_length())
        fitting = min(fitting, bucket(self._decoding.limit))
        capacity = self._state.cache.keys.shape[3]
        if fitting > capacity or fitting * 4 <= capacity:
            self._state = programs.resize(self._state, fitting)

    def _fewer(self) -> "Layout | None":
        """Returns the smaller layout, if the last outputs fit in it."""
        few = self._layout.few
        if few is None or self._others or not self._busy.any():
            return None
        used = [len(self._layout.rows_of(g) & self._used) for g in self._busy_groups]
        fits = len(used) <= few.groups and max(used) <= few.rows // few.groups
        return few if fits else None

    @property
    def _busy_groups(self) -> list[int]:
        return np.unique(np.flatnonzero(self._busy) // self._layout.per_group).tolist()

    def _arrange(self, new: "Layout") -> None:
        """Moves the busy outputs, their rows and their prompts to a layout."""
        old, groups, busy = self._layout, self._busy_groups, self._used
        if new is old:
            return
        # What is out of range is a free row, or no output.
        rows = np.full((new.groups, new.rows // new.groups), old.rows)
        slots = np.full((new.groups, new.per_group), old.slots)
        for own, here, group in zip(rows, slots, groups, strict=False):
            used = sorted(old.rows_of(group) & busy)
            own[: len(used)] = used
            here[:] = np.arange(old.slots)[old.slots_of(group)]
        kept = [self._left[group] for group in groups]
        self._left = kept + [[] for _ in range(new.groups - len(groups))]
        groups += groups[:1] * (new.groups - len(groups))  # any prompt
        self._prompts, self._state = programs.arrange(
            self._prompts, self._state, np.array(groups), rows.ravel(), slots.ravel()
        )
        self._jobs = [self._jobs[group] for group in groups]
        self._numbers = np.append(self._numbers, 0)[slots.ravel()]
        self._busy = np.append(self._busy, False)[slots.ravel()]
        self._row = np.array(self._state.outputs.row)
        self._layout = new


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many prompts, rows and outputs there are at a time.

    Attributes:
        groups: number of prompts.
        rows: number of rows, those of the first prompt before those of the second.
        per_group: number of outputs of each prompt.
        few: a smaller one for the last outputs, or for outputs that differ little; None
            if a step would not be faster.
    """

    groups: int
    rows: int
    per_group: int
    few: "Layout | None" = None

    @property
    def slots(self) -> int:
        """Number of outputs at a time."""
        return self.groups * self.per_group

    def rows_of(self, group: int) -> set[int]:
        """Returns the rows of a prompt."""
        own = self.rows // self.groups
        return set(range(group * own, (group + 1) * own))

    def slots_of(self, group: int) -> slice:
        """Returns the outputs of a prompt."""
        return slice(group * self.per_group, (group + 1) * self.per_group)


def _layout(decoding: Decoding, jobs: Sequence[PromptJob]) -> Layout:
    most = max(len(job.outputs) for job in jobs)
    groups = min(len(jobs), max(1, decoding.rows // min(most, _GROUP)))
    rows = min(most, max(1, decoding.rows // groups))
    shards = math.prod(decoding.mesh.shape[axis] for axis in BATCH_AXES)
    if groups >= shards:
        groups = -(-groups // shards) * shards
    else:
        rows = -(-rows // shards) * shards
    per_group, few, count = min(most, _PER_ROW * rows), None, groups * rows // 4
    if count >= _FEWEST and shards == 1:
        fewer = max(1, groups // 4)
        few = Layout(fewer, count // fewer * fewer, per_group)
    return Layout(groups, groups * rows, per_group, few)
