"""PyTorch's files of weights, read and written without PyTorch. Nothing in one is ever run.

`torch.save` writes a zip of stored, not compressed, entries: NAME/data.pkl describes the tensors,
NAME/data/0 and so on hold their numbers. The description is a pickle, a program that may call
whatever it names. Ours runs in an interpreter that knows few of the operations, and of names only
those that a state dict needs, each bound to a function here. Every other name stands for whatever
would be made by it, which lets arguments and numbers lie beside the weights, and nothing run.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.bounds import (
    MOST_DESCRIPTION,
    MOST_DIMENSIONS,
    MOST_NUMBERS,
    check_members,
    is_name,
)
from gluon_resnetv2.untrusted import faults_of

# Keys under which training scripts put the state dict among other things.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)

# What DataParallel, torch.compile and Lightning's modules put before every name, in any order, and
# what becomes of wrappers in a format without them.
PREFIXES = ("module.", "_orig_mod.", *(f"{name}." for name in WRAPPERS))

STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("V2"),  # which NumPy does not know: `widened` does
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the pickled number that files before 1.6 begin with
ALIGNMENT = 64  # bytes, of numbers in a file, as PyTorch aligns them


def widened(array: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 (two bytes without a type) as float32, exactly; others as they are."""
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype == np.dtype("V2"):
        return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return array


def without_prefixes(path: Path, tensors: dict, report: Callable[[str], None]) -> dict:
    """`tensors` without the `PREFIXES` that all their names begin with, which `report` is told.

    Without the number of models that `torch.optim.swa_utils.AveragedModel` counts, too.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    for _ in PREFIXES:  # no more often, however long a name is
        first = next(iter(tensors), "")
        prefix = next((prefix for prefix in PREFIXES if first.startswith(prefix)), None)
        if prefix is None or not all(name.startswith(prefix) for name in tensors):
            break
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
        report(f"{path}: took '{prefix}' off every name")
    return tensors


# -- Reading ---------------------------------------------------------------------------------------


def read(
    path: str | Path,
    report: Callable[[str], None] = lambda line: None,
    key: str | None = None,
) -> dict[str, np.ndarray]:
    """The tensors of a state dict, or of a checkpoint that holds one under a key of `WRAPPERS`.

    float16 and bfloat16 become float32. `PREFIXES` are taken off where every name has them. Arrays
    may be read-only.

    Args:
        report: is told, in a line, what was taken of a file that holds more.
        key: under which the state dict is, by default the first of `WRAPPERS`.

    Raises:
        UserError: the file is damaged, is no state dict, or wants code to be run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            legacy = LEGACY in file.read(64)
        if legacy:
            return _Legacy(path).read(report, key)
        _check_members(path)
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).read(report, key)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error):
        raise UserError(f"{path} {_no_archive(path)}") from None


def _check_members(path):
    with path.open("rb") as file, faults_of(path):
        check_members(file)


def _no_archive(path):
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        return "is damaged or cut short; fetch it again"
    return "is no file that PyTorch saved"


