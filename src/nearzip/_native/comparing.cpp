#include "comparing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nearzip {
namespace {

// Pairs that fit into the first-level cache as doubles; sums side by side keep their order and yet use wide instructions.
constexpr size_t kPairs = 1024, kSide = 8;
constexpr double kMax = std::numeric_limits<double>::max();

NZ_INLINE bool is_finite(double x) { return std::fabs(x) <= kMax; }

// Doubles of the pairs of which both are finite; how many.
template <class F>
NZ_CLONES size_t finite_pairs(const F *a, const F *b, size_t n, double *x, double *y, uint64_t &odd) {
    uint32_t n_finite = 0;
    for (size_t i = 0; i < n; ++i) {
        x[i] = double(a[i]);
        y[i] = double(b[i]);
        n_finite += is_finite(x[i]) & is_finite(y[i]);
    }
    if (n_finite == n) return n;
    size_t kept = 0;
    for (size_t i = 0; i < n; ++i) {
        const double one = x[i], two = y[i];
        if (is_finite(one) && is_finite(two)) {
            x[kept] = one;
            y[kept++] = two;
        } else {
            odd += !(one == two || (one != one && two != two));
        }
    }
    return kept;
}

struct Lanes {
    double lane[kSide] = {};
    double sum() const {
        double total = 0;
        for (double one : lane) total += one;
        return total;
    }
    double max() const { return *std::max_element(lane, lane + kSide); }
};

NZ_CLONES void add_differences(const double *x, const double *y, size_t n, PairSums &sums) {
    Lanes difference, distance, squares, largest, relative;
    double low[kSide], high[kSide];
    std::fill(low, low + kSide, sums.low);
    std::fill(high, high + kSide, sums.high);
    const auto add = [&](size_t i, size_t side) {
        const double d = y[i] - x[i], size = std::fabs(d), of = std::fabs(x[i]);
        difference.lane[side] += d;
        distance.lane[side] += size;
        squares.lane[side] += d * d;
        largest.lane[side] = size > largest.lane[side] ? size : largest.lane[side];
        const double ratio = size / (of > 0 ? of : 1.0), counted = of > 0 ? ratio : 0.0;
        relative.lane[side] = counted > relative.lane[side] ? counted : relative.lane[side];
        const double lower = x[i] < y[i] ? x[i] : y[i], upper = x[i] < y[i] ? y[i] : x[i];
        low[side] = lower < low[side] ? lower : low[side];
        high[side] = upper > high[side] ? upper : high[side];
    };
    size_t i = 0;
    for (; i + kSide <= n; i += kSide)
        for (size_t side = 0; side < kSide; ++side) add(i + side, side);
    for (; i < n; ++i) add(i, 0);
    sums.difference += difference.sum();
    sums.distance += distance.sum();
    sums.squares += squares.sum();
    sums.max_abs = std::max(sums.max_abs, largest.max());
    sums.max_relative = std::max(sums.max_relative, relative.max());
    sums.low = *std::min_element(low, low + kSide);
    sums.high = *std::max_element(high, high + kSide);
}

struct Moments {
    double mean_a = 0, mean_b = 0, aa = 0, bb = 0, ab = 0;
};

NZ_CLONES Moments moments_of(const double *x, const double *y, size_t n) {
    // From the first value on: what does not vary has moments of exactly zero.
    const double first_a = x[0], first_b = y[0];
    Lanes a, b, aa, bb, ab;
    size_t i = 0;
    for (; i + kSide <= n; i += kSide)
        for (size_t side = 0; side < kSide; ++side) {
            a.lane[side] += x[i + side] - first_a;
            b.lane[side] += y[i + side] - first_b;
        }
    for (; i < n; ++i) a.lane[0] += x[i] - first_a, b.lane[0] += y[i] - first_b;
    Moments m;
    m.mean_a = first_a + a.sum() / double(n);
    m.mean_b = first_b + b.sum() / double(n);
    const auto add = [&](size_t at, size_t side) {
        const double one = x[at] - m.mean_a, two = y[at] - m.mean_b;
        aa.lane[side] += one * one;
        bb.lane[side] += two * two;
        ab.lane[side] += one * two;
    };
    for (i = 0; i + kSide <= n; i += kSide)
        for (size_t side = 0; side < kSide; ++side) add(i + side, side);
    for (; i < n; ++i) add(i, 0);
    m.aa = aa.sum();
    m.bb = bb.sum();
    m.ab = ab.sum();
    return m;
}

// Moments of two sets together (Chan et al. 1979).
void merge(PairSums &sums, const Moments &more, size_t n_more) {
    const double n = double(sums.n + n_more), share = double(n_more) / n;
    const double step_a = more.mean_a - sums.mean_a, step_b = more.mean_b - sums.mean_b;
    const double weight = double(sums.n) * share;
    sums.aa += more.aa + step_a * step_a * weight;
    sums.bb += more.bb + step_b * step_b * weight;
    sums.ab += more.ab + step_a * step_b * weight;
    sums.mean_a += step_a * share;
    sums.mean_b += step_b * share;
    sums.n += n_more;
}

}  // namespace

template <class F>
PairSums pair_sums(const F *a, const F *b, size_t n) {
    PairSums sums;
    sums.low = std::numeric_limits<double>::infinity();
    sums.high = -sums.low;
    double x[kPairs], y[kPairs];
    for (size_t at = 0; at < n; at += kPairs) {
        const size_t m = finite_pairs(a + at, b + at, std::min(kPairs, n - at), x, y, sums.odd);
        if (!m) continue;
        add_differences(x, y, m, sums);
        merge(sums, moments_of(x, y, m), m);
    }
    return sums;
}

template PairSums pair_sums<float>(const float *, const float *, size_t);
template PairSums pair_sums<double>(const double *, const double *, size_t);

}  // namespace nearzip
