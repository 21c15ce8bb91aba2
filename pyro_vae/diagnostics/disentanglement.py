r"""Disentanglement: scores of how well each factor of variation has a latent dimension of its own.

The scores compare *codes*, usually the posterior means of held-out data, with the known *factors* behind these data.
Means ignore the width of the posterior: a collapsed dimension, where the mean moves by a thousandth of the posterior
scale, counts as much as one that is used. Leave such dimensions out (:attr:`LatentSummary.active`), or take draws.
"""

from __future__ import annotations

__all__ = ["DCI", "FactorGaps", "dci", "mig", "sap"]

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.arrays import as_batch
from ..errors import DataError, ShapeError, require_count
from ..ops.seeds import seeded

_FOLDS = 5
_LEAF = 0.01  # share of the data: smaller leaves credit every dimension with the noise
_MAX_CLASSES = 20  # a factor of more distinct values is continuous


class FactorGaps(NamedTuple):
    """Scores of each latent dimension as a predictor of each factor, from about 0 (none) to 1 (perfect)."""

    table: Float[Tensor, "latent factors"]

    @property
    def gaps(self) -> Float[Tensor, " factors"]:
        """The best dimension's entry less the second best's, for each factor."""
        first, second = self.table.topk(2, dim=0).values
        return first - second

    @property
    def score(self) -> float:
        """The mean gap."""
        return self.gaps.mean().item()


class DCI(NamedTuple):
    r"""Importances and scores of random forests that predict each factor from the codes."""

    importance: Float[Tensor, "latent factors"]
    """The share of each dimension in the prediction; a factor's shares sum to one."""
    prediction: Float[Tensor, " factors"]
    """The held-out score of each factor: 1 is perfect, 0 no better than a constant."""

    @property
    def disentanglement(self) -> float:
        r"""The concentration of dimensions on a factor, :math:`\sum_j \rho_j (1 - H_K(P_{j \cdot}))`, from 0 to 1."""
        weights = self.importance.sum(1)
        return ((weights / weights.sum()) @ _concentration(self.importance)).item()

    @property
    def completeness(self) -> float:
        r"""The concentration of factors on a dimension, :math:`\frac1K \sum_k (1 - H_D(P_{\cdot k}))`, from 0 to 1."""
        return _concentration(self.importance.T).mean().item()

    @property
    def informativeness(self) -> float:
        """The mean held-out score."""
        return self.prediction.mean().item()


def mig(codes: Any, factors: Any, *, num_bins: int = 20, corrected: bool = True) -> FactorGaps:
    r"""Return the mutual information gaps: the information of the best dimension about a factor less the second best's.

    .. math:: \mathrm{MIG} = \frac1K \sum_k \frac{I(z_{(1)}; v_k) - I(z_{(2)}; v_k)}{H(v_k)}

    A column of codes or factors with more than ``num_bins`` distinct values is cut into ``num_bins`` bins of equal
    count, so that monotone transformations change nothing; the values of others are classes. Finer bins find more
    information. A continuous factor is known in full if its bin is known. Entropies are at most ``log(num_bins)`` nats.

    From n datapoints the plain estimate of I is too large, by about :math:`(B - 1)^2 / 2n` for independent columns of B
    bins. ``corrected`` subtracts the exact mean under chance from both information and entropy,
    :math:`(I - \mathbb E I) / (H - \mathbb E I)`, as the adjusted mutual information does; values below chance count
    as zero. One bias remains: the best of several dimensions without information is ahead of the second by chance, by
    about :math:`B / n` nats.

    Arguments:
        codes: ``[n, latent]``, any array type, at least two dimensions.
        factors: ``[n, factors]``, any array type.
        num_bins: The largest number of bins or classes of a column; n has to be at least twice as large.
        corrected: False for the plain estimate, to compare with the literature.

    Errors:
        DataError: for data that are empty, not finite or too few, and for a factor that does not vary.
        ShapeError: for other shapes.

    References:
        | Isolating Sources of Disentanglement in VAEs (Chen et al., 2018)  https://arxiv.org/abs/1802.04942
        | Information Theoretic Measures for Clusterings Comparison (Vinh et al., 2010), the correction
        | https://jmlr.org/papers/v11/vinh10a.html

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(10, 1)
        >>> mig(factors.flip(-1), factors).score  # each factor in a dimension of its own
        1.0
        >>> mixed = torch.stack([factors.sum(-1), factors.diff()[:, 0]], -1)  # both in both
        >>> abs(mig(mixed, factors).score) < 1e-6
        True
    """
    num_bins = require_count("num_bins", num_bins, least=2)
    latent, targets = _columns(codes, factors, least=2 * num_bins)
    latent, targets = ([_binned(column, num_bins) for column in part] for part in (latent, targets))
    return _gaps(latent, targets, lambda z, v: _normalized_mutual_information(z, v, corrected))


