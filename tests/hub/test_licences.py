import pytest

from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.hub.licences import Licence, merged_licence


def merged(*licences: Licence | str | None) -> Licence:
    parents = {f"org/{i}": Licence(one) if isinstance(one, str) else one for i, one in enumerate(licences)}
    return merged_licence(parents)


@pytest.mark.parametrize(
    ("parents", "licence"),
    [
        (("apache-2.0", "apache-2.0"), "apache-2.0"),
        (("mit", "apache-2.0"), "apache-2.0"),
        (("apache-2.0", "mit"), "apache-2.0"),
        (("gpl-3.0", "apache-2.0"), "gpl-3.0"),
        (("gpl-3.0", "agpl-3.0"), "agpl-3.0"),
        (("cc-by-4.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
        (("gemma", "gemma"), "gemma"),
        (("mit",), "mit"),
    ],
)
def test_the_licence_that_takes_in_the_others(parents, licence):
    assert merged(*parents).identifier == licence


@pytest.mark.parametrize(
    "parents", [("gpl-2.0", "apache-2.0"), ("gemma", "llama3"), ("gemma", "mit"), ("cc-by-sa-4.0", "cc-by-nc-4.0")]
)
def test_licences_that_do_not_go_together(parents):
    with pytest.raises(IncompatiblePairError, match=r"take in the others.*--license"):
        merged(*parents)


def test_no_derived_works():
    with pytest.raises(IncompatiblePairError, match=r"org/0 is under cc-by-nc-nd-4\.0, which allows no merges"):
        merged("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0")


@pytest.mark.parametrize("unknown", [None, "other", "unknown"])
def test_an_unknown_licence(unknown):
    with pytest.raises(BadInputError, match=r"the card of org/1 names no licence.*--license"):
        merged("mit", unknown)


def test_licences_of_their_own_are_known_by_their_names():
    own = Licence("other", "llama-9", "https://example.org/l")
    assert merged(own, own) == own
    with pytest.raises(IncompatiblePairError):
        merged(own, Licence("other", "llama-8"))
