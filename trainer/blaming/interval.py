"""An interval for a mean effect over documents, by drawing the documents again."""

import numpy as np

DRAWS = 2000
LEVEL = 0.99
FEWEST = 5  # documents; of fewer a bootstrap says nothing


def bootstrap(differences: np.ndarray, tokens: np.ndarray, seed: int) -> list[float] | None:
    """The interval that 99 % of the means lie in, of documents drawn with replacement.

    The same for the same seed. Source: Efron, "Bootstrap methods", Annals of Statistics, 1979
    (percentile interval).

    Args:
        differences: By document, the sum over its tokens, (documents,).
        tokens: How many tokens each has, (documents,).
    Returns:
        Lower and upper end; None of fewer than FEWEST documents.
    """
    if len(tokens) < FEWEST:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(tokens), (DRAWS, len(tokens)))
    means = differences[drawn].sum(1) / tokens[drawn].sum(1)
    tail = (1 - LEVEL) / 2
    return [float(end) for end in np.quantile(means, [tail, 1 - tail])]