def sap(codes: Any, factors: Any, *, max_classes: int = _MAX_CLASSES, seed: int = 0) -> FactorGaps:
    r"""Return the separated attribute predictability: how much better the best dimension predicts than the second best.

    .. math:: \mathrm{SAP} = \frac1K \sum_k S_{(1)k} - S_{(2)k}

    A dimension's score S for a continuous factor is the :math:`R^2` of a straight line, so a curved dependence counts
    for less; no datapoint is held out from it, which adds about 1/n. For a discrete factor of C classes it is the
    held-out balanced accuracy (5 folds) of C - 1 thresholds, from 0 for chance or worse to 1; the paper's gap, without
    this adjustment, is smaller by the factor :math:`1 - 1/C`.

    Arguments:
        codes: ``[n, latent]``, any array type, at least two dimensions.
        factors: ``[n, factors]``, any array type.
        max_classes: A factor of more distinct values is continuous.
        seed: The seed of the folds.

    Errors:
        DataError: for data that are empty, not finite or too few, and for a factor that does not vary.
        ShapeError: for other shapes.

    References:
        | Variational Inference of Disentangled Latent Concepts (Kumar et al., 2018)  https://arxiv.org/abs/1711.00848

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(10, 1)
        >>> sap(factors.flip(-1), factors).table
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    max_classes = require_count("max_classes", max_classes, least=2)
    latent, targets = _columns(codes, factors, least=2 * max_classes)
    return _gaps(latent, targets, lambda z, v: _predicted_by_dimension(z, v, max_classes, _state(seed, "sap")))


def dci(codes: Any, factors: Any, *, max_classes: int = _MAX_CLASSES, num_trees: int = 100, seed: int = 0) -> DCI:
    r"""Return disentanglement, completeness and informativeness of codes, by random forests that predict each factor.

    With :math:`R_{jk}` the importance of dimension j for factor k (the share of the fall in impurity):
    *disentanglement* measures whether the row of a dimension is concentrated on one factor, weighted by the dimension's
    total importance; *completeness*, whether the column of a factor is concentrated on one dimension; and
    *informativeness*, how well trees predict the factors of datapoints that they did not see: :math:`R^2` for
    continuous factors, the balanced accuracy from 0 for chance to 1 for discrete ones (errors in the paper).

    Trees are fitted to ranks, so that monotone transformations of codes change nothing. They split on noise, too, and
    credit a factor that the codes do not predict to all dimensions alike: both concentrations are too small rather than
    too large, least for large n. Leaves of at least 1% of the data keep this small.

    Arguments:
        codes: ``[n, latent]``, any array type, at least two dimensions.
        factors: ``[n, factors]``, any array type, at least two.
        max_classes: A factor of more distinct values is continuous.
        num_trees: The number of trees of each forest.
        seed: The seed of the forests.

    Errors:
        DataError: for data that are empty, not finite or too few, and for a factor that does not vary.
        ShapeError: for other shapes.

    References:
        | A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood & Williams, 2018)
        | https://openreview.net/forum?id=By-7dz-AZ

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(10, 1)
        >>> found = dci(factors.flip(-1), factors)
        >>> found.importance
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
        >>> found.disentanglement, found.completeness, found.informativeness
        (1.0, 1.0, 1.0)
    """
    max_classes = require_count("max_classes", max_classes, least=2)
    num_trees = require_count("num_trees", num_trees, least=20, why=", or some datapoints are out of no tree's sample")
    latent, targets = _columns(codes, factors, least=2 * max_classes)
    if len(targets) < 2:
        raise ShapeError("factors: found one, expected at least 2 that share the dimensions: use mig or sap")
    z = np.stack([_ranks(column) for column in latent], -1)
    found = [_predicted_by_forest(z, v, max_classes, num_trees, _state(seed, "dci")) for v in targets]
    importance, prediction = zip(*found, strict=True)
    return DCI(torch.from_numpy(np.stack(importance, -1)), torch.tensor(prediction, dtype=torch.float64))


def _columns(codes: Any, factors: Any, *, least: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return codes and factors, column by column."""
    codes, factors = as_batch(codes, name="codes"), as_batch(factors, name="factors")
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ShapeError(
            f"expected codes (n, latent) and factors (n, factors) of the same n datapoints, got {tuple(codes.shape)} "
            f"and {tuple(factors.shape)}"
        )
    if codes.shape[1] < 2:
        raise ShapeError("codes: found one latent dimension, expected at least 2, since they are compared")
    if len(codes) < least:
        raise DataError(
            f"codes: found {len(codes)} datapoints, expected at least {least}, two a bin or class: pass more"
        )
    latent, targets = (list(x.cpu().double().numpy().T.copy()) for x in (codes, factors))
    for index, column in enumerate(targets):
        if np.ptp(column) == 0:
            raise DataError(f"factors: column {index} is {column[0]:g} throughout, expected it to vary: leave it out")
    return latent, targets


