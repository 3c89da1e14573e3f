"""Compiled products of packed linear layers against the same integer arithmetic written plainly."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lessen.stored.kernels import linear, machine
from lessen.stored.kernels.dots import Dots, Machine, machine_of
from lessen.stored.kernels.operands import Activations, Operand, here, numbers, rounding_kernel
from lessen.stored.kernels.panels import Blocks, arranged
from lessen.stored.kernels.products import Product, Writer
from lessen.stored.linears import int8_linear
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.int8_linear import Int8Linear

pytestmark = pytest.mark.skipif(not machine.available(), reason="needs llvmlite and torch on GNU OpenMP")


def rounded(rows, blocks, across=False):
    """Codes and steps of activations, one pair a block."""
    found = []
    for start, end in blocks.spans:
        part = rows[:, start:end]
        largest = (rows if across else part).abs().amax(1, keepdim=True).clamp(min=1e-30)
        codes = torch.round(part / (largest / 127.0)) if across else torch.round(part * (127.0 / largest))
        found.append((codes, largest / 127.0))
    return found


def plainly(rows, codes, scales, minimums, bits, blocks, across=False):
    """The same integers, multiplied and summed in float64."""
    out = torch.zeros(len(rows), len(codes), dtype=torch.float64)
    middle = 0 if minimums is not None else 1 << (bits - 1)
    for (start, end), (given, step) in zip(blocks.spans, rounded(rows, blocks, across), strict=True):
        group = start // blocks.group
        dots = given.double() @ (codes[:, start:end].double() - middle).t()
        out += dots * step.double() * scales[:, group].double()
        if minimums is not None:
            out += (given.sum(1, keepdim=True) * step).double() * minimums[:, group].double()
    return out


def made(bits, outputs, inputs, group, symmetric, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8, generator=generator)
    codes[0], codes[-1] = 0, 2**bits - 1
    groups = -(-inputs // group)
    scales = torch.rand(outputs, groups, generator=generator).half()
    minimums = None if symmetric else torch.randn(outputs, groups, generator=generator).half()
    return codes, scales, minimums


def rows_of(count, inputs, seed=1):
    """Rows with an outlier, rows at the largest code everywhere, and rows of zeros."""
    rows = torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))
    rows[0, 0] = 300.0
    rows[-1] = 3.0
    if count > 2:
        rows[1] = 0.0
        rows[2] = -3.0
    return rows


def near(found, expected):
    return bool((found - expected).abs().max() <= 4e-6 * expected.abs().max())


SHAPES = ((37, 100, 33), (5, 576, 256), (70, 32, 32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_products_are_those_of_the_integers(bits, symmetric):
    outputs, inputs, group = SHAPES[bits % 3]
    codes, scales, minimums = made(bits, outputs, inputs, group, symmetric)
    operand = Operand.of(codes, scales, minimums, None, bits, group)
    for count in (1, 2, 17, 65):
        rows = rows_of(count, inputs)
        assert near(operand.multiply(rows), plainly(rows, codes, scales, minimums, bits, operand.blocks))


@pytest.mark.parametrize(("target", "bits"), [(Machine("plain", 8), 8), (Machine("vnni", 16), 3)])
def test_every_way_gives_the_same(target, bits, monkeypatch):
    """ "emulated": tiles and panels of 512 bits as VNNI has them, its instruction written plainly."""
    from lessen.stored.kernels import operands, products

    operands.product_kernel.cache_clear()
    monkeypatch.setattr(operands, "product_kernel", operands.product_kernel.__wrapped__)
    monkeypatch.setattr(Dots, "_vnni", Dots.plainly)
    monkeypatch.setitem(products.TILES, "vnni", (2, 1))
    codes, scales, minimums = made(bits, 37, 99, 33, False)  # other kernels than those of this machine: no tail
    operand = Operand.of(codes, scales, minimums, None, bits, 33, target=target)
    for count in (1, 5):
        rows = rows_of(count, 99)
        assert near(operand.multiply(rows), plainly(rows, codes, scales, minimums, bits, operand.blocks))


@pytest.mark.parametrize(("lanes", "cpu"), [(16, "znver4"), (8, "alderlake")])
@pytest.mark.parametrize("many", [False, True])
def test_vnni_is_one_instruction(lanes, cpu, many):
    import llvmlite.binding as llvm

    machine._target()  # initialises the assembler
    text = Writer(Product(Machine("vnni", lanes), 4, 64, 0, False)).write(many)
    target = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, opt=3)
    module = llvm.parse_assembly(text)
    assert "vpdpbusd" in target.emit_assembly(module)


def test_the_machine_follows_the_features():
    assert machine_of({"avx512vnni": True, "avx512bw": True, "avx512vl": True, "avx2": True}) == Machine("vnni", 16)
    assert machine_of({"avxvnni": True, "avx2": True}) == Machine("vnni", 8)
    assert machine_of({"avx2": True, "avx512vnni": False}) == Machine("avx2", 8)
    assert machine_of({}) == Machine("plain", 8)


@pytest.mark.parametrize("across", [False, True])
def test_activations_are_rounded_bit_for_bit(across):
    blocks = Blocks(100, 33)
    codes, scales, minimums = made(4, 8, 100, 33, False)
    operand = Operand.of(codes, scales, minimums, None, 4, 33, across=across)
    rows = rows_of(5, 100)
    rows[3] *= 1e-35
    given = Activations.room(5, blocks)
    state = numbers([1, 5, 0])
    import ctypes

    arguments = numbers([ctypes.addressof(state), rows.data_ptr(), 100, *given.addresses(), blocks.count, blocks.row])
    machine.run(rounding_kernel(operand.rounding), arguments, 1)
    place = 0
    for number, ((start, end), (expected, step)) in enumerate(
        zip(blocks.spans, rounded(rows, blocks, across), strict=True)
    ):
        found = given.codes.view(torch.int8)[:, place : place + end - start]
        assert torch.equal(found.float(), expected)
        assert torch.equal(given.steps[:, number : number + 1], step)
        place += -(-(end - start) // 32) * 32


def test_panels_hold_the_bytes_and_no_more():
    codes, scales, minimums = made(4, 64, 576, 64, False)
    panels = arranged(codes, scales, minimums, 4, Blocks(576, 64), here())
    assert panels.numel() == 64 * (576 // 2 + 9 * 4)


def layer_of(bits, symmetric, bias=True):
    layer = nn.Linear(100, 37, bias=bias)
    codes, scales, minimums = made(bits, 37, 100, 33, symmetric)
    grid = GroupGrid(bits, 33, scales / 8, None if minimums is None else minimums / 8)
    return GroupQuantizedLinear.from_codes(layer, grid, codes, "int8"), layer


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_what_operators_give(kind, bias, monkeypatch):
    quick, _ = layer_of(4, False, bias)
    inputs = torch.randn(3, 100, 5).transpose(1, 2).to(kind)  # not contiguous
    with torch.inference_mode():
        found = quick(inputs)
        assert quick.packed_bytes() > 0
        monkeypatch.setattr(machine, "available", lambda: False)
        expected = quick(inputs)
    assert found.dtype == kind
    assert found.shape == expected.shape
    bound = 2e-5 if kind == torch.float32 else 2e-2
    assert float((found - expected).abs().max()) <= bound * float(expected.abs().max())


def test_what_a_kernel_leaves_to_operators():
    quick, _ = layer_of(4, True)
    inputs = torch.randn(2, 100, requires_grad=True)
    quick(inputs).sum().backward()
    assert torch.allclose(inputs.grad[0], quick.dequantise().sum(0), atol=1e-4)  # not rounded where trained through
    assert quick.packed_bytes() == 0
    assert not linear.takes(torch.randn(2, 100, dtype=torch.float64), ())
    exported = torch.export.export(nn.Sequential(quick), (torch.randn(2, 100),))
    with torch.no_grad():
        assert torch.allclose(exported.module()(inputs.detach()), quick(inputs.detach()), atol=1e-3)
        assert quick(torch.randn(0, 100)).shape == (0, 37)


def test_panels_follow_the_tensors_and_stay_out_of_copies():
    quick, _ = layer_of(4, True)
    inputs = torch.randn(2, 100)
    with torch.no_grad():
        before = quick(inputs)
        quick.scales.mul_(2)
        quick.bias.zero_()
        after = quick(inputs)
        twin = copy.deepcopy(quick)
        other = pickle.loads(pickle.dumps(quick))
    assert twin.packed_bytes() == other.packed_bytes() == 0
    assert not torch.allclose(before, after)
    with torch.no_grad():
        assert torch.equal(twin(inputs), after)
        assert torch.equal(other(inputs), after)
    assert set(quick.state_dict()) == {"codes", "scales", "bias"}


def test_nan_and_infinity_are_not_hidden():
    quick, _ = layer_of(4, True)
    inputs = torch.randn(3, 100)
    inputs[0, 7], inputs[1, 7] = float("nan"), float("inf")
    with torch.no_grad():
        found = quick(inputs)
    assert not bool(torch.isfinite(found[:2]).any())
    assert bool(torch.isfinite(found[2]).all())


def test_stored_values_that_are_extreme():
    codes, scales, minimums = made(8, 40, 64, 64, False)
    scales[0], scales[1], minimums[2] = 0.0, 65504.0, -65504.0
    operand = Operand.of(codes, scales, minimums, None, 8, 64)
    rows = rows_of(4, 64)
    assert near(operand.multiply(rows), plainly(rows, codes, scales, minimums, 8, operand.blocks))


def test_int8_by_row_multiplies_the_same_integers(monkeypatch):
    monkeypatch.setattr(int8_linear, "blocked", lambda: False)
    quick = Int8Linear.from_dense(nn.Linear(300, 21))
    inputs = rows_of(6, 300)
    with torch.no_grad():
        found = quick(inputs)
        assert quick.packed_bytes() > 0
        monkeypatch.setattr(machine, "available", lambda: False)
        expected = quick(inputs)
    assert torch.allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_threads_share_the_panels():
    before = torch.get_num_threads()
    codes, scales, minimums = made(4, 600, 256, 64, False)
    operand = Operand.of(codes, scales, minimums, None, 4, 64)
    rows = rows_of(9, 256)
    try:
        torch.set_num_threads(1)
        alone = [operand.multiply(rows), operand.multiply(rows[:1])]
        torch.set_num_threads(2)
        together = [operand.multiply(rows), operand.multiply(rows[:1])]
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_machines_agree_to_the_last_bit(bits):
    codes, scales, minimums = made(bits, 37, 100, 33, False)
    rows = rows_of(9, 100)
    found = [
        Operand.of(codes, scales, minimums, None, bits, 33, target=target).multiply(rows)
        for target in {here(), Machine("avx2", 8), Machine("plain", 8)}
        if target.dots != "avx2" or machine.features().get("avx2")
    ]
    assert all(torch.equal(found[0], one) for one in found[1:])
