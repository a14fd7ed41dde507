#include "symbols.hpp"

#include <algorithm>
#include <type_traits>

#include "floats.hpp"

namespace nearzip {
namespace {

constexpr uint64_t kDirect = 128;  // values below are tokens as they are
constexpr int kDirectBits = 7;

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
NZ_INLINE Unsigned<T> fold(T v) {
    if constexpr (std::is_signed_v<T>)
        return (Unsigned<T>(v) << 1) ^ Unsigned<T>(v >> (8 * sizeof(T) - 1));
    else
        return v;
}

template <class T>
NZ_INLINE T unfold(Unsigned<T> z) {
    if constexpr (std::is_signed_v<T>)
        return T((z >> 1) ^ (Unsigned<T>(0) - (z & 1)));
    else
        return z;
}

// Bits after the leading one that go into a token: as many as 128 tokens hold up to the longest value. Two keep the
// loss on a smooth distribution below 0.1 %, more serve distributions with an edge; past five the table grows for nothing.
constexpr int kMostLeadingBits = 5;

int leading_bits(int longest) {
    int m = kMostLeadingBits;
    while (m > 0 && (longest - kDirectBits) << m > 128) --m;
    return m;
}

// ---- by magnitude ----------------------------------------------------------------------------------------------

template <class T>
NZ_WIDE_CLONES Unsigned<T> fold_small(const T *symbols, size_t n, uint8_t *tokens) {
    Unsigned<T> any = 0;
    for (size_t i = 0; i < n; ++i) {
        const Unsigned<T> z = fold(symbols[i]);
        any = Unsigned<T>(any | z);
        tokens[i] = uint8_t(z);
    }
    return any;
}

template <class T>
void split_large(const T *symbols, size_t n, int m, uint8_t *tokens, BitWriter &raw) {
    for (size_t i = 0; i < n; ++i) {
        const uint64_t z = fold(symbols[i]);
        if (z < kDirect) continue;
        const int length = bit_length(z), rest = length - 1 - m;
        const uint64_t leading = (z >> rest) & ((1u << m) - 1);
        tokens[i] = uint8_t(kDirect + (uint64_t(length - kDirectBits - 1) << m) + leading);
        raw.put(z & ((uint64_t(1) << rest) - 1), rest);
    }
}

constexpr size_t kStretch = 4096;

// Where symbols come from when all that is known of them is the symbols: none are folded in another way.
struct NoShortCut {
    bool operator()(size_t, size_t, uint8_t *) const { return false; }
};

// The tokens of n symbols, stretch by stretch: `symbols(at, m)` gives m symbols from `at` on, and may be asked twice;
// `folded(at, m, tokens)` may write their tokens instead if all are below `kDirect`, and says whether it did.
// Returns whether raw bits are most of it, as of large numbers that are all alike.
template <class T, class Symbols, class Folded = NoShortCut>
bool encode_magnitude(Symbols symbols, size_t n, const Parts &parts, Bytes &out, Folded folded = {}) {
    static thread_local Scratch<uint8_t> scratch;
    uint8_t *const tokens = scratch.get(n + 1);
    uint64_t any = 0;
    for (size_t at = 0; at < n; at += kStretch) {
        const size_t size = std::min(kStretch, n - at);
        if (!folded(at, size, tokens + at)) any |= fold_small<T>(symbols(at, size), size, tokens + at);
    }
    const int m = any < kDirect ? 0 : leading_bits(bit_length(any));
    Bytes raw;
    if (any >= kDirect) {
        BitWriter bits(raw);
        for (size_t at = 0; at < n; at += kStretch) {
            const size_t size = std::min(kStretch, n - at);
            split_large<T>(symbols(at, size), size, m, tokens + at, bits);
        }
        bits.finish();
    }
    out.push_back(uint8_t(m));
    const size_t coded = put_sized(out, n / 2, [&] { encode_tokens(tokens, n, parts, out); });
    out.insert(out.end(), raw.begin(), raw.end());
    return raw.size() > 64 && raw.size() / 3 > coded;
}

template <class T>
NZ_CLONES uint8_t unfold_small(const uint8_t *tokens, size_t n, T *out) {
    uint8_t any = 0;
    for (size_t i = 0; i < n; ++i) {
        any |= tokens[i];
        out[i] = unfold<T>(Unsigned<T>(tokens[i]));
    }
    return any;
}

// The number encoded by a long token and the bits after it.
template <class T>
NZ_INLINE T joined(uint8_t token, int m, BitReader &raw) {
    const unsigned above = token - unsigned(kDirect);
    const int length = int(above >> m) + kDirectBits + 1;
    if (length > 8 * int(sizeof(T))) throw Corrupt("symbol too large for its type");
    const int rest = length - 1 - m;
    const uint64_t leading = (uint64_t(1) << m) | (above & ((1u << m) - 1));
    return unfold<T>(Unsigned<T>(leading << rest | raw.get(rest)));
}

template <class T>
void join_large(const uint8_t *tokens, size_t n, int m, T *out, BitReader &raw) {
    for (size_t i = 0; i < n; ++i) {
        if (tokens[i] < kDirect) continue;
        out[i] = joined<T>(tokens[i], m, raw);
    }
}

struct Head {
    int m;
    View tokens, raw;
};

Head read_head(View in) {
    const int m = in.take(1).data[0];
    in = in.drop(1);
    if (m > kMostLeadingBits) throw Corrupt("symbol split out of range");
    const uint64_t size = get_varint(in);
    if (size > in.size) throw Corrupt("stream ends early");
    return {m, in.take(size_t(size)), in.drop(size_t(size))};
}

// `place(at, m)` is where m symbols from `at` on go, `placed(at, m)` is called when they are there.
template <class T, class Place, class Placed>
void decode_magnitude(View in, size_t n, const Parts &parts, Place place, Placed placed) {
    const Head head = read_head(in);
    const int m = head.m;
    static thread_local Scratch<uint8_t> scratch;
    uint8_t *const tokens = scratch.get(n + 1);
    decode_tokens(head.tokens, tokens, n, parts);
    BitReader raw(head.raw);
    for (size_t at = 0; at < n; at += kStretch) {
        const size_t stretch = std::min(kStretch, n - at);
        T *const out = place(at);
        if (unfold_small<T>(tokens + at, stretch, out) >= kDirect) join_large(tokens + at, stretch, m, out, raw);
        placed(at, stretch);
    }
    if (raw.finish() != head.raw.size) throw Corrupt("raw bits are too long");
}

// ---- by byte planes --------------------------------------------------------------------------------------------

template <class T>
void encode_planes(const T *symbols, size_t n, const Parts &parts, Bytes &out) {
    static thread_local Scratch<uint8_t> scratch;
    uint8_t *const plane = scratch.get(n + 1);
    for (int shift = 8 * (int(sizeof(T)) - 1); shift >= 0; shift -= 8) {
        for (size_t i = 0; i < n; ++i) plane[i] = uint8_t(fold(symbols[i]) >> shift);
        put_sized(out, n, [&] { encode_tokens(plane, n, parts, out); });
    }
}

template <class T>
void decode_planes(View in, T *out, size_t n, const Parts &parts) {
    static thread_local Scratch<uint8_t> scratch;
    uint8_t *const plane = scratch.get(n + 1);
    std::fill(out, out + n, T(0));
    for (int shift = 8 * (int(sizeof(T)) - 1); shift >= 0; shift -= 8) {
        const uint64_t size = get_varint(in);
        if (size > in.size) throw Corrupt("stream ends early");
        decode_tokens(in.take(size_t(size)), plane, n, parts);
        in = in.drop(size_t(size));
        for (size_t i = 0; i < n; ++i) out[i] = T(Unsigned<T>(out[i]) | Unsigned<T>(Unsigned<T>(plane[i]) << shift));
    }
    if (in.size) throw Corrupt("byte planes are too long");
    for (size_t i = 0; i < n; ++i) out[i] = unfold<T>(Unsigned<T>(out[i]));
}

// Replaces the bytes of `out` from `begin` on by byte planes, if those are smaller.
template <class T>
void try_planes(const T *symbols, size_t n, const Parts &parts, size_t begin, Bytes &out) {
    Bytes planes{uint8_t(Split::planes)};
    encode_planes(symbols, n, parts, planes);
    if (planes.size() >= out.size() - begin) return;
    out.resize(begin);
    out.insert(out.end(), planes.begin(), planes.end());
}

}  // namespace

template <class T>
void encode_symbols(const T *symbols, size_t n, const Parts &parts, Split split, Bytes &out) {
    const size_t begin = out.size();
    out.push_back(uint8_t(split));
    if (split == Split::planes)
        encode_planes(symbols, n, parts, out);
    else if (encode_magnitude<T>([&](size_t at, size_t) { return symbols + at; }, n, parts, out))
        try_planes(symbols, n, parts, begin, out);
}

template <class T>
void decode_symbols(View in, T *out, size_t n, const Parts &parts) {
    const uint8_t split = in.take(1).data[0];
    in = in.drop(1);
    if (split == uint8_t(Split::planes))
        decode_planes(in, out, n, parts);
    else if (split == uint8_t(Split::magnitude))
        decode_magnitude<T>(in, n, parts, [&](size_t at) { return out + at; }, [](size_t, size_t) {});
    else
        throw Corrupt("unknown way to split symbols");
}

// Values whose symbols are looked for in single precision at once. Where most are small, one in ten thousand is uncertain.
constexpr size_t kCertainRun = 512;

template <class F>
void encode_quantized(const F *x, const F *base, size_t n, double step, const Parts &parts, Bytes &out) {
    int32_t stretch[kStretch];
    const size_t begin = out.size();
    out.push_back(uint8_t(Split::magnitude));
    const auto old = [&](size_t at) { return base ? base + at : nullptr; };
    bool small = std::is_same_v<F, float>;
    const bool mostly_raw = encode_magnitude<int32_t>(
        [&](size_t at, size_t size) {
            quantize<F>(x + at, old(at), size, step, stretch);
            return stretch;
        },
        n, parts, out,
        [&](size_t at, size_t size, uint8_t *tokens) {
            if constexpr (std::is_same_v<F, float>) {
                if (!small) return false;
                for (size_t i = 0; i < size; i += kCertainRun) {
                    const size_t run = std::min(kCertainRun, size - i);
                    if (quantize_small(x + at + i, old(at + i), run, step, tokens + i)) continue;
                    quantize<F>(x + at + i, old(at + i), run, step, stretch);
                    small = fold_small<int32_t>(stretch, run, tokens + i) < kDirect;
                    if (!small) return false;
                }
                return true;
            }
            return false;
        });
    if (!mostly_raw) return;
    std::vector<int32_t> symbols(n);
    quantize<F>(x, base, n, step, symbols.data());
    try_planes(symbols.data(), n, parts, begin, out);
}

namespace {

// What a symbol 0 restores.
template <class F>
NZ_CLONES void copy_base(const F *base, size_t n, F *out) {
    if (base)
        for (size_t i = 0; i < n; ++i) out[i] = base[i] + F(0);
    else
        std::fill(out, out + n, F(0));
}

// As decoding and dequantizing one after the other, where most symbols are 0.
template <class F>
void decode_sparse(const ZerosApart &apart, const Head &head, const F *base, double step, const Parts &parts, F *out,
                   const Seen &seen) {
    size_t at = 0;
    BitReader raw(head.raw);
    const uint8_t *mask_at = apart.masks, *token = apart.tokens;
    // The values of eight masks.
    const auto restore = [&](const uint8_t *from, size_t n_masks, const F *old, F *to) {
        uint64_t masks = 0;  // four bits in each byte
        std::memcpy(&masks, from, n_masks);
        for (; masks; masks &= masks - 1) {
            const size_t bit = size_t(lowest_bit(masks)), i = kMaskedTokens * (bit / 8) + bit % 8;
            const int32_t symbol =
                *token < kDirect ? unfold<int32_t>(uint32_t(*token)) : joined<int32_t>(*token, head.m, raw);
            ++token;
            to[i] = F((old ? double(old[i]) : 0.0) + double(symbol) * step);
        }
    };
    for (uint64_t part : parts)
        for (size_t left = size_t(part), n; left; left -= n) {
            n = std::min(left, kStretch);
            copy_base(base, n, out);
            for (size_t i = 0; i < n; i += 8 * kMaskedTokens) {
                const size_t n_masks = std::min<size_t>(8, (n - i + kMaskedTokens - 1) / kMaskedTokens);
                restore(mask_at, n_masks, base ? base + i : nullptr, out + i);
                mask_at += n_masks;
            }
            out += n;
            if (base) base += n;
            seen(at, at + n);
            at += n;
        }
    if (raw.finish() != head.raw.size) throw Corrupt("raw bits are too long");
}

}  // namespace

template <class F>
void decode_quantized(View in, const F *base, size_t n, double step, const Parts &parts, F *out, const Seen &seen) {
    if (in.take(1).data[0] != uint8_t(Split::magnitude)) {
        std::vector<int32_t> symbols(n);
        decode_symbols<int32_t>(in, symbols.data(), n, parts);
        dequantize<F>(symbols.data(), base, n, step, out);
        return seen(0, n);
    }
    const Head head = read_head(in.drop(1));
    ZerosApart apart;
    if (read_zeros_apart(head.tokens, parts, apart)) return decode_sparse(apart, head, base, step, parts, out, seen);
    int32_t stretch[kStretch];
    decode_magnitude<int32_t>(
        in.drop(1), n, parts, [&](size_t) { return stretch; },
        [&](size_t at, size_t size) {
            dequantize<F>(stretch, base ? base + at : nullptr, size, step, out + at);
            seen(at, at + size);
        });
}

#define NZ_QUANTIZED(F)                                                                                       \
    template void encode_quantized<F>(const F *, const F *, size_t, double, const Parts &, Bytes &);          \
    template void decode_quantized<F>(View, const F *, size_t, double, const Parts &, F *, const Seen &);
NZ_QUANTIZED(float)
NZ_QUANTIZED(double)
#undef NZ_QUANTIZED

#define NZ_SYMBOLS(T)                                                                        \
    template void encode_symbols<T>(const T *, size_t, const Parts &, Split, Bytes &);       \
    template void decode_symbols<T>(View, T *, size_t, const Parts &);
NZ_SYMBOLS(int32_t)
NZ_SYMBOLS(uint8_t)
NZ_SYMBOLS(uint16_t)
NZ_SYMBOLS(uint32_t)
NZ_SYMBOLS(uint64_t)
#undef NZ_SYMBOLS

}  // namespace nearzip
