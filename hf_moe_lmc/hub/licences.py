"""Which licence a merge may have, given those of its parents."""

from collections.abc import Mapping
from dataclasses import dataclass

from hf_moe_lmc.errors import BadInputError, IncompatiblePairError

# Identifiers of the Hub. Every row: what may become part of a work under that licence; said in no row, it may not.
_PERMISSIVE = ("cc0-1.0", "unlicense", "0bsd", "mit", "isc", "bsd-2-clause", "bsd-3-clause", "apache-2.0")
_TAKES_IN = {
    **{licence: _PERMISSIVE[:place] for place, licence in enumerate(_PERMISSIVE)},
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
class Licence:
    """A licence as cards name it.

    Args:
        identifier: of the Hub, such as "apache-2.0"; "other" has a `name`.
        name, link: of a licence that the Hub does not know.
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

    def takes_in(self, part: "Licence") -> bool:
        """Whether a work under this licence may contain a work under `part`."""
        same = (self.identifier, self.name) == (part.identifier, part.name)
        return same or part.identifier in _TAKES_IN.get(self.identifier, ())


def merged_licence(parents: Mapping[str, Licence | None]) -> Licence:
    """The licence of one parent that may take in those of all; the mapping says what each parent (by name) has.

    Raises:
        BadInputError: the licence of a parent is not known.
        IncompatiblePairError: no licence among them takes in the others, or one of them allows no derived works.
    """
    known = {name: licence for name, licence in parents.items() if licence}
    for name in parents:
        if name not in known or (known[name].identifier in ("other", "unknown") and not known[name].name):
            raise BadInputError(f"the card of {name} names no licence; {_REMEDY}")
        if known[name].forbids_merges:
            raise IncompatiblePairError(f"{name} is under {known[name].text}, which allows no merges; {_REMEDY}")
    for licence in known.values():
        if all(licence.takes_in(part) for part in known.values()):
            return licence
    found = ", ".join(f"{licence.text} ({name})" for name, licence in known.items())
    raise IncompatiblePairError(f"no licence of the parents is known to take in the others: {found}; {_REMEDY}")
