"""The license that a merge may have, given those of its parents."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from hf_moe_lmc.errors import BadInputError, IncompatiblePairError

# The Hub's list (docs/hub/repositories-licenses.md of huggingface/hub-docs, August 2026). No library has it.
_LISTED = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib other
"""
IDENTIFIERS = frozenset(_LISTED.split())

# Every row: what may become part of a work under that license; said in no row, it may not.
_PERMISSIVE = ("cc0-1.0", "unlicense", "mit", "isc", "bsd-2-clause", "bsd-3-clause", "apache-2.0")
_TAKES_IN = {
    **{license: _PERMISSIVE[:place] for place, license in enumerate(_PERMISSIVE)},
    "lgpl-3.0": _PERMISSIVE,
    "gpl-3.0": (*_PERMISSIVE, "lgpl-3.0"),
    "agpl-3.0": (*_PERMISSIVE, "lgpl-3.0", "gpl-3.0"),
    "cc-by-4.0": ("cc0-1.0",),
    "cc-by-sa-4.0": ("cc0-1.0", "cc-by-4.0"),
    "cc-by-nc-4.0": ("cc0-1.0", "cc-by-4.0"),
    "cc-by-nc-sa-4.0": ("cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0"),
}
_REMEDY = "ask who may grant one, and name it with --license"


@dataclass(frozen=True)
class License:
    """A license as cards name it.

    Args:
        identifier: of the Hub, such as "apache-2.0"; "other" has a `name`.
        name, link: of a license that the Hub does not know.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    @property
    def text(self) -> str:
        """Identifier or name."""
        return f"{self.identifier} ({self.name})" if self.name else self.identifier

    @property
    def forbids_merges(self) -> bool:
        """Whether its text says that nothing may be derived from the work."""
        return "-nd" in self.identifier

    def takes_in(self, part: "License") -> bool:
        """Whether a work under this license may contain a work under `part`."""
        same = (self.identifier, self.name) == (part.identifier, part.name)
        return same or part.identifier in _TAKES_IN.get(self.identifier, ())


def known_identifier(identifier: str) -> str:
    """`identifier`, if it is one of the Hub's; else raise `BadInputError`."""
    if identifier not in IDENTIFIERS:
        near = get_close_matches(identifier.lower(), IDENTIFIERS, n=1)
        hint = f"did you mean {near[0]}?" if near else "take 'other' for one that it does not list"
        raise BadInputError(f"{identifier!r} is no license of the Hub; {hint}")
    return identifier


def merged_license(parents: Sequence[tuple[str, License | None]]) -> License:
    """The license of one parent that may take in those of all.

    Args:
        parents: name and license of each; None where none is known.

    Raises:
        BadInputError: the license of a parent is not known.
        IncompatiblePairError: no license among them takes in the others, or one of them allows no derived works.
    """
    known = []
    for name, license in parents:
        if license is None or (license.identifier in ("other", "unknown") and not license.name):
            raise BadInputError(f"the card of {name} names no license; {_REMEDY}")
        if license.forbids_merges:
            raise IncompatiblePairError(f"{name} is under {license.text}, which allows no merges; {_REMEDY}")
        known.append(license)
    for license in known:
        if all(license.takes_in(part) for part in known):
            return license
    stated = ", ".join(f"{license.text} ({name})" for name, license in parents if license)
    raise IncompatiblePairError(f"no license of the parents is known to take in the others: {stated}; {_REMEDY}")
