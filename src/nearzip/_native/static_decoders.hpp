// Decoders of the static coder: of one stream, and of several side by side.
//
// Like all of `wide.hpp` it has no linkage: files compiled for different processors have it each on their own.
#pragma once

#include <bit>

#include "static_coder.hpp"
#include "wide.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace nearzip {
namespace {

// The token that owns a slot. Nearly all are among the first 16 or 32, which are compared at once.
NZ_INLINE uint32_t token_of_slot(const uint16_t *cum, uint32_t slot) {
#if defined(NZ_V3)
    constexpr uint32_t compared = 32;
    static_assert(StaticTables::kRow > compared);
    const __m256i wanted = _mm256_set1_epi16(short(slot));
    const auto above = [&](int i) {
        return _mm256_cmpgt_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(cum + i)), wanted);
    };
    uint32_t t = compared - uint32_t(__builtin_popcount(unsigned(_mm256_movemask_epi8(_mm256_packs_epi16(above(1), above(17))))));
#elif defined(__x86_64__) || defined(_M_X64)
    constexpr uint32_t compared = 16;
    const __m128i wanted = _mm_set1_epi16(short(slot));
    const auto above = [&](int i) {
        return _mm_cmpgt_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(cum + i)), wanted);
    };
    uint32_t t = uint32_t(std::countr_zero(0x10000u | unsigned(_mm_movemask_epi8(_mm_packs_epi16(above(1), above(9))))));
#else
    constexpr uint32_t compared = 16;
    uint32_t t = 0;
    for (uint32_t i = 1; i <= compared; ++i) t += cum[i] <= slot;
#endif
    if (t == compared)
        while (slot >= cum[t + 1]) ++t;
    return t;
}

// Takes a slot's token out of a state.
NZ_INLINE uint32_t token_taken(const uint16_t *cum, uint32_t &x) {
    const uint32_t slot = x & ((1u << kStaticScale) - 1), t = token_of_slot(cum, slot);
    x = (uint32_t(cum[t + 1]) - cum[t]) * (x >> kStaticScale) + slot - cum[t];
    return t;
}

// Half octaves of an expected magnitude in units of 2^-10.
template <class V>
NZ_INLINE V scale_class(const V &expected) {
    return half_octaves(clamp_to(expected, 0, 8000) + 4) - 6;
}

// The number from its place in the order 0, 1, -1, 2, ..
template <class V>
NZ_INLINE V unfolded(const V &z) {
    const V sign = (z & 1) - 1;
    return (((z + 1) >> 1) ^ sign) - sign;
}
class StaticDecoder {
public:
    static constexpr bool kDecodes = true;
    StaticDecoder(const StaticTables &tables, View in) : tables_(tables), in_(in) {
        if (in.size < 4 || in.size % 2) throw_corrupt("stream ends early");
        x_ = word() << 16;
        x_ |= word();
        if (x_ < kStaticLow) throw_corrupt("malformed state");
    }
    NZ_INLINE int32_t code(int32_t context, int32_t) {
        const uint32_t t = token_taken(tables_.of(size_t(context)), x_);
        refill();
        if (t < kDirect) return unfolded(int32_t(t));
        const int n = rest_bits(t);
        const uint32_t rest = x_ & ((1u << n) - 1);
        x_ >>= n;
        refill();
        return unfolded(int32_t(folded(t, rest)));
    }
    NZ_INLINE bool keep(int32_t more) const { return more; }
    NZ_INLINE void block_done() const {}
    // Throws Corrupt unless the stream ended here.
    void finish() const {
        if (in_.size || x_ != kStaticLow) throw_corrupt("stream does not end where its image does");
    }

private:
    uint32_t word() {
        if (in_.size < 2) throw_corrupt("stream ends early");
        const uint32_t w = in_.data[0] | uint32_t(in_.data[1]) << 8;
        in_ = {in_.data + 2, in_.size - 2};
        return w;
    }
    NZ_INLINE void refill() {
        if (x_ < kStaticLow) x_ = (x_ << 16) | word();
    }
    const StaticTables &tables_;
    View in_;
    uint32_t x_;
};

#ifdef NZ_MANY

// Of each token the lowest number in the order 0, 1, -1, .., and from bit 16 how many bits follow.
struct Starts {
    uint32_t of[kStaticTokens] = {};
    constexpr Starts() {
        for (uint32_t t = 0; t < kStaticTokens; ++t) {
            const uint32_t n = t < kDirect ? 0 : (t - kDirect) / 2 + 3;
            of[t] = t < kDirect ? t : n << 16 | (2 | (t & 1)) << n;
        }
    }
};
constexpr Starts kStarts;

