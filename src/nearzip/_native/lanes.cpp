#include "lanes.hpp"

#include <atomic>
#include <type_traits>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(NZ_NO_CLONES)
#define NZ_AVX2 1
#include <immintrin.h>
#endif

namespace nearzip {
namespace {

NZ_INLINE uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
#else
    const uint64_t a0 = uint32_t(a), a1 = a >> 32, b0 = uint32_t(b), b1 = b >> 32;
    const uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
    return a1 * b1 + (middle >> 32) + ((a0 * b1 + uint32_t(middle)) >> 32);
#endif
}

// ---- encoding --------------------------------------------------------------------------------------------------

NZ_INLINE void encode_one(uint32_t &state, const EncodeEntry &e, int scale, uint16_t *&words) {
    words[-1] = uint16_t(state);
    // 1 if the state is at least frequency * 2^(32 - scale): it gives a word away first.
    const uint32_t full = ((state >> (32 - scale)) + e.complement) >> scale;
    words -= full;
    const uint32_t x = state >> (16 * full);
    const uint32_t quotient = uint32_t(multiply_high(x, e.reciprocal));
    state = x + e.bias + quotient * e.complement;
}

struct Source {
    const uint8_t *numbers, *tokens;
    const EncodeEntry *entries;
    uint32_t *states;
};

// Codes values [from, to) back to front.
template <int lanes, bool mixed>
NZ_INLINE uint16_t *encode_lanes(const Source &source, size_t from, size_t to, int scale, uint16_t *words) {
    const auto entry = [&](size_t i) -> const EncodeEntry & {
        const size_t token = source.tokens[i];
        return source.entries[mixed ? size_t(source.numbers[i]) << 8 | token : token];
    };
    size_t i = to;
    while (i > from && i % lanes) --i, encode_one(source.states[i % lanes], entry(i), scale, words);
    uint32_t x[lanes];
    std::memcpy(x, source.states, sizeof x);
    while (i > from) {
        i -= lanes;
        for (int lane = lanes - 1; lane >= 0; --lane) encode_one(x[lane], entry(i + size_t(lane)), scale, words);
    }
    std::memcpy(source.states, x, sizeof x);
    return words;
}

template <int lanes, bool mixed>
NZ_CLONES uint16_t *encode_clones(const Source &source, size_t from, size_t to, int scale, uint16_t *words) {
    // A constant shift is part of the instruction.
    if (scale == kNarrowScale) return encode_lanes<lanes, mixed>(source, from, to, kNarrowScale, words);
    return encode_lanes<lanes, mixed>(source, from, to, scale, words);
}

#ifdef NZ_AVX2

std::atomic<bool> vectors_allowed{true};

bool has_avx2() { return has_vectors(); }

__attribute__((target("avx2"))) NZ_INLINE __m256i eight_bytes(const void *at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(at)));
}

// From which lane each of the last words comes, for each set of lanes that give one.
struct Gathered {
    uint64_t of[256];
    constexpr Gathered() : of() {
        for (int set = 0; set < 256; ++set) {
            int at = 7;
            for (int lane = 7; lane >= 0; --lane)
                if ((set >> lane) & 1) of[set] |= uint64_t(lane) << (8 * at--);
        }
    }
};
constexpr Gathered kGathered;

__attribute__((target("avx2"))) NZ_INLINE void encode_eight(__m256i &x, __m256i entry, int scale, uint16_t *&words) {
    const __m128i shift = _mm_cvtsi32_si128(scale), rest = _mm_cvtsi32_si128(32 - scale);
    const __m256i f = _mm256_and_si256(entry, _mm256_set1_epi32(0xffff)), start = _mm256_srli_epi32(entry, 16);
    const __m256i room = _mm256_cmpgt_epi32(f, _mm256_srl_epi32(x, rest));  // states that give no word away
    const unsigned set = unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(room))) ^ 255;
    const __m256i from = eight_bytes(&kGathered.of[set]);
    const __m256i low = _mm256_and_si256(_mm256_permutevar8x32_epi32(x, from), _mm256_set1_epi32(0xffff));
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(words - 8), packed);
    words -= __builtin_popcount(set);
    x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, room);
    // The quotient is below 2^22, and in single precision at most one off.
    const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
    const __m256 tail = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
    const __m256 whole = _mm256_add_ps(_mm256_mul_ps(high, _mm256_set1_ps(65536.0f)), tail);
    __m256i q = _mm256_cvttps_epi32(_mm256_div_ps(whole, _mm256_cvtepi32_ps(f)));
    __m256i r = _mm256_sub_epi32(x, _mm256_mullo_epi32(q, f));
    const __m256i over = _mm256_srai_epi32(r, 31);  // -1 where the quotient is one too large
    q = _mm256_add_epi32(q, over);
    r = _mm256_add_epi32(r, _mm256_and_si256(over, f));
    const __m256i fits = _mm256_cmpgt_epi32(f, r);  // 0 where it is one too small
    q = _mm256_add_epi32(q, _mm256_add_epi32(fits, _mm256_set1_epi32(1)));
    r = _mm256_sub_epi32(r, _mm256_andnot_si256(fits, f));
    x = _mm256_add_epi32(_mm256_add_epi32(_mm256_sll_epi32(q, shift), r), start);
}

