"""Tables of runs: columns by name or by option, and rows that are refused."""

import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.study.points import read_points


def write(tmp_path, text):
    file = tmp_path / "points.csv"
    file.write_text(text)
    return file


def test_columns_are_found_by_name_in_any_case(tmp_path):
    file = write(tmp_path, "Params,TOKENS,val_loss,x\n1e6,2e7,3.5,a\n2e6,4e7,3.0,b\n")
    points = read_points(file, {})
    assert points.n.tolist() == [1e6, 2e6]
    assert points.c.tolist() == [6 * 2e13, 6 * 8e13]
    assert points.loss.tolist() == [3.5, 3.0]
    assert points.rows.tolist() == [2, 3]


@pytest.mark.parametrize("header", ["n,c,loss", "d,c,loss"])
def test_the_third_of_n_d_and_c_is_implied(tmp_path, header):
    points = read_points(write(tmp_path, f"{header}\n10,1200,3\n"), {})
    assert sorted((points.n[0], points.d[0])) == [10, 20]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_are_separated_by_what_the_header_has_most_of(tmp_path, separator):
    rows = [["n", "d", '"loss, in nats"'], ["1e6", "2e7", "5.92"]]
    file = write(tmp_path, "\n".join(map(separator.join, rows)))
    points = read_points(file, {"loss": "loss, in nats"})
    assert (points.n, points.d, points.loss) == (1e6, 2e7, 5.92)


def test_columns_and_rows_are_chosen(tmp_path):
    text = "set,size,seen,N,loss\nx,10,20,1,3\ny,11,21,1,4\nx,12,22,1,5\n"
    file = write(tmp_path, text)
    points = read_points(file, {"n": "size", "d": "seen"}, ["set=x"])
    assert points.n.tolist() == [10, 12]
    assert points.rows.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "n,d,loss\n1,2,3\n1,2,nan\n",
            r"points.csv:3: loss is 'nan', and must be",
        ),
        ("n,d,loss\n1,2,3\n1,2,-1\n", ":3: loss is '-1'"),
        ("n,d,loss\n1,2,\n", ":2: loss is ''"),
        ("n,d,loss\n1,2\n", ":2: loss is None"),
        ("n,d,loss\n1,x,3\n", ":2: d is 'x'"),
        ("n,loss\n1,2\n", "two of N, D and C: name them.*columns are 'n', 'loss'"),
        ("n,d\n1,2\n", "needs columns of the loss"),
        ("1e6;2e7;5.92\n4e6;8e7;4.57\n", ":1: '1e6;2e7;5.92' has numbers, and must"),
        ("n;d;loss\n1;2;3,5\n", ":2: loss is '3,5', and must be a number"),
        ("n,d,loss\n", "has no rows"),
        ("", "needs columns of the loss"),
        (f"n,d,loss\n1,2,{'3' * 200_000}\n", "is not a CSV file"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_points(write(tmp_path, text), {})


def test_a_config_in_place_of_a_folder_is_refused_with_that_folder(tmp_path):
    with pytest.raises(ConfigError, match="is a config: name the folder.* sweeps/rate"):
        read_points(tmp_path / "rate.gin", {})


def test_columns_that_do_not_exist_are_refused(tmp_path):
    file = write(tmp_path, "n,d,loss\n1,2,3\n")
    with pytest.raises(ConfigError, match="no column 'size': its columns are 'n'"):
        read_points(file, {"n": "size"})
    with pytest.raises(ConfigError, match="no column 'set'"):
        read_points(file, {}, ["set=x"])
    with pytest.raises(ConfigError, match="no rows with n=2"):
        read_points(file, {}, ["n=2"])


def test_budgets_are_numbered_by_size(tmp_path):
    rows = ["c,n,loss", "1e19,1,1", "1e18,1,1", "1.02e19,2,1", "5e20,1,1"]
    points = read_points(write(tmp_path, "\n".join(rows)), {})
    np.testing.assert_array_equal(points.budgets, [1, 0, 1, 2])
