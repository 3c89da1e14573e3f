"""Writes the tables of docs/checkpoints.md from the committed results: python -m benchmarks.checkpoints.table"""

from __future__ import annotations

import re
import statistics

from benchmarks.guides import Guide, read

MEGA = 1e6


def code(name: str) -> str:
    """Return a method's name with ours set as code."""
    return re.sub(r"^(exact|near)\b", r"`\1`", name)


def sizes() -> str:
    """Return bytes and speed of every method on the language model, and what one late step costs."""
    found = read("checkpoints_sizes")
    lines = [
        "| method | MB a step | times smaller, late half | whole archive | pack, MB per CPU-second "
        "| unpack the series | the last step alone |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = statistics.fmean(found["peers"]["torch.save"]["bytes"])
    for name, row in found["peers"].items():
        mean = whole / row["late_half_ratio"]
        speed = "" if name == "torch.save" else f"{whole * len(row['bytes']) / sum(row['cpu_seconds']) / MEGA:.0f}"
        every = sum(found["peers"]["torch.save"]["bytes"]) / sum(row["bytes"]) if len(row["bytes"]) == 20 else None
        total = f"{every:.2f}" if every else ""
        lines.append(f"| {name} | {mean / MEGA:.2f} | {row['late_half_ratio']:.2f} | {total} | {speed} | | |")
    for name, row in found["lessen"].items():
        seconds, frames = row["unpack_last_cpu_seconds"], row["unpack_last_frames"]
        decoded = row["unpack_last_decoded_bytes"] / seconds / MEGA
        total = sum(row["raw_bytes"]) / sum(row["bytes"])
        lines.append(
            f"| {code(name)} | {whole / row['late_half_ratio'] / MEGA:.2f} | {row['late_half_ratio']:.2f} "
            f"| {total:.2f} | {row['pack_mb_per_cpu_second']:.0f} | {row['unpack_all_mb_per_cpu_second']:.0f} "
            f"| {seconds:.2f} s for {frames} frames: {decoded:.0f} MB rebuilt per CPU-second |"
        )
    zipnn, zstd = (found[f"exact_smaller_than_{peer}"] for peer in ("ZipNN", "safetensors + zstd -3"))
    lines += ["", f"`exact` is {zipnn:.1%} smaller than ZipNN and {zstd:.1%} smaller than zstd on the same files."]
    return "\n".join(lines) + "\n"


def gap() -> str:
    """Return size and resume gap of our settings and of the published recipe."""
    found = read("checkpoints_gap")
    noise = found["noise_between_two_seeds"]
    lines = [
        f"| method | times smaller | loss over the first ten steps | validation loss after {found['steps']} steps |",
        "|---|---|---|---|",
    ]
    for name, row in found["gaps"].items():
        if name != "original":
            ratio = found["late_half_ratio"][name]
            lines.append(f"| {code(name)} | {ratio:.1f} | {row['first_ten']:+.4f} | {row['final']:+.4f} |")
    lines += [f"| noise between two seeds | | {noise['first_ten']:.4f} | {noise['final']:.4f} |", ""]
    for name, row in found["smaller_at_no_larger_gap"].items():
        lines.append(
            f"- {code(row['setting'])} is {row['times']:.2f} times smaller than {name}, with the smaller gap "
            f"({row['gap']:+.4f} against {row['its_gap']:+.4f})."
        )
    return "\n".join(lines) + "\n"


def ctr() -> str:
    """Return bytes of the CTR run by variant and peer."""
    found = read("checkpoints_ctr")
    lines = ["| method | MB a step | times smaller | tables alone, MB a step |", "|---|---|---|---|"]
    late = slice(10, 20)
    whole = statistics.fmean(peer["raw"] for peer in found["peers"].values())
    for name, ratio in found["peer_ratio"].items():
        lines.append(f"| {name} | {whole / ratio / MEGA:.2f} | {ratio:.1f} | |")
    for name, row in found["sizes"].items():
        mean, tables = (statistics.fmean(row[key][late]) / MEGA for key in ("bytes", "table_bytes"))
        lines.append(f"| {code(name)} | {mean:.3f} | {row['late_half_ratio']:.1f} | {tables:.3f} |")
    times = found["tables_smaller_by_touched_rows"]
    lines += [
        "",
        f"Tables are {times['exact']:.2f} times smaller in `exact` and {times['near']:.2f} times in `near` than with "
        f"all rows coded. Resuming from `near` changes the validation loss by {found['final_gap']:+.5f}; two seeds "
        f"differ by {found['noise_between_two_seeds']:.5f}.",
    ]
    return "\n".join(lines) + "\n"


def memory() -> str:
    """Return peak memory for one large checkpoint."""
    found = read("checkpoints_memory")
    lines = ["| | checkpoint, MB | memory with nothing read, MB | peak, MB |", "|---|---|---|---|"]
    for name in ("near pack", "near unpack", "exact pack", "exact unpack"):
        row = found[name]
        lines.append(f"| {code(name)} | {row['checkpoint_mb']:.0f} | {row['import_mb']:.0f} | {row['peak_mb']:.0f} |")
    return "\n".join(lines) + "\n"


def moments() -> str:
    """Return what mode near leaves of weights, second moments and Adam's next step."""
    found = read("checkpoints_moments")
    lines = [
        "| settings | times smaller, late half | whole archive | error of exp_avg_sq "
        "| Adam's next step: cosine | its length | error of a weight, in movements of one interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        lines.append(
            f"| {code(name)} | {row['late_half_ratio']:.1f} | {row['whole_ratio']:.1f} | {row['second_error']:.0%} "
            f"| {row['step_cosine']:.2f} | {row['step_length']:.2f} | {row['weight_error']:.2f} |"
        )
    return "\n".join(lines) + "\n"


GUIDE = Guide("checkpoints", {"sizes": sizes, "moments": moments, "gap": gap, "ctr": ctr, "memory": memory})

if __name__ == "__main__":
    GUIDE.write()
