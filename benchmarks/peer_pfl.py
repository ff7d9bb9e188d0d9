"""pfl-research's simulated backend in PyTorch; run by the environment of ``peers.py``.

Usage: peer_pfl.py WORK ROUNDS. Prints the seconds at which each round ended. One process and PyTorch's own choice of threads.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from work import WORKS, Work


class Network(torch.nn.Module):
    """The model, with the two methods that pfl asks for."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        nn = torch.nn
        if len(work.shape) > 1:
            body = [
                nn.Conv2d(1, 32, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(5408, 64),
                nn.ReLU(),
                nn.Linear(64, 1),
            ]
        else:
            body = [nn.Linear(work.shape[0], 16), nn.ReLU(), nn.Linear(16, 1)]
        self.body = nn.Sequential(*body)

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:  # noqa: A002 - the name pfl calls it by
        """Return the mean loss of a batch."""
        self.train(not eval)
        return torch.nn.functional.binary_cross_entropy_with_logits(self.body(x)[:, 0], y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Any]:  # noqa: A002
        """Return the loss over a hospital."""
        return {"loss": Weighted(self.loss(x, y, eval).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Notes when each round ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def after_central_iteration(
        self, _metrics: Metrics, _model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time."""
        self.moments.append(time.perf_counter())
        return central_iteration < 0, Metrics()


def dataset(work: Work, hospital: int) -> PyTorchTensorDataset:
    """Return a hospital's patients as tensors, channels first, pixels scaled to 0..1."""
    x, y = work.patients(hospital)
    if len(work.shape) > 1:
        x = np.moveaxis(x, -1, 1) / np.float32(255.0)
    return PyTorchTensorDataset((torch.tensor(x), torch.tensor(y.astype(np.float32))), user_id=str(hospital))


def run(work: Work, rounds: int) -> list[float]:
    """Train for so many rounds and return when each ended."""
    np.random.seed(1)  # noqa: NPY002 - pfl draws its cohorts from numpy's global generator
    known = [dataset(work, number) for number in range(work.hospitals)]
    # Without evaluation no user is trained or judged beside the cohort.
    federation = FederatedDataset(known.__getitem__, lambda: int(np.random.randint(work.hospitals)))  # noqa: NPY002
    network = Network(work)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, evaluation_frequency=rounds + 1, train_cohort_size=work.cohort, val_cohort_size=0),
        SimulatedBackend(federation, federation),
        model,
        NNTrainHyperParams(
            local_batch_size=work.batch_size, local_num_epochs=work.epochs, local_learning_rate=work.learning_rate
        ),
        callbacks=[clock],
    )
    return clock.moments


if __name__ == "__main__":
    print(json.dumps({"moments": run(WORKS[sys.argv[1]], int(sys.argv[2]))}))
