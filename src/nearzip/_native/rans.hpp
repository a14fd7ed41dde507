// Range asymmetric numeral systems over bytes ("tokens"), with several frequency tables chosen chunk by chunk.
//
// Duda, "Asymmetric numeral systems", arXiv:1311.2540 (2013). Layout of a stream: docs/format.md, "Token streams".
#pragma once

#include "common.hpp"

namespace nearzip {

// Sizes of the tensors whose values follow each other in one stream. A chunk never spans two of them.
using Parts = std::vector<uint64_t>;

// Appends a stream that holds `n` tokens; the sum of `parts` is n.
void encode_tokens(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out);

// Fills `out` with the n tokens of a stream that takes all of `in`. Throws Corrupt on anything else.
void decode_tokens(View in, uint8_t *out, size_t n, const Parts &parts);

}  // namespace nearzip
