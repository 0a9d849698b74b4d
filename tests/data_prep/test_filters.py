"""datatrove's filters by name: each is made, keeps prose and drops what it is there to drop."""

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.utils import lid

from rotary_foundry.data_prep.filters import FILTERS, make_filter
from rotary_foundry.utils.errors import ConfigurationError

PROSE = """The encoder reads the whole of a document at once, and that is what makes it useful for search.
When it was trained, a part of the words had been hidden from it, and it had to say which words they were.
People who want to build a search engine have used such models for years. They are small, and they are quick.
In the second part of this text we are going to see how the rows are made, with what is known of packing."""
SPAM = "buy now " * 200
FRENCH = "Le modèle lit tout le document à la fois, et c'est ce qui le rend utile pour la recherche de textes. " * 3


def document(text: str, url: str = "http://example.org/a") -> Document:
    return Document(text=text, id="1", metadata={"url": url})


def keeps(entry, what: Document) -> bool:
    outcome = make_filter(entry).filter(what)
    return outcome if isinstance(outcome, bool) else outcome[0]


@pytest.mark.parametrize(
    "entry",
    [
        "GopherQualityFilter",
        "GopherRepetitionFilter",
        "FineWebQualityFilter",
        "C4QualityFilter",
        {"RegexFilter": {"regex_exp": "buy now"}},
    ],
)
def test_prose_is_kept_and_spam_is_not(entry):
    assert keeps(entry, document(PROSE))
    assert not keeps(entry, document(SPAM))


@pytest.mark.long  # the list of addresses takes a quarter of a minute to load
def test_pages_are_told_by_their_addresses():
    assert keeps("URLFilter", document(PROSE))
    assert not keeps("URLFilter", document(PROSE, "http://porn.example.org/"))


def test_pages_in_another_language_are_dropped(monkeypatch):
    """In the place of the model, which is downloaded, something with its `predict`."""

    class Model:
        def predict(self, text: str, k: int) -> tuple[tuple[str, ...], np.ndarray]:
            french = 0.9 if " le " in text else 0.1
            labels, scores = ("__label__fr", "__label__en"), np.array([french, 1 - french])
            order = np.argsort(-scores)
            return tuple(labels[index] for index in order), scores[order]

    monkeypatch.setattr(lid.FT176LID, "model", Model())
    entry = {"LanguageFilter": {"languages": ["en"]}}
    assert keeps(entry, document(PROSE))
    assert not keeps(entry, document(FRENCH))


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("GopherQuality", r"no filter 'GopherQuality'; there are C4BadWordsFilter, C4ParagraphFilter"),
        ({"URLFilter": {}, "C4QualityFilter": {}}, "no filter"),
        ({"URLFilter": {"domains": []}}, "URLFilter: unknown argument 'domains'; it takes"),
        ({"URLFilter": {"domains": [], 3: []}}, "URLFilter: unknown argument '3'; it takes"),
        ({"URLFilter": ["a"]}, "URLFilter: expected arguments by name"),
        ("RegexFilter", "RegexFilter: .*missing 1 required positional argument: 'regex_exp'"),
        ({"SamplerFilter": {"rate": 0.5}}, "SamplerFilter: seed is missing"),
    ],
)
def test_a_filter_that_cannot_be_made_is_refused(entry, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        make_filter(entry)


def test_a_filter_without_its_packages_says_what_to_install(monkeypatch):
    def missing(*_):
        raise ImportError("Please install `tldextract` to use URLFilter (`pip install tldextract`).")

    monkeypatch.setattr(FILTERS["URLFilter"], "__init__", missing)
    with pytest.raises(ConfigurationError, match=r"tldextract.*-e '.\[filters\]'"):
        make_filter("URLFilter")
