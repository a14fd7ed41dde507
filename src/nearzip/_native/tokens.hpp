// Numbers as tokens, which are entropy coded, and raw bits, which follow them as they are.
#pragma once

#include <cstring>

#include "bits.hpp"
#include "common.hpp"

namespace nearzip {
namespace {

// Tokens of a number: itself below 2^(lead + 1), else its length and the `lead` bits behind its leading one.
template <class U>
struct Split {
    static constexpr int width = 8 * int(sizeof(U));
    static constexpr int lead = width == 8 ? 7 : width == 16 ? 4 : width == 32 ? 3 : 2;
    static constexpr unsigned direct = 1u << (lead + 1);
    static constexpr unsigned tokens = direct + (unsigned(width - lead - 1) << lead);
};

// The token of each number and how many raw bits follow it.
template <class U>
NZ_WIDE_CLONES void tokens_of(const U *z, size_t n, uint8_t *tokens, uint8_t *rests) {
    using S = Split<U>;
    if constexpr (S::width == 64) {
        for (size_t i = 0; i < n; ++i) {
            const int rest = z[i] < S::direct ? 0 : bit_length(z[i]) - 1 - S::lead;
            const unsigned leading = unsigned(z[i] >> rest) & ((1u << S::lead) - 1);
            tokens[i] = uint8_t(rest ? S::direct + (unsigned(rest - 1) << S::lead) + leading : unsigned(z[i]));
            rests[i] = uint8_t(rest);
        }
    } else if constexpr (S::width == 8) {
        std::memcpy(tokens, z, n);
        std::memset(rests, 0, n);
    } else {
        // The exponent and the top of the mantissa of half the number as a float say all of it. Bits that could round it
        // up are taken away first.
        constexpr uint32_t bias = uint32_t(127 + S::lead) << S::lead;
        for (size_t i = 0; i < n; ++i) {
            const uint32_t half = uint32_t(z[i]) >> 1, kept = half & ~(half >> (S::lead + 1));
            const float f = float(int32_t(kept));
            uint32_t bits;
            std::memcpy(&bits, &f, 4);
            const uint32_t above = (bits >> (23 - S::lead)) - bias;  // token - direct + 2^lead
            const bool direct = z[i] < S::direct;
            tokens[i] = uint8_t(direct ? uint32_t(z[i]) : above + S::direct);
            rests[i] = uint8_t(direct ? 0 : (above >> S::lead) + 1);
        }
    }
}

// For each token: the number's leading bits, shifted into position, and how many raw bits follow.
template <class U>
struct Joined {
    struct Entry {
        U start;
        U rest;
    };
    Entry of[kAlphabet];
    Joined() : of() {
        using S = Split<U>;
        for (unsigned t = 0; t < S::tokens; ++t) {
            const unsigned above = t - S::direct, rest = t < S::direct ? 0 : (above >> S::lead) + 1;
            const U leading = U((1u << S::lead) + (above & ((1u << S::lead) - 1)));
            of[t] = {t < S::direct ? U(t) : U(leading << rest), U(rest)};
        }
    }
};

// So many values are joined before it is noticed that the raw bits have ended, and so many zeros must follow them.
constexpr size_t kStride = 512, kRawPadding = kStride * 8;

// Where in the raw bits reading has come to.
struct RawBits {
    const uint8_t *data;
    uint64_t at, end;  // bits
    bool padded_ = false;

    // Makes so many bytes readable as a stride may take, zeros behind the last: what is left is copied when it is less.
    void provide() {
        if (padded_ || at + 8 * kRawPadding <= end) return;
        static thread_local Scratch<uint8_t> scratch;
        const uint64_t done = at >> 3;
        data = padded({data + done, size_t((end >> 3) - done)}, kRawPadding, scratch);
        at -= 8 * done;
        end -= 8 * done;
        padded_ = true;
    }
    void finish() const {
        if (end - at > 7) throw Corrupt("raw bits are too long");
        if (end > at && data[at >> 3] >> (at & 7)) throw Corrupt("padding is not zero");
    }
};

}  // namespace
}  // namespace nearzip
