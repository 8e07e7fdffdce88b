"""Generated texts as rows of JSON, and a file of them that an interruption keeps."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivon_jax.errors import one_line, writing
from ivon_jax.files import write_bytes
from ivon_jax.train.generate.engine import Place, rank
from ivon_jax.train.generate.prompts import Prompt
from ivon_jax.train.generate.schedule import Output
from ivon_jax.train.generate.stop_texts import text_of


def record(
    output: Output, prompt: Prompt, tokenizer: Any, until: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns a finished output as a row.

    Args:
        output: the output.
        prompt: its prompt.
        tokenizer: makes the text, without special tokens.
        until: the stop texts.
    """
    return {
        "id": prompt.id,
        "model": output.model,
        "output": output.output,
        "finish": output.finish,
        "log_prob": output.log_prob,
        "tokens": len(output.tokens),
        "text": text_of(tokenizer, output.tokens, until),
    }


def line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def settings_file(path: Path) -> Path:
    """Returns the file of settings beside a file of rows."""
    return path.with_name(path.name + ".settings.json")


class Records:
    """A file of rows that grows as outputs are finished, and is sorted at the end.

    The settings are in a file beside it, so that nothing else is ever appended.

    Attributes:
        done: the outputs that it holds.
    """

    def __init__(
        self,
        path: Path,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any],
        *,
        resume: bool,
    ) -> None:
        """Begins a file, or reads one to continue.

        Args:
            path: the file.
            prompts: the prompts; rows name them by id.
            settings: everything on which the outputs depend, as plain JSON.
            resume: whether to continue an existing file.

        Raises:
            ValueError: the file exists and is not to be resumed, has other settings, or
                is damaged before its last line.
        """
        self._path, self._ids = path, {p.id: i for i, p in enumerate(prompts)}
        self.done: dict[Place, str] = {}
        beside = settings_file(path)
        if not path.exists():
            with writing(path):
                write_bytes(beside, (json.dumps(settings, indent=2) + "\n").encode())
                write_bytes(path, b"")
        elif not resume:
            raise ValueError(f"{path}: exists; --resume continues it")
        else:
            self._check(beside, settings)
            self._read()

    def _check(self, beside: Path, settings: Mapping[str, Any]) -> None:
        try:
            before = dict(json.loads(beside.read_text()))
        except (OSError, ValueError, TypeError) as error:
            reason = one_line(error)
            raise ValueError(
                f"{beside}: not the settings of a file ({reason})"
            ) from None
        for name, now in json.loads(json.dumps(settings)).items():
            if name not in before or before[name] != now:
                raise ValueError(
                    f"{name}: is now {now}, but {self._path} was begun with"
                    f" {before.get(name)}"
                )

    def _read(self) -> None:
        """Reads the rows; a last one that was cut off is removed."""
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, text in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = json.loads(text)
                place = (self._ids[row["id"]], row["model"], row["output"])
                rank(place)
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self._path}:{number}: not a row of this file's prompts"
                ) from None
            if place in self.done:
                raise ValueError(f"{self._path}:{number}: the output occurs twice")
            self.done[place] = text.decode() + "\n"
        if whole != data:
            write_bytes(self._path, whole)

    def add(self, rows: Iterable[tuple[Output, Mapping[str, Any]]]) -> None:
        """Appends finished outputs."""
        new = {output[:3]: line(row) for output, row in rows}
        self.done |= new
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(new.values())

    def finish(self) -> dict[Place, dict[str, Any]]:
        """Sorts the rows by prompt, model and output, and returns them."""
        self.done = {place: self.done[place] for place in sorted(self.done, key=rank)}
        write_bytes(self._path, "".join(self.done.values()).encode())
        return {place: json.loads(row) for place, row in self.done.items()}
