"""The speed of training, as a step's line shows it."""

import dataclasses

import jax

from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.plan.chips import CHIPS, Chip, ChipName
from ivon_jax.train.plan.plan import flops
from ivon_jax.train.problem import Problem

# Parts of a device's kind as JAX has it, the longer ones first. Of the H100, only the
# SXM module has the data sheet's peak.
KINDS: dict[str, ChipName] = {
    "v5 lite": "v5e",
    "v5e": "v5e",
    "v5p": "v5p",
    "v5": "v5p",
    "v6 lite": "v6e",
    "v6e": "v6e",
    "a100": "a100",
    "h100 80gb hbm3": "h100",
}


def chip_of(kind: str) -> Chip | None:
    """Returns the chip of a device's kind, if it is known.

    Args:
        kind: as `jax.Device.device_kind` has it.

    Example:
        >>> chip_of("TPU v5 lite") == CHIPS["v5e"], chip_of("cpu")
        (True, None)
    """
    return next((CHIPS[v] for k, v in KINDS.items() if k in kind.lower()), None)


@dataclasses.dataclass(frozen=True)
class Speed:
    """The work of a step.

    Attributes:
        examples: its examples.
        tokens: their tokens, without padding; of an average batch.
        share: the share of the peak at a step a second; None if the chip is unknown.
    """

    examples: int
    tokens: float
    share: float | None

    @classmethod
    def of(cls, problem: Problem, config: TrainConfig) -> "Speed":
        """Counts the work of a run's steps.

        Args:
            problem: the model and the examples.
            config: the resolved run.
        """
        assert config.hyper.batch_size is not None
        batch_size = config.hyper.batch_size * make_method(config).orders
        length = float(problem.splits["train"].lengths.mean())
        chip = chip_of(jax.devices()[0].device_kind)
        share = None
        if chip:
            classes = problem.task.answer_outputs
            work = flops(config, problem.model_config, round(length), classes)
            share = work / problem.mesh.size / chip.flops
        return cls(batch_size, batch_size * length, share)

    def text(self, steps: int, seconds: float) -> str:
        """Formats examples and tokens a second, and MFU.

        >>> Speed(8, 1000.0, 0.1).text(4, 2.0)
        '16.0 examples/s  2000 tokens/s  MFU 20.0 %'
        """
        rate = steps / seconds
        mfu = "" if self.share is None else f"  MFU {100 * self.share * rate:.1f} %"
        return (
            f"{self.examples * rate:.1f} examples/s"
            f"  {self.tokens * rate:.0f} tokens/s{mfu}"
        )
