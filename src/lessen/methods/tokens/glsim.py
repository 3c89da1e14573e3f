"""GLSim as a scorer: keep the patches that look like the class token."""

from __future__ import annotations

from pydantic import Field

from lessen.method import Card
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey
from lessen.methods.tokens.evit import Keeping
from lessen.tokens.reducers import Reducer


class GLSim(Keeping):
    """Keep the tokens of largest cosine with the class token: no attention map is needed.

    Global-Local Similarity, 2024 (arXiv 2407.12891): 3C+3 operations a patch. The paper scores the last output, crops
    the picture to the best patches and classifies the crop again, which costs a second pass; that rule is
    `lessen.tokens.regions`. The paper's score prunes tokens inside the tower here, in one pass. Models whose patches
    hold attention sinks can fool the cosine: compare with the random control.
    """

    card = Card(
        name="glsim",
        family="tokens",
        summary="Keep the tokens most similar to the class token.",
        acts_on=BLOCKS,
        source="arXiv 2407.12891",
        claims=CLAIMS,
    )
    fuse: bool = Field(False, description="fuse the rest into one token, weighted by its similarity")

    def reducer(self, survey: Survey) -> Reducer:
        """Return the keep schedule scored by similarity."""
        return self._reducer(survey, "class_similarity", self.fuse)
