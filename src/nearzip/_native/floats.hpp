// Passes over tensors' values: quantized differences, order-preserving integers, statistics, the bound check.
//
// Every pass is plain IEEE arithmetic in the order written here; the build forbids contraction, so that each machine
// gets the same bits (docs/format.md, "Arithmetic").
#pragma once

#include "common.hpp"

namespace nearzip {

// symbols[i] = nearest integer to (x - base) * (1 / step), ties to even (a quotient where 1 / step is out of range);
// 0 where that is not finite or beyond 2^30.
// `base` may be null (no base: zero). F: float, double.
template <class F>
void quantize(const F *x, const F *base, size_t n, double step, int32_t *symbols);

// The same symbols, zigzag coded in a byte each, by single precision alone. False if one of them is not certain by that, or
// large: then the bytes mean nothing.
bool quantize_small(const float *x, const float *base, size_t n, double step, uint8_t *tokens);

// Of what `quantize` is given, in steps, r, and gives, q: sums of r * r and of r * q, over what it does not make 0 for
// being too large or not finite.
struct Projection {
    double itself = 0, rounded = 0;
};
template <class F>
Projection projection(const F *x, const F *base, size_t n, double step);

// out[i] = base + symbols * step in double precision, rounded to F.
template <class F>
void dequantize(const int32_t *symbols, const F *base, size_t n, double step, F *out);

// Order-preserving integers of floats (or plain integers), the difference to the base's modulo 2^bits, zigzag coded.
// U: uint8_t, uint16_t, uint32_t, uint64_t, the bits of the values.
template <class U>
void ordered_delta(const U *x, const U *base, size_t n, bool floats, U *symbols);
template <class U>
void undo_ordered_delta(const U *symbols, const U *base, size_t n, bool floats, U *out);

// Bits turned left by one: a float's sign moves below its mantissa. And back.
template <class U>
void turn_left(const U *x, size_t n, U *out);
template <class U>
void turn_right(const U *x, size_t n, U *out);

// Indices i with |x[i] - y[i]| > tolerance, in exact arithmetic; every NaN and infinity counts.
template <class F>
std::vector<uint64_t> outside(const F *x, const F *y, size_t n, double tolerance);

// Likewise for |x - y| > tolerance * |x|.
template <class F>
std::vector<uint64_t> outside_relative(const F *x, const F *y, size_t n, double tolerance);

struct Statistics {
    uint64_t finite = 0;
    double low = 0, high = 0, sum_squares = 0;  // over the finite values
};
template <class F>
Statistics statistics(const F *x, size_t n);

// What becomes of an update. Of the values x that differ from the base: how many there are, and how many of them come back
// (y) as something else than the base; the sums of (x - base)^2 and (x - y)^2. All of it where differences are finite.
struct Change {
    uint64_t changed = 0, kept = 0;
    double change = 0, error = 0;
};

// As `outside` or `outside_relative`, and in the same pass the change of each part; parts follow each other in x.
template <class F>
class Comparison {
public:
    Comparison(const F *x, const F *y, const F *base, std::vector<size_t> parts, double tolerance, bool relative)
        : changes(parts.size()), x_(x), y_(y), base_(base), parts_(std::move(parts)), tolerance_(tolerance),
          relative_(relative), part_end_(parts_.empty() ? 0 : parts_[0]) {}

    // Values begin .. end, which follow those added before and are in the parts.
    void add(size_t begin, size_t end);

    std::vector<uint64_t> found;  // outside
    std::vector<Change> changes;

private:
    const F *x_, *y_, *base_;
    std::vector<size_t> parts_;
    double tolerance_;
    bool relative_;
    size_t part_ = 0, part_end_;
};

// How many differences x - base are finite, and the sum of their squares.
struct Difference {
    uint64_t finite = 0;
    double sum_squares = 0;
};
template <class F>
Difference difference(const F *x, const F *base, size_t n);

}  // namespace nearzip
