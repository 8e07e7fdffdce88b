"""Outputs of a set of prompts: made with progress, and kept in a file of rows."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ivon_jax.train.generate.engine import Options, Place, checked, stream
from ivon_jax.train.generate.prompts import Prompt, encode_prompts
from ivon_jax.train.generate.records import Records, record
from ivon_jax.train.generate.schedule import Output
from ivon_jax.train.generate.stop_texts import settled, text_of
from ivon_jax.train.generate.writers import Writer
from ivon_jax.train.pod.interrupts import Interrupted, interruptible
from ivon_jax.train.runs.progress import progress, say

# Settings of which a file may hold some outputs by one value, some by another.
_FREE = ("models", "outputs", "batch_size")


@dataclasses.dataclass(frozen=True)
class Request:
    """The outputs to make.

    Attributes:
        writer: the model, or several.
        prompts: the prompts.
        options: how many outputs, and how.
        name: what is made, as progress calls it.
    """

    writer: Writer
    prompts: Sequence[Prompt]
    options: Options
    name: str = "generate"

    @functools.cached_property
    def tokens(self) -> list[Int[np.ndarray, " _"]]:
        """The tokens of each prompt.

        Raises:
            ValueError: see `encode_prompts`.
        """
        contents = [prompt.content for prompt in self.prompts]
        return encode_prompts(self.writer.tokenizer, contents)

    @property
    def total(self) -> int:
        """Number of outputs."""
        options = self.options
        return len(self.prompts) * len(options.model_ids) * options.outputs

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Everything on which the outputs depend, as plain JSON."""
        digest = hashlib.sha256()
        for prompt, ids in zip(self.prompts, self.tokens, strict=True):
            digest.update(f"{prompt.id!r} {ids.tolist()}".encode())
        options = dataclasses.asdict(self.options)
        options |= options.pop("sampler")
        settings = {k: v for k, v in options.items() if k not in _FREE}
        settings |= {"models": "mean" if self.options.models == 0 else "samples"}
        stops = [*self.writer.stops, *settings.pop("until")]
        return {**self.writer.identity, **settings, "stops": stops} | {
            "prompts": digest.hexdigest()
        }

    def write(self, out: Path, *, resume: bool) -> dict[Place, dict[str, Any]]:
        """Writes the rows to a file.

        Args:
            out: the file.
            resume: whether to continue an existing file.

        Returns:
            All rows of the file, which may be more than were asked for.

        Raises:
            ValueError: see `Records` and `stream`.
            Interrupted: a signal came; the file has what is finished.
        """
        checked(self.writer, self.tokens, self.options)
        records = Records(out, self.prompts, self.settings, resume=resume)
        for rows in self.rows(records.done):
            records.add(rows)
        return records.finish()

    def show(self) -> None:
        """Prints a single text as it grows."""
        text, until = "", self.options.until
        for (output,) in stream(self.writer, self.tokens, self.options, steps=1):
            now = text_of(self.writer.tokenizer, output.tokens, until)
            if output.finish is None:
                # The bytes of a character may be those of several tokens.
                if now.endswith("\ufffd"):
                    continue
                now = settled(now, until)
            print(now[len(text) :], end="", flush=True)
            text = now
        print()

    def rows(
        self, done: Collection[Place] = ()
    ) -> Iterator[list[tuple[Output, dict[str, Any]]]]:
        """Yields finished outputs, with progress on stderr, until a signal comes.

        Args:
            done: outputs to leave out.

        Raises:
            Interrupted: the message says how many outputs are finished.
        """
        start, made, ended = time.monotonic(), 0, self._asked(done)
        if ended == self.total:
            return
        shapes: set[tuple[int, ...]] = set()
        every = max(1, self.total // 20)
        grown = stream(self.writer, self.tokens, self.options, done=done, shapes=shapes)
        with (
            interruptible() as stop,
            progress(self.name, self.total, every, ended) as report,
        ):
            for outputs in grown:
                finished = [output for output in outputs if output.finish]
                made += sum(len(output.tokens) for output in finished)
                if finished:
                    yield [(output, self._row(output)) for output in finished]
                speed = made / (time.monotonic() - start)
                report(len(finished), f"{speed:.0f} tokens/s")
                ended += len(finished)
                if stop():
                    raise Interrupted(
                        f"{ended} of {self.total} outputs are finished", stop.signum
                    )
        say(f"{made} tokens; decoding was compiled for {len(shapes)} shapes")

    def _asked(self, done: Collection[Place]) -> int:
        """Counts the outputs that are done and asked for."""
        models = set(self.options.model_ids)
        return sum(
            model in models and number < self.options.outputs
            for _, model, number in done
        )

    def _row(self, output: Output) -> dict[str, Any]:
        prompt, until = self.prompts[output.prompt], self.options.until
        return record(output, prompt, self.writer.tokenizer, until)
