import pytest

from hf_moe_lmc.errors import BadInputError, IncompatiblePairError
from hf_moe_lmc.hub.licenses import License, known_identifier, merged_license


def merged(*licenses: License | str | None) -> License:
    return merged_license(
        [(f"org/{i}", License(one) if isinstance(one, str) else one) for i, one in enumerate(licenses)]
    )


@pytest.mark.parametrize(
    ("parents", "license"),
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
def test_the_license_that_takes_in_the_others(parents, license):
    assert merged(*parents).identifier == license


@pytest.mark.parametrize(
    "parents", [("gpl-2.0", "apache-2.0"), ("gemma", "llama3"), ("gemma", "mit"), ("cc-by-sa-4.0", "cc-by-nc-4.0")]
)
def test_licenses_that_do_not_go_together(parents):
    with pytest.raises(IncompatiblePairError, match=r"take in the others.*--license"):
        merged(*parents)


def test_parents_of_one_name_are_two_parents():
    with pytest.raises(IncompatiblePairError, match=r"gemma \(model\), mit \(model\)"):
        merged_license([("model", License("gemma")), ("model", License("mit"))])


def test_no_derived_works():
    with pytest.raises(IncompatiblePairError, match=r"org/0 is under cc-by-nc-nd-4\.0, which allows no merges"):
        merged("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0")


@pytest.mark.parametrize("unknown", [None, "other", "unknown"])
def test_an_unknown_license(unknown):
    with pytest.raises(BadInputError, match=r"the card of org/1 names no license.*--license"):
        merged("mit", unknown)


def test_licenses_of_their_own_are_known_by_their_names():
    own = License("other", "llama-9", "https://example.org/l")
    assert merged(own, own) == own
    with pytest.raises(IncompatiblePairError):
        merged(own, License("other", "llama-8"))


@pytest.mark.parametrize(
    ("invented", "hint"),
    [("bananas", "take 'other'"), ("Apache-2.0", r"did you mean apache-2\.0\?"), ("apache2", r"mean apache-2\.0\?")],
)
def test_an_identifier_that_the_hub_does_not_know(invented, hint):
    with pytest.raises(BadInputError, match=f"'{invented}' is no license of the Hub; .*{hint}"):
        known_identifier(invented)
    assert known_identifier("apache-2.0") == "apache-2.0"
