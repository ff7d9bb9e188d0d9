import subprocess
import sys

LOOK = """
import sys
import common.backend
common.backend.start()
assert "tensorflow" in sys.modules
print(sorted({"matplotlib", "pandas", "sklearn"} & set(sys.modules)))
import pandas, sklearn.metrics, matplotlib.pyplot
import keras
print(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).count_params(), pandas.Series([1, 2]).sum())
"""


def test_tensorflow_comes_without_what_keras_would_import_for_nobody():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "3 3"]
