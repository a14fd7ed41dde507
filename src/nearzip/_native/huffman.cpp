#include "huffman.hpp"

#include <algorithm>

namespace nearzip {
namespace {

// 16 bits from a bit on that may be the last one's end.
NZ_INLINE uint32_t window_at(View data, uint64_t bit) {
    const size_t at = size_t(bit >> 3);
    uint32_t found = 0;
    if (at + 3 <= data.size)
        found = uint32_t(data.data[at]) << 16 | uint32_t(data.data[at + 1]) << 8 | data.data[at + 2];
    else
        for (size_t i = 0; i < 3; ++i) found = found << 8 | (at + i < data.size ? data.data[at + i] : 0u);
    return (found >> (8 - (bit & 7))) & ((1u << HUFFMAN_LONGEST) - 1);
}

}  // namespace

void decode_huffman(View data, const uint64_t *starts, size_t stretch, const uint32_t *table, uint16_t *out, size_t n,
                    uint64_t *stops) {
    const uint64_t last = 8 * uint64_t(data.size);
    for (size_t at = 0; at < n; at += stretch) {
        uint64_t bit = *starts++;
        const size_t end = std::min(n, at + stretch);
        for (size_t i = at; i < end; ++i) {
            bit = std::min(bit, last);
            const uint32_t entry = table[window_at(data, bit)];
            out[i] = uint16_t(entry);
            bit += entry >> HUFFMAN_LONGEST;
        }
        *stops++ = bit;
    }
}

}  // namespace nearzip
