// Token streams of every kind: the smallest of those with a table for each chunk (`rans`), with tables for rows and columns
// (`scaled`), and with masks that say which tokens are not zero. Layout: docs/format.md, "Token streams".
#pragma once

#include "tables.hpp"

namespace nearzip {

// Appends a stream that holds `n` tokens; the sum of `parts` is n.
void encode_tokens(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out);

// Fills `out` with the n tokens of a stream that takes all of `in`. Throws Corrupt on anything else.
void decode_tokens(View in, uint8_t *out, size_t n, const Parts &parts);

// A stream with masks: one for every `kMaskedTokens` tokens of a part, and the tokens that are not zero. In memory of the
// calling thread, until its next call.
constexpr size_t kMaskedTokens = 4;
struct ZerosApart {
    const uint8_t *masks, *tokens;
};

// Whether a stream is of that kind; if so, reads it. Throws Corrupt like decode_tokens.
bool read_zeros_apart(View in, const Parts &parts, ZerosApart &found);

}  // namespace nearzip
