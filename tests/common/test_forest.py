"""A forest grown from summed histograms is the forest of the pooled rows, bit for bit, and does what random forests do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from common.errors import UpdateRejected
from common.tasks import bins
from common.tasks.forest import COUNTS, FEATURE, LEFT, Forest, drawn_times, row_keys
from common.tasks.task import Examples

SMALL = Forest(columns=6, bins=8, classes=3, trees=4, depth=4, nodes=25, tried=3, batch=3)


def rows_of(count, seed=0, forest=SMALL):
    """Draw rows whose class follows from two columns, but for some noise."""
    generator = np.random.default_rng(seed)
    x = generator.integers(0, forest.bins, (count, forest.columns)).astype(np.uint8)
    y = (x[:, 0] > 3) + (x[:, 1] > 5) * 1
    return Examples(x, np.where(generator.random(count) < 0.1, 0, y).astype(np.int32))


def part(examples, rows):
    return Examples(examples.x[rows], examples.y[rows])


def grown(forest, hospitals, seed=1, rounds=None, here=lambda _hospital, _number: True):
    """Grow a forest over hospitals, as a run does, each in the rounds when it is ``here``."""
    learner = forest.learner()
    weights = np.zeros(forest.trees * forest.capacity * (COUNTS + forest.classes), np.float32)
    for number in range(rounds or forest.rounds):
        present = [examples for place, examples in enumerate(hospitals) if here(place, number)]
        sums = [learner.contribution(weights, examples, seed) for examples in present]
        assert {len(values) for values in sums} == {learner.size(weights)}
        weights = learner.advance(weights, np.sum(sums, axis=0, dtype=np.float64), seed)
    return weights


def predicted(forest, weights, x):
    import keras

    model = forest.network(keras.Input((forest.columns,)), "forest")
    model.set_weights([weights.reshape(-1, COUNTS + forest.classes)])
    return np.asarray(model(x.astype(np.float32)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 4), min_size=60, max_size=60))
def test_whoever_holds_which_rows_the_forest_is_that_of_the_pool(seed, holders):
    pool, holders = rows_of(60, seed % 1000), np.array(holders)
    hospitals = [part(pool, np.flatnonzero(holders == number)) for number in range(5)]
    assert grown(SMALL, hospitals, seed).tobytes() == grown(SMALL, [pool], seed).tobytes()


def test_trees_that_grow_in_small_batches_are_those_of_their_batch_alone():
    weights = grown(SMALL, [rows_of(300)])
    table = SMALL.table(weights)
    assert (table[:, 0, COUNTS:].sum(axis=1) > 0).all()
    assert not (table[:, :, LEFT] < 0).any()


def test_a_tree_is_sound():
    forest = Forest(columns=6, bins=8, classes=3, trees=20, depth=5, nodes=30, tried=3, least=7, batch=20)
    examples = rows_of(500)
    table = forest.table(grown(forest, [examples]))
    keys = row_keys(examples.x, examples.y.astype(np.int64), 1)
    for number, tree in enumerate(table):
        assert tree[0, COUNTS:].sum() == drawn_times(keys, number).sum()
        parents = np.flatnonzero(tree[:, LEFT] > 0)
        left = tree[parents, LEFT].astype(int)
        np.testing.assert_array_equal(tree[parents, COUNTS:], tree[left, COUNTS:] + tree[left + 1, COUNTS:])
        assert sorted([*left, *(left + 1)]) == list(range(1, 2 * len(parents) + 1))
        assert (tree[: 2 * len(parents) + 1, COUNTS:].sum(axis=1) >= forest.least).all()
        assert depth_of(tree) <= forest.depth


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sets(st.tuples(st.integers(0, 2), st.integers(0, 7)), min_size=1, max_size=12))
def test_no_node_has_two_parents_whoever_is_absent_when(seed, absent):
    pool = rows_of(90, seed % 1000)
    order = np.argsort(pool.x[:, 0], kind="stable")  # so that whole nodes are one hospital's
    hospitals = [part(pool, rows) for rows in np.array_split(order, 3)]
    absent = {pair for pair in absent if sum(other[1] == pair[1] for other in absent) < 3}
    weights = grown(SMALL, hospitals, seed, here=lambda place, number: (place, number) not in absent)
    for tree in SMALL.table(weights):
        left = tree[tree[:, LEFT] > 0, LEFT].astype(int)
        assert len({*left, *(left + 1)}) == 2 * len(left)
    assert np.isfinite(predicted(SMALL, weights, pool.x)).all()


@pytest.mark.parametrize(
    ("node", "column", "value"),
    [
        (1, LEFT, 1),
        (0, LEFT, 24),
        (0, LEFT, 1e9),
        (2, LEFT, 0.5),
        (0, FEATURE, 6),
        (0, FEATURE, -1),
        (3, COUNTS, np.nan),
    ],
)
def test_weights_that_are_no_forest_are_refused_and_hang_nobody(node, column, value):
    weights = grown(SMALL, [rows_of(100)]).copy()
    SMALL.table(weights)[1, node, column] = value
    with pytest.raises(UpdateRejected, match="no forest"):
        SMALL.learner().contribution(weights, rows_of(10), 1)


def test_a_tree_that_drew_no_row_does_not_keep_others_from_growing():
    few = part(rows_of(40), np.repeat([0, 1], 10))
    forest = Forest(columns=6, bins=8, classes=3, trees=6, depth=2, nodes=7, tried=3, batch=2)
    for seed in range(40):
        table = forest.table(grown(forest, [few], seed))
        keys = row_keys(few.x, few.y.astype(np.int64), seed)
        drawn = [drawn_times(keys, tree).sum() for tree in range(forest.trees)]
        np.testing.assert_array_equal(table[:, 0, COUNTS:].sum(axis=1), drawn)


def depth_of(tree, node=0):
    left = int(tree[node, LEFT])
    return 1 + max(depth_of(tree, left), depth_of(tree, left + 1)) if left > 0 else 0


def test_the_first_split_is_the_best_of_all():
    forest = Forest(columns=4, bins=5, classes=2, trees=1, depth=1, tried=4)
    generator = np.random.default_rng(3)
    x = generator.integers(0, 5, (80, 4)).astype(np.uint8)
    y = ((x[:, 2] > 2) ^ (generator.random(80) < 0.2)).astype(np.int32)
    (tree,) = forest.table(grown(forest, [Examples(x, y)]))
    times = drawn_times(row_keys(x, y.astype(np.int64), 1), 0)

    def impurity(rows):
        counts = np.bincount(y[rows], times[rows], 2)
        return counts.sum() - (counts**2).sum() / counts.sum() if counts.sum() else 0.0

    costs = {
        (column, edge): impurity(x[:, column] <= edge) + impurity(x[:, column] > edge)
        for column in range(4)
        for edge in range(4)
    }
    assert costs[int(tree[0, 0]), int(tree[0, 1])] == pytest.approx(min(costs.values()))


def test_it_predicts_as_well_as_scikit_learn():
    forest = Forest(columns=10, bins=16, classes=2, trees=40, depth=8, tried=3, batch=40)
    generator = np.random.default_rng(0)
    x = generator.integers(0, 16, (3000, 10)).astype(np.uint8)
    y = ((x[:, 0] + x[:, 1] > 15) ^ (generator.random(3000) < 0.1)).astype(np.int32)
    train, test = slice(0, 2000), slice(2000, None)
    weights = grown(forest, [part(Examples(x, y), np.arange(2000))])
    ours = (predicted(forest, weights, x[test]).argmax(axis=1) == y[test]).mean()
    peer = RandomForestClassifier(40, max_depth=8, max_features=3, random_state=0).fit(x[train], y[train])
    assert ours > peer.score(x[test], y[test]) - 0.02


def test_the_model_gives_the_mean_of_the_trees_shares():
    examples = rows_of(200)
    weights = grown(SMALL, [examples])
    votes = np.full((200, 3), 1 / 3)
    for tree in SMALL.table(weights):
        for row, x in enumerate(examples.x):
            node = 0
            while tree[node, LEFT] > 0:
                node = int(tree[node, LEFT] + (x[int(tree[node, 0])] > tree[node, 1]))
            votes[row] += tree[node, COUNTS:] / tree[node, COUNTS:].sum()
    expected = np.log(votes / votes.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(predicted(SMALL, weights, examples.x), expected, atol=1e-5)


def test_a_forest_that_is_not_yet_grown_predicts_too():
    examples = rows_of(100)
    assert np.isfinite(predicted(SMALL, grown(SMALL, [examples], rounds=2), examples.x)).all()
    even = predicted(SMALL, np.zeros(SMALL.trees * SMALL.capacity * 6, np.float32), examples.x)
    np.testing.assert_allclose(even, np.log(1 / 3), atol=1e-6)


def test_what_is_grown_costs_no_more_bytes():
    weights = grown(SMALL, [rows_of(100)])
    assert SMALL.size(weights) == 0
    assert grown(SMALL, [rows_of(100)], rounds=SMALL.rounds + 2).tobytes() == weights.tobytes()


def test_rows_are_drawn_as_by_a_bootstrap():
    examples = rows_of(20_000)
    times = drawn_times(row_keys(examples.x, examples.y.astype(np.int64), 5), 0)
    assert times.mean() == pytest.approx(1, abs=0.03)
    assert times.var() == pytest.approx(1, abs=0.06)
    other = drawn_times(row_keys(examples.x, examples.y.astype(np.int64), 5), 1)
    assert abs(np.corrcoef(times, other)[0, 1]) < 0.03


@given(st.integers(1, 200), st.integers(2, 40))
def test_edges_rise_part_evenly_and_are_no_patients_values(rows, count):
    values = np.random.default_rng(rows).uniform(0, 10, (rows, 2))
    low, high = np.zeros(2), np.full(2, 10.0)
    counts = bins.histogram(values, low, high)
    cuts = bins.edges(counts, low, high, count)
    assert cuts.shape == (2, count - 1)
    assert (np.diff(cuts) >= 0).all()
    np.testing.assert_allclose(cuts * bins.FINE / 10, np.rint(cuts * bins.FINE / 10), atol=1e-9)
    assert bins.binned(values, cuts).max() < count
    mean, deviation = bins.moments(counts, low, high)
    np.testing.assert_allclose(mean, values.mean(axis=0), atol=10 / bins.FINE)
    np.testing.assert_allclose(deviation, np.where(deviation == 1, 1, values.std(axis=0)), atol=10 / bins.FINE)


def test_nobody_s_values_make_even_edges():
    cuts = bins.edges(np.zeros((1, bins.FINE)), np.zeros(1), np.ones(1), 4)
    np.testing.assert_allclose(cuts, [[0.25, 0.5, 0.75]], atol=1 / bins.FINE)
