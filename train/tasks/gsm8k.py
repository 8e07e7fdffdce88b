"""GSM8K: math word problems with worked solutions (Sec. 4.2, App. D.3)."""

from ivon_jax.train.data.exchanges import Exchange, Row
from ivon_jax.train.data.fields import text
from ivon_jax.train.data.task import Source, Task
from ivon_jax.train.tasks.final_number import final_number

PREFIX = "Solve the following math word problem: "


def _exchange(row: Row) -> Exchange:
    return Exchange(f"{PREFIX}{text(row, 'question')}\n", text(row, "answer"))


def _task(style: str) -> Task:
    return Task(
        "gsm8k",
        "text",
        source=Source(
            "openai/gsm8k", "main", "gsm8k/train", "gsm8k/test", hub_eval="test"
        ),
        exchange=_exchange,
        parse=final_number,
    )


GSM8K = {"gsm8k": _task}
