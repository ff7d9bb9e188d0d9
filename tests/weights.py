"""A small network that stands for one trained elsewhere."""

from common import backend


def make_base(path, channels=3, seed=1):
    """Write a network as `fedward simulate cells` trains them, smaller: two convolutions with normalisation, and a head for pictures of another size."""
    backend.start()
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((24, 24, channels))
    maps = keras.layers.Rescaling(1 / 64, -2.0)(inputs)
    for filters in (4, 6):
        maps = keras.layers.Conv2D(filters, 3)(maps)
        maps = keras.layers.BatchNormalization()(maps)
        maps = keras.layers.Activation("relu")(keras.layers.MaxPooling2D(2)(maps))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(maps)))
    for weight in model.weights:  # moving statistics that are not the first ones
        weight.assign(weight + keras.random.uniform(weight.shape, 0, 0.3, seed=seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return model
