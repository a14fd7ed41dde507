// Token streams whose tables are chosen by how large tokens are in a value's row and column of its tensor and, in kernels of
// convolutions, by its neighbours. Layout: docs/format.md, "Scaled streams".
#pragma once

#include "tables.hpp"

namespace nearzip {

constexpr uint8_t kScaled = 128;  // the first byte of such a stream

enum class Activity { tokens, masks };  // a token's own value, or the bits that are set in it

enum class Pays { no, perhaps, surely };

// Appends a stream that holds `n` tokens, unless rows and columns are too much alike for it to pay.
Pays encode_scaled(const uint8_t *tokens, size_t n, const Parts &parts, Activity activity, Bytes &out);

// Fills `out` with the n tokens of a stream, its first byte taken away. Throws Corrupt on anything else.
void decode_scaled(View in, uint8_t *out, size_t n, const Parts &parts);

}  // namespace nearzip
