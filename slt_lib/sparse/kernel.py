"""Three inner loops of translation on a CPU, as machine code that LLVM makes for this processor.

`SparseMatrix` multiplies: no maintained package multiplies unstructured sparse matrices quickly on a CPU. The kernel
keeps a block of columns of one result row in registers and adds each kept weight times its part of an operand row.
`attention` serves many small groups of queries, for which a library spends more time on calls and copies than on
products. `maxima_and_logsumexp` reads the logits of a step twice where torch would read and write them several times.
llvmlite compiles all three when they are first needed, in about a tenth of a second; no compiler has to be installed.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from torch import Tensor

WIDTHS = (64, 16, 4, 1)  # columns that are computed side by side; wide parts first
LANES, TOGETHER = 16, 4  # slots and queries that attention computes side by side
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
        """array[index : index + width] = vector."""
        self.store(vector, self.gep(array, [index], source_etype=FLOAT), align=4)

    def spread(self, value: ir.Value, width: int) -> ir.Value:
        """A vector of `width` equal values."""
        kind = ir.VectorType(value.type, width)
        one = self.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
        return self.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT, width), [0] * width))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c of vectors, rounded once."""
        name = f"llvm.fma.v{a.type.count}f32"
        known = self.module.globals.get(name)
        return self.call(known or ir.Function(self.module, ir.FunctionType(a.type, [a.type] * 3), name), [a, b, c])

    def reduce(self, operation: str, vector: ir.Value, *first: ir.Value) -> ir.Value:
        """All entries of a vector as one number; `operation`: fadd, after a `first` number, or fmax."""
        name = f"llvm.vector.reduce.{operation}.v{vector.type.count}f32"
        kinds = [value.type for value in (*first, vector)]
        known = self.module.globals.get(name)
        function = known or ir.Function(self.module, ir.FunctionType(FLOAT, kinds), name)
        return self.call(function, [*first, vector], fastmath=("reassoc",))

    def larger(self, place: ir.Value, value: ir.Value) -> None:
        """Keep the larger of a variable and `value`."""
        known = self.load(place)
        self.store(self.select(self.fcmp_ordered(">", value, known), value, known), place)

    def exp(self, x: ir.Value, width: int) -> ir.Value:
        """exp of a vector of numbers up to 0; NaN stays NaN."""
        number = lambda value: self.spread(FLOAT(value), width)  # noqa: E731
        x = self.select(self.fcmp_ordered("<", x, number(SMALLEST)), number(SMALLEST), x)
        shifted = self.fma(x, number(LOG2_E), number(ROUND))
        n = self.fsub(shifted, number(ROUND))
        r = self.fma(n, number(-LN2_LOW), self.fma(n, number(-LN2_HIGH), x))
        p = number(COEFFICIENTS[0])
        for coefficient in COEFFICIENTS[1:]:
            p = self.fma(p, r, number(coefficient))
        bits = ir.VectorType(INT, width)
        exponent = self.shl(self.bitcast(shifted, bits), self.spread(INT(23), width))
        return self.bitcast(self.add(self.bitcast(p, bits), exponent), x.type)


def _multiply(code: Writer, rows, starts, columns, values, bias, x, y, n) -> None:
    """y = matrix @ x + bias: matrix [rows, ...] by rows, x and y with `n` columns."""
    column = code.variable(LONG(0))
    for width in WIDTHS:
        with code.going_on(column, n, width) as c, code.loop(LONG(0), rows) as row:
            total = code.variable(code.spread(code.at(bias, row), width))
            last = code.at(starts, code.add(row, LONG(1)), INT)
            with code.loop(code.at(starts, row, INT), last) as k:
                place = code.add(code.mul(code.at(columns, k, SHORT), n), c)
                weight = code.spread(code.at(values, k), width)
                code.store(code.fma(weight, code.part(x, place, width), code.load(total)), total)
            code.put(y, code.add(code.mul(row, n), c), code.load(total))


