"""The registry of trackers."""

from ivon_jax.train.trackers.base import Optional
from ivon_jax.train.trackers.mlflow import MLflow
from ivon_jax.train.trackers.tensorboard import TensorBoard
from ivon_jax.train.trackers.trackio import Trackio
from ivon_jax.train.trackers.wandb import Wandb

# By the value of --trackers, which is also the name of the extra to install.
TRACKERS: dict[str, type[Optional]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}
