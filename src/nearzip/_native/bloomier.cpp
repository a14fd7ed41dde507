#include "bloomier.hpp"

#include <algorithm>

namespace nearzip {
namespace {

// Steele, Lea and Flood 2014: the finaliser of SplitMix64.
NZ_INLINE uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

constexpr uint64_t GOLDEN = 0x9e3779b97f4a7c15u;

struct Hashed {
    uint32_t slot[3];
    uint16_t mask;
};

// The four hash functions: three places and a mask. A number below 2^32 times a third, shifted, is a place in it.
NZ_INLINE Hashed hashed(uint64_t key, const BloomierShape &shape, uint64_t third) {
    const uint64_t a = mix(shape.seed * GOLDEN + key), b = mix(a + GOLDEN);
    Hashed h;
    h.slot[0] = uint32_t(((a & 0xffffffffu) * third) >> 32);
    h.slot[1] = uint32_t(third + (((a >> 32) * third) >> 32));
    h.slot[2] = uint32_t(2 * third + (((b & 0xffffffffu) * third) >> 32));
    h.mask = uint16_t((b >> 32) & ((1u << shape.bits) - 1));
    return h;
}

}  // namespace

bool build_bloomier(const uint64_t *keys, const uint16_t *values, size_t n_keys, const BloomierShape &shape,
                    uint16_t *table) {
    const uint64_t third = shape.slots / 3;
    // For each slot: how many keys point to it, and the exclusive or of their places in `keys`.
    std::vector<uint32_t> degree(shape.slots), owner(shape.slots);
    std::vector<Hashed> hashes(n_keys);
    for (size_t i = 0; i < n_keys; ++i) {
        hashes[i] = hashed(keys[i], shape, third);
        for (uint32_t s : hashes[i].slot) {
            ++degree[s];
            owner[s] ^= uint32_t(i);
        }
    }
    // Peel: a slot with one key is free to carry it; taking the key away may free others.
    std::vector<uint32_t> free, carriers, order;
    for (uint64_t s = 0; s < shape.slots; ++s)
        if (degree[s] == 1) free.push_back(uint32_t(s));
    while (!free.empty()) {
        const uint32_t carrier = free.back();
        free.pop_back();
        if (degree[carrier] != 1) continue;
        const uint32_t i = owner[carrier];
        order.push_back(i);
        carriers.push_back(carrier);
        for (uint32_t s : hashes[i].slot) {
            owner[s] ^= i;
            if (--degree[s] == 1) free.push_back(s);
        }
    }
    if (order.size() != n_keys) return false;
    std::fill(table, table + shape.slots, uint16_t(0));
    for (size_t k = n_keys; k-- > 0;) {
        const Hashed &h = hashes[order[k]];
        uint16_t v = uint16_t(values[order[k]] ^ h.mask);
        for (uint32_t s : h.slot) v = uint16_t(v ^ table[s]);
        table[carriers[k]] = v;  // it was zero so far
    }
    return true;
}

void query_bloomier(const uint16_t *table, const BloomierShape &shape, uint32_t n_values, uint16_t *out, size_t n) {
    const uint64_t third = shape.slots / 3;
    for (size_t i = 0; i < n; ++i) {
        const Hashed h = hashed(i, shape, third);
        const uint32_t v = uint32_t(table[h.slot[0]] ^ table[h.slot[1]] ^ table[h.slot[2]] ^ h.mask);
        out[i] = v < n_values ? uint16_t(v + 1) : uint16_t(0);
    }
}

}  // namespace nearzip
