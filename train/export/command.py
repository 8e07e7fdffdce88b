"""The command ``ivon-jax export``."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ivon_jax.train.options import unset
from ivon_jax.train.pod import runtime


def export(
    directory: tyro.conf.Positional[Path],
    out: Path,
    format: Literal["peft", "hf"] = "peft",
    samples: int = 0,
    tau: float = 1.0,
    prune: float = 0.0,
    best: bool = False,
    dequantize: bool = False,
    push: Annotated[str | None, unset("ORG/NAME", "only write the folder")] = None,
) -> None:
    """Writes a run's result for other programs, with a model card.

    Args:
        directory: a folder written by "ivon-jax train".
        out: new folder to write.
        format: "peft" for an adapter that HF PEFT and vLLM load, with the posterior
            beside it; "hf" for the whole model with the adapter merged in.
        samples: peft only: number of adapters to draw from the posterior besides.
        tau: peft only: temperature of the samples.
        prune: peft only: share of adapter entries set to zero.
        best: export the posterior of lowest NLL (train --eval-steps), not the last.
        dequantize: hf only: for a quantised base, write the dequantised base in
            bfloat16 with the adapter merged in; otherwise refused.
        push: also upload the folder to this repository of the HF hub, made private if
            it is new; needs "hf auth login" or HF_TOKEN.
    """
    from ivon_jax.train.export.files import export_hf, export_peft
    from ivon_jax.train.export.push import Repository

    runtime.check_devices()
    repository = Repository.named(push) if push else None
    if format == "peft":
        if dequantize:
            raise ValueError("dequantize: only with --format hf")
        export_peft(directory, out, samples, tau, prune, best=best)
    elif (samples, tau, prune) != (0, 1.0, 0.0):
        raise ValueError("samples, tau, prune: only with --format peft")
    else:
        export_hf(directory, out, best=best, dequantize=dequantize)
    print(f"wrote {out}")
    if repository:
        print(f"pushed to {repository.upload(out)}")
