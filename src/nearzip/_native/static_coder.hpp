// A static entropy coder for short streams: one rANS state, tables that a whole data set shares, integers as tokens.
//
// One loop over an image is compiled three times, with a coder that counts, one that encodes and one that decodes, so that all
// of them use the same contexts.
#pragma once

#include <algorithm>
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

// Tables of cumulated frequencies, which sum to 2^14, and the table of each context.
class StaticTables {
public:
    static constexpr size_t kRow = 48;  // entries of a table: so many can be read

    StaticTables() = default;
    // freqs: kStaticTokens for each of n tables; map: a table for each context. Throws Corrupt unless frequencies sum to 2^14
    // and every table exists.
    StaticTables(const uint16_t *freqs, size_t n, const uint8_t *map, size_t n_contexts)
        : cum_(n * kRow, uint16_t(1u << kStaticScale)), place_(n_contexts) {
        for (size_t i = 0; i < n; ++i) {
            uint32_t sum = 0;
            for (int t = 0; t <= kStaticTokens; ++t) {
                cum_[i * kRow + size_t(t)] = uint16_t(sum);
                if (t < kStaticTokens) sum += freqs[i * kStaticTokens + size_t(t)];
                if (sum > 1u << kStaticScale) throw Corrupt("frequencies exceed their total");
            }
            if (sum != 1u << kStaticScale) throw Corrupt("frequencies do not sum to their total");
        }
        for (size_t i = 0; i < n_contexts; ++i) {
            if (map[i] >= n) throw Corrupt("a context has no table");
            place_[i] = uint32_t(map[i] * kRow);
        }
    }
    // Of token t: at [t] where its slots begin, at [t + 1] where they end.
    NZ_INLINE const uint16_t *of(size_t context) const { return cum_.data() + place_[context]; }

private:
    std::vector<uint16_t> cum_;
    std::vector<uint32_t> place_;
};

// Counts tokens by context.
class StaticCounter {
public:
    static constexpr bool kDecodes = false;
    explicit StaticCounter(uint32_t *counts) : counts_(counts) {}
    NZ_INLINE int32_t code(int32_t context, int32_t value) {
        ++counts_[size_t(context) * kStaticTokens + token_of(value).token];
        return value;
    }
    NZ_INLINE bool keep(int32_t more) const { return more; }
    NZ_INLINE void block_done() const {}

private:
    uint32_t *counts_;
};

// Collects tokens; `finish` writes them, last one first.
class StaticEncoder {
public:
    static constexpr bool kDecodes = false;
    explicit StaticEncoder(const StaticTables &tables) : tables_(tables) {}
    NZ_INLINE int32_t code(int32_t context, int32_t value) {
        items_.push_back({token_of(value), tables_.of(size_t(context))});
        return value;
    }
    NZ_INLINE bool keep(int32_t more) const { return more; }
    NZ_INLINE void block_done() const {}
    // Throws Corrupt for a token that its table has no slot for.
    void finish(Bytes &out) {
        uint32_t x = kStaticLow;
        words_.clear();
        for (size_t i = items_.size(); i-- > 0;) {
            const Item &item = items_[i];
            if (item.token.n_bits) put(x, item.token.rest, 1, item.token.n_bits);
            const uint32_t low = item.cum[item.token.token], f = uint32_t(item.cum[item.token.token + 1u]) - low;
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
        const uint16_t *cum;
    };
    void put(uint32_t &x, uint32_t low, uint32_t f, int scale) {
        if (x >= uint64_t(f) << (32 - scale)) {
            words_.push_back(uint16_t(x));
            x >>= 16;
        }
        x = ((x / f) << scale) + x % f + low;
    }
    const StaticTables &tables_;
    std::vector<Item> items_;
    std::vector<uint16_t> words_;
};

NZ_INLINE int rest_bits(uint32_t token) { return int((token - kDirect) >> 1) + 3; }
NZ_INLINE uint32_t folded(uint32_t token, uint32_t rest) { return ((2u | ((token - kDirect) & 1)) << rest_bits(token)) | rest; }

// Copies of streams that are decoded side by side, with zeros behind each: whether one ended early is looked at only once in
// `kUnchecked` numbers.
struct ManyStreams {
    static constexpr int kMost = 16;
    static constexpr size_t kUnchecked = 80;

    int n = 0;
    const uint8_t *at[kMost], *end[kMost];
    uint32_t state[kMost];

    // Throws Corrupt for a stream without a state.
    ManyStreams(const View *in, int n);

private:
    Bytes bytes_;
};

// The same loops, compiled for different processors.
template <class Output>
struct Decoders {
    // The number of each image says where its output begins.
    void (*one)(View in, size_t number, const Output &out);
    void (*many)(const ManyStreams &in, const size_t *numbers, const Output &out);  // null where the compiler has no vectors
};

// Decodes images, many of them at once where that takes no more memory than a few MiB. Images of like length are decoded
// together: they have zeros in like places. `row_bytes`: what many take while they are decoded.
template <class Output>
void decode_each(const std::vector<View> &in, const Decoders<Output> &decoders, size_t row_bytes, const Output &out) {
    constexpr size_t few = 4;  // below it, one after the other is as fast
    const bool many = decoders.many && row_bytes <= 8 << 20;
    std::vector<size_t> order(in.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (many && order.size() > ManyStreams::kMost)
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return in[a].size < in[b].size; });
    View views[ManyStreams::kMost];
    for (size_t i = 0, n; i < order.size(); i += n) {
        n = std::min(order.size() - i, size_t(ManyStreams::kMost));
        if (!many || n < few) {
            n = 1;
            decoders.one(in[order[i]], order[i], out);
            continue;
        }
        for (size_t k = 0; k < n; ++k) views[k] = in[order[i + k]];
        decoders.many(ManyStreams(views, int(n)), &order[i], out);
    }
}

[[noreturn]] void throw_corrupt(const char *what);

// Classes of expected magnitudes.
constexpr int kScaleClasses = 24;

}  // namespace nearzip
