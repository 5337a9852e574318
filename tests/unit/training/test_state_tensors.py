import collections
import json
import random
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from progrpo.errors import StateError
from progrpo.training.state.tensors import get_rng_state, load_tree, pack, save_tree, set_rng_state, unpack

TORCH_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
]
NUMPY_DTYPES = ["?", "u1", "i1", "u2", "u4", "u8", "i8", "f2", "f4", "f8"]


def bits(value):
    """Everything of a tree that must survive, so that == means: the same to the last bit."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8) if value.numel() else value.new_empty(0)
        return ("tensor", str(value.dtype), tuple(value.shape), bytes(data.tolist()))
    if isinstance(value, np.ndarray | np.generic):
        return (type(value).__name__, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", struct.pack(">d", value))
    if isinstance(value, dict):
        return ("dict", [(bits(key), bits(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [bits(item) for item in value])
    return (type(value).__name__, value)


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(TORCH_DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
    size = int(np.prod(shape)) * dtype.itemsize
    top = 1 if dtype == torch.bool else 255  # any bytes: infinities and NaNs of all kinds among them
    data = draw(st.lists(st.integers(0, top), min_size=size, max_size=size))
    tensor = (
        torch.tensor(data, dtype=torch.uint8).view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    )
    return tensor.transpose(0, 1) if draw(st.booleans()) and tensor.dim() > 1 else tensor


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(st.sampled_from(NUMPY_DTYPES))), draw(st.lists(st.integers(0, 3), max_size=3))
    size = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    data = bytes(byte & 1 for byte in data) if dtype.kind == "b" else data
    array = np.frombuffer(data, dtype).reshape(shape)  # read-only, as a view of bytes is
    return array[()] if array.ndim == 0 and draw(st.booleans()) else array


TREES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), tensors(), arrays()),
    ),
    lambda trees: st.one_of(
        st.lists(trees, max_size=3),
        st.lists(trees, max_size=3).map(tuple),
        st.dictionaries(st.text(), trees, max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text(), st.none(), st.tuples(st.integers())), trees, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_tree_comes_back_to_the_last_bit(tmp_path_factory, tree):
    split, document = pack(tree)
    assert bits(unpack(split, json.loads(json.dumps(document, allow_nan=False)))) == bits(tree)
    stem = tmp_path_factory.getbasetemp() / "tree.v1"  # a dot in the name is no suffix
    save_tree(stem, tree)
    assert bits(load_tree(stem)) == bits(tree)
    assert stem.with_name("tree.v1.json").is_file()


def test_what_stays_one_object(tmp_path):
    shared, base, array = torch.arange(6.0), torch.arange(6.0), np.arange(3)
    tree = {
        "tied": [shared, torch.nn.Parameter(shared), shared[:]],
        "overlapping": [base, base[1:4], base.view(2, 3).T, base[0]],
        "arrays": [array, array],
        "expanded": torch.ones(1).expand(3),
    }
    save_tree(tmp_path / "tree", tree)
    loaded = load_tree(tmp_path / "tree")
    assert bits(loaded) == bits(tree)
    assert loaded["tied"][0] is loaded["tied"][1] is loaded["tied"][2]
    assert loaded["arrays"][0] is loaded["arrays"][1]
    loaded["overlapping"][0].zero_()
    assert loaded["overlapping"][1].tolist() == [1, 2, 3]
    # Memory of its own, aligned as torch's is: not the file's, which the next load must find unchanged.
    assert loaded["tied"][0].data_ptr() % 64 == 0
    assert bits(load_tree(tmp_path / "tree")) == bits(tree)


def test_many_numpy_scalars_keep_their_values():
    values = [np.float64(number) for number in range(100)]  # each passes through an array that is freed at once
    assert unpack(*pack(values)) == values


def test_subclasses_come_back_plain():
    tree = collections.OrderedDict(size=torch.Size([2, 3]), more=collections.defaultdict(list, {1: [2]}))
    assert bits(unpack(*pack(tree))) == bits({"size": (2, 3), "more": {1: [2]}})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        (np.array(["a"], dtype=object), "array of object"),
        (np.arange(3, dtype=">i4"), "array of >i4"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.zeros(2).to_sparse(), "sparse_coo"),
        (collections.namedtuple("Pair", "a b")(1, 2), "Pair"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_place(value, kind, tmp_path):
    with pytest.raises(TypeError, match=r"tree\['a'\]\[1\] is .*" + kind):
        save_tree(tmp_path / "tree", {"a": [0, value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("document", [{"tensor": "7"}, {"object": "os.system"}, {"tuple": 1}, {"a": 1, "b": 2}])
def test_documents_of_another_make_are_refused(document):
    with pytest.raises(StateError, match="cannot read"):
        unpack({"0": torch.zeros(1)}, [document])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(StateError, match="do not hold a saved state"):
        load_tree(tmp_path / "tree")
    save_tree(tmp_path / "tree", [torch.zeros(3)])
    (tmp_path / "tree.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(StateError, match="do not hold a saved state"):
        load_tree(tmp_path / "tree")


def draw():
    return [random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist()]


def test_generators_go_on_where_they_were(tmp_path):
    draw()  # leaves a second Gaussian waiting in random and numpy, which is part of the state
    generator = torch.Generator().manual_seed(7)
    torch.rand(5, generator=generator)
    own = np.random.default_rng(3)
    own.random(3)
    save_tree(
        tmp_path / "rank_0",
        {"global": get_rng_state(), "generator": generator.get_state(), "own": own.bit_generator.state},
    )
    expected = [draw(), torch.rand(9, generator=generator).tolist(), own.random(4).tolist()]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    state = load_tree(tmp_path / "rank_0")
    set_rng_state(state["global"])
    generator, own = torch.Generator(), np.random.default_rng()
    generator.set_state(state["generator"])
    own.bit_generator.state = state["own"]
    assert [draw(), torch.rand(9, generator=generator).tolist(), own.random(4).tolist()] == expected


def test_state_of_absent_gpus_is_left_out_with_a_warning(caplog):
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    set_rng_state(get_rng_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]})
    assert "saved with 1 CUDA devices, here are 0" in caplog.text


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_optimizer_and_scheduler_go_on_where_they_were(optimizer_class, tmp_path):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        optimizer = optimizer_class(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)

    def train(model, optimizer, scheduler, steps):
        for step in steps:
            optimizer.zero_grad()
            model(torch.full((2, 3), float(step))).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

    first = build()
    train(*first, range(5))
    save_tree(tmp_path / "optimizer", [part.state_dict() for part in first])
    second = build()
    state = load_tree(tmp_path / "optimizer")
    assert bits(state[1]) == bits(first[1].state_dict())
    for part, saved in zip(second, state, strict=True):
        part.load_state_dict(saved)
    train(*first, range(5, 10))
    train(*second, range(5, 10))
    assert bits([dict(part.state_dict()) for part in second]) == bits([dict(part.state_dict()) for part in first])
