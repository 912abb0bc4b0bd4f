"""Files of drawings: sketch-rnn's archives and Quick, Draw!'s lines."""

import io
import json
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
import torch

from tacit.data import load, pickles
from tacit.errors import DataError, SpaceError
from tacit.spaces import Strokes, from_dict

HOOK = np.array([[4, 5, 0], [10, 0, 0], [0, 7, 1]], dtype=np.int16)
CROSS = np.array([[0, 0, 0], [8, 8, 1], [-8, 0, 0], [8, -8, 1]], dtype=np.int16)
DOT = np.array([[2, 3, 1]], dtype=np.int16)


def _objects(*arrays):
    found = np.empty(len(arrays), dtype=object)
    found[:] = arrays
    return found


def _archive(path, **parts):
    np.savez_compressed(path, **{part: _objects(*arrays) for part, arrays in parts.items()})
    return path


def _ends_after(points: torch.Tensor, count: int) -> bool:
    return bool((points[count:] == torch.tensor([0.0, 0.0, 2.0])).all())


def test_an_archive_is_read_as_it_is(tmp_path):
    path = _archive(tmp_path / "birds.npz", train=[HOOK, CROSS], valid=[DOT], test=[CROSS, DOT])
    data = load(path)
    assert data.space == Strokes(4) and data.x.dtype == torch.int16 and data.name == "birds" and data.classes == 0
    assert {part: len(rows) for part, rows in data.official.items()} == {"valid": 1, "test": 2}
    x = data[torch.arange(2)]
    assert x.dtype == torch.float32 and x[0, :3].tolist() == HOOK.tolist() and _ends_after(x[0], 3)
    assert x[1].tolist() == CROSS.tolist()
    assert torch.equal(data.space.check_values(x), x)
    assert from_dict(data.space.to_dict()) == data.space


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "i1", "<i8", "<f4", ">f8", "<u2"])
def test_any_numbers_in_any_order(tmp_path, dtype):
    points = np.abs(CROSS) if "u" in dtype else CROSS
    x = load(_archive(tmp_path / "a.npz", train=[points.astype(dtype), np.asfortranarray(points.astype(dtype))])).x
    assert torch.equal(x[0], x[1]) and x[0].tolist() == points.tolist()


def test_fractions_stay_and_need_more_room(tmp_path):
    half = CROSS / np.array([2, 3, 1])
    data = load(_archive(tmp_path / "a.npz", train=[half, HOOK]))
    assert data.x.dtype == torch.float32
    np.testing.assert_array_equal(data.x[0].numpy(), half.astype(np.float32))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_that_numpy_writes(protocol):
    class Python2(pickle._Pickler):
        """Bytes as a text, as Python 2 wrote them."""

        def save_bytes(self, data):
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
            self.memoize(data)

        dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012

    file = io.BytesIO()
    (Python2 if protocol == 2 else pickle.Pickler)(file, protocol).dump(_objects(HOOK, HOOK, CROSS))
    found = pickles.arrays_in(file.getvalue())
    assert [x.tolist() for x in found] == [HOOK.tolist(), HOOK.tolist(), CROSS.tolist()]


def test_several_files_are_classes_and_their_parts_are_joined(tmp_path):
    _archive(tmp_path / "cat.npz", train=[HOOK, DOT], test=[HOOK])
    _archive(tmp_path / "pig.npz", train=[CROSS], test=[CROSS, DOT])
    data = load(tmp_path)
    assert data.class_names == ("cat", "pig") and data.label.tolist() == [0, 0, 1]
    assert data.official["test"].label.tolist() == [0, 1, 1]


def test_lines_of_quick_draw(tmp_path):
    lines = [
        {"word": "cat", "drawing": [[[10, 14, 14], [20, 20, 25]], [[0, 1], [0, 2]]]},
        {"word": "dog", "drawing": [[[3], [4], [99]]]},  # with times
    ]
    (tmp_path / "some.ndjson").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    data = load(tmp_path / "some.ndjson")
    assert data.space == Strokes(5) and data.class_names == ("cat", "dog") and data.label.tolist() == [0, 1]
    assert data.x[0].tolist() == [[10, 20, 0], [4, 0, 0], [0, 5, 1], [-14, -25, 0], [1, 2, 1]]
    assert data.x[1, 0].tolist() == [3, 4, 1] and _ends_after(data.x[1].float(), 1)


def test_longer_drawings_are_left_out(tmp_path, capsys):
    path = _archive(tmp_path / "a.npz", train=[HOOK, CROSS, DOT])
    data = load(path, length=3)
    assert len(data) == 2 and data.space == Strokes(3)
    assert "1 of 3 drawings of a.npz have more than 3 points" in capsys.readouterr().err
    assert load(path, length=9).space == Strokes(9)
    path = _archive(tmp_path / "b.npz", train=[HOOK])
    with pytest.raises(DataError, match="no drawing of 2 points or fewer: give a length of up to 3"):
        load(path, length=2)


def test_on_disk_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_CACHE", str(tmp_path / "cache"))
    path = _archive(tmp_path / "a.npz", train=[HOOK, CROSS, DOT], test=[DOT])
    here, there = load(path), load(path, memory=0)
    assert there.mapped and torch.equal(here.observations(), there.observations())
    assert torch.equal(here.official["test"].observations(), there.official["test"].observations())


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle of the user was run",)


def _pickled(*ops: bytes) -> bytes:
    return b"\x80\x02" + b"".join(ops) + b"."