def _gaps(latent: list[Any], targets: list[Any], score: Callable[[Any, Any], float]) -> FactorGaps:
    """Return the gaps of a table of scores; scores below chance count as zero, or a gap could exceed 1."""
    return FactorGaps(torch.tensor([[score(z, v) for v in targets] for z in latent], dtype=torch.float64).clamp(min=0))


def _concentration(importance: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    """Return one minus the entropy of each row, relative to its maximum; any number for a row of zeros."""
    p = importance / importance.sum(1, keepdim=True).clamp(min=torch.finfo(importance.dtype).tiny)
    return 1 - torch.special.entr(p).sum(1) / np.log(p.shape[1])


def _state(seed: int, name: str) -> int:
    """Return a seed for scikit-learn."""
    with seeded(seed, name):
        return int(torch.randint(2**31, ()))


def _binned(column: np.ndarray, num_bins: int) -> np.ndarray:
    """Return classes, or bins of equal count by equal values' middle rank, so that flipping the sign flips bins."""
    values, classes = np.unique(column, return_inverse=True)
    if len(values) <= num_bins:
        return classes
    ends = np.cumsum(np.bincount(classes))
    twice_the_middle = ends + np.append(0, ends[:-1])
    return (twice_the_middle * num_bins // (2 * len(column)))[classes]


def _ranks(column: np.ndarray) -> np.ndarray:
    """Return the ranks of values, since a tree would see the values in single precision."""
    return np.unique(column, return_inverse=True)[1]


def _normalized_mutual_information(z: np.ndarray, v: np.ndarray, corrected: bool) -> float:
    """Return I(z; v) / H(v), both without the part due to chance if ``corrected``."""
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    table = contingency_matrix(z, v, sparse=True)
    chance = expected_mutual_information(table, len(z)) if corrected else 0.0
    return float((mutual_info_score(z, v) - chance) / (mutual_info_score(v, v) - chance))


def _predicted_by_dimension(z: np.ndarray, v: np.ndarray, max_classes: int, state: int) -> float:
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
    return _adjusted_accuracy(classes, cross_val_predict(tree, _ranks(z)[:, None], classes, cv=folds))


def _predicted_by_forest(
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
