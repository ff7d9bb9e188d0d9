"""Gradient inversion: patients' rows from an update.

What a first dense layer has at its input is a ratio of its gradients (Phong et al. 2018, section 3.1): of one record, those of the kernel are the input times those of the bias. So one update over
one record tells the record whole, whatever the model beyond. Of several records a unit tells their weighted mean, and a single one where a rectifier lets only that one pass.
"""

import json
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client import private
from client.hospital import Hospital
from client.ledger import Ledger
from common import network as networks
from common.config import RunConfig, SelectionConfig, StoppingConfig
from common.layout import Vector
from common.network import Network
from common.privacy.accountant import epsilon
from common.privacy.events import Event
from common.seeds import seed_for
from common.tasks.task import rows_of, take
from simulations.attacks import matching
from simulations.attacks.attack import Attack, Finding, Heard, Target, overhear
from simulations.hospitals import noise_key

Rows = NDArray[np.float64]

BATCHES = (1, 4, 16)
"""Records of the one step that is attacked."""
TRIES = 4
"""Steps attacked of each size, over records drawn anew."""
MATCHED = 3
"""Images sought by their gradients; each takes some seconds."""
MOST = 100.0
"""A PSNR above it is exact to the last bits of a float."""


def analytic(kernel: Rows, bias: Rows) -> Rows:
    """Return what each unit tells of the input, shape ``(units, features)``, from gradients ``(features, units)`` and ``(units,)``; units that moved most come first, those that did not are left out."""
    order = np.argsort(-np.abs(bias), kind="stable")
    order = order[bias[order] != 0]
    return np.asarray((kernel[:, order] / bias[order]).T)