_BEGIN = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
HOSTILE = {
    "a call": pickle.dumps(_objects(Trap())),
    "a call in an array's place": pickle.dumps(_objects(HOOK, Trap())),
    "another name": pickle.dumps(_objects(np.float64)),
    "an array of objects in the array": pickle.dumps(_objects(_objects(HOOK))),
    "texts": pickle.dumps(_objects("abc")),
    "an array of texts": pickle.dumps(_objects(np.array(["a"]))),
    "an array with fields": pickle.dumps(_objects(np.zeros(2, [("a", "i2"), ("b", "i4")]))),
    "times": pickle.dumps(_objects(np.zeros(2, "M8[s]"))),
    "a list": pickle.dumps([HOOK]),
    "numbers": pickle.dumps(HOOK),
    "a dictionary": pickle.dumps({"a": HOOK}),
    "an opcode of old": b"\x80\x02c__builtin__\neval\n(S'1'\ntR.",
    "an instance": b"\x80\x02(i__builtin__\neval\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent name": b"\x80\x02Pa\n.",
    "nothing on the stack": _pickled(b"R"),
    "no mark": _pickled(b"t"),
    "a memo that is not there": _pickled(b"h\x07"),
    "a state of what is no array": _pickled(b"K\x01K\x02b"),
    "an appended number": _pickled(b"K\x01K\x02a"),
    "no state": _pickled(_BEGIN),
    "a state of rubbish": _pickled(_BEGIN, b"(K\x01K\x02K\x03K\x04K\x05tb"),
    "no end": pickle.dumps(_objects(HOOK))[:-1],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_is_run(tmp_path, what):
    with pytest.raises(ValueError) if what == "no end" else pytest.raises(pickle.UnpicklingError):
        pickles.arrays_in(HOSTILE[what])
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train.npy", head.getvalue() + HOSTILE[what])
    with pytest.raises(DataError, match="cannot be read as an archive of drawings"):
        load(tmp_path / "a.npz")


def _changed(field: int, value) -> bytes:
    """The pickle of an array of one array, in whose state a field is another one."""
    fields = [1, (3, 3), np.dtype("<i2"), False, HOOK.tobytes()]
    fields[field] = value

    class Odd:
        def __reduce__(self):
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), tuple(fields)

    return pickle.dumps(_objects(Odd()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, (3, 4)),
        (1, (-3, -3)),
        (1, (2**62, 4)),
        (1, 9),
        (1, ("a",)),
        (2, "i2"),
        (2, np.dtype("O")),
        (4, HOOK.tolist()),
    ],
)
def test_an_array_that_is_not_as_it_says(field, value):
    assert pickles.arrays_in(_changed(3, 0))[0].tolist() == HOOK.tolist()
    with pytest.raises(pickle.UnpicklingError):
        pickles.arrays_in(_changed(field, value))


def test_the_opcodes_admitted_run_nothing():
    """All that calls something, in pickle, is REDUCE, BUILD and four opcodes that are refused."""
    calling = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
    known = {opcode.name for opcode in pickletools.opcodes}
    assert calling <= known
    for opcode in pickletools.opcodes:
        if opcode.name in calling:
            argument = {"INST": b"os\nsystem\n", "PERSID": b"a\n", "EXT2": b"\1\0", "EXT4": b"\1\0\0\0"}.get(
                opcode.name, b"\1" if opcode.name == "EXT1" else b""
            )
            with pytest.raises(pickle.UnpicklingError, match=f"opcode {opcode.name}"):
                pickles.arrays_in(_pickled(opcode.code.encode("latin1"), argument))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ([HOOK[:, :2]], r"shape \(3, 2\) in train.npy, at 0: a drawing is of"),
        ([HOOK, HOOK[:0]], r"shape \(0, 3\) in train.npy, at 1"),
        ([HOOK * 2], "pen that is neither 0 nor 1"),
        ([np.array([[np.nan, 0, 1]])], "not finite"),
        ([np.array([[1e300, 0, 1]])], "not finite"),
    ],
)
def test_what_is_no_drawing(tmp_path, arrays, sentence):
    with pytest.raises(DataError, match=sentence):
        load(_archive(tmp_path / "a.npz", train=arrays))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"word": "cat"}', "no drawing in line 1"),
        ('{"drawing": [[[1, 2], [1]]]}', "without as many y as x in line 1"),
        ('{"drawing": [[[], []]]}', "no point in line 1"),
        ('{"drawing": [[[NaN], [1]]]}', "not finite"),
        ('{"drawing": 7}', "no drawing in line 1"),
        ('{"drawing": [7]}', "cannot be read as lines of drawings"),
        ("words", "cannot be read as lines of drawings"),
        ("", "holds no drawings"),
    ],
)
def test_what_is_no_line_of_a_drawing(tmp_path, line, sentence):
    (tmp_path / "a.ndjson").write_text(line)
    with pytest.raises(DataError, match=sentence):
        load(tmp_path / "a.ndjson")


def test_tables_in_archives_are_still_tables(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((5, 3)))
    assert load(tmp_path / "a.npz").space.kind == "vectors"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([[0, 0, 2], [1, 1, 0]], "points behind their end"),
        ([[1, 1, 0], [1, 0, 2]], "points behind their end"),
        ([[1, 1, 3], [0, 0, 2]], "a pen state other than 0"),
        ([[1, float("nan"), 0], [0, 0, 2]], "not finite"),
        ([[1, 1, 0], [0, 0, 2], [0, 0, 2]], "load them with length=2"),
    ],
)
def test_values_of_the_space(rows, sentence):
    with pytest.raises(SpaceError, match=sentence):
        Strokes(2).check_values(torch.tensor([rows], dtype=torch.float32))
