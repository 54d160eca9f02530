"""Work of a program: kernels, bytes and host reads from XLA's text, operations from the jaxpr."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr

# Opcodes that launch no kernel.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
FREE |= {"opt-barrier", "add-dependency"}
CONTROL = {"while", "conditional", "call"}
# XLA records as many kernels in a row as a command buffer when it loads a program for a GPU (the
# default of xla_gpu_graph_min_graph_size); the text does not show it.
MIN_COMMAND_BUFFER = 5
COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) .*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(.*)")
ARRAY = re.compile(r"(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Cost(NamedTuple):
    """Work of a computation; a loop counts as often as it runs, or once if that is not known.

    Attributes:
        kernels: all that run.
        launches: of command buffers, and of kernels outside them.
        reads: predicates and branch indices that the host reads before it can continue.
        moved: bytes of the operands and results of all kernels; of sliced operands, the slices.
    """

    kernels: int = 0
    launches: int = 0
    reads: int = 0
    moved: int = 0

    def plus(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Cost:
        return Cost(*(count * x for x in self))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; the operand of a parameter is its number."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    attributes: str
    root: bool

    @property
    def trips(self) -> int | None:
        """Iterations of a loop, if XLA knows them."""
        found = TRIPS.search(self.attributes)
        return int(found[1]) if found else None

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes."""
        names = "|".join(attributes)
        found = re.findall(rf"\b(?:{names})=(?:\{{(.*?)\}}|(%[\w.-]+))", self.attributes)
        return re.findall(r"%([\w.-]+)", " ".join(map(" ".join, found)))


def size(shape: str) -> int:
    """Bytes of a shape, or of a tuple of them."""
    total = 0
    for _, bits, dimensions in ARRAY.findall(shape):
        total += math.prod(map(int, filter(None, dimensions.split(",")))) * int(bits or 8)
    return total // 8


