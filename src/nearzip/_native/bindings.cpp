// The Python functions of the native core. Every call releases the GIL while it works; damage becomes ValueError.
// One file, though a long one: each function checks its arguments and calls the core, and nanobind is compiled once.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <bit>
#include <optional>
#include <tuple>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bindings_images.hpp"
#include "bloomier.hpp"
#include "contexts.hpp"
#include "counting.hpp"
#include "comparing.hpp"
#include "floats.hpp"
#include "huffman.hpp"
#include "lanes.hpp"
#include "rounding.hpp"
#include "symbols.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace nearzip;

static_assert(std::endian::native == std::endian::little, "the format is little-endian; big-endian hosts need swaps");

namespace {

template <class T>
using Input = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Output = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void same_size(size_t a, size_t b) {
    if (a != b) throw nb::value_error("arrays differ in size");
}

constexpr size_t kKeptBytes = 64 << 20;  // what a thread keeps for its next stream

// Fresh pages cost as much as filling them, large ones a third of that. Linux is asked for them; elsewhere nothing happens.
void use_large_pages([[maybe_unused]] void *data, [[maybe_unused]] size_t n) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t at = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (at + page - 1) & ~(page - 1), end = (at + n) & ~(page - 1);
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Where this thread's streams grow: fresh pages cost as much as filling them.
Bytes &growing() {
    static thread_local Bytes out;
    out.clear();
    if (out.capacity() > kKeptBytes) Bytes().swap(out);
    return out;
}

// A copy as a Python object. The GIL is released while it is made.
nb::bytes to_bytes(const uint8_t *data, size_t n) {
    PyObject *const object = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(n));
    if (!object) throw nb::python_error();
    char *const to = PyBytes_AsString(object);
    if (n) {
        nb::gil_scoped_release nogil;
        use_large_pages(to, n);
        std::memcpy(to, data, n);
    }
    return nb::steal<nb::bytes>(object);
}

nb::bytes py_to_bytes(Input<uint8_t> data) { return to_bytes(data.data(), data.size()); }

bool py_same_bytes(Input<uint8_t> x, Input<uint8_t> y) {
    same_size(x.size(), y.size());
    nb::gil_scoped_release nogil;
    return x.size() == 0 || std::memcmp(x.data(), y.data(), x.size()) == 0;
}

// The bytes that `work` appends. The GIL is released while it works.
template <class Work>
nb::bytes appended(Work work) {
    Bytes &out = growing();
    {
        nb::gil_scoped_release nogil;
        work(out);
    }
    return to_bytes(out.data(), out.size());
}

uint64_t number_in(nb::handle item) {
    const uint64_t number = PyLong_AsUnsignedLongLong(item.ptr());
    if (number == uint64_t(-1) && PyErr_Occurred()) throw nb::python_error();
    return number;
}

// Parts come as sizes, or each as a size and the four numbers of its grid. A type caster would be the usual place for this,
// but it may not throw: out of memory, it would end the process.
Parts parts_of(nb::sequence items, size_t n) {
    Parts parts;
    uint64_t sum = 0;
    for (nb::handle item : items) {
        uint64_t size;
        if (PyLong_Check(item.ptr())) {
            parts.push_back(size = number_in(item));
        } else {
            const nb::sequence numbers = nb::cast<nb::sequence>(item);
            if (nb::len(numbers) != 5) throw nb::type_error("a part is a size, or a size and the numbers of its grid");
            size = number_in(numbers[0]);
            parts.push_back(size, {number_in(numbers[1]), number_in(numbers[2]), number_in(numbers[3]), number_in(numbers[4])});
        }
        if (size > n - sum) throw nb::value_error("parts do not add up to the number of values");
        sum += size;
    }
    if (sum != n) throw nb::value_error("parts do not add up to the number of values");
    if (!parts.grids().empty() && parts.grids().size() != parts.size())
        throw nb::type_error("all parts have a grid, or none");
    return parts;
}

template <class T>
const T *data_or_null(const std::optional<Input<T>> &base, size_t n) {
    if (!base) return nullptr;
    same_size(base->size(), n);
    return base->data();
}

template <class T>
nb::bytes py_encode_symbols(Input<T> symbols, nb::sequence items, bool planes) {
    const Parts parts = parts_of(items, symbols.size());
    const Split split = planes ? Split::planes : Split::magnitude;
    return appended([&](Bytes &out) { encode_symbols<T>(symbols.data(), symbols.size(), parts, split, out); });
}

