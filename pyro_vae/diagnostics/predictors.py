"""Predictors of one column of numbers by others: bins, thresholds and forests, by scikit-learn."""

from __future__ import annotations

__all__ = ["binned", "normalized_mutual_information", "predicted_by_dimension", "predicted_by_forest", "ranks"]

from typing import Any

import numpy as np
from jaxtyping import Float

_FOLDS = 5
_LEAF = 0.01  # share of the data: smaller leaves credit every dimension with the noise


def binned(column: np.ndarray, num_bins: int) -> np.ndarray:
    """Return classes, or bins of equal count by equal values' middle rank, so that flipping the sign flips bins."""
    values, classes = np.unique(column, return_inverse=True)
    if len(values) <= num_bins:
        return classes
    ends = np.cumsum(np.bincount(classes))
    twice_the_middle = ends + np.append(0, ends[:-1])
    return (twice_the_middle * num_bins // (2 * len(column)))[classes]


def ranks(column: np.ndarray) -> np.ndarray:
    """Return the ranks of values, since a tree would see the values in single precision."""
    return np.unique(column, return_inverse=True)[1]


def normalized_mutual_information(z: np.ndarray, v: np.ndarray, corrected: bool) -> float:
    """Return I(z; v) / H(v), both without the part due to chance if ``corrected``."""
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    table = contingency_matrix(z, v, sparse=True)
    chance = expected_mutual_information(table, len(z)) if corrected else 0.0
    return float((mutual_info_score(z, v) - chance) / (mutual_info_score(v, v) - chance))


def predicted_by_dimension(z: np.ndarray, v: np.ndarray, max_classes: int, state: int) -> float:
    """Return the score of one dimension as a predictor of one factor: R^2 of a line, or accuracy of thresholds."""
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    if np.ptp(z) == 0:
        return 0.0
    values, classes = np.unique(v, return_inverse=True)
    if len(values) > max_classes:
        return float(np.corrcoef(z, v)[0, 1] ** 2)
    tree = DecisionTreeClassifier(max_leaf_nodes=len(values), class_weight="balanced", random_state=state)
    folds = KFold(_FOLDS, shuffle=True, random_state=state)
    return _adjusted_accuracy(classes, cross_val_predict(tree, ranks(z)[:, None], classes, cv=folds))


def predicted_by_forest(
    z: np.ndarray, v: np.ndarray, max_classes: int, num_trees: int, state: int
) -> tuple[Float[np.ndarray, " latent"], float]:
    """Return the importance of each dimension for one factor, and the out-of-bag score."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    options: dict[str, Any] = {"min_samples_leaf": _LEAF, "max_features": 1.0, "oob_score": True, "random_state": state}
    values, classes = np.unique(v, return_inverse=True)
    if len(values) > max_classes:
        forest = RandomForestRegressor(num_trees, **options).fit(z, v)
        prediction = forest.oob_score_
    else:
        forest = RandomForestClassifier(num_trees, class_weight="balanced", **options).fit(z, classes)
        prediction = _adjusted_accuracy(classes, forest.oob_decision_function_.argmax(1))
    importance = forest.feature_importances_
    return importance if importance.any() else np.full_like(importance, 1 / len(importance)), float(prediction)


def _adjusted_accuracy(classes: np.ndarray, predicted: Any) -> float:
    """Return the accuracy within a class, averaged over classes and rescaled such that chance is 0."""
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(classes, predicted, adjusted=True))
