"""Filtering by a classifier trained on good and bad examples."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lmx.config.registry import ConfigError, check_fields, configurable
from lmx.core.console import print_line
from lmx.data.corpus.corpus import Corpus, Document
from lmx.data.curate.document_pass import read_all_splits
from lmx.data.curate.filter import Filter
from lmx.data.optional import import_optional

HASH_FEATURES = 2**18  # of words and word pairs
FOLDS = 5  # of cross-validation


@configurable
@dataclass(frozen=True, kw_only=True)
class QualityClassifier(Filter):
    """Keeps texts that resemble the good examples more than the bad ones.

    A linear model of words and word pairs, as in Joulin et al. 2016, arXiv:1607.01759,
    but trained to convergence, so that it depends on the examples only.

    Attributes:
        min_probability: of being good, for a text to be kept.
    """

    good: Corpus
    bad: Corpus
    min_probability: float = 0.5

    def __post_init__(self):
        is_valid = 0 < self.min_probability < 1
        check_fields(self, min_probability=(is_valid, "between 0 and 1"))

    def __call__(self, document: Document) -> Document | str:
        probability = self.classifier.predict_proba([document.text])[0, 1]
        is_good = probability >= self.min_probability
        return document if is_good else "QualityClassifier: unlike the good examples"

    @cached_property
    def classifier(self) -> Any:
        """The trained model. Training prints its accuracy on examples held out."""
        purpose = "to train a QualityClassifier"
        feature, linear, selection, pipeline = (
            import_optional(f"sklearn.{name}", "data", purpose)
            for name in (
                "feature_extraction.text",
                "linear_model",
                "model_selection",
                "pipeline",
            )
        )
        texts, labels = [], []
        for label, corpus in (("bad", self.bad), ("good", self.good)):
            items = read_all_splits(corpus)
            examples = [item.text for item in items if isinstance(item, Document)]
            if len(examples) < FOLDS:
                raise ConfigError(
                    f"QualityClassifier.{label} has {len(examples)} texts: give at"
                    f" least {FOLDS}."
                )
            texts += examples
            labels += [label == "good"] * len(examples)
        model = pipeline.make_pipeline(
            feature.HashingVectorizer(
                n_features=HASH_FEATURES, ngram_range=(1, 2), alternate_sign=False
            ),
            linear.LogisticRegression(C=100.0, max_iter=1000),
        )
        folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        scores = selection.cross_val_score(model, texts, labels, cv=folds)
        print_line(
            f"QualityClassifier accuracy on held-out examples: {scores.mean():.1%}"
        )
        return model.fit(texts, labels)
