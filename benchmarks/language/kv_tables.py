"""Writes the tables of docs/decoding.md on the cache from the results: python -m benchmarks.language.kv_tables"""

from __future__ import annotations

from typing import Any

from benchmarks.guides import Guide, read

COLUMNS = {"float32": (2048, 8064), "bfloat16": (8064,)}
"""Lengths of a cache that the page shows, by the type that the model computes with."""
PREFIXES = ((3, "rtn 3 bits"), (4, "rtn 4 bits"))


def ratio(found: dict[str, Any], key: str = "ratio", digits: int = 2) -> str:
    """Return a ratio with its interval; that of a row to itself is 1."""
    if found["interval"] == [1.0, 1.0]:
        return "1"
    low, high = found["interval"]
    return f"{found[key]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def short(value: float) -> str:
    """Return two digits that count."""
    return f"{value:.2g}"


def compiled() -> str:
    """Return how much faster the compiled engine is with codes than with floats, by the length of the cache."""
    near, far = (read("language_kv_compiled")["speed, 1 threads"]["rows"][f"{size} tokens"] for size in (2048, 8064))
    lines = [
        "| cache | bytes a token at 8,064 tokens | faster at 2,048 tokens | faster at 8,064 tokens "
        "| ms a token, least |",
        "|---|---|---|---|---|",
    ]
    for name, row in far.items():
        faster = " | ".join(ratio(found, "faster") for found in (near[name], row))
        lines.append(f"| {name} | {row['bytes_a_token']:,.0f} | {faster} | {row['least_ms']:.1f} |")
    return "\n".join(lines) + "\n"


def plain() -> str:
    """Return how many times as long a pass takes in plain operations, by type and length of the cache."""
    rows = read("language_kv_speed")["rows"]
    columns = [(kind, f"{kind}, {size} tokens") for kind, sizes in COLUMNS.items() for size in sizes]
    longest = {kind: rows[name] for kind, name in columns}  # of each type the last, which is the longest
    titles = [f"{kind}, {size:,} tokens" for kind, sizes in COLUMNS.items() for size in sizes]
    lines = [f"| cache | bytes a token at 8,064 tokens | {' | '.join(titles)} |", f"|---|---{'|---' * len(titles)}|"]
    for name in rows[columns[0][1]]:
        held = f"{longest['float32'][name]['bytes_a_token']:,.0f}"
        if name == "exact":
            held = ", ".join(f"{found[name]['bytes_a_token']:,.0f} ({kind})" for kind, found in longest.items())
        lines.append(f"| {name} | {held} | {' | '.join(ratio(rows[column][name]) for _, column in columns)} |")
    return "\n".join(lines) + "\n"


def quality() -> str:
    """Return what codes of keys and values cost in perplexity, and their bytes."""
    lines = ["| cache | perplexity | ratio to exact | KL, nats a token | bytes a token |", "|---|---|---|---|---|"]
    for name, row in read("language_kv_quality")["rows"].items():
        kl, (low, high) = row["kl"]["value"], row["kl"]["interval"]
        said = f"{short(kl)} [{short(low)}, {short(high)}]" if kl else "0"
        lines.append(
            f"| {name} | {row['perplexity']['value']:.2f} | {ratio(row['perplexity_ratio'], 'value', 4)} "
            f"| {said} | {row['bytes_a_token']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def intact() -> str:
    """Return perplexities with and without the first tokens of the full-precision model."""
    rows = read("language_kv_intact")["rows"]
    dense = rows["fp32, bos"]["perplexity"]["value"]
    lines = ["| weights | prefix (tokens) | fp32 | without | with IntactKV | ratio |", "|---|---|---|---|---|---|"]
    for bits, name in PREFIXES:
        held = rows[f"{name}, IntactKV"]
        without, kept = (row["perplexity"]["value"] for row in (rows[name], held))
        lines.append(
            f"| `rtn:bits={bits}` | bos ({held['tokens']}) | {dense:.1f} | {without:.1f} | {kept:.1f} "
            f"| {ratio(held['to_without'], 'value', 3)} |"
        )
    return "\n".join(lines) + "\n"


GUIDE = Guide("decoding", {"kv-compiled": compiled, "kv-plain": plain, "kv-quality": quality, "kv-intact": intact})

if __name__ == "__main__":
    GUIDE.write()
