"""Writes the tables of docs/visual-video.md from the committed result: python -m benchmarks.tokens.video_table."""

from __future__ import annotations

from benchmarks.guides import Guide, read


def ways() -> str:
    """Return tokens, multiply-adds and cache of each way to show the same."""
    lines = [
        "| shown | way | visual tokens | decoder, multiply-adds | before it | keys and values |",
        "|---|---|---|---|---|---|",
    ]
    for row in read("tokens_video")["ways"]:
        cells = [
            row["shown"],
            row["way"],
            f"{row['visual_tokens']:,}",
            f"{row['macs_decoder'] / 1e12:.2f} T",
            f"{row['macs_before'] / 1e12:.3f} T",
            f"{row['kv_bytes'] / 1e6:,.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def goldfish() -> str:
    """Return what a question costs as the folder grows."""
    lines = [
        "| clips | documents | CPU time, question | words for the answer | clips found | tokens of all clips | index |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in read("tokens_video")["goldfish"]:
        cells = [
            f"{row['clips']:,}",
            f"{row['documents']:,}",
            f"{row['ms_cpu_question']:.2f} ms",
            f"{row['words_for_the_answer']:.0f}",
            f"{row['recall']:.0%}",
            f"{row['visual_tokens_of_all_clips']:,}",
            f"{row['index_bytes'] / 1e3:,.0f} kB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


GUIDE = Guide("visual-video", {"video-ways": ways, "video-goldfish": goldfish})

if __name__ == "__main__":
    GUIDE.write()