def _reduce(code: Writer, blocks, size, x, maxima, sums, n) -> None:
    """maxima[b] = max of the block's rows of x, sums[0] = max of all, sums[1] = sum of exp(x - max); by column."""
    column, rows = code.variable(LONG(0)), code.mul(blocks, size)
    for width in WIDTHS[1:]:
        lowest = code.spread(FLOAT(float("-inf")), width)
        with code.going_on(column, n, width) as c:
            highest = code.variable(lowest)
            with code.loop(LONG(0), blocks) as block:
                of_block, first = code.variable(lowest), code.mul(block, size)
                with code.loop(first, code.add(first, size)) as row:
                    code.larger(of_block, code.part(x, code.add(code.mul(row, n), c), width))
                code.put(maxima, code.add(code.mul(block, n), c), code.load(of_block))
                code.larger(highest, code.load(of_block))
            most, total = code.load(highest), code.variable(code.spread(FLOAT(0.0), width))
            with code.loop(LONG(0), rows) as row:
                value = code.part(x, code.add(code.mul(row, n), c), width)
                code.store(code.fadd(code.load(total), code.exp(code.fsub(value, most), width)), total)
            code.put(sums, c, most)
            code.put(sums, code.add(n, c), code.load(total))


def _attend(
    code: Writer, heads, size, sentences, queries, first, used, slots, wide, q, new, rows, store, bias, y, scratch
):
    """y = softmax(q k + bias) v for each head and sentence, after new keys and values are stored.

    q and y: [heads, size, sentences, queries]. new: the same for the keys, then for the values, of slots `first` to
    `used`; nothing if these are equal. store: [..., 2 * heads, size, slots], of which `rows` names one for each
    sentence; keys, then values. bias: [sentences, queries if `wide` else 1, slots]. scratch: [TOGETHER, slots].
    """
    filled = code.mul(code.udiv(code.add(used, LONG(LANES - 1)), LONG(LANES)), LONG(LANES))
    lowest, zero = code.spread(FLOAT(float("-inf")), LANES), code.spread(FLOAT(0.0), LANES)
    with code.loop(LONG(0), sentences) as sentence, code.loop(LONG(0), heads) as head:

        def of_queries(d):  # where the numbers of feature d of this head and sentence begin
            row = code.add(code.mul(head, size), d)  # noqa: B023
            return code.mul(code.add(code.mul(row, sentences), sentence), queries)  # noqa: B023

        def of_slots(d, values=False):
            row = code.add(code.mul(code.at(rows, sentence, INT), code.mul(heads, LONG(2))), head)  # noqa: B023
            row = code.add(row, heads) if values else row
            return code.mul(code.add(code.mul(row, size), d), slots)

        for values in (False, True):
            with code.loop(LONG(0), code.select(code.icmp_unsigned("<", first, used), size, LONG(0))) as d:
                come, place = of_queries(d), of_slots(d, values)
                come = code.add(come, code.mul(code.mul(heads, size), code.mul(sentences, queries))) if values else come
                with code.loop(LONG(0), code.sub(used, first)) as i:
                    at = code.gep(store, [code.add(code.add(place, first), i)], source_etype=FLOAT)
                    code.store(code.at(new, code.add(come, i)), at)
                with code.loop(used, filled) as i:
                    code.store(FLOAT(0.0), code.gep(store, [code.add(place, i)], source_etype=FLOAT))
        next_query = code.variable(LONG(0))
        for count in (TOGETHER, 1):
            each = range(count)
            with code.going_on(next_query, queries, count) as query:
                most = [code.variable(lowest) for _ in each]
                with code.loop(LONG(0), filled, LANES) as s:
                    sums = []
                    for i in each:
                        row = code.add(code.mul(sentence, queries), code.add(query, LONG(i)))
                        row = code.select(wide, row, sentence)
                        sums.append(code.variable(code.part(bias, code.add(code.mul(row, slots), s), LANES)))
                    with code.loop(LONG(0), size) as d:
                        keys, at = code.part(store, code.add(of_slots(d), s), LANES), code.add(of_queries(d), query)
                        for i, total in enumerate(sums):
                            one = code.spread(code.at(q, code.add(at, LONG(i))), LANES)
                            code.store(code.fma(one, keys, code.load(total)), total)
                    for i, total in enumerate(sums):
                        code.put(scratch, code.add(code.mul(LONG(i), slots), s), code.load(total))
                        code.larger(most[i], code.load(total))
                highest = [code.spread(code.reduce("fmax", code.load(place)), LANES) for place in most]
                norms = [code.variable(zero) for _ in each]
                with code.loop(LONG(0), filled, LANES) as s:
                    for i in each:
                        at = code.add(code.mul(LONG(i), slots), s)
                        power = code.exp(code.fsub(code.part(scratch, at, LANES), highest[i]), LANES)
                        code.put(scratch, at, power)
                        code.store(code.fadd(code.load(norms[i]), power), norms[i])
                norms = [code.reduce("fadd", code.load(place), FLOAT(0.0)) for place in norms]
                with code.loop(LONG(0), size) as d:
                    sums, begin = [code.variable(zero) for _ in each], of_slots(d, values=True)
                    with code.loop(LONG(0), filled, LANES) as s:
                        values = code.part(store, code.add(begin, s), LANES)
                        for i, total in enumerate(sums):
                            power = code.part(scratch, code.add(code.mul(LONG(i), slots), s), LANES)
                            code.store(code.fma(power, values, code.load(total)), total)
                    for i, total in enumerate(sums):
                        answer = code.fdiv(code.reduce("fadd", code.load(total), FLOAT(0.0)), norms[i])
                        at = code.add(code.add(of_queries(d), query), LONG(i))
                        code.store(answer, code.gep(y, [at], source_etype=FLOAT))


