"""The task `language-smollm2`: SmolLM2-135M-Instruct on news text; both come inside packages."""

from __future__ import annotations

from lessen.tasks.language.perplexity import LanguageTask


class SmolLM2Task(LanguageTask):
    """`language` under the name of its default model, of 135 million parameters.

    The weights are dequantised from a 4-bit file with groups of 32: rounding them to 4 bits in such groups again loses
    nothing. Judge few-bit methods at groups of 64 and above, or at fewer bits.
    """

    name = "language-smollm2"
