"""data=table: rows of numbers and strings, some of them missing."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sweepstack import data
from sweepstack.config.errors import EnvironmentFault, InputError
from sweepstack.data import table
from sweepstack.data.table import Columns


@pytest.fixture
def frame():
    draw = np.random.default_rng(0)
    found = pd.DataFrame(
        {
            "age": draw.integers(18, 80, 60).astype(float),
            "city": draw.choice(["Oslo", "Rome", "Lima"], 60),
            "rain": draw.normal(5, 2, 60),
            "old": draw.random(60) > 0.5,
            "y": draw.choice(["no", "yes"], 60),
        }
    )
    found.loc[::7, "age"] = np.nan
    found.loc[5, "city"] = None
    return found


@pytest.fixture
def load(configure, tmp_path):
    def make(frame, kind="csv", **changes):
        path = tmp_path / f"a.{kind}"
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
        return data.load(configure("table", train=str(path), **changes))

    return make


def test_rows_are_encoded_as_scikit_learn_does(load, frame):
    found = load(frame, test=0.2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).numpy()
    train, test = frame.iloc[order[24:]], frame.iloc[order[:12]]
    numbers, onehot = ["age", "rain", "old"], OneHotEncoder(handle_unknown="ignore")
    onehot.set_params(categories=[["Lima", "Oslo", "Rome"]], sparse_output=False)
    filled = make_pipeline(SimpleImputer(), StandardScaler())
    reference = ColumnTransformer([("n", filled, numbers), ("c", onehot, ["city"])])
    expected = reference.fit_transform(train.astype({"old": float}))
    flag = np.isnan(train["age"]).to_numpy()[:, None]
    expected = np.hstack([expected[:, :3], flag, expected[:, 3:]])
    torch.testing.assert_close(found.train.x, torch.tensor(expected, dtype=torch.float32))
    assert (found.train.y > 0.5).tolist() == (train["y"] == "yes").tolist()
    expected = reference.transform(test.astype({"old": float}))
    torch.testing.assert_close(
        found.test.x[:, [0, 1, 2, 4, 5, 6]], torch.tensor(expected, dtype=torch.float32)
    )
    assert (found.task, found.classes) == ("binary", ("no", "yes"))


def test_a_raw_row_becomes_the_same_sample_by_what_is_kept(load, frame):
    found = load(frame)
    kept = Columns.of_plain(found.columns)
    raw = kept.encode(frame.drop(columns="y")[["city", "old", "rain", "age"]], "it")
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.affine(raw)[order[15:]], found.train.x)
    other = pd.DataFrame({"age": [30], "city": ["Kyiv"], "rain": [None], "old": [False]})
    row = kept.encode(other.astype({"rain": float}), "it")[0]
    mean = float(frame["rain"].iloc[order[15:].numpy()].mean())
    assert row.tolist() == pytest.approx([30, mean, 0, 0, 0, 0, 0], abs=1e-5)


def test_parquet_gives_the_same_as_csv(load, frame):
    pytest.importorskip("pyarrow")
    one, other = load(frame), load(frame, "parquet")
    torch.testing.assert_close(one.train.x, other.train.x)
    assert one.classes == other.classes


def test_missing_values_are_counted(load, frame, caplog):
    with caplog.at_level(logging.WARNING):
        load(frame)
    assert "10 values are missing (age 9, city 1)" in caplog.text


def test_numbers_as_targets(load, frame, caplog):
    both = load(frame.dropna(), target=("age", "rain"), exclude=("y",))
    assert "targets are not scaled" in caplog.text
    assert (both.task, both.outputs, both.train.y.shape[1]) == ("regression", 2, 2)
    assert both.columns["target"] == ["age", "rain"]
    one = load(frame, target=("rain",))
    assert (one.task, one.outputs, one.classes) == ("regression", 1, ())


def test_a_file_of_its_own_for_validation(configure, tmp_path, frame):
    frame.to_csv(tmp_path / "a.csv", index=False)
    codes = frame.assign(city=["1", "x"] * 30)
    codes.to_csv(tmp_path / "codes.csv", index=False)
    codes[codes["city"] == "1"].to_csv(tmp_path / "ones.csv", index=False)  # looks like numbers
    config = configure("table", train=str(tmp_path / "codes.csv"), val=str(tmp_path / "ones.csv"))
    found = data.load(config)
    assert len(found.train) == 60
    assert found.columns["values"] == {"city": ["1", "x"]}
    assert found.val.x[:, -2:].tolist() == [[1.0, 0.0]] * 30


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"target": ("z",)}, r"data.target must be a column of .*a.csv \(age, city, rain, old"),
        ({}, {"target": ("Y",)}, "did you mean 'y'"),
        ({}, {"exclude": ("cty",)}, "data.exclude must name columns.*did you mean 'city'"),
        ({"day": "2024-01-31"}, {}, "column 'day' of .* holds dates, such as 2024-01-31"),
        ({"day": "31.01.2024 10:00"}, {}, "holds dates"),
        ({"id": [f"n{i}" for i in range(60)]}, {}, "different values, at most 20"),
        ({"rain": ["?", *map(str, range(59))]}, {}, "1 values that are not numbers, such as '\\?'"),
        ({"rain": np.inf}, {}, "column rain of .* must hold finite numbers"),
        ({"y": [None] * 3 + ["a", "b", "c"] * 19}, {}, "3 of 60 rows have none"),
        ({}, {"exclude": ("age", "city", "rain", "old")}, "must have columns besides"),
        ({}, {"task": "regression"}, "must have numbers for data.task=regression"),
        ({"day": "2024/01/31"}, {}, "holds dates"),
        ({"day": "31 Jan 2024"}, {}, "holds dates"),
        ({"s": np.arange(60) + 1.7e9}, {}, "from 1700000000 to 1700000059 are too close together"),
        ({"y": ["?", *map(str, range(59))]}, {}, "target 'y' of .* holds 1 values that are not"),
        ({"big": [str(10**25 + i) for i in range(60)]}, {}, "holds numbers as strings, or larger"),
        ({"day": "2024-01-31T10:00:00Z"}, {}, "holds dates"),
        ({"day": ["2024-01-31"] * 59 + ["?"]}, {}, "holds dates"),
        ({"y": [f"2024-{i % 12 + 1:02d}" for i in range(60)]}, {}, "target 'y' of .* holds dates"),
        ({"p": ["1,5", "2,5", "3,5"] * 20}, {}, "holds numbers as strings.* such as '[123],5'"),
        ({"p": ["1,500", "2,500", "3,500"] * 20}, {}, "holds numbers as strings"),
        ({"p": ["1%", "2.5%", "3%"] * 20}, {}, "holds numbers as strings"),
        ({"big": 2**60 + np.arange(60)}, {}, "column 'big' of .* are too close together"),
        ({"y": 1.7e9 + np.arange(60) + 0.5}, {}, "target of .* are too close together for float32"),
        ({"Unnamed: 0": range(60)}, {}, "'Unnamed: 0' of .* must have a name.*in data.exclude"),
        ({}, {"target": ("y", "y")}, "data.target must name each column once, got y, y"),
    ],
)
def test_tables_that_do_not_fit(load, frame, change, options, said, monkeypatch):
    monkeypatch.setattr(table, "MAX_VALUES", 20)
    with pytest.raises(InputError, match=said):
        load(frame.assign(**change), **options)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, b"\xff"])
def test_a_column_of_other_things_is_refused(load, frame, value):
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"column 'it' of .* must hold numbers or strings, got"):
        load(frame.assign(it=[value] * 60), "parquet")
    with pytest.raises(InputError, match=r"target 'it' of .* must hold numbers or strings, got"):
        load(frame.assign(it=[value] * 60), "parquet", target=("it",))


def test_a_constant_column_that_float32_rounds_is_an_input(load, frame):
    assert load(frame.assign(c=16777217.3)).columns["numbers"]["c"] == pytest.approx(16777217.3)


def test_spaces_after_commas_are_no_part_of_names_and_values(configure, tmp_path):
    (tmp_path / "a.csv").write_text('a, b, y\n1, "p, q", no\n2, r, yes\n' * 1 + "3, r, no\n" * 20)
    found = data.load(configure("table", train=str(tmp_path / "a.csv")))
    assert found.classes == ("no", "yes")
    assert "b" in found.columns["values"]


def test_files_that_do_not_fit(configure, tmp_path, frame):
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.drop(columns="rain").to_csv(tmp_path / "less.csv", index=False)
    frame.assign(age="old").to_csv(tmp_path / "words.csv", index=False)
    frame.assign(y="maybe").to_csv(tmp_path / "maybe.csv", index=False)
    frame[:0].to_csv(tmp_path / "empty.csv", index=False)
    (tmp_path / "broken.csv").write_bytes(b'a,b\n"1,2\n\xff')
    (tmp_path / "bytes.csv").write_bytes(b"")
    (tmp_path / "twice.csv").write_bytes(b"\xef\xbb\xbfy,a,y\n" + b"no,1,no\nyes,2,yes\n" * 20)
    (tmp_path / "marks.csv").write_text("a;y\n1,5;no\n2,5;yes\n")
    (tmp_path / "counted.csv").write_text("a,y\n" + "".join(f"{i},{i},no\n" for i in range(9)))
    (tmp_path / "latin.csv").write_bytes("a,y\n1,schön\n2,no\n".encode("latin-1"))
    (tmp_path / "longer.csv").write_bytes(b"a,y\n" + b"1,2,no\n2,3,yes\n" * 20)
    good = str(tmp_path / "a.csv")
    cases = [
        (InputError, {"val": "less.csv"}, "less.csv must have column rain"),
        (InputError, {"val": "words.csv"}, "column age of .*words.csv must hold numbers"),
        (InputError, {"val": "maybe.csv"}, "classes of data.train only, 'maybe' is none"),
        (InputError, {"train": "empty.csv"}, "must have rows below its header"),
        (InputError, {"train": "twice.csv"}, "different names of columns, 'y' is there twice"),
        (InputError, {"train": "longer.csv"}, "must have a name for each column"),
        (InputError, {"train": "counted.csv"}, "must have a name for each column"),
        (InputError, {"train": "marks.csv"}, "must have commas between its columns, got ';'"),
        (InputError, {"train": "latin.csv"}, "must be saved as UTF-8, it holds the byte 0xf6"),
        (InputError, {"train": "broken.csv"}, "and closed quotes: EOF inside string"),
        (InputError, {"train": "bytes.csv"}, "must have a header and rows, it is empty"),
        (EnvironmentFault, {"train": "no.csv"}, "does not exist"),
    ]
    for kind, given, said in cases:
        full = {key: str(tmp_path / name) for key, name in given.items()}
        with pytest.raises(kind, match=said):
            data.load(configure("table", **{"train": good, **full}))
    with pytest.raises(EnvironmentFault, match=r"data.train must name a file, .https:/"):
        data.load(configure("table", train="https://example.com/a.csv"))


def test_truth_values_of_which_some_are_missing_are_numbers(load, frame, caplog):
    found = load(frame.assign(old=[None, True, False] * 20))
    assert "old" in found.columns["numbers"]
    assert "old" in found.columns["flags"]
    kept = Columns.of_plain(load(frame).columns)
    row = frame[:2].astype({"old": object}).assign(old=[None, True])
    assert kept.encode(row, "it").shape == (2, kept.inputs)


def test_a_table_of_missing_strings_alone(load):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": pd.Series([None] * 40, dtype=object), "y": ["no", "yes"] * 20})
    with pytest.raises(InputError, match="must have columns besides"):
        load(frame, "parquet")


def test_parquet_needs_pyarrow(configure, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"pip install .sweepstack.parquet.."):
        data.load(configure("table", train=str(tmp_path / "a.parquet")))