// Codes values [0, to), a multiple of 32 of them.
template <bool mixed>
__attribute__((target("avx2,popcnt"))) uint16_t *encode_avx2(const Source &source, const uint32_t *narrow, size_t to,
                                                            int scale, uint16_t *words) {
    __m256i x[4];
    for (int v = 0; v < 4; ++v) x[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(source.states + 8 * v));
    for (size_t i = to; i;) {
        i -= kManyLanes;
        for (int v = 3; v >= 0; --v) {
            __m256i where = eight_bytes(source.tokens + i + 8 * size_t(v));
            if (mixed) where = _mm256_or_si256(where, _mm256_slli_epi32(eight_bytes(source.numbers + i + 8 * size_t(v)), 8));
            const __m256i entry = _mm256_i32gather_epi32(reinterpret_cast<const int *>(narrow), where, 4);
            encode_eight(x[v], entry, scale, words);
        }
    }
    for (int v = 0; v < 4; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i *>(source.states + 8 * v), x[v]);
    return words;
}

#endif

// ---- decoding --------------------------------------------------------------------------------------------------

// What a slot of a decoding table holds: the token, its frequency, and the slot's distance from its start.
struct Narrow {
    using Type = uint32_t;
    static Type make(uint32_t t, uint32_t f, uint32_t offset) { return t | offset << 8 | f << 20; }
    static uint8_t token(Type e) { return uint8_t(e); }
    static uint32_t freq(Type e) { return e >> 20; }
    static uint32_t offset(Type e) { return (e >> 8) & 4095; }
};
struct Wide {
    using Type = uint64_t;
    static Type make(uint32_t t, uint32_t f, uint32_t offset) { return t | uint64_t(f) << 8 | uint64_t(offset) << 32; }
    static uint8_t token(Type e) { return uint8_t(e); }
    static uint32_t freq(Type e) { return uint32_t(e) >> 8; }
    static uint32_t offset(Type e) { return uint32_t(e >> 32); }
};

template <class Entry>
void add_slots(std::vector<typename Entry::Type> &table, const Freqs &freqs, int scale) {
    size_t slot = table.size();
    table.resize(slot + (size_t(1) << scale));
    for (size_t t = 0; t < kAlphabet; ++t)
        for (uint32_t i = 0; i < freqs[t]; ++i) table[slot++] = Entry::make(uint32_t(t), freqs[t], i);
}

template <class Entry>
NZ_INLINE uint8_t decode_one(uint32_t &state, const typename Entry::Type *table, int scale, const uint8_t *&words) {
    const auto e = table[state & ((1u << scale) - 1)];
    const uint32_t x = Entry::freq(e) * (state >> scale) + Entry::offset(e);
    uint16_t word;
    std::memcpy(&word, words, 2);
    const uint32_t low = x < kLow;
    state = x << (16 * low) | (word & (0 - low));
    words += 2 * size_t(low);
    return Entry::token(e);
}

struct Run {
    const uint8_t *numbers;
    size_t n;
    uint32_t *states;
    const uint8_t *words, *end;
    uint8_t *tokens;
};

template <class Entry, int lanes, bool mixed>
NZ_INLINE const uint8_t *decode_lanes(const typename Entry::Type *table, int scale, const Run &run, size_t i) {
    const uint8_t *words = run.words;
    uint32_t x[lanes];
    std::memcpy(x, run.states, sizeof x);
    const auto one = [&](size_t at, int lane) {
        run.tokens[at] = decode_one<Entry>(x[lane], mixed ? table + (size_t(run.numbers[at]) << scale) : table, scale, words);
    };
    for (; i + lanes <= run.n && words <= run.end; i += lanes)
        for (int lane = 0; lane < lanes; ++lane) one(i + size_t(lane), lane);
    for (; i < run.n && words <= run.end; ++i) one(i, int(i % lanes));
    std::memcpy(run.states, x, sizeof x);
    return words;
}