@dataclass(frozen=True)
class _Name:
    """What stands for a class or function that a description names, and for what it would make."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class _Storage:
    entry: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The array, given what the storage holds."""
        if not math.prod(self.shape):
            return np.empty(self.shape, numbers.dtype)
        strides = [stride * numbers.itemsize for stride in self.strides]
        numbers = numbers[self.offset :]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        self.size = path.stat().st_size
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        self._check_entries()

    def read(self, report, key=None) -> dict[str, np.ndarray]:
        tensors, key, others = self._state_dict(self._description(), key)
        if key:
            also = f", not {_listed(others)}, which --weights takes" if others else ""
            report(f"{self.path}: took what is under '{key}'{also}")
        tensors = without_prefixes(self.path, tensors, report)
        # Views may overlap, but a few bytes must not ask for gigabytes.
        if sum(tensor.nbytes for tensor in tensors.values()) > 2 * self.size:
            raise UserError(f"{self.path} has tensors larger than itself")
        views: dict[_Storage, list[str]] = {}
        for name, tensor in tensors.items():
            views.setdefault(tensor.storage, []).append(name)
        arrays: dict[str, np.ndarray] = {}
        for storage, names in views.items():
            numbers = np.frombuffer(self._numbers(storage), storage.dtype)
            arrays.update({name: widened(tensors[name].of(numbers)) for name in names})
        return {name: arrays[name] for name in tensors}

    def _check_entries(self):
        entries = self.archive.infolist()
        if len(self.entries) < len(entries):
            raise UserError(f"{self.path} has two entries of one name")
        for entry in entries:
            encrypted = entry.flag_bits & 1
            if encrypted or entry.compress_type or entry.compress_size != entry.file_size:
                raise UserError(f"{self.path} is compressed, which PyTorch's files never are")
        if sum(entry.file_size for entry in entries) > self.size:
            raise UserError(f"{self.path} is damaged: it names more bytes than it has")

    def _description(self):
        found = [
            name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(found) != 1:
            raise UserError(f"{self.path} is a zip, but none that PyTorch saved")
        folder = found[0].partition("/")[0]
        numbers = f"{folder}/data/"
        self.keys = {
            name[len(numbers) :]: entry
            for name, entry in self.entries.items()
            if name.startswith(numbers)
        }
        if self.entries[found[0]].file_size > MOST_DESCRIPTION:
            raise UserError(f"{self.path} holds far more than weights; save its state_dict() alone")
        order = self.entries.get(f"{folder}/byteorder")
        if order and (order.file_size > 16 or self.archive.read(order) != b"little"):
            raise UserError(f"{self.path} was saved on a big-endian machine; save it on another")
        return self._interpreted(io.BytesIO(self.archive.read(found[0])))

    def _numbers(self, storage) -> bytes:
        return self.archive.read(storage.entry)

    def _interpreted(self, description):
        try:
            return _Interpreter(description, self).load()
        except UserError:
            raise
        except (
            *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError),
            *(RecursionError, TypeError, ValueError, pickle.UnpicklingError, struct.error),
        ):
            raise UserError(f"{self.path} is damaged: its description makes no sense") from None

    def _state_dict(self, value, key=None):
        """The state dict, the key that it is under, if any, and the keys of others."""
        self._refuse_code(value)
        if not isinstance(value, dict):
            raise UserError(f"{self.path} holds no state dict; save the model's state_dict() alone")
        sets = _names_of_sets(value)
        if key is None:
            key = next((key for key in WRAPPERS if isinstance(value.get(key), dict)), None)
        elif key not in sets:
            raise UserError(f"{self.path} has no weights under {key!r}; it has {_listed(sets)}")
        if key is None and sets and not any(isinstance(held, _Tensor) for held in value.values()):
            raise UserError(f"{self.path} has weights under {_listed(sets)}: choose by --weights")
        tensors = value if key is None else value[key]
        if not tensors:
            raise UserError(f"{self.path} holds no tensors")
        for name, tensor in tensors.items():
            if not is_name(name):
                raise UserError(f"{self.path} has a tensor whose name is long or can't be printed")
            self._refuse_code(tensor)
            if not isinstance(tensor, _Tensor):
                raise UserError(
                    f"{self.path} holds {name[:80]}, which is no tensor; save the model's "
                    "state_dict() alone"
                )
        return tensors, key, [name for name in sets if name != key]

    def _refuse_code(self, value):
        if isinstance(value, _Name):
            raise UserError(
                f"{self.path} wants to run {_printable(value)}, and weights need no code; "
                "save the model's state_dict() alone"
            )

    def storage(self, kind, key, count) -> _Storage:
        """What a description says to be `count` numbers in the entry `key`."""
        entry = self.keys.get(key)
        dtype = KINDS[kind]
        if entry is None or type(count) is not int or count * dtype.itemsize != entry.file_size:
            raise UserError(f"{self.path} is damaged: storage {key[:20]!r} is not all there")
        return _Storage(entry.filename, dtype, count)

    def tensor(self, storage, offset, shape, strides) -> _Tensor:
        """A view of `storage`, once it is certain to be within it."""
        whole = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
        whole = whole and len(shape) == len(strides) <= MOST_DIMENSIONS
        if not whole or math.prod(filter(None, shape)) > MOST_NUMBERS:
            raise UserError(f"{self.path} is damaged: a tensor has no such shape")
        reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) + 1
        numbers = math.prod(shape)
        if numbers > storage.count or (numbers and reach > storage.count):
            raise UserError(f"{self.path} is damaged: a tensor reaches beyond its storage")
        # What a size of 1 has for a stride is of no use, and perhaps no number of C's.
        used = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides))
        return _Tensor(storage, offset, shape, used)


