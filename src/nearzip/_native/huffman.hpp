// Codes of at most 16 bits, most significant bit first. Layout: docs/format.md, "Huffman".
#pragma once

#include "common.hpp"

namespace nearzip {

constexpr int HUFFMAN_LONGEST = 16;

// Symbols in stretches of `stretch`, each from its own bit on. `table`: for every window of 16 bits the symbol that it
// begins with, and its length from bit 16 on. The data is followed by zeros; `stops` says where each stretch's bits end.
void decode_huffman(View data, const uint64_t *starts, size_t stretch, const uint32_t *table, uint16_t *out, size_t n,
                    uint64_t *stops);

}  // namespace nearzip
