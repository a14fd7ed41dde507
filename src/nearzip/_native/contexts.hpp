// Bit-exact differences to a base, each coded under a table that the base's exponent and the differences nearby choose.
// Layout: docs/format.md, "Context streams".
#pragma once

#include "tables.hpp"

namespace nearzip {

// What the bits of a value mean.
struct ValueKind {
    bool floats;        // sign and magnitude; else plain integers
    int mantissa_bits;  // the exponent stands above them; the width of the value if there is none
};

// U: uint8_t, uint16_t, uint32_t, uint64_t. Appends a stream; the sum of `parts` is n.
template <class U>
void encode_contexts(const U *x, const U *base, size_t n, ValueKind kind, const Parts &parts, Bytes &out);

// Fills `out` with the n values of a stream that takes all of `in`. Throws Corrupt on anything else.
template <class U>
void decode_contexts(View in, const U *base, size_t n, ValueKind kind, const Parts &parts, U *out);

}  // namespace nearzip
