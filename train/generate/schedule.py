"""Which outputs are made when: a row that ends takes the next output at once.

Results do not depend on it, for what a row draws depends on its key only.
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
from ivon_jax.train.pod.runtime import naming_memory
from ivon_jax.train.pod.sharding import BATCH_AXES

_GROUP = 4  # rows that share a prompt, where there are enough prompts
_FEWEST = 8  # rows below which a step is no faster: it reads all weights anyway
_SHORTEST = 64  # tokens that rows have room for at first
_MEAN = 2**32 - 1  # stands for the mean among the samples' indices


class Work(NamedTuple):
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
        tokens: its tokens, the stop token included.
        log_prob: sum over the tokens, in nats, under the model without temperature
            and filters.
        finish: "stop" after a stop token, "length" at the limit; None if it goes on.
    """

    prompt: int
    model: int | None
    output: int
    tokens: Int[np.ndarray, " t"]
    log_prob: float
    finish: str | None


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all outputs have in common.

    Attributes:
        module: the model.
        mesh: the devices.
        sampler: how tokens are drawn.
        stops: tokens that end an output.
        limit: maximal number of tokens of an output.
        key: key of all draws.
        rows: number of outputs made at a time, rounded up to what the mesh can split.
        steps: number of tokens between two looks at the rows.
    """

    module: nn.Module
    mesh: Mesh
    sampler: Sampler
    stops: tuple[int, ...]
    limit: int
    key: Key[Array, ""]
    rows: int
    steps: int


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
        setting: Setting,
        variables: PyTree,
        model: int | None,
        work: Collection[Work],
    ) -> None:
        """Prepares the work.

        Args:
            setting: what all outputs have in common.
            variables: the parameters.
            model: index of the posterior sample; None for the mean.
            work: at least one prompt with outputs, all of one length class.
        """
        self.shapes: set[tuple[int, ...]] = set()
        self._setting, self._variables, self._model = setting, variables, model
        self._waiting = sorted(work, key=lambda job: len(job.tokens), reverse=True)
        groups, count = _geometry(setting, self._waiting)
        self._jobs: list[Work | None] = [None] * groups
        self._left: list[list[int]] = [[] for _ in range(groups)]  # still to start
        self._group = np.arange(count) // (count // groups)  # of each row
        self._numbers = np.zeros(count, np.int32)  # of each row's output
        self._busy = np.zeros(count, bool)
        self._prompts: Any = None
        self._rows: Any = None

    def __iter__(self) -> Iterator[list[Output]]:
        """Yields the outputs that grew, some of them finished, every few tokens."""
        while grown := self._next():
            yield grown

    def _next(self) -> list[Output]:
        """Starts what there is room for, and adds tokens; empty if all is done."""
        # Not around the loop above: the mesh would be set in the caller's code, too.
        with (
            jax.set_mesh(self._setting.mesh),
            naming_memory(
                f"decoding of {len(self._busy)} outputs at a time",
                "lower --batch-size, or split more with --mesh",
            ),
        ):
            return self._advance() if self._fill() else []

    def _fill(self) -> bool:
        """Starts outputs in free rows; returns whether any row is busy."""
        for group in range(len(self._jobs)):
            busy = self._left[group] or self._busy[self._group == group].any()
            if self._waiting and not busy:
                self._load(group, self._waiting.pop())
        where = np.zeros_like(self._busy)
        for row in np.flatnonzero(~self._busy):
            if left := self._left[self._group[row]]:
                self._numbers[row], where[row] = left.pop(0), True
        if where.any():
            keys = np.array([job.key if job else 0 for job in self._jobs], np.uint32)
            self._rows = programs.start(
                self._rows,
                self._prompts,
                where,
                self._setting.key,
                keys[self._group],
                np.uint32(_MEAN if self._model is None else self._model),
                self._numbers,
            )
            self._busy |= where
        return bool(self._busy.any())

    def _load(self, group: int, job: Work) -> None:
        """Reads a prompt into a group's buffer."""
        self._jobs[group], self._left[group] = job, list(job.outputs)
        width = length_class(len(job.tokens))
        tokens = np.zeros((1, min(bucket(len(job.tokens)), width)), np.int32)
        tokens[0, : len(job.tokens)] = job.tokens
        one = programs.prefill(
            self._setting.module,
            self._variables,
            tokens,
            np.array([len(job.tokens)], np.int32),
        )
        if self._rows is None:
            capacity = min(_SHORTEST, bucket(self._setting.limit))
            sizes = (len(self._jobs), width, len(self._busy), capacity)
            self._prompts, self._rows = programs.fresh(one, *sizes)
        self._prompts = programs.place(self._prompts, one, group)

    def _advance(self) -> list[Output]:
        """Adds tokens to all rows."""
        setting, waiting = self._setting, self._waiting or any(self._left)
        count = len(self._busy)
        few = count // 4 if count // 4 >= _FEWEST and self._unsplit else 0
        if not waiting and self._busy.sum() <= few:
            self._compact(few)
            count, few = few, 0
        # Rows are refilled a few at a time; and taken together when few are left.
        ended = max(1, count // 8) if waiting else self._busy.sum() - few
        self._rows = rows = programs.decode(
            setting.module,
            self._variables,
            self._prompts,
            self._rows,
            setting.sampler,
            np.array(setting.stops or (-1,), np.int32),
            setting.limit,
            setting.steps,
            int(ended),
        )
        lengths = self._prompts.cache.keys.shape[3], rows.tokens.shape[1]
        self.shapes.add((len(self._jobs), count, *lengths))
        tokens, counts, log_probs, live = map(
            np.asarray, (rows.tokens, rows.counts, rows.log_probs, rows.live)
        )
        grown = [
            self._output(
                row, tokens[row, : counts[row]], float(log_probs[row]), live[row]
            )
            for row in np.flatnonzero(self._busy).tolist()
        ]
        self._busy &= live
        self._make_room(int(counts[live].max(initial=0)))
        return grown

    def _output(
        self, row: int, tokens: np.ndarray, log_prob: float, live: np.bool_
    ) -> Output:
        job = self._jobs[self._group[row]]
        assert job is not None
        if not math.isfinite(log_prob):
            raise ValueError(f"prompt {job.prompt}: the model's logits are not finite")
        stopped = tokens[-1] in self._setting.stops
        finish = None if live else "stop" if stopped else "length"
        number = int(self._numbers[row])
        return Output(job.prompt, self._model, number, tokens.copy(), log_prob, finish)

    def _make_room(self, longest: int) -> None:
        """Lets buffers grow by the double, and shrink when they are mostly empty."""
        fitting = max(_SHORTEST, 1 << longest.bit_length())
        fitting = min(fitting, bucket(self._setting.limit))
        capacity = self._rows.tokens.shape[1]
        if fitting > capacity or fitting * 4 <= capacity:
            self._rows = programs.resize(self._rows, fitting)

    def _compact(self, count: int) -> None:
        """Keeps the busy rows only, each with its prompt, and free ones up to count."""
        index = np.argsort(~self._busy, kind="stable")[:count]
        self._prompts, self._rows = programs.take(self._prompts, self._rows, index)
        self._jobs = [self._jobs[group] for group in self._group[index]]
        self._left = [[] for _ in index]
        self._numbers, self._busy = self._numbers[index], self._busy[index]
        self._group = np.arange(count)

    @property
    def _unsplit(self) -> bool:
        return _shards(self._setting.mesh) == 1


def _shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _geometry(setting: Setting, work: Sequence[Work]) -> tuple[int, int]:
    """Returns the numbers of groups and of rows."""
    most = max(len(job.outputs) for job in work)
    groups = min(len(work), max(1, setting.rows // min(most, _GROUP)))
    rows = min(most, max(1, setting.rows // groups))
    shards = _shards(setting.mesh)
    if groups >= shards:
        groups = -(-groups // shards) * shards
    else:
        rows = -(-rows // shards) * shards
    return groups, groups * rows
