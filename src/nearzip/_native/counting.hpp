// How evenly words are spread, for estimates on samples.
#pragma once

#include "common.hpp"

namespace nearzip {

// Bits a word: the entropy of the words' frequencies, at most log2(n); 0 for none.
template <class U>
double entropy(const U *words, size_t n);

// Whether more than `enough` of so many values, `stride` apart, are within a share of themselves of the base's, in single
// precision. F: float, double.
template <class F>
bool is_near(const F *x, const F *base, size_t stride, size_t looks, float share, size_t enough);

// Sum of the sizes |round((x - base) / step)| over some runs of values, and how many values these are; base may be null. Sizes
// from `limit` on, and what is not finite, are left out. Runs begin at index 0 and end with the last value.
struct Levels {
    double sum = 0;
    uint64_t n = 0;
};
template <class F>
Levels sampled_levels(const F *x, const F *base, size_t n, double step, size_t runs, size_t run, double limit);

}  // namespace nearzip