template <class Entry, int lanes, bool mixed>
NZ_CLONES const uint8_t *decode_clones(const typename Entry::Type *table, int scale, const Run &run, size_t from) {
    if (std::is_same_v<Entry, Narrow> && scale == kNarrowScale)
        return decode_lanes<Entry, lanes, mixed>(table, kNarrowScale, run, from);
    return decode_lanes<Entry, lanes, mixed>(table, scale, run, from);
}

#ifdef NZ_AVX2

// Which word goes to which lane, for each set of lanes that take one.
struct Spread {
    uint64_t of[256];
    constexpr Spread() : of() {
        for (int set = 0; set < 256; ++set) {
            uint64_t next = 0;
            for (int lane = 0; lane < 8; ++lane) {
                of[set] |= next << (8 * lane);
                next += (set >> lane) & 1;
            }
        }
    }
};
constexpr Spread kSpread;

__attribute__((target("avx2"))) NZ_INLINE __m256i decode_eight(__m256i &x, const uint32_t *table, __m256i where,
                                                              __m128i scale, const uint8_t *&words) {
    const __m256i e = _mm256_i32gather_epi32(reinterpret_cast<const int *>(table), where, 4);
    const __m256i offset = _mm256_and_si256(_mm256_srli_epi32(e, 8), _mm256_set1_epi32(4095));
    x = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(e, 20), _mm256_srl_epi32(x, scale)), offset);
    const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
    const unsigned set = unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
    const __m256i next =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(words)));
    const __m256i spread = eight_bytes(&kSpread.of[set]);
    const __m256i filled = _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(next, spread));
    x = _mm256_blendv_epi8(x, filled, low);
    words += 2 * size_t(__builtin_popcount(set));
    return _mm256_and_si256(e, _mm256_set1_epi32(255));
}

// As decode_lanes<Narrow, kManyLanes>, 32 tokens at a time; leaves what is left of fewer, says how many are done.
template <bool mixed>
__attribute__((target("avx2,popcnt"))) const uint8_t *decode_avx2(const uint32_t *table, int scale, const Run &run,
                                                                 size_t &done) {
    const __m128i shift = _mm_cvtsi32_si128(scale);
    const __m256i slots = _mm256_set1_epi32((1 << scale) - 1);
    const uint8_t *words = run.words;
    __m256i x[4], t[4];
    for (int v = 0; v < 4; ++v) x[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(run.states + 8 * v));
    size_t i = 0;
    for (; i + kManyLanes <= run.n && words <= run.end; i += kManyLanes) {
        for (int v = 0; v < 4; ++v) {
            __m256i where = _mm256_and_si256(x[v], slots);
            if (mixed) {
                const __m256i numbers = eight_bytes(run.numbers + i + size_t(8 * v));
                where = _mm256_or_si256(where, _mm256_sll_epi32(numbers, shift));
            }
            t[v] = decode_eight(x[v], table, where, shift, words);
        }
        const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(t[0], t[1]), _mm256_packus_epi32(t[2], t[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(run.tokens + i), _mm256_permutevar8x32_epi32(packed, order));
    }
    for (int v = 0; v < 4; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i *>(run.states + 8 * v), x[v]);
    done = i;
    return words;
}

#endif

template <class Entry>
const uint8_t *decode_any(const typename Entry::Type *table, int scale, int lanes, Run run) {
    size_t done = 0;
#ifdef NZ_AVX2
    if constexpr (std::is_same_v<Entry, Narrow>) {
        if (lanes == kManyLanes && run.n >= size_t(kManyLanes) && has_avx2())
            run.words = run.numbers ? decode_avx2<true>(table, scale, run, done)
                                    : decode_avx2<false>(table, scale, run, done);
        if (done == run.n || run.words > run.end) return run.words;
    }
#endif
    if (lanes == kManyLanes)
        return run.numbers ? decode_clones<Entry, kManyLanes, true>(table, scale, run, done)
                           : decode_clones<Entry, kManyLanes, false>(table, scale, run, done);
    return run.numbers ? decode_clones<Entry, kFewLanes, true>(table, scale, run, done)
                       : decode_clones<Entry, kFewLanes, false>(table, scale, run, done);
}

}  // namespace