ARGUMENTS = {
    _multiply: [LONG, *[POINTER] * 6, LONG],
    _reduce: [LONG, LONG, *[POINTER] * 3, LONG],
    _attend: [*[LONG] * 7, FLAG, *[POINTER] * 7],
}


COMPILING = threading.Lock()  # two threads must not compile at the same time


def _kernels() -> tuple:
    with COMPILING:
        return _compiled()


@functools.cache
def _compiled() -> tuple:
    """The engine, which must stay alive, and the functions of `ARGUMENTS`."""
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
        x = x.contiguous()
        y = torch.empty(self.rows, x.shape[1])
        tensors = self.starts, self.columns, self.values, self.bias, x, y
        _kernels()[1](self.rows, *(tensor.data_ptr() for tensor in tensors), x.shape[1])
        return y


def maxima_and_logsumexp(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of each column of x [rows, n]: the maximum of each `size` rows [rows / size, n], and logsumexp [n]."""
    blocks, n = x.shape[0] // size, x.shape[1]
    maxima, sums = torch.empty(blocks, n), torch.empty(2, n)
    _kernels()[2](blocks, size, *(tensor.data_ptr() for tensor in (x, maxima, sums)), n)
    return maxima, sums[0] + sums[1].log()


def attention(
    queries: Tensor, rows: Tensor, store: Tensor, bias: Tensor, used: int, new: Tensor | None = None
) -> Tensor:
    """softmax(queries * keys + bias) * values: queries [H, d, B, Q] -> [H, d, B, Q], contiguous.

    store [R, 2H, d, K]: keys and values, of which sentence b has the row rows[b], an int32. Only the first `used` of K
    count. `new` [2, H, d, B, Q]: keys and values that are stored first, as the last Q of these. bias [B, Q or 1, K].
    """
    heads, size, sentences, count = queries.shape
    slots, first = store.shape[3], used if new is None else used - count
    y, scratch = torch.empty_like(queries), torch.empty(TOGETHER, slots)
    tensors = queries, queries if new is None else new, rows, store, bias, y, scratch
    sizes = heads, size, sentences, count, first, used, slots, bias.shape[1] > 1
    _kernels()[3](*sizes, *(tensor.data_ptr() for tensor in tensors))
    return y