template <class T>
void py_decode_symbols(Input<uint8_t> data, nb::sequence items, Output<T> out) {
    const Parts parts = parts_of(items, out.size());
    nb::gil_scoped_release nogil;
    decode_symbols<T>({data.data(), data.size()}, out.data(), out.size(), parts);
}

nb::bytes py_encode_tokens(Input<uint8_t> tokens, nb::sequence items) {
    const Parts parts = parts_of(items, tokens.size());
    return appended([&](Bytes &out) { encode_tokens(tokens.data(), tokens.size(), parts, out); });
}

void py_decode_tokens(Input<uint8_t> data, nb::sequence items, Output<uint8_t> out) {
    const Parts parts = parts_of(items, out.size());
    nb::gil_scoped_release nogil;
    decode_tokens({data.data(), data.size()}, out.data(), out.size(), parts);
}

template <class F>
void py_quantize(Input<F> x, std::optional<Input<F>> base, double step, Output<int32_t> out) {
    same_size(x.size(), out.size());
    const F *b = data_or_null(base, x.size());
    nb::gil_scoped_release nogil;
    quantize<F>(x.data(), b, x.size(), step, out.data());
}

template <class F>
std::tuple<double, double> py_projection(Input<F> x, std::optional<Input<F>> base, double step) {
    const F *b = data_or_null(base, x.size());
    nb::gil_scoped_release nogil;
    const Projection sum = projection<F>(x.data(), b, x.size(), step);
    return {sum.itself, sum.rounded};
}

template <class F>
void py_dequantize(Input<int32_t> symbols, std::optional<Input<F>> base, double step, Output<F> out) {
    same_size(symbols.size(), out.size());
    const F *b = data_or_null(base, out.size());
    nb::gil_scoped_release nogil;
    dequantize<F>(symbols.data(), b, out.size(), step, out.data());
}

template <class F>
nb::bytes py_encode_quantized(Input<F> x, std::optional<Input<F>> base, double step, nb::sequence items) {
    const Parts parts = parts_of(items, x.size());
    const F *b = data_or_null(base, x.size());
    return appended([&](Bytes &out) { encode_quantized<F>(x.data(), b, x.size(), step, parts, out); });
}

template <class F>
void py_decode_quantized(Input<uint8_t> data, std::optional<Input<F>> base, double step, nb::sequence items,
                         Output<F> out) {
    const Parts parts = parts_of(items, out.size());
    const F *b = data_or_null(base, out.size());
    nb::gil_scoped_release nogil;
    decode_quantized<F>({data.data(), data.size()}, b, out.size(), step, parts, out.data(), [](size_t, size_t) {});
}

template <class U>
void py_ordered_delta(Input<U> x, Input<U> base, bool floats, Output<U> out) {
    same_size(x.size(), out.size());
    same_size(base.size(), out.size());
    nb::gil_scoped_release nogil;
    ordered_delta<U>(x.data(), base.data(), x.size(), floats, out.data());
}

template <class U>
void py_undo_ordered_delta(Input<U> symbols, Input<U> base, bool floats, Output<U> out) {
    same_size(symbols.size(), out.size());
    same_size(base.size(), out.size());
    nb::gil_scoped_release nogil;
    undo_ordered_delta<U>(symbols.data(), base.data(), out.size(), floats, out.data());
}

template <class U>
void py_turn(Input<U> x, bool left, Output<U> out) {
    same_size(x.size(), out.size());
    nb::gil_scoped_release nogil;
    left ? turn_left<U>(x.data(), x.size(), out.data()) : turn_right<U>(x.data(), x.size(), out.data());
}

ValueKind kind_of(bool floats, int mantissa_bits, size_t width) {
    if (mantissa_bits < 0 || size_t(mantissa_bits) > width || (floats && size_t(mantissa_bits) + 12 < width))
        throw nb::value_error("no type has that many mantissa bits");
    return {floats, floats ? mantissa_bits : int(width)};
}

template <class U>
nb::bytes py_encode_contexts(Input<U> x, Input<U> base, bool floats, int mantissa_bits, nb::sequence items) {
    const Parts parts = parts_of(items, x.size());
    same_size(x.size(), base.size());
    const ValueKind kind = kind_of(floats, mantissa_bits, 8 * sizeof(U));
    return appended([&](Bytes &out) { encode_contexts<U>(x.data(), base.data(), x.size(), kind, parts, out); });
}