class _Legacy(_Reader):
    """A file as PyTorch wrote them before 1.6: five pickles, then the numbers.

    The pickles are a mark, a version, the machine, what was saved, and the storages' keys in order;
    each storage is its count, in 8 bytes, and its numbers.
    """

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        self.storages: dict[str, _Storage] = {}
        self.starts: dict[str, int] = {}

    def _description(self):
        with self.path.open("rb") as file:
            head = io.BytesIO(file.read(MOST_DESCRIPTION))
            _, _, machine, value, keys = (self._interpreted(head) for _ in range(5))
            if not isinstance(machine, dict) or machine.get("little_endian") is not True:
                raise UserError(f"{self.path} was saved on a big-endian machine, or is damaged")
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise UserError(f"{self.path} is damaged: its description makes no sense")
            if sorted(keys) != sorted(self.storages):
                raise UserError(f"{self.path} holds numbers that its description does not tell of")
            position = head.tell()
            for key in keys:
                storage, self.starts[key] = self.storages[key], position + 8
                file.seek(position)
                if int.from_bytes(file.read(8), "little") != storage.count:
                    raise UserError(f"{self.path} is damaged: storage {key[:20]!r} has no place")
                position += 8 + storage.count * storage.dtype.itemsize
            if position != self.size:
                raise UserError(f"{self.path} is damaged or cut short")
        return value

    def _numbers(self, storage):
        with self.path.open("rb") as file:
            file.seek(self.starts[storage.entry])
            return file.read(storage.count * storage.dtype.itemsize)

    def storage(self, kind, key, count):
        storage = _Storage(key, KINDS[kind], count)
        whole = type(count) is int and 0 <= count <= self.size
        if not whole or self.storages.setdefault(key, storage) != storage:
            raise UserError(f"{self.path} is damaged: storage {key[:20]!r} is not all there")
        return storage


class _Interpreter(pickle._Unpickler):
    """Runs the description of a state dict, and nothing else.

    It is built on the Unpickler in Python, not on the one in C, which reserves as much memory as a
    file tells it to. What a name that is not of `CALLS` would make, fill or change is that `_Name`.
    """

    OPERATIONS = (
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING"),  # of Python 2
        *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT"),
        *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "STACK_GLOBAL", "BINPERSID"),
    )
    # What that Unpickler has, and its stubs lack.
    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    dispatch: ClassVar[dict] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in OPERATIONS)
    }

    def __init__(self, description: io.BytesIO, reader: _Reader):
        super().__init__(description, encoding="latin1")
        self.reader = reader

    def find_class(self, module, name):
        return _Name(module, name)

    def persistent_load(self, pid):
        what, kind, key, _, *count = _few(pid)
        if what == "module":  # and its source text, in files from before PyTorch 1.6
            return kind
        count, *view = count
        if any(view):  # of another storage, as before PyTorch 0.4
            raise pickle.UnpicklingError
        if what != "storage" or not isinstance(kind, _Name) or not is_name(key):
            raise pickle.UnpicklingError
        return self.reader.storage(kind, key, count) if kind in KINDS else kind

    def load_reduce(self):
        arguments, function = self.stack.pop(), self._name(self.stack.pop())
        call = CALLS.get(function)
        self.append(call(self.reader, *_few(arguments)) if call else function)

    def load_newobj(self):
        self.stack.pop()
        self.append(self._name(self.stack.pop()))

    def load_newobj_ex(self):
        self.stack.pop()
        self.load_newobj()

    def load_obj(self):
        self.append(self._name(self.pop_mark()[0]))

    def load_inst(self):
        self.pop_mark()
        self.append(_Name(*(self.readline()[:-1].decode() for _ in range(2))))

    def load_build(self):
        state, value = self.stack.pop(), self.stack[-1]
        # The versions of the modules, which `Module.state_dict` hangs on its dict.
        if type(value) is not OrderedDict or not isinstance(state, dict):
            self._name(value)

    def load_bytearray8(self):
        self.append(self.read(*struct.unpack("<Q", self.read(8))))  # reserves nothing ahead

    def load_empty_set(self):
        self.append(_Name("builtins", "set"))

    def load_frozenset(self):
        self.pop_mark()
        self.append(_Name("builtins", "frozenset"))

    def load_additems(self):
        self.pop_mark()
        self._name(self.stack[-1])

    def load_append(self):
        self._extend([self.stack.pop()])

    def load_appends(self):
        self._extend(self.pop_mark())

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self):
        self._set(self.pop_mark())

    def _extend(self, values):
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        else:
            self._name(self.stack[-1])

    def _set(self, items):
        if not isinstance(self.stack[-1], dict):
            self._name(self.stack[-1])
            return
        for key, value in zip(items[::2], items[1::2]):
            # Nested tuples may take forever to hash, and numbers of one hash to tell apart.
            self.stack[-1][key if isinstance(key, str) else object()] = value

    @staticmethod
    def _name(value):
        if not isinstance(value, _Name):
            raise pickle.UnpicklingError
        return value

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.OBJ[0]] = load_obj
    dispatch[pickle.INST[0]] = load_inst
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.EMPTY_SET[0]] = load_empty_set
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _few(values):
    """`values`, if they are so few that copying them costs no more than the bytes that ask for it.

    A description may name the same long list with each of its operations.
    """
    if len(values) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError
    return values