// Streams side by side, so that one is worked on while another waits. Those that are not active are left alone, and give 0.
// `kLarge`: whether numbers with bits behind their token are frequent.
template <bool kLarge>
class ManyDecoder {
public:
    static constexpr bool kDecodes = true;
    ManyDecoder(const StaticTables &tables, const ManyStreams &in) : tables_(tables), n_(in.n) {
        for (int i = 0; i < n_; ++i) at_[i] = in.at[i], end_[i] = in.end[i], x_[i] = in.state[i];
        activate_all();
    }

    NZ_INLINE Wide code(const Wide &context, const Wide &) {
        constexpr int lanes = Many::kLanes;
        int32_t contexts[lanes], tokens[lanes] = {};
        std::memcpy(contexts, &context, sizeof contexts);
        bool rests = false;
        for (int k = 0; k < n_active_; ++k) {
            const int lane = active_[k];
            const uint32_t t = token_taken(tables_.of(size_t(contexts[lane])), x_[lane]);
            refill(lane);
            if (kLarge) {
                const uint32_t start = kStarts.of[t], n = start >> 16;
                tokens[lane] = int32_t((start & 0xffff) + (x_[lane] & ((1u << n) - 1)));
                x_[lane] >>= n;
                refill(lane);
            } else {
                tokens[lane] = int32_t(t);
                rests |= t >= kDirect;
            }
        }
        if (rests) take_rests(tokens);
        Wide z;
        std::memcpy(&z, tokens, sizeof z);
        return unfolded(z);
    }

    // Of the active streams, those stay active whose number is not 0. Returns whether any does.
    NZ_INLINE bool keep(const Wide &numbers) {
        mask_ = either(is_zero(numbers), Wide(0), mask_);
        int32_t chosen[Many::kLanes];
        std::memcpy(chosen, &mask_, sizeof chosen);
        int n = 0;
        for (int lane = 0; lane < Many::kLanes; ++lane) {
            active_[n] = uint8_t(lane);
            n += chosen[lane] & 1;
        }
        n_active_ = n;
        return n;
    }
    NZ_INLINE void activate_all() {
        int32_t mask[Many::kLanes];
        for (int lane = 0; lane < Many::kLanes; ++lane) mask[lane] = -int32_t(lane < n_), active_[lane] = uint8_t(lane);
        std::memcpy(&mask_, mask, sizeof mask);
        n_active_ = n_;
    }
    // -1 for active streams.
    NZ_INLINE const Wide &mask() const { return mask_; }

    // Notes numbers that are not 0: of them no encoder's stream has any.
    NZ_INLINE void note(const Wide &odd) { odd_ |= odd & mask_; }

    // Throws Corrupt if a stream ended before what was decoded, or something was noted. All streams are active again.
    NZ_INLINE void block_done() {
        bool early = false;
        for (int i = 0; i < n_; ++i) early |= at_[i] > end_[i];
        if (early) throw_corrupt("stream ends early");
        if (any(odd_)) throw_corrupt("a number is out of range");
        activate_all();
    }
    void finish() const {
        for (int i = 0; i < n_; ++i)
            if (at_[i] != end_[i] || x_[i] != kStaticLow) throw_corrupt("stream does not end where its image does");
    }

private:
    NZ_INLINE void refill(int lane) {
        const uint32_t x = x_[lane];
        const uint8_t *const at = at_[lane];
        const uint32_t next = at[0] | uint32_t(at[1]) << 8;
        // Without a branch: of eight numbers about one takes a word, and no processor foresees which.
        const uint32_t low = x < kStaticLow;
        x_[lane] = x << (16 * low) | (next & (0 - low));
        at_[lane] = at + 2 * low;
    }
    __attribute__((noinline)) void take_rests(int32_t *tokens) {
        for (int k = 0; k < n_active_; ++k) {
            const int lane = active_[k];
            const uint32_t t = uint32_t(tokens[lane]);
            if (t < kDirect) continue;
            const int n = rest_bits(t);
            tokens[lane] = int32_t(folded(t, x_[lane] & ((1u << n) - 1)));
            x_[lane] >>= n;
            refill(lane);
        }
    }

    const StaticTables &tables_;
    int n_, n_active_ = 0;
    Wide mask_, odd_ = 0;
    uint32_t x_[Many::kLanes];
    const uint8_t *at_[Many::kLanes], *end_[Many::kLanes];
    uint8_t active_[Many::kLanes];
};

#endif

// A number that was coded, of which encoders have none beyond `most`. Many of them are cut, so that they do no harm until it is
// noticed.
template <class Coder>
NZ_INLINE int32_t in_range(const Coder &, int32_t q, int32_t most) {
    if (q < -most || q > most) throw_corrupt("a number is out of range");
    return q;
}
#ifdef NZ_MANY
template <bool kLarge>
NZ_INLINE Wide in_range(ManyDecoder<kLarge> &coder, const Wide &q, int32_t most) {
    const Wide cut = clamp_to(q, -most, most);
    coder.note(q ^ cut);
    return cut & coder.mask();
}
#endif

}  // namespace
}  // namespace nearzip
