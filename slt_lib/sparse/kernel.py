"""Four inner loops of translation on a CPU, as machine code that LLVM makes for this processor.

`SparseMatrix` multiplies: no maintained package multiplies unstructured sparse matrices quickly on a CPU. The kernel
keeps a block of columns of one result row in registers and adds each kept weight times its part of an operand row.
`attention` serves many small groups of queries, for which a library spends more time on calls and copies than on
products. `largest_and_logsumexp` reads the logits of a step twice, and `normalize` its input three times, where torch
would read and write several arrays. llvmlite compiles all four when they are first needed, in a fraction of a second;
no compiler has to be installed.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

WIDTHS = (64, 16, 4, 1)  # columns that are computed side by side; wide parts first
LANES, TOGETHER = 16, 4  # slots and queries that attention computes side by side
EPSILON = 1e-6  # of the layer norms
FLOAT, POINTER, FLAG = ir.FloatType(), ir.PointerType(), ir.IntType(1)
SHORT, INT, LONG = (ir.IntType(bits) for bits in (16, 32, 64))

# exp(x) for x <= 0 is 2^n * p(r), where x = n * ln 2 + r. Adding ROUND leaves the whole number n in the low bits of a
# float. The coefficients are those of Cephes' expf, whose error is at most 2 units in the last place.
SMALLEST, ROUND, LOG2_E = -87.0, 12582912.0, 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0)


class Writer(ir.IRBuilder):
    """An IRBuilder with counted loops and vectors. LLVM's optimizer moves variables from the stack to registers."""

    def variable(self, value: ir.Value) -> ir.Value:
        """The address of a new variable that holds `value`."""
        with self.goto_entry_block():
            place = self.alloca(value.type)
        self.store(value, place)
        return place

    @contextlib.contextmanager
    def loop(self, first: ir.Value, last: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """for i in range(first, last - step + 1, step)."""
        with self.going_on(self.variable(first), last, step) as i:
            yield i

    @contextlib.contextmanager
    def going_on(self, place: ir.Value, last: ir.Value, step: int) -> Iterator[ir.Value]:
        """`loop` from the number in the variable `place`, which holds the first number left out afterwards."""
        head, body, end = (self.append_basic_block() for _ in range(3))
        self.branch(head)
        self.position_at_end(head)
        i = self.load(place, typ=LONG)
        following = self.add(i, LONG(step))
        self.cbranch(self.icmp_unsigned("<=", following, last), body, end)
        self.position_at_end(body)
        yield i
        self.store(following, place)
        self.branch(head)
        self.position_at_end(end)

    def at(self, array: ir.Value, index: ir.Value, kind: ir.Type = FLOAT) -> ir.Value:
        """array[index], an array of `kind`; integers as 64 bits."""
        value = self.load(self.gep(array, [index], source_etype=kind), typ=kind)
        return value if kind is FLOAT else self.zext(value, LONG)

    def part(self, array: ir.Value, index: ir.Value, width: int) -> ir.Value:
        """array[index : index + width] as a vector."""
        return self.load(self.gep(array, [index], source_etype=FLOAT), align=4, typ=ir.VectorType(FLOAT, width))

    def put(self, array: ir.Value, index: ir.Value, vector: ir.Value) -> None:
        """array[index : index + width] = vector; array[index] = vector if it is a number."""
        self.store(vector, self.gep(array, [index], source_etype=FLOAT), align=4)

    def spread(self, value: ir.Value, width: int) -> ir.Value:
        """A vector of `width` equal values."""
        kind = ir.VectorType(value.type, width)
        one = self.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
        return self.shuffled(one, one, [0] * width)

    def shuffled(self, a: ir.Value, b: ir.Value, places: list[int]) -> ir.Value:
        """The entries of a followed by b at these places, as a vector."""
        return self.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(places)), places))

    def quarter(self, vector: ir.Value, i: int) -> ir.Value:
        """Entries 4 i to 4 i + 3 of a vector."""
        return self.shuffled(vector, vector, list(range(4 * i, 4 * i + 4)))

    def joined(self, quarters: list[ir.Value]) -> ir.Value:
        """The vector with these quarters."""
        halves = [self.shuffled(a, b, list(range(8))) for a, b in (quarters[:2], quarters[2:])]
        return self.shuffled(*halves, list(range(16)))

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """Four vectors of 16, transposed in blocks of 4 x 4: entry 4 i + k of result j is entry 4 i + j of vector k."""

        def mixed(a: ir.Value, b: ir.Value, places: tuple[int, ...]) -> ir.Value:
            return self.shuffled(a, b, [4 * i + k % 4 + 16 * (k // 4) for i in range(4) for k in places])

        pairs = [[mixed(a, b, places) for a, b in (rows[:2], rows[2:])] for places in ((0, 4, 1, 5), (2, 6, 3, 7))]
        return [mixed(*pair, places) for pair in pairs for places in ((0, 1, 4, 5), (2, 3, 6, 7))]

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c of vectors, rounded once."""
        kind = ir.FunctionType(a.type, [a.type] * 3)
        return self.call(self.module.declare_intrinsic(f"llvm.fma.v{a.type.count}f32", (), kind), [a, b, c])

    def reduce(self, operation: str, vector: ir.Value, *first: ir.Value) -> ir.Value:
        """All entries of a vector as one number; `operation`: fadd, after a `first` number, or fmax."""
        name = f"llvm.vector.reduce.{operation}.v{vector.type.count}f32"
        kind = ir.FunctionType(FLOAT, [value.type for value in (*first, vector)])
        return self.call(self.module.declare_intrinsic(name, (), kind), [*first, vector], fastmath=("reassoc",))

    def larger(self, place: ir.Value, value: ir.Value) -> None:
        """Keep the larger of a variable and `value`."""
        known = self.load(place)
        self.store(self.select(self.fcmp_ordered(">", value, known), value, known), place)

    def exp(self, x: ir.Value, width: int) -> ir.Value:
        """exp of a vector of numbers up to 0; NaN stays NaN.

        Below `SMALLEST` it is 0: products with denormal numbers are slow on Intel's processors.
        """
        number = lambda value: self.spread(FLOAT(value), width)  # noqa: E731
        none = self.fcmp_ordered("<", x, number(SMALLEST))
        x = self.select(none, number(SMALLEST), x)
        shifted = self.fma(x, number(LOG2_E), number(ROUND))
        n = self.fsub(shifted, number(ROUND))
        r = self.fma(n, number(-LN2_LOW), self.fma(n, number(-LN2_HIGH), x))
        p = number(COEFFICIENTS[0])
        for coefficient in COEFFICIENTS[1:]:
            p = self.fma(p, r, number(coefficient))
        bits = ir.VectorType(INT, width)
        exponent = self.shl(self.bitcast(shifted, bits), self.spread(INT(23), width))
        power = self.bitcast(self.add(self.bitcast(p, bits), exponent), x.type)
        return self.select(none, number(0.0), power)


def _multiply(code: Writer, rows, starts, columns, values, bias, x, x_stride, y, y_stride, n) -> None:
    """y = matrix @ x + bias: matrix [rows, ...] by rows, x and y with `n` columns and with these row strides."""
    column = code.variable(LONG(0))
    for width in WIDTHS:
        with code.going_on(column, n, width) as c, code.loop(LONG(0), rows) as row:
            total = code.variable(code.spread(code.at(bias, row), width))
            last = code.at(starts, code.add(row, LONG(1)), INT)
            with code.loop(code.at(starts, row, INT), last) as k:
                place = code.add(code.mul(code.at(columns, k, SHORT), x_stride), c)
                weight = code.spread(code.at(values, k), width)
                code.store(code.fma(weight, code.part(x, place, width), code.load(total)), total)
            code.put(y, code.add(code.mul(row, y_stride), c), code.load(total))


def _best(code: Writer, rows, count, x, stride, values, places, sums, n) -> None:
    """values, places = the `count` largest of each column of x [rows, n], descending; sums = sum of exp(x - values[0]).

    Of equal values, the one in the lower row is first. `places` holds the bits of 32-bit integers.
    """
    column, last = code.variable(LONG(0)), code.mul(code.sub(count, LONG(1)), n)
    for width in WIDTHS[1:]:
        with code.going_on(column, n, width) as c:
            with code.loop(LONG(0), count) as rank:
                code.put(values, code.add(code.mul(rank, n), c), code.spread(FLOAT(float("-inf")), width))
                code.put(places, code.add(code.mul(rank, n), c), code.spread(FLOAT(0.0), width))
            with code.loop(LONG(0), rows) as row:
                value = code.part(x, code.add(code.mul(row, stride), c), width)
                larger = code.fcmp_ordered(">", value, code.part(values, code.add(last, c), width))
                any_larger = code.icmp_unsigned("!=", code.bitcast(larger, ir.IntType(width)), ir.IntType(width)(0))
                with code.if_then(any_larger, likely=False):
                    number = code.bitcast(code.spread(code.trunc(row, INT), width), value.type)
                    _insert(code, count, values, places, n, c, value, number)
            most, total = code.part(values, c, width), code.variable(code.spread(FLOAT(0.0), width))
            with code.loop(LONG(0), rows) as row:
                value = code.part(x, code.add(code.mul(row, stride), c), width)
                code.store(code.fadd(code.load(total), code.exp(code.fsub(value, most), width)), total)
            code.put(sums, c, code.load(total))


def _insert(code: Writer, count, values, places, n, c, value, number) -> None:
    """Insert a value and its number into the descending lists in the columns of `values` and `places` from c on."""
    width, moved, moved_number = value.type.count, code.variable(value), code.variable(number)
    inserted = code.variable(code.spread(FLAG(0), width))  # from there on, everything moves down
    with code.loop(LONG(0), count) as rank:
        at = code.add(code.mul(rank, n), c)
        here, new = code.part(values, at, width), code.load(moved)
        takes = code.or_(code.load(inserted), code.fcmp_ordered(">", new, here))
        code.store(takes, inserted)
        for array, place in ((values, moved), (places, moved_number)):
            here, new = code.part(array, at, width), code.load(place)
            code.put(array, at, code.select(takes, new, here))
            code.store(code.select(takes, here, new), place)


def _normalize(code: Writer, rows, x, x_stride, y, y_stride, n) -> None:
    """y = (x - mean) / sqrt(variance + EPSILON) of each column of x [rows, n]."""
    column, count = code.variable(LONG(0)), code.uitofp(rows, FLOAT)
    for width in WIDTHS:
        kind = ir.VectorType(FLOAT, width)
        root = ir.Function(code.module, ir.FunctionType(kind, [kind]), f"llvm.sqrt.v{width}f32")
        with code.going_on(column, n, width) as c:
            total, squares = (code.variable(code.spread(FLOAT(0.0), width)) for _ in range(2))
            with code.loop(LONG(0), rows) as row:
                value = code.part(x, code.add(code.mul(row, x_stride), c), width)
                code.store(code.fadd(code.load(total), value), total)
            mean = code.fdiv(code.load(total), code.spread(count, width))
            with code.loop(LONG(0), rows) as row:
                centred = code.fsub(code.part(x, code.add(code.mul(row, x_stride), c), width), mean)
                code.store(code.fma(centred, centred, code.load(squares)), squares)
            variance = code.fdiv(code.load(squares), code.spread(count, width))
            deviation = code.call(root, [code.fadd(variance, code.spread(FLOAT(EPSILON), width))])
            scale = code.fdiv(code.spread(FLOAT(1.0), width), deviation)
            with code.loop(LONG(0), rows) as row:
                value = code.fsub(code.part(x, code.add(code.mul(row, x_stride), c), width), mean)
                code.put(y, code.add(code.mul(row, y_stride), c), code.fmul(value, scale))


@dataclass(frozen=True)
class _Head:
    """One head of one sentence: where its numbers are in the operands of `_attend`."""

    code: Writer
    heads: ir.Value
    size: ir.Value
    wide: ir.Value  # size, rounded up to a multiple of LANES
    strides: tuple[ir.Value, ir.Value]  # of the rows of what is read (queries, new keys and values) and of the answers
    queries: ir.Value
    slots: ir.Value
    sentence: ir.Value
    head: ir.Value
    row: ir.Value  # of the sentence in the store

    def in_queries(self, d: ir.Value, features: ir.Value, stride: ir.Value) -> ir.Value:
        """Where feature d begins in an array [heads, features, sentences * queries] with this row stride."""
        code = self.code
        row = code.add(code.mul(self.head, features), d)
        return code.add(code.mul(row, stride), code.mul(self.sentence, self.queries))

    def in_keys(self, slot: ir.Value, d: ir.Value) -> ir.Value:
        """Where feature d of a slot is in the keys [..., heads, slots / LANES, size, LANES]."""
        code = self.code
        row = code.add(code.mul(self.row, self.heads), self.head)
        lane = code.urem(slot, LONG(LANES))
        first = code.add(code.mul(row, self.slots), code.sub(slot, lane))
        return code.add(code.add(code.mul(first, self.size), code.mul(d, LONG(LANES))), lane)

    def in_values(self, slot: ir.Value) -> ir.Value:
        """Where a slot begins in the values [..., heads, slots, wide]."""
        code = self.code
        row = code.add(code.mul(self.row, self.heads), self.head)
        return code.mul(code.add(code.mul(row, self.slots), slot), self.wide)


def _attend(
    code: Writer, heads, size, wide, sentences, queries, first, used, slots, q_stride, y_stride, own, *arrays
) -> None:
    """y = softmax(q k + bias) v for each head and sentence, after new keys and values are stored.

    q: [heads, size, sentences, queries]; y the same with `wide` features, which is size rounded up. new: [2, heads,
    size, sentences, queries], the keys, then the values, of the slots `first` to `used`; nothing if these are equal.
    keys: [..., heads, slots / LANES, size, LANES] and values: [..., heads, slots, wide], of which `rows` names one for
    each sentence. bias: [sentences, queries if `own` else 1, slots]. scratch: [TOGETHER, slots].
    """
    q, new, rows, keys, values, bias, y, scratch = arrays
    filled = code.mul(code.udiv(code.add(used, LONG(LANES - 1)), LONG(LANES)), LONG(LANES))
    with code.loop(LONG(0), sentences) as sentence, code.loop(LONG(0), heads) as head:
        row = code.at(rows, sentence, INT)
        part = _Head(code, heads, size, wide, (q_stride, y_stride), queries, slots, sentence, head, row)
        with code.if_then(code.icmp_unsigned("<", first, used)):
            _append(part, first, used, filled, new, keys, values)
        query = code.variable(LONG(0))
        for count in (TOGETHER, 1):
            with code.going_on(query, queries, count) as number:
                lines = [code.add(number, LONG(i)) for i in range(count)]
                biases = [code.select(own, code.add(code.mul(sentence, queries), line), sentence) for line in lines]
                norms = _weigh(part, lines, [code.mul(line, slots) for line in biases], filled, q, keys, bias, scratch)
                _mix(part, number, norms, used, values, y, scratch)


def _append(part: _Head, first, used, filled, new, keys, values) -> None:
    """Store new keys and values in the slots `first` to `used`; zeros in the other keys of a block that they begin."""
    code = part.code
    all_keys = code.mul(code.mul(part.heads, part.size), part.strides[0])
    begun = code.icmp_unsigned("<=", code.add(first, LONG(LANES)), filled)
    with code.if_then(begun), code.loop(LONG(0), part.size) as d, code.loop(used, filled) as slot:
        code.put(keys, part.in_keys(slot, d), FLOAT(0.0))
    together = code.icmp_unsigned("==", code.sub(used, first), LONG(TOGETHER))
    place = code.variable(LONG(0))
    with code.going_on(place, code.select(together, part.size, LONG(0)), LANES) as d:  # by 4 slots and 16 features
        slots = [code.add(first, LONG(i)) for i in range(TOGETHER)]
        at = [part.in_queries(code.add(d, LONG(i)), part.size, part.strides[0]) for i in range(LANES)]
        for i, source in enumerate(at):
            of_feature = code.part(new, source, TOGETHER)
            for number, slot in enumerate(slots):
                code.put(keys, part.in_keys(slot, code.add(d, LONG(i))), code.extract_element(of_feature, INT(number)))
        features = [code.part(new, code.add(source, all_keys), TOGETHER) for source in at]
        by_quarter = [code.joined(features[i::TOGETHER]) for i in range(TOGETHER)]
        for slot, vector in zip(slots, code.transposed(by_quarter), strict=True):
            code.put(values, code.add(part.in_values(slot), d), vector)
    with code.going_on(place, part.size, 1) as d, code.loop(first, used) as slot:
        source = code.add(part.in_queries(d, part.size, part.strides[0]), code.sub(slot, first))
        code.put(keys, part.in_keys(slot, d), code.at(new, source))
        code.put(values, code.add(part.in_values(slot), d), code.at(new, code.add(source, all_keys)))


def _weigh(part: _Head, lines, biases, filled, q, keys, bias, scratch) -> list[ir.Value]:
    """Leave exp(q k + bias - maximum) of some queries in `scratch`; returns the sum of each."""
    code = part.code
    most = [code.variable(code.spread(FLOAT(float("-inf")), LANES)) for _ in lines]
    with code.loop(LONG(0), filled, LANES) as s:
        sums = [code.variable(code.part(bias, code.add(row, s), LANES)) for row in biases]
        with code.loop(LONG(0), part.size) as d:
            of_slots = code.part(keys, part.in_keys(s, d), LANES)
            for line, total in zip(lines, sums, strict=True):
                one = code.spread(code.at(q, code.add(part.in_queries(d, part.size, part.strides[0]), line)), LANES)
                code.store(code.fma(one, of_slots, code.load(total)), total)
        for i, total in enumerate(sums):
            code.put(scratch, code.add(code.mul(LONG(i), part.slots), s), code.load(total))
            code.larger(most[i], code.load(total))
    highest = [code.spread(code.reduce("fmax", code.load(place)), LANES) for place in most]
    norms = [code.variable(code.spread(FLOAT(0.0), LANES)) for _ in lines]
    with code.loop(LONG(0), filled, LANES) as s:
        for i, norm in enumerate(norms):
            at = code.add(code.mul(LONG(i), part.slots), s)
            power = code.exp(code.fsub(code.part(scratch, at, LANES), highest[i]), LANES)
            code.put(scratch, at, power)
            code.store(code.fadd(code.load(norm), power), norm)
    return [code.reduce("fadd", code.load(place), FLOAT(0.0)) for place in norms]


def _mix(part: _Head, number, norms, used, values, y, scratch) -> None:
    """The means of the values, weighted by `scratch`, as the answers to the queries from `number` on."""
    code, count = part.code, len(norms)
    with code.loop(LONG(0), part.wide, LANES) as d:
        sums = [code.variable(code.spread(FLOAT(0.0), LANES)) for _ in norms]
        with code.loop(LONG(0), used) as s:
            of_slot = code.part(values, code.add(part.in_values(s), d), LANES)
            for i, total in enumerate(sums):
                power = code.at(scratch, code.add(code.mul(LONG(i), part.slots), s))
                code.store(code.fma(code.spread(power, LANES), of_slot, code.load(total)), total)
        answers = [
            code.fdiv(code.load(total), code.spread(norm, LANES)) for total, norm in zip(sums, norms, strict=True)
        ]
        if count == TOGETHER:
            quarters = code.transposed(answers)
            of_features = [code.quarter(quarters[i % TOGETHER], i // TOGETHER) for i in range(LANES)]
        else:
            of_features = [code.extract_element(answers[0], INT(i)) for i in range(LANES)]
        for i, of_feature in enumerate(of_features):  # the queries of a feature lie side by side in y
            code.put(y, code.add(part.in_queries(code.add(d, LONG(i)), part.wide, part.strides[1]), number), of_feature)


ARGUMENTS = {
    _multiply: [LONG, *[POINTER] * 5, LONG, POINTER, LONG, LONG],
    _best: [LONG, LONG, POINTER, LONG, *[POINTER] * 3, LONG],
    _normalize: [LONG, POINTER, LONG, POINTER, LONG, LONG],
    _attend: [*[LONG] * 10, FLAG, *[POINTER] * 8],
}


@functools.cache
def kernels() -> tuple:
    """LLVM's engine, which must stay alive, and the compiled functions of `ARGUMENTS`."""
    module = ir.Module()
    for write, kinds in ARGUMENTS.items():
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), write.__name__)
        for argument in function.args:
            if argument.type is POINTER:
                argument.add_attribute("noalias")
        code = Writer(function.append_basic_block())
        write(code, *function.args)
        code.ret_void()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    machine = llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    types = {LONG: ctypes.c_int64, POINTER: ctypes.c_void_p, FLAG: ctypes.c_bool}
    return engine, *(
        ctypes.CFUNCTYPE(None, *(types[kind] for kind in kinds))(engine.get_function_address(write.__name__))
        for write, kinds in ARGUMENTS.items()
    )


class SparseMatrix:
    """The nonzero entries of a matrix [rows, columns], fewer than 65,536 columns; for fp32 on the CPU."""

    def __init__(self, matrix: Tensor, bias: Tensor | None = None):
        kept = matrix != 0
        self.rows = len(matrix)
        self.values = matrix[kept].float().contiguous()
        self.columns = kept.nonzero()[:, 1].to(torch.uint16)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)]).int()
        self.bias = torch.zeros(len(matrix)) if bias is None else bias.float().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """matrix @ x + bias: [columns, n] -> [rows, n]."""
        x, y = by_rows(x), empty(self.rows, x.shape[1])
        pointers = (tensor.data_ptr() for tensor in (self.starts, self.columns, self.values, self.bias, x))
        kernels()[1](self.rows, *pointers, x.stride(0), y.data_ptr(), y.stride(0), x.shape[1])
        return y


