#include "floats.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "ordered.hpp"

namespace nearzip {
namespace {

constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
constexpr double kLargest = 1073741824.0;      // 2^30
// In single precision: the same shift, and ratios whose nearest integer is certain. Difference, inverse and product are each
// off by at most 2^-24 of the ratio, together by 1.1e-5 at the largest; no integer is nearer unless that reaches a half.
constexpr float kSingleShift = 12582912.0f;  // 1.5 * 2^23
constexpr float kSmall = 60, kCertain = 0.5f - 2e-5f;
// Inverses of steps between these are normal numbers, and so are the steps.
constexpr double kSmallestInverse = 1e-300, kLargestInverse = 1e300;

NZ_INLINE double in_reach(double ratio) { return std::fabs(ratio) < kLargest ? ratio : 0.0; }  // NaN goes to zero as well

NZ_INLINE int32_t nearest(double ratio) {
    const double shifted = in_reach(ratio) + kShift;
    int64_t bits;
    std::memcpy(&bits, &shifted, 8);
    return int32_t(bits);
}

template <class U, bool floats>
NZ_INLINE void ordered_delta_loop(const U *x, const U *base, size_t n, U *symbols) {
    for (size_t i = 0; i < n; ++i) symbols[i] = zigzag(U(ordered(x[i], floats) - ordered(base[i], floats)));
}

template <class U, bool floats>
NZ_INLINE void undo_loop(const U *symbols, const U *base, size_t n, U *out) {
    for (size_t i = 0; i < n; ++i)
        out[i] = unordered(U(ordered(base[i], floats) + unzigzag(symbols[i])), floats);
}

// |difference| is the double nearest to |x - y|, so only a tie with the tolerance needs the rounding error itself
// (Knuth's error-free difference).
template <class F>
bool exceeds(F xf, F yf, double tolerance) {
    const double x = xf, y = yf;
    const double difference = x - y;
    if (!std::isfinite(difference)) return true;
    if (std::fabs(difference) != tolerance) return std::fabs(difference) > tolerance;
    const double back = difference + y;
    const double error = (x - back) - (y - (back - difference));
    return difference > 0 ? error > 0 : error < 0;
}

constexpr size_t kStretch = 4096;

template <class Suspicious, class Exceeds>
NZ_INLINE void collect(size_t from, size_t to, Suspicious suspicious, Exceeds exceeds, std::vector<uint64_t> &found) {
    for (size_t begin = from; begin < to; begin += kStretch) {
        const size_t end = begin + kStretch < to ? begin + kStretch : to;
        if (!suspicious(begin, end)) continue;
        for (size_t i = begin; i < end; ++i)
            if (exceeds(i)) found.push_back(i);
    }
}

template <class F>
NZ_CLONES uint64_t count_not_below(const F *x, const F *y, size_t begin, size_t end, double tolerance) {
    uint64_t count = 0;
    for (size_t i = begin; i < end; ++i) count += !(std::fabs(double(x[i]) - double(y[i])) < tolerance);
    return count;
}

// Whether all differences are certainly below: single precision, against a tolerance less what its rounding may hide.
NZ_CLONES bool all_below(const float *x, const float *y, size_t begin, size_t end, double tolerance) {
    if (!(tolerance > 1e-30 && tolerance < 1e30)) return false;
    const float limit = float(tolerance * (1 - 1e-6));
    uint32_t count = 0;
    for (size_t i = begin; i < end; ++i) count += !(std::fabs(x[i] - y[i]) < limit);
    return count == 0;
}

NZ_INLINE bool suspicious(const float *x, const float *y, size_t begin, size_t end, double tolerance) {
    return !all_below(x, y, begin, end, tolerance) && count_not_below<float>(x, y, begin, end, tolerance) != 0;
}

NZ_INLINE bool suspicious(const double *x, const double *y, size_t begin, size_t end, double tolerance) {
    return count_not_below<double>(x, y, begin, end, tolerance) != 0;
}

template <class F>
NZ_CLONES uint64_t count_not_below_relative(const F *x, const F *y, size_t begin, size_t end, double tolerance) {
    uint64_t count = 0;
    for (size_t i = begin; i < end; ++i)
        count += !(std::fabs(double(x[i]) - double(y[i])) < tolerance * std::fabs(double(x[i])));
    return count;
}

}  // namespace

template <class F>
NZ_WIDE_CLONES void quantize(const F *x, const F *base, size_t n, double step, int32_t *symbols) {
    // A product is several times faster than a quotient, and at most one rounding further off.
    const double inverse = 1 / step;
    if (!(inverse > kSmallestInverse && inverse < kLargestInverse)) {
        for (size_t i = 0; i < n; ++i) symbols[i] = nearest((double(x[i]) - (base ? double(base[i]) : 0.0)) / step);
        return;
    }
    if (base)
        for (size_t i = 0; i < n; ++i) symbols[i] = nearest((double(x[i]) - double(base[i])) * inverse);
    else
        for (size_t i = 0; i < n; ++i) symbols[i] = nearest(double(x[i]) * inverse);
}

NZ_WIDE_CLONES bool quantize_small(const float *x, const float *base, size_t n, double step, uint8_t *tokens) {
    if (!(step > 1e-30 && step < 1e30)) return false;
    const float inverse = float(1 / step);
    uint32_t uncertain = 0;
    const auto one = [&](size_t i, float difference) {
        const float ratio = difference * inverse, shifted = ratio + kSingleShift;
        uint32_t bits, shift;
        std::memcpy(&bits, &shifted, 4);
        std::memcpy(&shift, &kSingleShift, 4);
        const bool certain = std::fabs(ratio) < kSmall && std::fabs(ratio - (shifted - kSingleShift)) < kCertain;
        uncertain += !certain;
        const int32_t symbol = int32_t(bits - shift);
        tokens[i] = uint8_t(uint32_t(symbol) << 1 ^ uint32_t(symbol >> 31));
    };
    if (base)
        for (size_t i = 0; i < n; ++i) one(i, x[i] - base[i]);
    else
        for (size_t i = 0; i < n; ++i) one(i, x[i]);
    return uncertain == 0;
}

template <class F>
NZ_CLONES Projection projection(const F *x, const F *base, size_t n, double step) {
    constexpr size_t kLanes = 8;  // sums in a fixed order that vectors can keep
    double itself[kLanes] = {}, rounded[kLanes] = {};
    const auto add = [&](size_t i, size_t lane) {
        const double ratio = in_reach((double(x[i]) - (base ? double(base[i]) : 0.0)) / step);
        itself[lane] += ratio * ratio;
        rounded[lane] += ratio * ((ratio + kShift) - kShift);
    };
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (size_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    for (; i < n; ++i) add(i, i % kLanes);
    Projection sum;
    for (size_t lane = 0; lane < kLanes; ++lane) {
        sum.itself += itself[lane];
        sum.rounded += rounded[lane];
    }
    return sum;
}

template <class F>
NZ_CLONES void dequantize(const int32_t *symbols, const F *base, size_t n, double step, F *out) {
    if (base)
        for (size_t i = 0; i < n; ++i) out[i] = F(double(base[i]) + double(symbols[i]) * step);
    else
        for (size_t i = 0; i < n; ++i) out[i] = F(double(symbols[i]) * step);
}

template <class U>
NZ_CLONES void ordered_delta(const U *x, const U *base, size_t n, bool floats, U *symbols) {
    if (floats)
        ordered_delta_loop<U, true>(x, base, n, symbols);
    else
        ordered_delta_loop<U, false>(x, base, n, symbols);
}

template <class U>
NZ_CLONES void undo_ordered_delta(const U *symbols, const U *base, size_t n, bool floats, U *out) {
    if (floats)
        undo_loop<U, true>(symbols, base, n, out);
    else
        undo_loop<U, false>(symbols, base, n, out);
}

template <class U>
NZ_CLONES void turn_left(const U *x, size_t n, U *out) {
    for (size_t i = 0; i < n; ++i) out[i] = U(U(x[i] << 1) | U(x[i] >> (8 * sizeof(U) - 1)));
}

template <class U>
NZ_CLONES void turn_right(const U *x, size_t n, U *out) {
    for (size_t i = 0; i < n; ++i) out[i] = U(U(x[i] >> 1) | U(x[i] << (8 * sizeof(U) - 1)));
}

namespace {

template <class F>
NZ_INLINE void collect_outside(const F *x, const F *y, size_t from, size_t to, double tolerance,
                               std::vector<uint64_t> &found) {
    collect(
        from, to, [&](size_t b, size_t e) { return suspicious(x, y, b, e, tolerance); },
        [&](size_t i) { return exceeds(x[i], y[i], tolerance); }, found);
}

template <class F>
NZ_INLINE void collect_relative(const F *x, const F *y, size_t from, size_t to, double tolerance,
                                std::vector<uint64_t> &found) {
    // The product is rounded: its lower neighbour is certainly not above the exact bound. Among subnormals a
    // relative step down may be nothing, hence the subtraction of the smallest double.
    const auto limit = [&](size_t i) {
        const double product = tolerance * std::fabs(double(x[i]));
        return product * (1 - std::numeric_limits<double>::epsilon()) - std::numeric_limits<double>::denorm_min();
    };
    collect(
        from, to,
        [&](size_t b, size_t e) { return count_not_below_relative<F>(x, y, b, e, tolerance * (1 - 1e-12)) != 0; },
        [&](size_t i) { return x[i] == y[i] && std::isfinite(x[i]) ? false : exceeds(x[i], y[i], limit(i)); }, found);
}

}  // namespace

template <class F>
std::vector<uint64_t> outside(const F *x, const F *y, size_t n, double tolerance) {
    std::vector<uint64_t> found;
    collect_outside(x, y, 0, n, tolerance, found);
    return found;
}

template <class F>
std::vector<uint64_t> outside_relative(const F *x, const F *y, size_t n, double tolerance) {
    std::vector<uint64_t> found;
    collect_relative(x, y, 0, n, tolerance, found);
    return found;
}

// Sums side by side, so that their order is the same on every machine and yet one instruction does several.
constexpr size_t kSide = 32;

// Statistics of values that are all finite; a sum of squares that is not finite says that perhaps they are not.
template <class F>
NZ_CLONES Statistics statistics_of_finite(const F *x, size_t n) {
    F low[kSide], high[kSide];
    double squares[kSide] = {};
    std::fill(low, low + kSide, x[0]);
    std::fill(high, high + kSide, x[0]);
    size_t i = 0;
    for (; i + kSide <= n; i += kSide) {
        const F *row = x + i;
        for (size_t side = 0; side < kSide; ++side) squares[side] += double(row[side]) * double(row[side]);
        for (size_t side = 0; side < kSide; ++side) {
            low[side] = row[side] < low[side] ? row[side] : low[side];
            high[side] = row[side] > high[side] ? row[side] : high[side];
        }
    }
    Statistics s;
    for (; i < n; ++i) {
        squares[0] += double(x[i]) * double(x[i]);
        low[0] = std::min(low[0], x[i]);
        high[0] = std::max(high[0], x[i]);
    }
    s.finite = n;
    s.low = double(*std::min_element(low, low + kSide));
    s.high = double(*std::max_element(high, high + kSide));
    for (double square : squares) s.sum_squares += square;
    return s;
}

template <class F>
Statistics statistics(const F *x, size_t n) {
    Statistics s;
    if (!n) return s;
    s = statistics_of_finite(x, n);
    if (std::isfinite(s.sum_squares)) return s;
    s = Statistics();
    for (size_t i = 0; i < n; ++i) {
        const double v = double(x[i]);
        if (!std::isfinite(v)) continue;
        s.low = s.finite ? std::min(s.low, v) : v;
        s.high = s.finite ? std::max(s.high, v) : v;
        s.sum_squares += v * v;
        ++s.finite;
    }
    return s;
}

namespace {

template <class F>
NZ_INLINE double finite_or_zero(F x, F y) {
    const double difference = double(x) - double(y);
    return std::fabs(difference) <= std::numeric_limits<double>::max() ? difference : 0.0;
}

template <class F>
NZ_CLONES void add_change_exactly(const F *x, const F *y, const F *base, size_t begin, size_t end, Change &sum) {
    double change[kSide] = {}, error[kSide] = {};
    uint32_t changed = 0, kept = 0;  // of at most kStretch values
    const auto add = [&](size_t i, size_t side) {
        const double moved = finite_or_zero(x[i], base[i]), off = finite_or_zero(x[i], y[i]);
        change[side] += moved * moved;
        error[side] += off * off;
    };
    size_t i = begin;
    for (; i + kSide <= end; i += kSide)
        for (size_t side = 0; side < kSide; ++side) add(i + side, side);
    for (; i < end; ++i) add(i, 0);
    for (i = begin; i < end; ++i) {
        const bool moved = finite_or_zero(x[i], base[i]) != 0;
        changed += moved;
        kept += moved & (y[i] != base[i]);
    }
    sum.changed += changed;
    sum.kept += kept;
    for (size_t side = 0; side < kSide; ++side) sum.change += change[side], sum.error += error[side];
}

// Lanes of single precision: four running sums of so many values stay in registers.
constexpr size_t kSingles = 16;

// Single precision is enough for sums of one stretch, and twice as fast. False where squares may leave its range, or where a
// value is not finite.
// `below`: whether all differences to y are certainly below the tolerance, as `all_below` has it, in the same pass.
NZ_CLONES bool add_change_quickly(const float *x, const float *y, const float *base, size_t begin, size_t end,
                                       double tolerance, Change &sum, bool &below) {
    below = false;
    if (!(tolerance > 1e-12 && tolerance < 1e12)) return false;
    float change[kSingles] = {}, error[kSingles] = {}, farthest[kSingles] = {};
    uint32_t same[kSingles] = {}, lost[kSingles] = {};
    for (size_t i = begin; i + kSingles <= end; i += kSingles)
        for (size_t side = 0; side < kSingles; ++side) {
            const float xs = x[i + side], ys = y[i + side], bs = base[i + side];
            const float moved = xs - bs, off = xs - ys, distance = std::fabs(off);
            change[side] += moved * moved;
            error[side] += off * off;
            farthest[side] = distance > farthest[side] ? distance : farthest[side];
            same[side] += xs == bs;
            lost[side] += (xs == bs) | (ys == bs);
        }
    double changes = 0, errors = 0;
    float largest = 0;
    uint32_t n = uint32_t(end - begin), n_same = 0, n_lost = 0;
    for (size_t side = 0; side < kSingles; ++side) {
        changes += change[side];
        errors += error[side];
        largest = std::max(largest, farthest[side]);
        n_same += same[side];
        n_lost += lost[side];
    }
    if (!std::isfinite(changes) || !std::isfinite(errors)) return false;
    below = largest < float(tolerance * (1 - 1e-6));
    if (n_same < n && !(changes > 1e-20 * tolerance * tolerance && changes > 1e-30)) return false;
    sum.changed += n - n_same;
    sum.kept += n - n_lost;
    sum.change += changes;
    sum.error += errors;
    return true;
}

// Adds the change of one stretch; whether all of it is certainly within the tolerance, which is otherwise not known.
NZ_INLINE bool add_change(const float *x, const float *y, const float *base, size_t begin, size_t end,
                          double tolerance, Change &sum) {
    const size_t whole = end - (end - begin) % kSingles;
    bool below = true;
    if (begin < whole && !add_change_quickly(x, y, base, begin, whole, tolerance, sum, below))
        add_change_exactly(x, y, base, begin, whole, sum);
    if (whole < end) add_change_exactly(x, y, base, whole, end, sum);
    return below && all_below(x, y, whole, end, tolerance);
}

NZ_INLINE bool add_change(const double *x, const double *y, const double *base, size_t begin, size_t end, double,
                          Change &sum) {
    add_change_exactly(x, y, base, begin, end, sum);
    return false;
}

}  // namespace

template <class F>
void Comparison<F>::add(size_t begin, size_t end) {
    while (begin < end) {
        while (begin >= part_end_) part_end_ += parts_[++part_];
        const size_t to = std::min({begin + kStretch, part_end_, end});  // seen twice while it is in the cache
        const bool below = add_change(x_, y_, base_, begin, to, tolerance_, changes[part_]);
        if (relative_)
            collect_relative(x_, y_, begin, to, tolerance_, found);
        else if (!below)
            collect_outside(x_, y_, begin, to, tolerance_, found);
        begin = to;
    }
}

template <class F>
NZ_CLONES Difference difference(const F *x, const F *base, size_t n) {
    double squares[kSide] = {};
    Difference sum;
    for (size_t begin = 0; begin < n; begin += kStretch) {
        const size_t end = begin + kStretch < n ? begin + kStretch : n;
        size_t i = begin;
        for (; i + kSide <= end; i += kSide)
            for (size_t side = 0; side < kSide; ++side) {
                const double d = finite_or_zero(x[i + side], base[i + side]);
                squares[side] += d * d;
            }
        for (; i < end; ++i) {
            const double d = finite_or_zero(x[i], base[i]);
            squares[0] += d * d;
        }
        uint32_t finite = 0;
        for (i = begin; i < end; ++i)
            finite += std::fabs(double(x[i]) - double(base[i])) <= std::numeric_limits<double>::max();
        sum.finite += finite;
    }
    for (double square : squares) sum.sum_squares += square;
    return sum;
}

#define NZ_FLOATS(F)                                                                             \
    template void quantize<F>(const F *, const F *, size_t, double, int32_t *);                  \
    template Projection projection<F>(const F *, const F *, size_t, double);                     \
    template void dequantize<F>(const int32_t *, const F *, size_t, double, F *);                \
    template std::vector<uint64_t> outside<F>(const F *, const F *, size_t, double);             \
    template std::vector<uint64_t> outside_relative<F>(const F *, const F *, size_t, double);    \
    template Statistics statistics<F>(const F *, size_t);                                        \
    template Difference difference<F>(const F *, const F *, size_t);                             \
    template class Comparison<F>;
NZ_FLOATS(float)
NZ_FLOATS(double)
#undef NZ_FLOATS

#define NZ_BITS(U)                                                               \
    template void ordered_delta<U>(const U *, const U *, size_t, bool, U *);     \
    template void undo_ordered_delta<U>(const U *, const U *, size_t, bool, U *); \
    template void turn_left<U>(const U *, size_t, U *);                          \
    template void turn_right<U>(const U *, size_t, U *);
NZ_BITS(uint8_t)
NZ_BITS(uint16_t)
NZ_BITS(uint32_t)
NZ_BITS(uint64_t)
#undef NZ_BITS

}  // namespace nearzip
