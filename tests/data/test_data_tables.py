"""Tables: what a CSV or Parquet file may look like, and what is refused by name."""

import numpy as np
import pytest
import torch

from tacit.data import load, tables
from tacit.errors import DataError
from tacit.spaces import Vectors


def _csv(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["", "a{0}b{0}c\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_headers_and_line_ends(tmp_path, separator, header, end):
    rows = "1{0}2.5{0}-3e2\n4{0} 5{0}6 \n\n7{0}8{0}9\n"
    path = tmp_path / "t.csv"
    path.write_bytes((header + rows).format(separator).replace("\n", end).encode())
    data = load(path)
    assert data.space == Vectors(3) and data.x.dtype == torch.float32 and data.label is None
    assert data.x.tolist() == [[1, 2.5, -300], [4, 5, 6], [7, 8, 9]]


def test_quotes_byte_order_mark_and_no_last_line_end(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeff"a, b","c"\n"1","2"\n3,"4"'.encode())
    assert load(path).x.tolist() == [[1, 2], [3, 4]]
    assert load(path, label="a, b").class_names == ("1", "3")


def test_one_column_and_numbers_as_names(tmp_path):
    assert load(_csv(tmp_path, "1\n2\n3\n")).x.tolist() == [[1], [2], [3]]
    assert load(_csv(tmp_path, "v\n1\n2\n")).x.tolist() == [[1], [2]]
    data = load(_csv(tmp_path, "label,0,1\n5,10,20\n6,30,40\n"), label="label")
    assert data.x.tolist() == [[10, 20], [30, 40]] and data.class_names == ("5", "6")
    assert data.columns == ("0", "1") and data.take(torch.tensor([1])).columns == ("0", "1")


def test_decimal_commas(tmp_path):
    assert load(_csv(tmp_path, "a;b\n1,5;2\n3;4,25\n")).x.tolist() == [[1.5, 2], [3, 4.25]]


def test_true_and_false_are_numbers_and_row_numbers_are_left_out(tmp_path):
    assert load(_csv(tmp_path, ",a,b\n0,True,1\n1,false,2\n")).x.tolist() == [[1, 1], [0, 2]]


@pytest.mark.parametrize("header", ["a,b,kind\n", ""])
def test_a_label_of_words(tmp_path, header):
    text = header + "1,2,dog\n3,4,cat\n5,6,\n7,8,dog\n9,1,?\n"
    data = load(_csv(tmp_path, text), label="kind" if header else "column 3")
    assert data.class_names == ("cat", "dog") and data.label.tolist() == [1, 0, -1, 1, -1]
    assert data.x.shape == (5, 2) and data.x.is_contiguous()


def test_a_label_of_numbers(tmp_path):
    data = load(_csv(tmp_path, "y,a\n3,1\n-1,2\n7,3\n3,4\n10,5\n"), label="y")
    assert data.class_names == ("3", "7", "10") and data.label.tolist() == [0, -1, 1, 0, 2]
    with pytest.raises(DataError, match=r"column 'y' of t.csv is no class: it holds 0.5"):
        load(_csv(tmp_path, "y,a\n0.5,1\n1,2\n"), label="y")
    with pytest.raises(DataError, match="no column 'z': it has 'y', 'a'"):
        load(_csv(tmp_path, "y,a\n3,1\n1,2\n"), label="z")
    with pytest.raises(DataError, match="no column of numbers beside its label"):
        load(_csv(tmp_path, "y\n3\n1\n"), label="y")


def test_text_columns_are_named(tmp_path):
    path = _csv(tmp_path, "name,age,city\nAnna,3,Oslo\nBo,4,Rome\n")
    with pytest.raises(DataError, match=r"columns 'name' \(for example 'Anna'\), 'city' .*--label 'name'"):
        load(path)
    with pytest.raises(DataError, match=r"column 'name' .*: leave it out$"):
        load(path, label="city")


def test_missing_values_are_counted_by_column_or_dropped(tmp_path, capsys):
    path = _csv(tmp_path, "age,income,y\n1,2,a\n,3,b\nNA,nan,a\n4,?,b\n5,6,\n")
    with pytest.raises(DataError, match=r"columns 'age' \(2\), 'income' \(2\).*those 3 rows.*--drop-missing"):
        load(path, label="y")
    data = load(path, label="y", drop_missing=True)
    assert data.x.tolist() == [[1, 2], [5, 6]] and data.label.tolist() == [0, -1]
    assert "3 rows of t.csv lack a value" in capsys.readouterr().err
    with pytest.raises(DataError, match="no row that has a value in every column"):
        load(_csv(tmp_path, "a,b\n1,\n2,\n"), drop_missing=True)


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e300"])
def test_infinite_values_are_named(tmp_path, value):
    with pytest.raises(DataError, match="in column 'b', which is not finite or too large"):
        load(_csv(tmp_path, f"a,b\n1,2\n3,{value}\n"))


def test_ragged_lines_are_named(tmp_path):
    with pytest.raises(DataError, match="3 columns in line 4 and 2 in its first"):
        load(_csv(tmp_path, "a,b\n1,2\n3,4\n5,6,7\n8,9\n"))
    many = "".join(f"{i},{i}\n" for i in range(50_000))
    with pytest.raises(DataError, match="1 columns in line 50001 and 2"):
        load(_csv(tmp_path, many + "7\n"))


def test_blocks_join_and_quoted_line_ends_do_not_cut_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_LINES", 3)
    rows = "".join(f'{i},"x\ny","{i + 0.5}"\n' if i % 4 == 0 else f"{i},z,{i + 0.5}\n" for i in range(40))
    data = load(_csv(tmp_path, "a,k,b\n" + rows), label="k")
    assert data.x.tolist() == [[i, i + 0.5] for i in range(40)]
    assert data.label.tolist() == [0 if i % 4 == 0 else 1 for i in range(40)]
    # A block with something odd is read slowly, the others fast.
    data = load(_csv(tmp_path, "a,b\n" + "".join(f"{i},{'true' if i == 20 else i}\n" for i in range(40))))
    assert data.x.tolist() == [[i, 1 if i == 20 else i] for i in range(40)]


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n"])
def test_empty_tables(tmp_path, text):
    with pytest.raises(DataError, match=r"t\.csv"):
        load(_csv(tmp_path, text))


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load(tmp_path / "t.csv")


def test_parts_share_columns_and_classes(tmp_path):
    _csv(tmp_path, "a,k\n1,x\n2,y\n", "train.csv")
    _csv(tmp_path, "a,k\n3,z\n4,x\n", "test.csv")
    data = load(tmp_path, label="k")
    assert data.class_names == ("x", "y", "z")
    assert data.label.tolist() == [0, 1] and data.official["test"].label.tolist() == [2, 0]
    _csv(tmp_path, "b,k\n3,z\n4,x\n", "test.csv")
    with pytest.raises(DataError, match="other columns"):
        load(tmp_path, label="k")
    _csv(tmp_path, "a,k\n3,z\n4,x\n", "more.csv")
    with pytest.raises(DataError, match="3 tables of which none is said to be the data"):
        load(tmp_path, label="k")


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "a": pa.array([1, 2, 3], pa.int64()),
        "b": pa.array([0.5, 1.5, 2.5], pa.float32()),
        "c": pa.array([True, False, True]),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "__index_level_0__": pa.array([7, 8, 9]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", label="kind")
    assert data.x.tolist() == [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]]
    assert data.class_names == ("x", "y") and data.label.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"text in column 'kind' \(for example 'x'\)"):
        load(tmp_path / "t.parquet")
    columns["a"] = pa.array([1, None, 3])
    columns["c"] = pa.array([None, True, False])
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"columns 'a' \(1\), 'c' \(1\)"):
        load(tmp_path / "t.parquet", label="kind")
    assert load(tmp_path / "t.parquet", label="kind", drop_missing=True).x.tolist() == [[3, 2.5, 0]]


def test_a_csv_is_what_numpy_wrote(tmp_path):
    x = np.random.default_rng(0).normal(size=(3000, 7)).astype(np.float32)
    np.savetxt(tmp_path / "t.csv", x, delimiter=",", fmt="%.9g")
    np.testing.assert_array_equal(load(tmp_path / "t.csv").x.numpy(), x)