template <class U>
void py_decode_contexts(Input<uint8_t> data, Input<U> base, bool floats, int mantissa_bits, nb::sequence items,
                        Output<U> out) {
    const Parts parts = parts_of(items, out.size());
    same_size(base.size(), out.size());
    const ValueKind kind = kind_of(floats, mantissa_bits, 8 * sizeof(U));
    nb::gil_scoped_release nogil;
    decode_contexts<U>({data.data(), data.size()}, base.data(), out.size(), kind, parts, out.data());
}

template <class U>
double py_entropy(Input<U> words) {
    nb::gil_scoped_release nogil;
    return entropy<U>(words.data(), words.size());
}

template <class F>
bool py_is_near(Input<F> x, Input<F> base, size_t stride, size_t looks, double share, size_t enough) {
    same_size(x.size(), base.size());
    if (!stride || looks > x.size() / stride) throw nb::value_error("looks go beyond the values");
    nb::gil_scoped_release nogil;
    return is_near<F>(x.data(), base.data(), stride, looks, float(share), enough);
}

template <class F>
std::tuple<double, uint64_t> py_sampled_levels(Input<F> x, std::optional<Input<F>> base, double step, size_t runs,
                                               size_t run, double limit) {
    const F *b = data_or_null(base, x.size());
    nb::gil_scoped_release nogil;
    const Levels found = sampled_levels<F>(x.data(), b, x.size(), step, runs, run, limit);
    return {found.sum, found.n};
}

template <class F>
std::vector<uint64_t> py_outside(Input<F> x, Input<F> y, double tolerance, bool relative) {
    same_size(x.size(), y.size());
    nb::gil_scoped_release nogil;
    return relative ? outside_relative<F>(x.data(), y.data(), x.size(), tolerance)
                    : outside<F>(x.data(), y.data(), x.size(), tolerance);
}

// Indices outside the tolerance, and for each part: values changed, kept, and the two sums of `Change`.
using Compared = std::tuple<std::vector<uint64_t>, std::vector<std::tuple<uint64_t, uint64_t, double, double>>>;

template <class F>
Compared compared(Comparison<F> &comparison) {
    std::vector<std::tuple<uint64_t, uint64_t, double, double>> rows;
    for (const Change &c : comparison.changes) rows.emplace_back(c.changed, c.kept, c.change, c.error);
    return {std::move(comparison.found), std::move(rows)};
}

template <class F>
Compared py_outside_and_changes(Input<F> x, Input<F> y, Input<F> base, double tolerance, bool relative,
                                const std::vector<size_t> &parts) {
    same_size(x.size(), y.size());
    same_size(x.size(), base.size());
    size_t left = x.size();
    for (const size_t part : parts) {
        if (part > left) throw nb::value_error("parts are longer than the values");
        left -= part;
    }
    Comparison<F> comparison(x.data(), y.data(), base.data(), parts, tolerance, relative);
    {
        nb::gil_scoped_release nogil;
        comparison.add(0, x.size() - left);
    }
    return compared(comparison);
}

// `decode_quantized`, and `outside_and_changes` of x and what was decoded.
template <class F>
Compared py_decode_and_compare(Input<uint8_t> data, Input<F> base, double step, nb::sequence items, Input<F> x,
                               double tolerance, Output<F> out) {
    const Parts parts = parts_of(items, out.size());
    same_size(base.size(), out.size());
    same_size(x.size(), out.size());
    Comparison<F> comparison(x.data(), out.data(), base.data(), {parts.begin(), parts.end()}, tolerance, false);
    {
        nb::gil_scoped_release nogil;
        decode_quantized<F>({data.data(), data.size()}, base.data(), out.size(), step, parts, out.data(),
                            [&](size_t begin, size_t end) { comparison.add(begin, end); });
    }
    return compared(comparison);
}

// In the order of `PairSums`.
template <class F>
std::tuple<uint64_t, uint64_t, std::vector<double>> py_pair_sums(Input<F> a, Input<F> b) {
    same_size(a.size(), b.size());
    PairSums s;
    {
        nb::gil_scoped_release nogil;
        s = pair_sums<F>(a.data(), b.data(), a.size());
    }
    return {s.n, s.odd, {s.max_abs, s.max_relative, s.difference, s.distance, s.squares, s.mean_a, s.mean_b, s.aa, s.bb,
                         s.ab, s.low, s.high}};
}

template <class F>
std::tuple<uint64_t, double> py_difference(Input<F> x, Input<F> base) {
    same_size(x.size(), base.size());
    nb::gil_scoped_release nogil;
    const Difference d = difference<F>(x.data(), base.data(), x.size());
    return {d.finite, d.sum_squares};
}

