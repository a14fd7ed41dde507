// A static entropy coder for short streams: one rANS state, tables that a whole data set shares, integers as tokens.
//
// One loop over an image is compiled three times, with a coder that counts, one that encodes and one that decodes, so that all
// of them use the same contexts.
#pragma once

#include <array>
#include <vector>

#include "common.hpp"

namespace nearzip {

constexpr int kStaticScale = 14;
// Integers in the order 0, 1, -1, 2, ..: the first 24 are tokens, larger ones a token for their length and leading bit.
constexpr int kDirect = 24, kStaticTokens = 44;
constexpr uint32_t kStaticLow = 1u << 16;

struct Token {
    uint8_t token, n_bits;
    uint32_t rest;
};

inline Token token_of(int32_t value) {
    const uint32_t z = value > 0 ? 2 * uint32_t(value) - 1 : 2 * uint32_t(-value);
    if (z < kDirect) return {uint8_t(z), 0, 0};
    const int n = bit_length(z), rest = n - 2;
    return {uint8_t(kDirect + 2 * (n - 5) + ((z >> rest) & 1)), uint8_t(rest), z & ((1u << rest) - 1)};
}

// Cumulated frequencies of every table; they sum to 2^14.
struct StaticTables {
    std::vector<std::array<uint16_t, kStaticTokens + 1>> of;

    StaticTables() = default;
    // freqs: kStaticTokens for each table. Throws Corrupt unless they sum to 2^14.
    StaticTables(const uint16_t *freqs, size_t n) : of(n) {
        for (size_t i = 0; i < n; ++i) {
            uint32_t sum = 0;
            for (int t = 0; t <= kStaticTokens; ++t) {
                of[i][size_t(t)] = uint16_t(sum);
                if (t < kStaticTokens) sum += freqs[i * kStaticTokens + size_t(t)];
                if (sum > 1u << kStaticScale) throw Corrupt("frequencies exceed their total");
            }
            if (sum != 1u << kStaticScale) throw Corrupt("frequencies do not sum to their total");
        }
    }
};

// Counts tokens by context.
class StaticCounter {
public:
    static constexpr bool kDecodes = false;
    explicit StaticCounter(uint32_t *counts) : counts_(counts) {}
    NZ_INLINE int32_t code(size_t context, int32_t value) {
        ++counts_[context * kStaticTokens + token_of(value).token];
        return value;
    }

private:
    uint32_t *counts_;
};

// Collects tokens; `finish` writes them, last one first.
class StaticEncoder {
public:
    static constexpr bool kDecodes = false;
    StaticEncoder(const StaticTables &tables, const uint8_t *map) : tables_(tables), map_(map) {}
    NZ_INLINE int32_t code(size_t context, int32_t value) {
        items_.push_back({token_of(value), map_[context]});
        return value;
    }
    // Throws Corrupt for a token that its table has no slot for.
    void finish(Bytes &out) {
        uint32_t x = kStaticLow;
        words_.clear();
        for (size_t i = items_.size(); i-- > 0;) {
            const Item &item = items_[i];
            if (item.token.n_bits) put(x, item.token.rest, 1, item.token.n_bits);
            const auto &cum = tables_.of[item.table];
            const uint32_t low = cum[item.token.token], f = uint32_t(cum[item.token.token + 1u]) - low;
            if (!f) throw Corrupt("a token has no slot");
            put(x, low, f, kStaticScale);
        }
        items_.clear();
        words_.push_back(uint16_t(x));
        words_.push_back(uint16_t(x >> 16));
        for (size_t i = words_.size(); i-- > 0;) {
            out.push_back(uint8_t(words_[i]));
            out.push_back(uint8_t(words_[i] >> 8));
        }
    }

private:
    struct Item {
        Token token;
        uint8_t table;
    };
    void put(uint32_t &x, uint32_t low, uint32_t f, int scale) {
        if (x >= uint64_t(f) << (32 - scale)) {
            words_.push_back(uint16_t(x));
            x >>= 16;
        }
        x = ((x / f) << scale) + x % f + low;
    }
    const StaticTables &tables_;
    const uint8_t *map_;
    std::vector<Item> items_;
    std::vector<uint16_t> words_;
};

class StaticDecoder {
public:
    static constexpr bool kDecodes = true;
    StaticDecoder(const StaticTables &tables, const uint8_t *map, View in) : tables_(tables), map_(map), in_(in) {
        if (in.size < 4 || in.size % 2) throw Corrupt("stream ends early");
        x_ = word() << 16;
        x_ |= word();
        if (x_ < kStaticLow) throw Corrupt("malformed state");
    }
    NZ_INLINE int32_t code(size_t context, int32_t) {
        const uint16_t *const cum = tables_.of[map_[context]].data();
        const uint32_t slot = x_ & ((1u << kStaticScale) - 1);
        uint32_t t = 0;
        while (slot >= cum[t + 1]) ++t;
        x_ = (uint32_t(cum[t + 1]) - cum[t]) * (x_ >> kStaticScale) + slot - cum[t];
        refill();
        if (t < kDirect) return (t & 1) ? int32_t((t + 1) >> 1) : -int32_t(t >> 1);
        const int rest = int((t - kDirect) >> 1) + 3;
        const uint32_t low = x_ & ((1u << rest) - 1);
        x_ >>= rest;
        refill();
        const uint32_t z = ((2u | ((t - kDirect) & 1)) << rest) | low;
        return (z & 1) ? int32_t((z + 1) >> 1) : -int32_t(z >> 1);
    }
    // Throws Corrupt unless the stream ended here.
    void finish() const {
        if (in_.size || x_ != kStaticLow) throw Corrupt("stream does not end where its image does");
    }

private:
    uint32_t word() {
        if (in_.size < 2) throw Corrupt("stream ends early");
        const uint32_t w = in_.data[0] | uint32_t(in_.data[1]) << 8;
        in_ = {in_.data + 2, in_.size - 2};
        return w;
    }
    NZ_INLINE void refill() {
        if (x_ < kStaticLow) x_ = (x_ << 16) | word();
    }
    const StaticTables &tables_;
    const uint8_t *map_;
    View in_;
    uint32_t x_;
};

// Half octaves of an expected magnitude in units of 2^-10: 24 classes.
constexpr int kScaleClasses = 24;
NZ_INLINE int scale_class(int32_t expected) {
    const uint32_t v = uint32_t(expected < 0 ? 0 : expected > 8000 ? 8000 : expected) + 4;
    const int n = bit_length(v);
    return 2 * (n - 3) + int((v >> (n - 2)) & 1);
}

}  // namespace nearzip
