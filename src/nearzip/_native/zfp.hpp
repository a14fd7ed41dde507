// The transform of ZFP (Lindstrom 2014, "Fixed-Rate Compressed Floating-Point Arrays"), without its coding: what the bit
// planes that a fixed precision keeps say of each block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nearzip {

// values: float32, or int32 as 31-bit fixed point, row-major with `dimensions` (1 to 3) sizes. out: one value for each, in
// blocks of 4 on a side: the coefficient of frequency (z, y, x) stands where that value of the block stood. Sizes are
// multiples of 4 in `out`: incomplete blocks are filled up as the library does. precision: planes kept, 1 to 32.
void zfp_coefficients(const float *values, const size_t *sizes, int dimensions, int precision, float *out);
void zfp_coefficients(const int32_t *values, const size_t *sizes, int dimensions, int precision, int32_t *out);

}  // namespace nearzip
