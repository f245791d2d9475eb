"""A judge of texts, who learned from two folders of examples."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmx.config.registry import ConfigError, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.curate.document_pass import read_all_splits
from lmx.data.curate.filter import Filter

BUCKETS = 2**18  # that words and pairs of words are hashed into
FOLDS = 5  # of the examples, each of which is judged by what the others taught


@configurable
@dataclass(frozen=True, kw_only=True)
class QualityClassifier(Filter):
    """Texts that are more like the good examples than like the bad ones.

    A linear model of words and pairs of words, as in Joulin et al. 2016,
    arXiv:1607.01759, fitted to the end rather than by a few passes, so that the same
    examples make the same judge.

    Attributes:
        least: the probability of being good that a text needs.
    """

    good: Corpus
    bad: Corpus
    min_probability: float = 0.5

    def __post_init__(self):
        if not 0 < self.min_probability < 1:
            raise ConfigError(
                f"QualityClassifier.min_probability is {self.min_probability}: between 0 and 1."
            )

    def __call__(self, document: Document) -> Document | str:
        good = self.classifier.predict_proba([document.text])[0, 1]
        return (
            document
            if good >= self.min_probability
            else "Quality: unlike the good examples"
        )

    @cached_property
    def classifier(self) -> Any:
        """The fitted model; says how often it is right of examples it did not see."""
        texts, good = [], []
        for label, corpus in (("bad", self.bad), ("good", self.good)):
            few = [
                item.text
                for item in read_all_splits(corpus)
                if isinstance(item, Document)
            ]
            if len(few) < FOLDS:
                raise ConfigError(
                    f"QualityClassifier.{label} has {len(few)} texts: give at least {FOLDS}."
                )
            texts += few
            good += [label == "good"] * len(few)
        return _fit(texts, good)


def _fit(texts: list[str], good: list[bool]) -> Any:
    """A linear model of words and pairs of words that tells the good texts."""
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise ConfigError(
            "Quality learns with scikit-learn, which is not here: pip install"
            " 'lmx[data]'."
        ) from None
    model = make_pipeline(
        HashingVectorizer(n_features=BUCKETS, ngram_range=(1, 2), alternate_sign=False),
        LogisticRegression(C=100.0, max_iter=1000),
    )
    parts = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    right = cross_val_score(model, texts, good, cv=parts).mean()
    print_line(
        f"Quality is right of {right:.1%} of examples that it did not learn from"
    )
    return model.fit(texts, good)
