// Range asymmetric numeral systems over bytes ("tokens"), with several frequency tables chosen chunk by chunk.
//
// Duda, "Asymmetric numeral systems", arXiv:1311.2540 (2013). Layout of a stream: docs/format.md, "Token streams".
#pragma once

#include "tables.hpp"

namespace nearzip {

// Appends a stream that holds `n` tokens; the sum of `parts` is n.
void encode_tokens(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out);

// The same with a table for each chunk, or stored: the streams that others are made of.
void encode_chunked(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out);
void decode_chunked(View in, uint8_t *out, size_t n, const Parts &parts);

// Fills `out` with the n tokens of a stream that takes all of `in`. Throws Corrupt on anything else.
void decode_tokens(View in, uint8_t *out, size_t n, const Parts &parts);

// A stream whose zeros stand apart: a mask for every `kMaskedTokens` tokens of a part, and the tokens that are not zero. In
// memory of the calling thread, until its next call.
constexpr size_t kMaskedTokens = 4;
struct ZerosApart {
    const uint8_t *masks, *tokens;
};

// Whether a stream is of that kind; if so, reads it. Throws Corrupt like decode_tokens.
bool read_zeros_apart(View in, const Parts &parts, ZerosApart &found);

}  // namespace nearzip