bool has_vectors() {
#ifdef NZ_AVX2
    // All of x86-64-v3 that compilers make use of in our loops.
    static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi") &&
                            __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    return has && vectors_allowed.load(std::memory_order_relaxed);
#else
    return false;
#endif
}

bool allow_vectors([[maybe_unused]] bool allowed) {
#ifdef NZ_AVX2
    vectors_allowed = allowed;
    return has_avx2();
#else
    return false;
#endif
}

#ifdef NZ_AVX2
namespace {

// 32 at a time; leaves what is left of fewer, says how many are done.
__attribute__((target("avx2"))) size_t look_up_avx2(const uint8_t *table, uint8_t *bytes, size_t n) {
    __m256i parts[8];
    for (int k = 0; k < 8; ++k)
        parts[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table + 16 * k)));
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        auto *const at = reinterpret_cast<__m256i *>(bytes + i);
        const __m256i b = _mm256_loadu_si256(at);
        __m256i found = _mm256_setzero_si256();
        for (int k = 0; k < 8; ++k) {
            // Where the byte belongs to another part, the sum's top bit says 0.
            const __m256i place = _mm256_xor_si256(b, _mm256_set1_epi8(char(16 * k)));
            found = _mm256_or_si256(
                found, _mm256_shuffle_epi8(parts[k], _mm256_adds_epu8(place, _mm256_set1_epi8(0x70))));
        }
        _mm256_storeu_si256(at, found);
    }
    return i;
}

}  // namespace
#endif

void look_up(const uint8_t *table, uint8_t *bytes, size_t n) {
    size_t i = 0;
#ifdef NZ_AVX2
    if (has_avx2()) i = look_up_avx2(table, bytes, n);
#endif
    for (; i < n; ++i) bytes[i] = table[bytes[i]];
}

void EncodeTables::add(const Freqs &freqs) {
    const uint32_t whole = 1u << scale_;
    uint32_t start = 0;
    for (const uint32_t f : freqs) {
        EncodeEntry e{};
        if (f) {
            e.complement = whole - f;
            // floor(2^64 / f) + 1 is exact for states below 2^32; for f = 1 the product is one short, the bias mends it.
            e.reciprocal = f == 1 ? ~uint64_t(0) : ~uint64_t(0) / f + 1;
            e.bias = f == 1 ? start + whole - 1 : start;
        }
        entries_.push_back(e);
        narrow_.push_back((f ? f : 1) | start << 16);
        start += f;
    }
}

uint16_t *EncodeTables::encode_run(const uint8_t *numbers, size_t first_table, size_t n, int lanes, uint32_t *states,
                                   const uint8_t *tokens, uint16_t *words) const {
    const Source source{numbers, tokens, entries_.data() + first_table * kAlphabet, states};
    if (lanes == kFewLanes)
        return numbers ? encode_clones<kFewLanes, true>(source, 0, n, scale_, words)
                       : encode_clones<kFewLanes, false>(source, 0, n, scale_, words);
    size_t from = 0;
#ifdef NZ_AVX2
    if (scale_ >= kNarrowScale - 2 && scale_ <= kNarrowScale && has_avx2()) from = n - n % kManyLanes;
#endif
    words = numbers ? encode_clones<kManyLanes, true>(source, from, n, scale_, words)
                    : encode_clones<kManyLanes, false>(source, from, n, scale_, words);
#ifdef NZ_AVX2
    const uint32_t *narrow = narrow_.data() + first_table * kAlphabet;
    if (from) words = numbers ? encode_avx2<true>(source, narrow, from, scale_, words)
                              : encode_avx2<false>(source, narrow, from, scale_, words);
#endif
    return words;
}

void DecodeTables::add(const Freqs &freqs) {
    if (scale_ <= kNarrowScale)
        add_slots<Narrow>(narrow_, freqs, scale_);
    else
        add_slots<Wide>(wide_, freqs, scale_);
}

const uint8_t *DecodeTables::decode_run(const uint8_t *numbers, size_t first_table, size_t n, int lanes,
                                        uint32_t *states, const uint8_t *words, const uint8_t *end,
                                        uint8_t *tokens) const {
    const Run run{numbers, n, states, words, end, tokens};
    const size_t at = first_table << scale_;
    if (scale_ <= kNarrowScale) return decode_any<Narrow>(narrow_.data() + at, scale_, lanes, run);
    return decode_any<Wide>(wide_.data() + at, scale_, lanes, run);
}

}  // namespace nearzip