template <class F>
std::tuple<uint64_t, double, double, double> py_statistics(Input<F> x) {
    nb::gil_scoped_release nogil;
    const Statistics s = statistics<F>(x.data(), x.size());
    return {s.finite, s.low, s.high, s.sum_squares};
}

BloomierShape bloomier_shape(uint64_t seed, size_t slots, int bits) {
    if (!slots || slots % 3 || slots >= (uint64_t(1) << 32)) throw nb::value_error("slots are a multiple of 3");
    if (bits < 1 || bits > 16) throw nb::value_error("a slot has 1 to 16 bits");
    return {seed, slots, bits};
}

bool py_build_bloomier(Input<uint64_t> keys, Input<uint16_t> values, uint64_t seed, int bits, Output<uint16_t> table) {
    same_size(keys.size(), values.size());
    const BloomierShape shape = bloomier_shape(seed, table.size(), bits);
    nb::gil_scoped_release nogil;
    return build_bloomier(keys.data(), values.data(), keys.size(), shape, table.data());
}

void py_query_bloomier(Input<uint16_t> table, uint64_t seed, int bits, uint32_t n_values, Output<uint16_t> out) {
    const BloomierShape shape = bloomier_shape(seed, table.size(), bits);
    nb::gil_scoped_release nogil;
    query_bloomier(table.data(), shape, n_values, out.data(), out.size());
}

void py_decode_huffman(Input<uint8_t> data, Input<uint64_t> starts, size_t stretch, Input<uint32_t> table,
                       Output<uint16_t> out, Output<uint64_t> stops) {
    same_size(starts.size(), stops.size());
    if (!stretch || starts.size() != (out.size() + stretch - 1) / stretch)
        throw nb::value_error("every stretch begins somewhere");
    if (table.size() != size_t(1) << HUFFMAN_LONGEST) throw nb::value_error("the table has an entry for every window");
    nb::gil_scoped_release nogil;
    decode_huffman({data.data(), data.size()}, starts.data(), stretch, table.data(), out.data(), out.size(), stops.data());
}

void py_round_tile(Input<float> target, Input<float> from_rows, Input<float> from_columns, Input<float> row_factor,
                   Input<float> column_factor, size_t rows, double step, double reach, Output<int32_t> levels,
                   Output<float> remainders, Output<float> carried) {
    const size_t n = target.size(), columns = rows ? n / rows : 0;
    if (n != rows * columns || !(step > 0)) throw nb::value_error("a tile is a whole number of rows, a step above zero");
    for (size_t size : {from_rows.size(), from_columns.size(), levels.size(), remainders.size(), carried.size()})
        same_size(size, n);
    same_size(row_factor.size(), rows * rows);
    same_size(column_factor.size(), columns * columns);
    nb::gil_scoped_release nogil;
    round_tile({rows, columns, target.data(), from_rows.data(), from_columns.data(), row_factor.data(),
                column_factor.data(), step, reach, levels.data(), remainders.data(), carried.data()});
}

// Arrays are never converted: a copy in another type would be rounded, or take the output in place of the caller's.
template <class T>
void bind_symbols(nb::module_ &m) {
    m.def("encode_symbols", &py_encode_symbols<T>, "symbols"_a.noconvert(), "parts"_a, "planes"_a);
    m.def("decode_symbols", &py_decode_symbols<T>, "data"_a.noconvert(), "parts"_a, "out"_a.noconvert());
}

template <class F>
void bind_floats(nb::module_ &m) {
    m.def("quantize", &py_quantize<F>, "x"_a.noconvert(), "base"_a.none().noconvert(), "step"_a, "out"_a.noconvert());
    m.def("projection", &py_projection<F>, "x"_a.noconvert(), "base"_a.none().noconvert(), "step"_a);
    m.def("dequantize", &py_dequantize<F>, "symbols"_a.noconvert(), "base"_a.none().noconvert(), "step"_a,
          "out"_a.noconvert());
    m.def("encode_quantized", &py_encode_quantized<F>, "x"_a.noconvert(), "base"_a.none().noconvert(), "step"_a,
          "parts"_a);
    m.def("decode_quantized", &py_decode_quantized<F>, "data"_a.noconvert(), "base"_a.none().noconvert(), "step"_a,
          "parts"_a, "out"_a.noconvert());
    m.def("decode_and_compare", &py_decode_and_compare<F>, "data"_a.noconvert(), "base"_a.noconvert(), "step"_a,
          "parts"_a, "x"_a.noconvert(), "tolerance"_a, "out"_a.noconvert());
    m.def("outside", &py_outside<F>, "x"_a.noconvert(), "y"_a.noconvert(), "tolerance"_a, "relative"_a);
    m.def("outside_and_changes", &py_outside_and_changes<F>, "x"_a.noconvert(), "y"_a.noconvert(),
          "base"_a.noconvert(), "tolerance"_a, "relative"_a, "parts"_a);
    m.def("is_near", &py_is_near<F>, "x"_a.noconvert(), "base"_a.noconvert(), "stride"_a, "looks"_a, "share"_a,
          "enough"_a);
    m.def("sampled_levels", &py_sampled_levels<F>, "x"_a.noconvert(), "base"_a.none().noconvert(), "step"_a, "runs"_a,
          "run"_a, "limit"_a);
    m.def("pair_sums", &py_pair_sums<F>, "a"_a.noconvert(), "b"_a.noconvert());
    m.def("difference", &py_difference<F>, "x"_a.noconvert(), "base"_a.noconvert());
    m.def("statistics", &py_statistics<F>, "x"_a.noconvert());
}

