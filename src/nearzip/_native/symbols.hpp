// Integers of 8 to 64 bits as byte tokens and raw bits. Layout: docs/format.md, "Symbol streams".
#pragma once

#include <functional>

#include "masks.hpp"

namespace nearzip {

enum class Split : uint8_t {
    magnitude = 0,  // small values are tokens, larger ones a token for the leading bits and the rest raw
    planes = 1,     // one token stream per byte of the value, most significant first
};

// T: int32_t (zigzag coded), uint8_t, uint16_t, uint32_t, uint64_t.
template <class T>
void encode_symbols(const T *symbols, size_t n, const Parts &parts, Split split, Bytes &out);

// Throws Corrupt unless `in` is exactly one stream of n symbols.
template <class T>
void decode_symbols(View in, T *out, size_t n, const Parts &parts);

// As `quantize` (floats.hpp) and encode_symbols by magnitude, and back, without an array of symbols in between.
template <class F>
void encode_quantized(const F *x, const F *base, size_t n, double step, const Parts &parts, Bytes &out);
// `seen(begin, end)` is called with values that are there, in order, while they are in the cache.
using Seen = std::function<void(size_t, size_t)>;
template <class F>
void decode_quantized(View in, const F *base, size_t n, double step, const Parts &parts, F *out, const Seen &seen);

}  // namespace nearzip
