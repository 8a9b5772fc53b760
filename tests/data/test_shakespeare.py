"""Data that come with packages: the roles of Shakespeare, and the patients of scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from rayfl.data.sources.diabetes import Diabetes
from rayfl.data.sources.shakespeare import Shakespeare
from rayfl.errors import ConfigError


def test_shakespeare_never_changes():
    """Recorded, not derived: published results depend on it."""
    data = Shakespeare().load()
    assert data.digest == "6afc5f4a049266e6"
    assert (len(data.groups), data.num_classes) == (49, 60)


def test_a_group_is_a_role_whose_last_fifth_is_tested_on():
    data = Shakespeare().load()
    role = data.groups.index("HAMLET (Hamlet)")
    x, x_test = data.x_train[data.group_train == role], data.x_test[data.group_test == role]
    assert len(x_test) == (len(x) + len(x_test)) // 5
    spoken = "".join(data.classes[k] for k in np.concatenate([x, x_test]).ravel())
    assert spoken.startswith("A little more than kin, and less than kind.\\nNot so, my lord;")
    assert "To be, or not to be: that is the question:\\n" in spoken
    for part in (data.x_train, data.y_train), (data.x_test, data.y_test):
        assert (part[0][:, 1:] == part[1][:, :-1]).all()
    assert data.y_train[:, -1].tolist() != data.x_train[:, -1].tolist()


def test_short_roles_are_left_out_and_named():
    assert "DUNCAN (Macbeth): 2 windows" in Shakespeare().load().left_out
    few = Shakespeare(length=20, min_windows=100).load()
    assert few.groups == (
        "HAMLET (Hamlet)",
        "LADY MACBETH (Macbeth)",
        "MACBETH (Macbeth)",
    )
    with pytest.raises(ConfigError, match=r"data\.min_windows = 1000: no role has so many"):
        Shakespeare(min_windows=1000).load()


def test_diabetes_is_that_of_scikit_learn_standardised():
    data = Diabetes().load()
    assert data.digest == "d6eba3e21d5995cf"
    known = load_diabetes(scaled=False)
    assert data.kind == "numbers"
    assert (len(data.x_train), len(data.x_test), data.sample_shape) == (354, 88, (10,))
    x = np.concatenate([data.x_train, data.x_test])
    assert sorted(map(tuple, x)) == sorted(map(tuple, known.data.astype(np.float32)))
    assert np.corrcoef(data.y_train[:, 0], data.x_train[:, 2])[0, 1] > 0.5  # body mass
    np.testing.assert_allclose([data.y_train.mean(), data.y_train.std()], [0, 1], atol=1e-6)
    assert abs(data.y_test.mean()) < 0.1
