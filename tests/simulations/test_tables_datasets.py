"""The stays of diabetic patients, as published; skipped where the file is not on this computer."""

import numpy as np
import pytest

from simulations.datasets.diabetes130 import DIABETES130
from simulations.datasets.fetch import is_here, load
from simulations.hospitals import populate
from simulations.scenario import find, read

pytestmark = pytest.mark.skipif(not is_here(DIABETES130), reason="the data set is not on this computer")


@pytest.mark.slow
def test_stays_and_patients_are_those_of_the_publication_and_patients_never_part():
    table = load(DIABETES130)
    assert (len(table), len(set(table.patient)), int(table.label.sum())) == (101_766, 71_518, 11_357)
    assert set(table.records["age"]) == set(range(5, 100, 10))
    assert np.isnan(table.records["max_glu_serum"]).mean() == pytest.approx(0.947, abs=0.001)
    population = populate(read(find("readmission"), {"simulation": {"hospitals": 3}}))
    # A patient of this file is known by the numbers of his stays alone; training patients are kept by name.
    trained = [set(hospital.patients.tolist()) for hospital in population.hospitals]
    assert not (trained[0] & trained[1])
    assert not (trained[0] & trained[2])
    assert not (trained[1] & trained[2])
