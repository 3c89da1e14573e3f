"""The command line in this process: every mistake is one line and status 2, results are JSON, help is quick."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from lessen import cli
from lessen.errors import ConfigError, EnvironmentFault
from study_tools import IMPOSSIBLE, TEXT, write

ONE = TEXT.replace("[0, 1]", "[0]") + IMPOSSIBLE
VERBS = (
    "demo", "run", "report", "compress", "profile", "verify", "export", "renumber", "rank", "generate", "methods", "tasks",
    "data list", "data get", "data infer", "data encode", "checkpoint pack", "checkpoint unpack", "checkpoint ls",
    "checkpoint verify", "checkpoint prune", "checkpoint prove", "tokens show", "new-method", "doctor", "version",
)  # fmt: skip
SYNTHETIC = "ctr-synthetic:rows=1500,rows_per_field=40"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output of `lessen run`."""
    folder = tmp_path_factory.mktemp("cli run")  # a directory with a space in its name
    assert (
        cli.execute(["run", str(write(folder / "study.yaml", ONE)), "--out", str(folder / "out"), "--jobs", "1"]) == 0
    )
    return folder / "out"


def execute(capsys, *arguments):
    """Return (status, standard output, standard error) of a command."""
    capsys.readouterr()
    status = cli.execute([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def as_json(capsys, *arguments):
    status, text, _ = execute(capsys, *arguments, "--json")
    assert status == 0
    return json.loads(text)


# -- results -----------------------------------------------------------------------------------------------------------
def test_run_writes_the_report_and_resume_repeats_it(capsys, out):
    assert all(name in (out / "frontier.html").read_text() for name in ("int8", "hash", "impossible"))
    status, text, talk = execute(capsys, "run", out.parent / "study.yaml", "--out", out, "--jobs", "1", "--resume")
    assert status == 0
    assert "int8" in text
    assert "failed" in text
    assert str(out / "frontier.html") in text.replace("\n", "")
    assert "recipe 'impossible', seed 0 failed: emb-rowwise-quant found nothing to act on" in talk


def test_report_from_the_files_alone(capsys, out, tmp_path):
    shown = as_json(capsys, "report", out, "--out", tmp_path / "again")
    assert {row["recipe"] for row in shown["recipes"]} == {"int8", "hash", "impossible"}
    assert (tmp_path / "again" / "frontier.html").read_bytes() == (out / "frontier.html").read_bytes()


def test_verify_says_what_it_checked_and_finds_a_changed_byte(capsys, out, tmp_path):
    place = out / "artifacts" / "int8-0"
    assert as_json(capsys, "verify", place)["probe"] == "equal"
    assert "outputs equal bit for bit" in execute(capsys, "verify", place)[1]
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in place.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    raw = bytearray((broken / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (broken / "model.safetensors").write_bytes(bytes(raw))
    status, text, talk = execute(capsys, "verify", broken)
    assert (status, text) == (2, "")
    assert "was changed or damaged" in talk


def test_a_gate_that_fails_is_status_1_and_the_report_is_there(capsys, out, tmp_path):
    text = (out / "study.yaml").read_text().replace("budget: []", "budget: stored_bytes<=0.01x")
    status, _, talk = execute(
        capsys, "run", write(tmp_path / "gated.yaml", text), "--out", out, "--jobs", "1", "--resume", "--json"
    )
    assert status == 1
    assert "no recipe holds stored_bytes<=0.01x" in talk


@pytest.mark.parametrize("source", ["reference/0", "reference/0/model.safetensors", "artifacts/int8-0", "reference"])
def test_compress_starts_from_each_kind_of_model(capsys, out, tmp_path, source):
    model = source if source == "reference" else out / source
    step = "linear-int8:min_weights=100" if "int8" in source else "emb-rowwise-quant:bits=4,min_rows=10"
    found = as_json(capsys, "compress", model, "--task", SYNTHETIC, "--step", step, "--out", tmp_path / "small")
    assert found["cost"]["stored_bytes"] == found["stored_bytes"]
    assert found["stored_bytes"] < found["reference"]["cost"]["stored_bytes"]
    assert execute(capsys, "verify", tmp_path / "small")[0] == 0


def test_compress_prints_the_trade(capsys, out, tmp_path):
    status, text, _ = execute(
        capsys, "compress", out / "reference" / "0", "-t", SYNTHETIC, "-s", "emb-half", "-o", tmp_path / "small"
    )
    assert status == 0
    assert "stored bytes" in text
    assert "auc: " in text


def test_profile_shows_modules_and_forecasts(capsys, out):
    found = as_json(capsys, "profile", out / "reference" / "0")
    table = found["modules"][0]
    assert (table["kind"], table["width"]) == ("FieldEmbedding", 9)
    assert sum(part["bytes"] for part in found["modules"]) == found["total_bytes"]
    forecast = {one["method"]: one for one in found["forecasts"]}
    assert forecast["emb-half"]["bytes"] < found["total_bytes"]
    assert forecast["emb-hash"]["bytes"] is None
    assert "found nothing to act on" in forecast["emb-hash"]["remark"]  # its fields are smaller than min_rows
    small = as_json(capsys, "profile", out / "artifacts" / "int8-0")
    assert small["total_bytes"] < found["total_bytes"]
    assert "emb-half" in execute(capsys, "profile", "--task", SYNTHETIC)[1]


def test_methods_are_listed_and_explained(capsys):
    found = as_json(capsys, "methods")
    assert {"emb-rowwise-quant", "linear-int8"} <= {method["name"] for method in found["methods"]}
    one = as_json(capsys, "methods", "emb-rowwise-quant")
    assert one["knobs"]["bits"] == {
        "default": 8,
        "required": False,
        "allowed": "8, 4, 2",
        "description": one["knobs"]["bits"]["description"],
    }
    assert "integer >= 1" in one["knobs"]["min_rows"]["allowed"]
    families = as_json(capsys, "methods", "--family", "weights")["methods"]
    assert {method["family"] for method in families} == {"weights"}
    assert "bits" in execute(capsys, "methods", "emb-rowwise-quant")[1]


def test_tasks_data_doctor_and_version(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path))
    tasks = {task["name"]: task for task in as_json(capsys, "tasks")["tasks"]}
    assert tasks["ctr-synthetic"]["options"]["rows"]["default"] == 20000
    data = {one["name"]: one for one in as_json(capsys, "data", "list")["data"]}
    assert not data["movielens-100k"]["present"]
    assert "GroupLens" in data["movielens-100k"]["licence"]
    assert as_json(capsys, "doctor")["healthy"]
    assert as_json(capsys, "version")["lessen"]
    for verb in (["tasks"], ["data", "list"], ["doctor"], ["version"], ["methods"]):
        status, text, talk = execute(capsys, *verb)
        assert (status, talk) == (0, "")
        assert text


# -- mistakes ----------------------------------------------------------------------------------------------------------
MISTAKES = {
    "unknown verb": (["rnu"], "Did you mean 'run'"),
    "unknown option": (["run", "x.yaml", "--job", "2"], "--job"),
    "missing argument": (["verify"], "ARTIFACT"),
    "missing study": (["run", "absent.yaml"], "absent.yaml does not exist"),
    "unknown engine": (["run", "{study}", "--engine", "slurm"], "no engine is called 'slurm'"),
    "no jobs": (["run", "{study}", "--jobs", "0", "-o", "{out}"], "jobs = 0"),
    "unknown method": (["methods", "emb-hsh"], "did you mean 'emb-hash'"),
    "unknown family": (["methods", "--family", "weight"], "did you mean 'weights'"),
    "unknown step": (["compress", "reference", "-t", SYNTHETIC, "-s", "emb-hsh", "-o", "{out}"], "mean 'emb-hash'"),
    "unknown knob": (["compress", "reference", "-t", SYNTHETIC, "-s", "emb-hash:ratoi=1", "-o", "{out}"], "'ratio'"),
    "knob range": (["compress", "reference", "-t", SYNTHETIC, "-s", "emb-hash:ratio=2", "-o", "{out}"], "ratio = 2"),
    "knob form": (["compress", "reference", "-t", SYNTHETIC, "-s", "emb-hash:ratio", "-o", "{out}"], "not key=value"),
    "knob twice": (
        ["compress", "x", "-t", SYNTHETIC, "-s", "emb-hash:ratio=.1,ratio=.2", "-o", "{out}"],
        "given twice",
    ),
    "unknown task": (["profile", "--task", "ctr-syntetic"], "did you mean 'ctr-synthetic'"),
    "unknown option of a task": (["profile", "--task", "ctr-synthetic:row=9"], "did you mean 'rows'"),
    "no model": (["compress", "absent", "-t", SYNTHETIC, "-s", "emb-half", "-o", "{out}"], "no model at 'absent'"),
    "pickle": (["compress", "{pickle}", "-t", SYNTHETIC, "-s", "emb-half", "-o", "{out}"], "is a pickle"),
    "not safetensors": (["compress", "{broken}", "-t", SYNTHETIC, "-s", "emb-half", "-o", "{out}"], "not a valid"),
    "other weights": (["profile", "{run}/reference/0", "-t", "ctr-synthetic:rows=1500"], "the model needs"),
    "no task": (["profile", "{study}"], "add --task"),
    "output exists": (["compress", "reference", "-t", SYNTHETIC, "-s", "emb-half", "-o", "{run}"], "is not empty"),
    "output impossible": (["compress", "x", "-t", SYNTHETIC, "-s", "emb-half", "-o", "{study}/x"], "cannot write"),
    "margin": (["compress", "reference", "-t", SYNTHETIC, "-s", "emb-half", "-o", "{out}", "--margin", "0"], "margin"),
    "other study": (["run", "{study4}", "-o", "{run}", "--resume"], "different study"),
    "same study": (["run", "{study}", "-o", "{run}"], "add --resume"),
    "no artifact": (["verify", "absent"], "absent is not a directory"),
    "no study folder": (["report", "absent"], "measurements.jsonl"),
    "unknown data": (["data", "get", "movielens"], "did you mean 'movielens-100k'"),
    "no archive": (["checkpoint", "ls", "absent"], "absent"),
    "no checkpoints": (["checkpoint", "pack", "absent", "--out", "{out}"], "absent"),
    "no table": (["rank", "absent.csv"], "absent.csv"),
    "no picture": (["tokens", "show", "absent.png"], "absent.png does not exist"),
    "method name": (["new-method", "Emb_Hash"], "no method name"),
    "method taken": (["new-method", "emb-hash"], "exists"),
    "method family": (["new-method", "emb-new", "--family", "embedding"], "did you mean 'embeddings'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_each_mistake_is_one_line_and_status_2(capsys, out, tmp_path, case):
    arguments, expected = MISTAKES[case]
    (tmp_path / "old.pt").write_bytes(b"\x80\x04.")
    (tmp_path / "broken.safetensors").write_bytes(b"short")
    names = {
        "study": out.parent / "study.yaml",
        "run": out,
        "out": tmp_path / "small",
        "pickle": tmp_path / "old.pt",
        "broken": tmp_path / "broken.safetensors",
        "study4": write(tmp_path / "other.yaml", ONE.replace("bits: 8", "bits: 4")),
    }
    status, text, talk = execute(capsys, *(argument.format(**names) for argument in arguments))
    assert status == 2
    assert text == ""
    assert expected in talk
    assert talk.startswith("lessen: ")
    assert talk.count("\n") == 1
    assert not (tmp_path / "small").exists()


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    if os.geteuid() == 0:
        target = "/proc/lessen-out"  # root may write anywhere else
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "out"
    status, _, talk = execute(capsys, "run", write(tmp_path / "study.yaml", ONE), "--out", target, "--jobs", "1")
    assert status == 2
    assert f"cannot write {target}" in talk


def test_the_machine_at_fault_is_status_3(capsys, monkeypatch):
    def broken(*_):
        raise EnvironmentFault("no memory left; use a larger machine")

    monkeypatch.setattr("lessen.artifact.folder.verify", broken)
    assert execute(capsys, "verify", "x")[::2] == (3, "lessen: no memory left; use a larger machine\n")


def test_a_fault_of_ours_is_one_line_with_the_trace_in_a_file(capsys, monkeypatch, tmp_path):
    def broken(*_):
        raise KeyError("lost")

    monkeypatch.setattr("lessen.artifact.folder.verify", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, _, talk = execute(capsys, "verify", "x")
    assert status == 3
    assert talk.startswith("lessen: this is a fault in lessen: KeyError: 'lost'; the full trace is in ")
    assert talk.count("\n") == 1
    (trace,) = tmp_path.glob("lessen-trace-*")
    assert "Traceback" in trace.read_text()


# -- help --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_shows_a_real_example(capsys, verb):
    status, text, _ = execute(capsys, *verb.split(), "--help")
    assert status == 0
    example = " ".join(text.replace("│", " ").split())
    assert f"Example: lessen {verb}" in example


def test_every_verb_takes_json(capsys):
    for verb in VERBS:
        assert "--json" in execute(capsys, *verb.split(), "--help")[1], verb


def test_help_imports_neither_torch_nor_any_heavy_package():
    code = "import sys; from lessen import cli; cli.execute(['--help'])\n"
    code += "print(sorted({'torch', 'numpy', 'pydantic', 'matplotlib', 'polars'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m lessen methods --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_lists_and_mappings_are_values_of_knobs():
    from lessen.cli.arguments import parse_call

    assert parse_call("m:a=[1, 2],b={x: 1, y: 2},c='p,q',d=3", "--step") == (
        "m",
        {"a": [1, 2], "b": {"x": 1, "y": 2}, "c": "p,q", "d": 3},
    )
    assert parse_call("emb-half:only=[left,right]", "--step") == ("emb-half", {"only": ["left", "right"]})
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_call("m:a=[1", "--step")


@pytest.mark.parametrize("margin", ["nan", "inf", "-1", "0"])
def test_a_margin_that_is_none_is_refused_before_any_work(capsys, tmp_path, margin, monkeypatch):
    monkeypatch.setattr("lessen.task.Task.reference", lambda *_: pytest.fail("trained"))
    command = ["compress", "reference", "-t", "ctr-synthetic", "-s", "emb-half", "-o", str(tmp_path / "o"), "--margin"]
    assert cli.execute([*command, margin]) == 2
    assert "above 0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("more", [("--threads", "100000"), ("--seed", str(2**70)), ("--seed", "-1")])
def test_counts_that_no_machine_has_are_refused(capsys, tmp_path, more):
    command = ["compress", "reference", "-t", "ctr-synthetic", "-s", "emb-half", "-o", str(tmp_path / "o")]
    assert cli.execute([*command, *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Invalid value" in error


def test_a_number_of_thousands_of_digits_is_one_line(capsys, tmp_path):
    study = write(tmp_path / "study.yaml", TEXT.replace("seeds: [0, 1]", f"seeds: [{'9' * 6000}]"))
    assert cli.execute(["run", str(study), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_names_cannot_steer_the_terminal(capsys):
    from lessen.cli.output import line, say, table

    line("a\x1b[31mred\x07")
    say("b\x1b]0;title\x07")
    table(("name",), [("c\x1b[2J",)])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert r"a\x1b[31mred\x07" in shown.out


def test_a_terminal_without_the_letter_still_gets_the_result():
    command = [sys.executable, "-c", "from lessen.cli import execute; execute(['version']); print('\\u2265')"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u2265" in done.stdout


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("*", "*"),
        ("*.mlp.*", "*.mlp.*"),
        ("[*.mlp.*, *.q_proj,head]", ["*.mlp.*", "*.q_proj", "head"]),
        ("'*.mlp'", "*.mlp"),
        ("['a,*b', \"*c\"]", ["a,*b", "*c"]),
    ],
)
def test_a_glob_that_begins_with_a_star_needs_no_quotes(value, read):
    """YAML takes a star for an alias, and globs over module paths begin with one more often than not."""
    from lessen.cli.arguments import parse_call

    assert parse_call(f"rtn:bits=4,only={value}", "--step") == ("rtn", {"bits": 4, "only": read})
