"""Decisions from many outputs: minimum Bayes risk, votes, and their uncertainty.

Everything takes strings or parsed answers, not tokens, so outputs may come from
anywhere. Where outputs are of several models, as of posterior samples, `models` tells
which.

>>> texts = ["a cat sat", "a cat sits", "the dog", "a cat sat"]
>>> utilities = utility_matrix(texts, texts, exact)
>>> texts[best(expected_utility(utilities))]
'a cat sat'
>>> vote(["7", None, "8", "7"]).share
0.5
"""

from ivon_jax.mbr.confidence import Entropy as Entropy
from ivon_jax.mbr.confidence import answer_entropy as answer_entropy
from ivon_jax.mbr.confidence import confidence_scores as confidence_scores
from ivon_jax.mbr.curves import Curve as Curve
from ivon_jax.mbr.curves import curves as curves
from ivon_jax.mbr.curves import pass_at as pass_at
from ivon_jax.mbr.decisions import best as best
from ivon_jax.mbr.decisions import expected_utility as expected_utility
from ivon_jax.mbr.decisions import utility_matrix as utility_matrix
from ivon_jax.mbr.utilities import UTILITIES as UTILITIES
from ivon_jax.mbr.utilities import bleu as bleu
from ivon_jax.mbr.utilities import chrf as chrf
from ivon_jax.mbr.utilities import cosine as cosine
from ivon_jax.mbr.utilities import edit as edit
from ivon_jax.mbr.utilities import exact as exact
from ivon_jax.mbr.utilities import pairwise as pairwise
from ivon_jax.mbr.utilities import rouge_l as rouge_l
from ivon_jax.mbr.votes import Vote as Vote
from ivon_jax.mbr.votes import vote as vote
