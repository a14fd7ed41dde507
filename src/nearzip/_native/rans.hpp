// Range asymmetric numeral systems over bytes ("tokens"), with several frequency tables chosen chunk by chunk.
//
// Duda, "Asymmetric numeral systems", arXiv:1311.2540 (2013). Layout of a stream: docs/format.md, "Token streams".
#pragma once

#include "tables.hpp"

namespace nearzip {

// Appends a stream that holds `n` tokens, with a table for each chunk, or stored. The sum of `parts` is n.
void encode_chunked(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out);

// Fills `out` with the n tokens of a stream that takes all of `in`. Throws Corrupt on anything else.
void decode_chunked(View in, uint8_t *out, size_t n, const Parts &parts);

}  // namespace nearzip