def _names_of_sets(values):
    """The names under which a checkpoint has sets of weights."""
    dicts = {id(held): held for held in values.values() if isinstance(held, dict)}
    sets = {
        key
        for key, held in dicts.items()
        if held and all(isinstance(t, _Tensor) for t in held.values())
    }  # each looked at once, however many names it has
    names = (name for name, held in values.items() if id(held) in sets)
    return [name for name in names if isinstance(name, str) and name.isprintable()]


def _listed(names):
    return " or ".join(f"'{name[:80]}'" for name in names[:10]) or "no such sets"


def _printable(found):
    text = str(found)[:80]
    return text if text.isprintable() else ascii(text)


def _tensor(reader, storage, offset, shape, strides, _learned=False, _hooks=None, metadata=None):
    if isinstance(storage, _Name):  # of numbers that are not read here
        return storage
    if not isinstance(storage, _Storage) or metadata:  # such as that all numbers are negated
        raise pickle.UnpicklingError
    return reader.tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(_reader, tensor, *_):
    return tensor


def _ordered_dict(_reader):
    return OrderedDict()


def _size(_reader, shape):
    return tuple(_few(shape))


ORDERED_DICT = _Name("collections", "OrderedDict")
REBUILD_TENSOR = _Name("torch._utils", "_rebuild_tensor_v2")

CALLS: dict[_Name, Callable] = {
    ORDERED_DICT: _ordered_dict,
    REBUILD_TENSOR: _tensor,
    _Name("torch._utils", "_rebuild_tensor"): _tensor,  # before PyTorch 0.4
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
    _Name("torch", "Size"): _size,
}
KINDS = {_Name("torch", name): dtype for name, dtype in STORAGES.items()}


# -- Writing ---------------------------------------------------------------------------------------


def write(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as a state dict, which `torch.load(path, weights_only=True)` reads.

    Raises:
        UserError: an array of a type that is not written.
        OSError: the file can't be written.
    """
    kinds = {dtype: kind for kind, dtype in KINDS.items()}
    for name, array in arrays.items():
        if array.dtype not in kinds:
            raise UserError(f"{name} is {array.dtype}, which is not written to PyTorch's files")
    tensors = []
    for key, (name, array) in enumerate(arrays.items()):
        storage = _Persistent(("storage", kinds[array.dtype], str(key), "cpu", array.size))
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        arguments = (storage, 0, array.shape, tuple(strides), False, _Call(ORDERED_DICT, ()))
        tensors.append((name, _Call(REBUILD_TENSOR, arguments)))
    with zipfile.ZipFile(path, "w") as archive:
        _store(archive, "data.pkl", _pickled(tensors))
        _store(archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            _store(archive, f"data/{key}", array.tobytes())
        _store(archive, "version", b"3\n")


def _store(archive, name, data):
    entry = zipfile.ZipInfo(f"archive/{name}")
    # Padded by an extra field, as PyTorch does.
    before = archive.fp.tell() + 30 + len(entry.filename) + 4
    padding = -before % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(entry, data)


@dataclass(frozen=True)
class _Call:
    function: _Name
    arguments: tuple


@dataclass(frozen=True)
class _Persistent:
    identity: tuple


def _pickled(tensors) -> bytes:
    """The description, as PyTorch would write it. Pickler itself would import what it names."""
    program = [pickle.PROTO, b"\2", *_encoded(_Call(ORDERED_DICT, ())), pickle.MARK]
    for pair in tensors:
        for value in pair:
            program += _encoded(value)
    return b"".join([*program, pickle.SETITEMS, pickle.STOP])


def _encoded(value) -> list[bytes]:
    if isinstance(value, _Name):
        return [pickle.GLOBAL, f"{value.module}\n{value.name}\n".encode()]
    if isinstance(value, _Call):
        return [*_encoded(value.function), *_encoded(value.arguments), pickle.REDUCE]
    if isinstance(value, _Persistent):
        return [*_encoded(value.identity), pickle.BINPERSID]
    if isinstance(value, tuple):
        return [pickle.MARK, *(code for item in value for code in _encoded(item)), pickle.TUPLE]
    if isinstance(value, bool):
        return [pickle.NEWTRUE if value else pickle.NEWFALSE]
    if isinstance(value, str):
        text = value.encode()
        return [pickle.BINUNICODE, struct.pack("<I", len(text)), text]
    return [pickle.LONG1, b"\x08", struct.pack("<q", value)]