def empty(rows: int, columns: int) -> Tensor:
    """An array [rows, columns] to write to. Its row stride is no multiple of 512 bytes.

    With such a stride, equal columns of all rows would lie in few sets of the processor's cache and evict each other.
    """
    return torch.empty(rows, columns + (LANES if columns % 128 == 0 else 0))[:, :columns]


def by_rows(x: Tensor) -> Tensor:
    """`x` itself if its rows are contiguous, else a copy."""
    return x if x.stride(-1) == 1 else empty(*x.shape).copy_(x)


def largest_and_logsumexp(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each column of x [rows, n]: the `count` largest, descending, their rows, each [n, count], and logsumexp [n].

    Of equal values, the one in the lower row is first.
    """
    x, count, n = by_rows(x), min(count, len(x)), x.shape[1]
    values, places, sums = x.new_empty(count, n), x.new_empty(count, n), x.new_empty(n)
    pointers = (tensor.data_ptr() for tensor in (values, places, sums))
    kernels()[2](len(x), count, x.data_ptr(), x.stride(0), *pointers, n)
    return values.t(), places.view(torch.int32).long().t(), values[0] + sums.log()


def normalize(x: Tensor) -> Tensor:
    """A layer norm of each column of x [rows, n], without its own weights: (x - mean) / sqrt(variance + EPSILON)."""
    x, y = by_rows(x), empty(*x.shape)
    kernels()[3](len(x), x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), x.shape[1])
    return y


def rounded_up(number: int) -> int:
    """The next multiple of LANES."""
    return -(-number // LANES) * LANES


def attention(
    queries: Tensor, rows: Tensor, store: tuple[Tensor, Tensor], bias: Tensor, used: int, new: Tensor | None = None
) -> Tensor:
    """softmax(queries * keys + bias) * values: queries [H, d, B, Q] -> [H, d, B, Q].

    store: keys [R, H, K / LANES, d, LANES] and values [R, H, K, d rounded up], of which sentence b has the row rows[b],
    an int32. Only the first `used` of K count. `new` [2, H, d, B, Q]: keys and values that are stored
    first, as the last Q of these. bias [B, Q or 1, K].
    """
    keys, values = store
    heads, size, sentences, count = queries.shape
    slots, wide, first = *values.shape[2:], used if new is None else used - count
    y, scratch = empty(heads * wide, sentences * count), torch.empty(TOGETHER, slots)
    tensors = queries, queries if new is None else new, rows, keys, values, bias, y, scratch
    sizes = heads, size, wide, sentences, count, first, used, slots, queries.stride(1), y.stride(0), bias.shape[1] > 1
    kernels()[4](*sizes, *(tensor.data_ptr() for tensor in tensors))
    return y.view(heads, wide, sentences, count)[:, :size]