class Program:
    """The computations of a compiled module.

    Args:
        text: of the module, as ``Compiled.as_text`` returns it.
        layers: of the decoder. A custom call reads one layer of an operand with this leading axis.
    """

    def __init__(self, text: str, layers: int) -> None:
        self.layers, self.entry = layers, ""
        self.computations: dict[str, dict[str, Instruction]] = {}
        lines: dict[str, Instruction] = {}
        for line in text.splitlines():
            if found := COMPUTATION.match(line):
                lines = self.computations[found[2]] = {}
                self.entry = found[2] if found[1] else self.entry
            elif found := INSTRUCTION.match(line):
                root, name, shape, opcode, operands, attributes = found.groups()
                names = [operands] if opcode == "parameter" else re.findall(r"%([\w.-]+)", operands)
                lines[name] = Instruction(name, shape, opcode, names, attributes, bool(root))

    def cost(self, computation: str = "") -> Cost:
        """The work of a computation, by default of the whole program."""
        lines = self.computations[computation or self.entry]
        total, row = Cost(), 0
        for each in lines.values():
            cost = self._cost(lines, each)
            if each.opcode in CONTROL:
                total, row = total.plus(Cost(launches=_launches(row))), 0
            else:
                row += cost.kernels
            total = total.plus(cost)
        return total.plus(Cost(launches=_launches(row)))

    def layer_loops(self) -> Iterator[Cost]:
        """The work of one iteration of each loop over the decoder's layers."""
        for lines in self.computations.values():
            for each in lines.values():
                if each.opcode == "while" and each.trips == self.layers:
                    yield self.cost(*each.called("body"))

    def _cost(self, lines: dict[str, Instruction], each: Instruction) -> Cost:
        opcode = each.opcode.removesuffix("-start")
        if opcode in FREE or opcode.endswith(("-done", "async-update")):
            return Cost()
        if opcode == "while":
            body = self.cost(*each.called("body"))
            if each.trips is not None:
                return body.times(each.trips)
            return body.plus(self.cost(*each.called("condition"))).plus(Cost(reads=1))
        if opcode == "conditional":
            names = each.called("branch_computations", "true_computation", "false_computation")
            branches = [self.cost(name) for name in names]
            return Cost(reads=1).plus(max(branches, key=lambda cost: (cost.moved, cost.kernels)))
        if opcode == "call":
            return self.cost(*each.called("to_apply"))
        return Cost(kernels=1, moved=self._moved(lines, each))

    def _moved(self, lines: dict[str, Instruction], each: Instruction) -> int:
        """Bytes that a kernel reads and writes."""
        sizes = [size(lines[name].shape) for name in each.operands]
        if each.opcode.startswith("fusion"):
            (inner,) = each.called("calls")
            reads = sum(min(self._read(inner, number), whole) for number, whole in enumerate(sizes))
            return reads + self._written(inner)
        if each.opcode == "dynamic-update-slice":
            return 2 * sizes[1]
        if each.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * size(each.shape)
        if each.opcode == "custom-call":
            stack = re.compile(rf"\w+\[{self.layers},")
            stacked = [bool(stack.match(lines[name].shape)) for name in each.operands]
            pairs = zip(sizes, stacked, strict=True)
            # One-dimensional bytes among the results are scratch memory of cuBLAS and cuDNN.
            results = re.sub(r"[su]8\[\d*\]", "", each.shape)
            return sum(x // self.layers if part else x for x, part in pairs) + size(results)
        return sum(sizes) + size(each.shape)

    def _read(self, computation: str, number: int) -> int:
        """Bytes that a fusion reads of a parameter."""
        lines = self.computations[computation]
        (name,) = (
            x.name
            for x in lines.values()
            if x.opcode == "parameter" and x.operands == [str(number)]
        )
        return self._used(lines, name)

    def _used(self, lines: dict[str, Instruction], name: str) -> int:
        total = 0
        for each in lines.values():
            if name not in each.operands:
                continue
            place = each.operands.index(name)
            if each.opcode == "bitcast":
                total += self._used(lines, each.name)
            elif each.opcode == "fusion":
                (inner,) = each.called("calls")
                total += self._read(inner, place)
            elif each.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                total += size(each.shape)
            elif each.opcode != "dynamic-update-slice" or place:
                return size(lines[name].shape)
        return total

    def _written(self, computation: str) -> int:
        """Bytes that a fusion writes; of an update in place, the update."""
        lines = self.computations[computation]
        (root,) = (x for x in lines.values() if x.root)
        outputs = [lines[x] for x in root.operands] if root.opcode == "tuple" else [root]
        total = 0
        for output in outputs:
            while output.opcode == "bitcast":
                output = lines[output.operands[0]]
            if output.opcode == "dynamic-update-slice":
                output = lines[output.operands[1]]
            total += size(output.shape)
        return total


def _launches(kernels: int) -> int:
    """Launches of some kernels in a row."""
    return 1 if kernels >= MIN_COMMAND_BUFFER else kernels


def operations(jaxpr: Jaxpr) -> float:
    """Floating-point operations of products and attention; loops and branches as in ``Cost``."""
    return sum(map(_operations, jaxpr.eqns))


def _operations(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    arrays = [x.aval for x in equation.invars if x.aval.ndim > 1]
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        lengths = [arrays[0].shape[axis] for axis in contracted]
        return 2.0 * equation.outvars[0].aval.size * math.prod(lengths)
    if name == "conv_general_dilated":
        outputs = params["dimension_numbers"].rhs_spec[0]
        kernel = arrays[1].size / arrays[1].shape[outputs]
        return 2.0 * equation.outvars[0].aval.size * kernel
    if name == "pallas_call" or name.startswith("dot_product_attention_fwd"):
        # Of queries [..., H] and keys [..., S, K, H]; other kernels do little work.
        return 4.0 * arrays[0].size * arrays[1].shape[-3] if arrays[1].ndim == 4 else 0.0
    leaves = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(tuple(params.values()))]
    inner = [operations(x) for x in leaves if isinstance(x, Jaxpr)]
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1)
