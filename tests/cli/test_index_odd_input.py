"""`lessen index` on odd files and on knobs that an index was not made with: one line each, nothing taken silently."""

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from lessen.cli.index import app
from lessen.errors import ConfigError, DataError
from lessen.retrieval.checks import checked
from lessen.retrieval.sources import read_all
from lessen.tasks.retrieval.readers import read_texts

ROWS = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
NAMES = [f"d{number}" for number in range(40)]


def run(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def parquet(path, **columns):
    pl.DataFrame({"id": NAMES, "vector": ROWS.tolist(), **columns}).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("knobs", "told"),
    [(("--form", "flat"), "--form flat: .* was made with form int8"), (("--metric", "dot"), "made with metric cosine")],
)
def test_what_is_added_takes_the_knobs_of_the_index(tmp_path, knobs, told):
    source, folder = parquet(tmp_path / "v.parquet"), tmp_path / "index"
    run("build", folder, "--vectors", source)
    run("build", folder, "--vectors", source, "--form", "int8", "--metric", "cosine")
    with pytest.raises(ConfigError, match=told):
        run("build", folder, "--vectors", source, *knobs)


def test_a_column_of_names_that_was_asked_for_must_be_there(tmp_path):
    source = parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="no column 'doc' of names; it holds id, vector"):
        run("build", tmp_path / "index", "--vectors", source, "--ids", "doc")
    (tmp_path / "t.csv").write_text("text\na b\n")
    with pytest.raises(DataError, match="no column 'doc' of names"):
        list(read_texts(tmp_path / "t.csv", names="doc"))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"id": [[1]] * 40}, "column 'id' holds no names"),
        ({"vector": [["1", "2"]] * 40}, "column 'vector' holds no vectors of floats: its cells are List.String"),
        ({"vector": [[True, False]] * 40}, "its cells are List.Boolean"),
        ({"vector": [[[1.0, 2.0]]] * 40}, "its cells are List.List"),
        ({"vector": [[1.0, 1e39]] * 40}, "row 1 holds a number beyond float32"),
    ],
)
def test_cells_of_another_kind_are_one_line(tmp_path, columns, told):
    with pytest.raises(DataError, match=told) as caught:
        run("build", tmp_path / "index", "--vectors", parquet(tmp_path / "v.parquet", **columns))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_doubles_beyond_float32_are_named_without_a_warning(tmp_path):
    rows = ROWS.astype(np.float64)
    rows[7, 3] = 1e300
    np.save(tmp_path / "v.npy", rows)
    with pytest.raises(DataError, match=r"v\.npy, row 7 holds a number beyond float32"):
        read_all(tmp_path / "v.npy")


@pytest.mark.parametrize("scale", [3e37, 1e-30])
def test_vectors_whose_squares_leave_float32_keep_their_direction(scale):
    small = torch.from_numpy(ROWS)
    expected = torch.nn.functional.normalize(small, dim=1)
    torch.testing.assert_close(checked(small * scale, 16, "cosine"), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(checked(small, 16, "cosine"), small / small.norm(dim=1, keepdim=True))


def test_names_with_line_breaks_are_not_exported_as_two_lines(tmp_path):
    pytest.importorskip("faiss")
    source = parquet(tmp_path / "v.parquet", id=["a\nb", *NAMES[1:]])
    run("build", tmp_path / "index", "--vectors", source, "--form", "flat")
    with pytest.raises(ConfigError, match=r"the id 'a\\nb' holds a line break"):
        run("export", tmp_path / "index", "--out", tmp_path / "out.faiss")
    assert not (tmp_path / "out.faiss").exists()


def test_a_seed_beyond_the_generators_is_refused_by_the_parser(tmp_path):
    done = CliRunner().invoke(app, ["build", str(tmp_path / "i"), "--vectors", "v.npy", "--seed", str(2**70)])
    assert done.exit_code == 2
