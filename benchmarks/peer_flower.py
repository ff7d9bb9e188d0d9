"""Flower's own simulation (Ray), with an app built like its TensorFlow template; run by the environment of ``peers.py``.

Usage: peer_flower.py WORK ROUNDS. Prints the seconds at which each round ended. Like the template, the client clears the Keras session, builds and
compiles the model and calls ``fit`` for every message; unlike it, there are no evaluation rounds, data come from memory instead of
a download, and the optimiser is plain SGD: less work for the peer, never more.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import WORKS, Work


def load_model(work: Work) -> Any:
    """Build and compile the model with Keras."""
    import keras

    if len(work.shape) > 1:
        body = [
            keras.layers.Conv2D(work.width, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
        ]
    else:
        body = [keras.layers.Dense(16, activation="relu")]
    model = keras.Sequential([keras.Input(work.shape), *body, keras.layers.Dense(2, activation="softmax")])
    model.compile(
        keras.optimizers.SGD(work.learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def load_data(work: Work, hospital: int) -> tuple[Any, Any]:
    """Return a hospital's patients, pixels scaled to 0..1."""
    x, y = work.patients(hospital)
    return (x / 255.0).astype("float32") if len(work.shape) > 1 else x, y


def client_app(work: Work) -> ClientApp:
    """Return the app of a hospital."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        import keras

        keras.backend.clear_session()
        x, y = load_data(work, int(context.node_config["partition-id"]))
        model = load_model(work)
        model.set_weights(message.content["arrays"].to_numpy_ndarrays())
        history = model.fit(x, y, epochs=work.epochs, batch_size=work.batch_size, verbose=0)
        metrics = MetricRecord({"num-examples": len(x), "train_loss": history.history["loss"][-1]})
        return Message(RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}), reply_to=message)

    return app


def server_app(work: Work, rounds: int, moments: list[float]) -> ServerApp:
    """Return the app of the coordinator; it notes when each round ended."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        strategy = FedAvg(
            fraction_train=work.cohort / work.hospitals, fraction_evaluate=0.0, min_available_nodes=work.hospitals
        )
        model = load_model(work)

        def note(_number: int, _arrays: ArrayRecord) -> None:
            moments.append(time.perf_counter())

        strategy.start(grid=grid, initial_arrays=ArrayRecord(model.get_weights()), num_rounds=rounds, evaluate_fn=note)

    return app


if __name__ == "__main__":
    chosen, count = WORKS[sys.argv[1]], int(sys.argv[2])
    ends: list[float] = []
    # One CPU a client is Flower's faster setting here: by default one client at a time takes two.
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app(chosen, count, ends), client_app(chosen), chosen.hospitals, backend_config=resources)
    print(json.dumps({"moments": ends}))
