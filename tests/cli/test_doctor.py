"""The examination finds what is there and says what to do about what is not."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from lessen.cli import doctor


def by_item(findings):
    return {(finding.topic, finding.item): finding for finding in findings}


def test_this_machine_is_healthy_and_described(tmp_path):
    findings = doctor.examine(tmp_path)
    found = by_item(findings)
    assert doctor.healthy(findings)
    assert found["versions", "torch"].value == importlib.metadata.version("torch")
    assert {topic for topic, _ in found} >= {"versions", "torch", "processor", "disk", "extras"}
    assert found["extras", "ray"].status in ("ok", "note")


def test_a_missing_package_is_a_problem_with_advice(monkeypatch):
    real = importlib.metadata.version

    def without_polars(name):
        if name in ("polars", "ray"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", without_polars)
    found = by_item(doctor.examine())
    assert found["versions", "polars"].status == "problem"
    assert "install" in found["versions", "polars"].advice
    assert found["extras", "ray"].advice == "pip install 'lessen[ray]'"
    assert not doctor.healthy(list(found.values()))


def test_low_memory_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (8 << 30, 1 << 30))
    finding = by_item(doctor.examine())["memory", "available"]
    assert (finding.value, finding.status) == ("1.0 GiB of 8.0 GiB", "note")
    assert "--jobs 1" in finding.advice


def test_a_place_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path):
    found = by_item(doctor.examine(tmp_path / "not" / "yet"))
    assert found["disk", "writable"].value == f"{tmp_path}: yes"


def test_extras_come_from_the_installed_distribution():
    extras = doctor.extra_packages()
    assert extras["ray"] == ["ray"]
    assert "scikit-learn" in extras["baselines"]
    assert Path(doctor.__file__).is_file()
