"""A statement of the paper beside what was measured here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One line of the reproduction report.

    Attributes:
        statement: what the paper says, in one sentence.
        ours: the number measured here.
        paper: the paper's number, read off its figure; None where it gives none.
        agrees: whether ours supports the statement; None where it cannot tell.
        remark: what agrees, what does not and the likely reason.
    """

    statement: str
    ours: float | None
    paper: float | None
    agrees: bool | None
    remark: str

    def __post_init__(self) -> None:
        if self.agrees is not None:
            object.__setattr__(self, "agrees", bool(self.agrees))

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, where both are known."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper

    @property
    def verdict(self) -> str:
        """The same in a word."""
        return {True: "agrees", False: "does not agree", None: "open"}[self.agrees]
