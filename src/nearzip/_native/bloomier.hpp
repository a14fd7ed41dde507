// A static function from some of the numbers 0 .. n-1 to small values: a Bloomier filter (Chazelle et al. 2004) by
// peeling a three-partite hypergraph. Layout: docs/format.md, "Bloomier filters".
#pragma once

#include "common.hpp"

namespace nearzip {

struct BloomierShape {
    uint64_t seed;
    uint64_t slots;  // a multiple of 3; the hash functions 0, 1, 2 each point into a third of their own
    int bits;        // of a slot, 1 to 16
};

// The slots such that a query at keys[i] gives values[i]; false if this seed does not work out. Keys are distinct.
bool build_bloomier(const uint64_t *keys, const uint16_t *values, size_t n_keys, const BloomierShape &shape,
                    uint16_t *table);

// out[i] = 1 + what the table says of number i where that is below `n_values`, else 0.
void query_bloomier(const uint16_t *table, const BloomierShape &shape, uint32_t n_values, uint16_t *out, size_t n);

}  // namespace nearzip
