"""IVON with the same fixed prior for every parameter (Shen et al., ICML 2024)."""

import dataclasses
from typing import ClassVar

import optax

import ivon_jax
from ivon_jax.checks import FINITE_NOT_NEGATIVE
from ivon_jax.prior import Prior
from ivon_jax.train.methods.base import linear_schedule
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper


@dataclasses.dataclass(frozen=True)
class IvonHyper(IvonLoraHyper):
    """Hyper-parameters besides those of IVON-LoRA, whose defaults are the same.

    Attributes:
        weight_decay: delta; the prior is N(0, 1/s0) with s0 = lambda * delta. With 0 it
            is flat.
    """

    weight_decay: float = 1e-4

    RULES: ClassVar = IvonLoraHyper.RULES | {"weight_decay": FINITE_NOT_NEGATIVE}


@dataclasses.dataclass(frozen=True)
class Ivon(IvonLora):
    """IVON: differs from IVON-LoRA in the prior, and decays the mean towards zero.

    The learning rate is not rescaled by h0 + delta, so that equal settings of the two
    are equal steps.
    """

    name: ClassVar = "ivon"
    color: ClassVar = "tab:cyan"
    hyper_type: ClassVar = IvonHyper
    own_start: ClassVar = "its prior pulls the base's own part to zero"

    @property
    def _prior(self) -> Prior:
        return ivon_jax.FixedPrior(self.hyper.weight_decay)

    @property
    def _tx(self) -> optax.GradientTransformationExtraArgs:
        hyper = self.hyper
        return ivon_jax.ivon(
            linear_schedule(hyper.learning_rate, hyper.steps, hyper.warmup),
            hyper.ess,
            hyper.hess_init,
            hyper.beta1,
            hyper.beta2,
            hyper.weight_decay,
            hyper.clip_radius,
            rescale_lr=False,
        )
