// Sums over two networks' values, for `nearzip compare`.
#pragma once

#include "common.hpp"

namespace nearzip {

// Over the pairs of values of which both are finite; `odd` counts the others that do not equal each other (two NaN do).
// Second moments are about the means.
struct PairSums {
    uint64_t n = 0, odd = 0;
    double max_abs = 0, max_relative = 0, difference = 0, distance = 0, squares = 0;
    double mean_a = 0, mean_b = 0, aa = 0, bb = 0, ab = 0, low = 0, high = 0;
};

// Differences are b - a; relative ones are to |a|, where a is not zero. F: float, double.
template <class F>
PairSums pair_sums(const F *a, const F *b, size_t n);

}  // namespace nearzip