template <class U>
void bind_bits(nb::module_ &m) {
    m.def("ordered_delta", &py_ordered_delta<U>, "x"_a.noconvert(), "base"_a.noconvert(), "floats"_a,
          "out"_a.noconvert());
    m.def("entropy", &py_entropy<U>, "words"_a.noconvert());
    m.def("turn", &py_turn<U>, "x"_a.noconvert(), "left"_a, "out"_a.noconvert());
    m.def("encode_contexts", &py_encode_contexts<U>, "x"_a.noconvert(), "base"_a.noconvert(), "floats"_a,
          "mantissa_bits"_a, "parts"_a);
    m.def("decode_contexts", &py_decode_contexts<U>, "data"_a.noconvert(), "base"_a.noconvert(), "floats"_a,
          "mantissa_bits"_a, "parts"_a, "out"_a.noconvert());
    m.def("undo_ordered_delta", &py_undo_ordered_delta<U>, "symbols"_a.noconvert(), "base"_a.noconvert(), "floats"_a,
          "out"_a.noconvert());
}

}  // namespace

NB_MODULE(_core, m) {
    m.doc() = "Native core of nearzip: entropy coding and fused passes over tensors. See the stages for their use.";
    nb::register_exception_translator([](const std::exception_ptr &p, void *) {
        try {
            std::rethrow_exception(p);
        } catch (const Corrupt &e) {
            PyErr_SetString(PyExc_ValueError, e.what());
        }
    });
    m.def("allow_vectors", &allow_vectors, "allowed"_a);
    m.def("same_bytes", &py_same_bytes, "x"_a.noconvert(), "y"_a.noconvert());
    m.def("to_bytes", &py_to_bytes, "data"_a.noconvert());
    m.def("encode_tokens", &py_encode_tokens, "tokens"_a.noconvert(), "parts"_a);
    m.def("decode_tokens", &py_decode_tokens, "data"_a.noconvert(), "parts"_a, "out"_a.noconvert());
    m.def("build_bloomier", &py_build_bloomier, "keys"_a.noconvert(), "values"_a.noconvert(), "seed"_a, "bits"_a,
          "table"_a.noconvert());
    m.def("query_bloomier", &py_query_bloomier, "table"_a.noconvert(), "seed"_a, "bits"_a, "n_values"_a,
          "out"_a.noconvert());
    m.def("decode_huffman", &py_decode_huffman, "data"_a.noconvert(), "starts"_a.noconvert(), "stretch"_a,
          "table"_a.noconvert(), "out"_a.noconvert(), "stops"_a.noconvert());
    bind_symbols<int32_t>(m);
    bind_symbols<uint8_t>(m);
    bind_symbols<uint16_t>(m);
    bind_symbols<uint32_t>(m);
    bind_symbols<uint64_t>(m);
    bind_floats<float>(m);
    bind_floats<double>(m);
    bind_bits<uint8_t>(m);
    bind_bits<uint16_t>(m);
    bind_bits<uint32_t>(m);
    bind_bits<uint64_t>(m);
    bind_images(m);
    m.def("round_tile", &py_round_tile, "target"_a.noconvert(), "from_rows"_a.noconvert(), "from_columns"_a.noconvert(),
          "row_factor"_a.noconvert(), "column_factor"_a.noconvert(), "rows"_a, "step"_a, "reach"_a,
          "levels"_a.noconvert(), "remainders"_a.noconvert(), "carried"_a.noconvert());
}
