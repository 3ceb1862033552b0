"""A bank of synthetic clips: its sources, seeds and health."""

from __future__ import annotations

from pathlib import Path

from frami_edge.describing.description import Description, Fact, Section, size_text, thousands
from frami_edge.describing.words import heard_facts
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.health import warnings


def describe_bank(folder: Path) -> Description:
    """Everything in `bank.json`, after the hash of every shard was checked.

    Raises:
        BankError: No bank, another version, or a shard that is missing or damaged.
    """
    bank = Bank.open(folder)
    index, spec = bank.index, bank.spec
    total = sum((folder / shard.file).stat().st_size for shard in index.shards)
    seconds = index.frames * spec.hop_s
    clips = Section(
        "clips",
        (
            Fact("path", str(folder)),
            Fact("clips", len(bank)),
            Fact("sources", bank.sources,
                 ", ".join(f"{thousands(n)} {name}" for name, n in bank.sources.items()) or "none"),
            Fact("frames", index.frames, f"{index.frames} mel frames, {seconds:.2f} s each"),
            Fact("hours", len(bank) * seconds / 3600),
            Fact("bytes", total, f"{size_text(total)} in {len(index.shards)} shards, hashes right"),
            Fact("seed", index.seed),
            Fact("teacher_sha256", index.teacher_sha256),
        ),
    )  # fmt: skip
    hears = Section("hears", heard_facts(index.labels, spec))
    health = [_health(name, figures) for name, figures in index.health.items()]
    findings = [] if index.health else ["Nobody measured its health: bank.json has no figures."]
    findings += warnings(index.health) if index.health else []
    recipe = Section("recipe", (Fact("config", index.config, _weights(index.config)),))
    sections = (clips, Section("health", tuple(health)), hears, recipe)
    return Description(
        "bank", "bank of synthetic clips", tuple(s for s in sections if s.facts), tuple(findings)
    )


def _health(name: str, figures: dict[str, object]) -> Fact:
    shown = []
    for key, words, form in (
        ("requested", "heard as asked", ".1%"),
        ("batch_norm_error", "BatchNorm error", ".3f"),
        ("entropy", "teacher's entropy", ".2f"),
        ("cosine", "mean cosine", ".2f"),
        ("loudness_spread", "loudness spread", ".2f"),
    ):
        value = figures.get(key)
        if isinstance(value, (int, float)):
            shown.append(f"{words} {value:{form}}")
    return Fact(name, figures, ", ".join(shown))


def _weights(config: dict[str, object]) -> str:
    sources = config.get("sources")
    if not isinstance(sources, dict):
        return "not said"
    return "sources " + ", ".join(f"{name}={weight:g}" for name, weight in sources.items())
