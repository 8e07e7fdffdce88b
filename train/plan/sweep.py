"""Variants of a run to plan beside it."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Any

from ivon_jax.models.stack import Remat
from ivon_jax.train.config import BaseName, TrainConfig
from ivon_jax.train.options import unset

OWN = "the run's"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Values to plan in all combinations.

    Attributes:
        batch_size: numbers of prompts of a step.
        mesh: devices along each axis.
        remat: activations that the backward pass recomputes. Offload is left out
            unless named, as the time of its transfers is not known.
        base: number formats of the frozen base.
        accumulate: numbers of micro-batches of a batch.
    """

    batch_size: Annotated[tuple[int, ...], unset("INT [INT ...]", OWN)] = ()
    mesh: Annotated[tuple[str, ...], unset("MESH [MESH ...]", OWN)] = ()
    remat: tuple[Remat, ...] = ("none", "dots", "names", "full")
    base: Annotated[tuple[BaseName, ...], unset("BASE [BASE ...]", OWN)] = ()
    accumulate: Annotated[tuple[int, ...], unset("INT [INT ...]", OWN)] = ()

    def configs(self, config: TrainConfig) -> Iterator[TrainConfig]:
        """Returns the run, then its variants, which it may be among.

        Args:
            config: the run.
        """
        yield config
        for base, mesh, batch, parts, remat in itertools.product(
            self.base or (config.base,),
            self.mesh or (config.mesh,),
            self.batch_size or (config.hyper.batch_size,),
            self.accumulate or (config.accumulate,),
            self.remat or (config.remat,),
        ):
            hyper: Any = dataclasses.replace(config.hyper, batch_size=batch)
            yield dataclasses.replace(
                config,
                base=base,
                mesh=mesh,
                hyper=hyper,
                accumulate=parts,
                remat=remat,
            )