def psnr(original: Rows, guess: Rows, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB, at most `MOST`; ``peak`` is the range of the values.

    >>> psnr(np.zeros(4), np.full(4, 0.1), 1.0)
    20.0
    """
    error = float(np.mean((original - guess) ** 2))
    return round(min(MOST, 10 * np.log10(peak**2 / error)), 10) if error else MOST


def first_dense(network: Network) -> tuple[str, str] | None:
    """Return the paths of kernel and bias of a dense layer that the model begins with; None where it begins otherwise, or they do not travel."""
    import keras

    passing = keras.layers.InputLayer | keras.layers.Flatten
    first = next(layer for layer in network.model.layers if not isinstance(layer, passing))
    if not isinstance(first, keras.layers.Dense) or first.bias is None:
        return None
    paths = first.kernel.path, first.bias.path
    return paths if set(paths) <= {entry.path for entry in network.shared.entries} else None


def gradients(network: Network, heard: Heard, config: RunConfig) -> tuple[Rows, Rows]:
    """Return the gradients of the first dense layer's kernel and bias, from the update of one step of plain gradient descent, whose step size and weight decay everybody knows."""
    kernel, bias = first_dense(network) or ("", "")
    moved = _by_path(network, heard.update / np.float32(-config.training.learning_rate))
    return moved[kernel] - config.training.weight_decay * _by_path(network, heard.weights)[kernel], moved[bias]


def _by_path(network: Network, vector: Vector) -> dict[str, Rows]:
    parts = network.shared.split(np.asarray(vector, np.float32))
    return {entry.path: part.astype(np.float64) for entry, part in zip(network.shared.entries, parts, strict=True)}


def run(target: Target) -> list[Finding]:
    """Attack single steps over few records at every hospital, sent as the run's settings say."""
    model, run = target.outcome.model, target.scenario.run
    network = networks.build(
        target.outcome.coordinator.plan.task, json.loads(model.preparation), model.local_parts, run.seed
    )
    if first_dense(network) is None and not matching.applies(network):
        return []
    found = [Finding("inversion", "no update, the mean patient", "PSNR (dB)", _blind(target))]
    if first_dense(network) is None:
        value = float(np.mean(_matched(target, network)))
        return [*found, Finding("inversion", "1 record a step", "PSNR (dB)", value, limit="psnr")]
    for batch in BATCHES:
        values = [value for number in range(TRIES) for value in _attacked(target, network, batch, number)]
        view = f"{batch} record{'s' if batch > 1 else ''} a step"
        found.append(Finding("inversion", view, "PSNR (dB)", float(np.mean(values)), limit="psnr"))
    return found


def _attacked(target: Target, network: Network, batch: int, number: int) -> list[float]:
    """Return the PSNR of each record of one step at every hospital."""
    config, answers = _overheard(target, batch, number)
    peak = float(np.ptp(np.concatenate([rows for _, rows in answers])))
    return [_best(row, analytic(*gradients(network, heard, config)), peak) for heard, rows in answers for row in rows]


def _matched(target: Target, network: Network) -> list[float]:
    """Return the PSNR of the images of single records at the first hospitals, sought by their gradients."""
    config, answers = _overheard(target, 1, 0)
    search = matching.compile_search(network, target.outcome.coordinator.plan.task)
    found = []
    for number, (heard, rows) in enumerate(answers[:MATCHED]):
        guess = matching.matched(search, network, heard, config, number)
        target.show((rows[0], guess))
        found.append(psnr(rows[0], guess, matching.WHITE))
    return found


def _overheard(target: Target, batch: int, number: int) -> tuple[RunConfig, list[tuple[Heard, Rows]]]:
    """Train one step over few records at every hospital; return its settings, and each answer with the encoded records."""
    config = one_step(target, batch)
    drawn = [_few(hospital, batch, config.seed, number) for hospital in target.population.hospitals]
    outcome, answers = overhear(config, drawn, target.worker, target.population.secret)
    task, preparation = outcome.coordinator.plan.task, json.loads(outcome.model.preparation)
    rows = {hospital.name: task.encode(hospital.train, preparation).x.astype(np.float64) for hospital in drawn}
    for hospital in drawn:
        target.worker.forget(hospital)
    return config, [(heard, rows[heard.hospital]) for heard in answers]


def _blind(target: Target) -> float:
    """Return what one has who guesses the mean of all training patients, without any update."""
    task, preparation = target.outcome.coordinator.plan.task, json.loads(target.outcome.model.preparation)
    rows = np.concatenate([task.encode(h.train, preparation).x for h in target.population.hospitals]).astype(np.float64)
    return float(np.mean([psnr(row, rows.mean(axis=0), float(np.ptp(rows))) for row in rows]))


def one_step(target: Target, batch: int) -> RunConfig:
    """Return the run's settings with one step of plain descent over all rows in one round, as a coordinator that attacks would ask for, and the noise of the run's own steps where it has any."""
    run = target.scenario.run
    privacy = run.privacy
    if privacy.at_hospitals:
        largest = max(target.population.hospitals, key=lambda hospital: rows_of(hospital.train))
        event = private.terms(largest, run, target.outcome.coordinator.plan.task).event
        spent = epsilon([Event(event.noise_multiplier)], privacy.delta)
        privacy = replace(privacy, epsilon=spent, statistics=0.0, unit="record")
    training = replace(run.training, optimizer="sgd", batch_size=batch, epochs=1, augment=False, class_weights="none")
    return replace(
        run, rounds=1, privacy=privacy, training=training, selection=SelectionConfig(), stopping=StoppingConfig()
    )


def _few(hospital: Hospital, batch: int, seed: int, number: int) -> Hospital:
    generator = np.random.default_rng(seed_for(seed, "inversion", batch, number, hospital.name))
    rows = generator.permutation(rows_of(hospital.train))[:batch]
    ledger = Ledger(key=lambda question: noise_key(seed, f"{hospital.name} in step {number}", question))
    nobody = take(hospital.test, rows[:0])  # what the model is worth after one step is of no interest
    return replace(hospital, train=take(hospital.train, rows), test=nobody, patients=None, ledger=ledger)


def _best(original: Rows, guesses: Rows, peak: float) -> float:
    """Return the PSNR of the guess that is nearest: the attacker is taken to know it when it is seen."""
    return max((psnr(original, guess, peak) for guess in guesses), default=0.0)


INVERSION = Attack("inversion", "gradient inversion", run)
