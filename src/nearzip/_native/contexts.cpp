// Bits of values against a base: differences as tokens, under tables chosen by the base's exponents.
#include "contexts.hpp"

#include <algorithm>
#include <cmath>

#include "bits.hpp"
#include "grouping.hpp"
#include "lanes.hpp"
#include "ordered.hpp"
#include "tokens.hpp"

namespace nearzip {
namespace {

enum Mode : uint8_t { kStored = 0, kEqual = 1, kCoded = 2, kCodedInChunks = 3 };

// Within a network's layer the sizes of updates differ from place to place: chunks of 512 values save 0.4 to 1.2 % on
// the shared VGG trace against a size for each tensor, and lose up to 0.3 % on the transformer's, where they do not.
// Where few values change, a chunk needs more of them to tell the size of its changes, and sizes of their own cost as
// much as the changes.
constexpr int kChunkLog = 9, kMostChunkLog = 16;
constexpr uint64_t kChangesPerChunk = 32;
// Contexts are half octaves of an update's typical size over the spacing of values around the base's.
constexpr int kContexts = 128, kLowest = -16;
constexpr size_t kMaxTables = 64;
constexpr int kMostScale = 1 << 14;

// ---- contexts --------------------------------------------------------------------------------------------------

template <class U>
NZ_CLONES void exponents(const U *base, size_t n, ValueKind kind, uint16_t *out) {
    constexpr U magnitude = U(U(~U(0)) >> 1);
    const int shift = kind.mantissa_bits;
    if (!kind.floats)
        std::fill(out, out + n, uint16_t(0));
    else
        for (size_t i = 0; i < n; ++i) out[i] = uint16_t(U(base[i] & magnitude) >> shift);
}

NZ_CLONES void contexts_of(const uint16_t *exponents, size_t n, int scale, uint8_t *contexts) {
    // Within 16 bits: scales are at most 2^14, twice an exponent at most 2^12.
    const int16_t from = int16_t(scale - kLowest);
    for (size_t i = 0; i < n; ++i) {
        const int16_t c = int16_t(from - 2 * int16_t(exponents[i]));
        contexts[i] = uint8_t(c < 0 ? 0 : c > kContexts - 1 ? kContexts - 1 : c);
    }
}

template <class U>
NZ_CLONES U differences(const U *x, const U *base, size_t n, bool floats, U *z) {
    U any = 0;
    if (floats)
        for (size_t i = 0; i < n; ++i) any |= z[i] = zigzag(U(ordered(x[i], true) - ordered(base[i], true)));
    else
        for (size_t i = 0; i < n; ++i) any |= z[i] = zigzag(U(x[i] - base[i]));
    return any;
}

template <class U>
NZ_CLONES void undo_differences(const U *z, const U *base, size_t n, bool floats, U *x) {
    if (floats)
        for (size_t i = 0; i < n; ++i) x[i] = unordered(U(ordered(base[i], true) + unzigzag(z[i])), true);
    else
        for (size_t i = 0; i < n; ++i) x[i] = U(base[i] + unzigzag(z[i]));
}

// Half the exponent's range: the exponent of 1, or nearly.
int middle(ValueKind kind, int width) { return kind.floats ? (1 << (width - kind.mantissa_bits - 2)) - 1 : 0; }

// Twice the binary logarithm of the mean difference, rounded down, in the units of exponents. Single precision, the sums
// side by side: a float's bits are its exponent where the mantissa is 0.
template <class U>
NZ_CLONES float sum_of(const U *z, const uint16_t *exponents, size_t n, int one) {
    constexpr size_t kSide = 16;
    constexpr int most = 40;
    float sums[kSide] = {};
    const auto weight = [&](size_t i) {
        const int e = int(exponents[i]) - one, kept = e < -most ? -most : e > most ? most : e;
        const uint32_t bits = uint32_t(kept + 127) << 23;
        float unit;
        std::memcpy(&unit, &bits, 4);
        const float half = sizeof(U) == 8 ? float(z[i] >> 1) : float(int32_t(uint32_t(z[i]) >> 1));
        const float steps = half + float(int32_t(z[i] & 1));
        return steps * unit;
    };
    size_t i = 0;
    for (; i + kSide <= n; i += kSide)
        for (size_t k = 0; k < kSide; ++k) sums[k] += weight(i + k);
    for (; i < n; ++i) sums[0] += weight(i);
    float sum = 0;
    for (float side : sums) sum += side;
    return sum;
}

template <class U>
int scale_of(const U *z, const uint16_t *exponents, size_t n, int one) {
    // 2^-60 for differences of which nothing is left.
    const double mean = std::max(double(sum_of(z, exponents, n, one)) / double(n), 0x1p-60);
    int whole;
    const double fraction = std::frexp(mean, &whole);
    return 2 * (whole - 1 + one) + (fraction >= 0.70710678118654752);
}

// ---- chunks' scales --------------------------------------------------------------------------------------------

constexpr int kUnchanged = kMostScale + 1;

// 0: as before; 1: all values equal the base's; else the signed step from the last scale.
void write_scales(BitWriter &bits, const std::vector<int> &scales) {
    int last = 0;
    for (const int scale : scales) {
        if (scale == kUnchanged) {
            bits.put_golomb(1);
            continue;
        }
        const int step = scale - last;
        bits.put_golomb(step == 0 ? 0 : step > 0 ? uint64_t(2 * step) : uint64_t(-2 * step + 1));
        last = scale;
    }
}

std::vector<int> read_scales(BitReader &bits, size_t n) {
    std::vector<int> scales(n);
    int64_t last = 0;
    for (int &scale : scales) {
        const uint64_t code = bits.get_golomb();
        if (code == 1) {
            scale = kUnchanged;
            continue;
        }
        last += code & 1 ? -int64_t(code >> 1) : int64_t(code >> 1);
        if (last < -kMostScale || last > kMostScale) throw Corrupt("scale of differences out of range");
        scale = int(last);
    }
    return scales;
}

// ---- encoding --------------------------------------------------------------------------------------------------

struct Symbols {
    int chunk_log = kChunkLog;
    std::vector<uint32_t> sizes;   // of the chunks
    std::vector<int> scales;
    std::vector<Counts> counts;    // of the tokens in each context
    size_t n_raw = 0;              // bytes
    bool any = false;
};

template <class U>
NZ_CLONES void put_raw(const U *z, const uint8_t *rests, size_t n, FastBits &out) {
    FastBits bits = out;
    size_t i = 0;
    if constexpr (sizeof(U) == 2 || sizeof(U) == 4) {
        // As many as 64 bits hold at a time, and twice as many where their rests are short: each step waits for the one
        // before it.
        constexpr size_t kTogether = 8 / sizeof(U);
        const auto gather = [&](size_t from, uint64_t &length) {
            uint64_t word, all = 0;
            length = 0;
            std::memcpy(&word, z + from, 8);
            for (size_t k = 0; k < kTogether; ++k) {
                all |= (word & ((uint64_t(1) << rests[from + k]) - 1)) << length;
                length += rests[from + k];
                word >>= 8 * sizeof(U);
            }
            return all;
        };
        for (; i + 2 * kTogether <= n; i += 2 * kTogether) {
            uint64_t length, more;
            const uint64_t first = gather(i, length), second = gather(i + kTogether, more);
            if (length + more <= 56) {
                bits.put_short(first | second << length, length + more);
            } else {
                bits.put_short(first, length);
                bits.put_short(second, more);
            }
        }
    }
    for (; i < n; ++i) bits.put(uint64_t(z[i]) & ((uint64_t(1) << rests[i]) - 1), rests[i]);
    out = bits;
}

template <class U>
NZ_CLONES uint64_t count_changes(const U *x, const U *base, size_t n) {
    uint64_t changes = 0;
    for (size_t i = 0; i < n; ++i) changes += x[i] != base[i];
    return changes;
}

// The smallest chunks in which so many values change on average. Stops counting when it is certain.
template <class U>
int choose_chunk_log(const U *x, const U *base, size_t n) {
    constexpr size_t kStretch = 4096;
    uint64_t n_changes = 0;
    for (size_t at = 0; at < n; at += kStretch) {
        n_changes += count_changes(x + at, base + at, std::min(kStretch, n - at));
        if (n_changes << kChunkLog >= kChangesPerChunk * n) return kChunkLog;
    }
    int log = kChunkLog;
    while (log < kMostChunkLog && n_changes << log < kChangesPerChunk * n) ++log;
    return log;
}

// Fills `tokens` and `contexts` for the values of all chunks that changed, and `raw` with the bits behind the tokens.
template <class U>
Symbols split(const U *x, const U *base, ValueKind kind, const Parts &parts, uint8_t *tokens, uint8_t *contexts,
              uint8_t *raw) {
    Symbols symbols;
    size_t n_values = 0;
    for (uint64_t part : parts) n_values += size_t(part);
    symbols.chunk_log = choose_chunk_log(x, base, n_values);
    symbols.sizes = chunk_sizes(parts, symbols.chunk_log);
    symbols.counts.assign(kContexts, Counts{});
    const int one = middle(kind, 8 * int(sizeof(U)));
    FastBits bits(raw);
    static thread_local Scratch<U> difference_scratch;
    static thread_local Scratch<uint16_t> exponent_scratch;
    static thread_local Scratch<uint8_t> rest_scratch;
    const size_t chunk = size_t(1) << symbols.chunk_log;
    U *const z = difference_scratch.get(chunk);
    uint16_t *const exponents_ = exponent_scratch.get(chunk);
    uint8_t *const rests = rest_scratch.get(chunk);
    int last = 0;
    for (const uint32_t n : symbols.sizes) {
        int scale = kUnchanged;
        if (const U any = differences(x, base, n, kind.floats, z)) {
            exponents(base, n, kind, exponents_);
            scale = scale_of(z, exponents_, n, one);
            // A neighbouring scale is as good, and to stay costs less.
            if (symbols.any && std::abs(scale - last) <= 1) scale = last;
            last = scale;
            symbols.any = true;
            contexts_of(exponents_, n, scale, contexts);
            tokens_of(z, n, tokens, rests);
            for (size_t i = 0; i < n; ++i) ++symbols.counts[contexts[i]][tokens[i]];
            if (any >= Split<U>::direct) put_raw(z, rests, n, bits);
        }
        symbols.scales.push_back(scale);
        x += n;
        base += n;
        tokens += n;
        contexts += n;
    }
    symbols.n_raw = bits.finish();
    return symbols;
}

uint64_t entropy_bytes(const std::vector<Counts> &tables) {
    uint64_t cost = 0;
    for (const Counts &counts : tables) cost += table_cost(counts);
    return (cost >> kFraction) / 8;
}

void write_head(const Symbols &symbols, const Grouping &grouping, const std::vector<Freqs> &freqs, int scale,
                int lanes, Bytes &out) {
    out.push_back(symbols.chunk_log == kChunkLog ? kCoded : kCodedInChunks);
    if (symbols.chunk_log != kChunkLog) out.push_back(uint8_t(symbols.chunk_log));
    out.push_back(uint8_t(scale | (lanes == kManyLanes ? kManyLanesFlag : 0)));
    BitWriter bits(out);
    OpenTables{grouping.last, freqs}.write(bits);
    write_scales(bits, symbols.scales);
    bits.finish();
}

void encode_words(const Symbols &symbols, const Grouping &grouping, const std::vector<Freqs> &freqs, int scale,
                  int lanes, const uint8_t *tokens, uint8_t *contexts, size_t n, Bytes &out) {
    EncodeTables tables(scale);
    for (const Freqs &f : freqs) tables.add(f);
    const Numbers numbers(grouping.last);
    static thread_local Scratch<uint16_t> scratch;
    uint16_t *const end = scratch.get(n + kWordsBefore) + n + kWordsBefore, *words = end;
    uint32_t states[kManyLanes];
    std::fill(states, states + lanes, kLow);
    size_t at = n;
    for (size_t c = symbols.sizes.size(); c-- > 0;) {
        at -= symbols.sizes[c];
        if (symbols.scales[c] == kUnchanged) continue;
        numbers.replace(contexts + at, symbols.sizes[c]);
        words = tables.encode_run(contexts + at, 0, symbols.sizes[c], lanes, states, tokens + at, words);
    }
    const size_t n_bytes = size_t(end - words) * 2, n_states = sizeof(uint32_t) * size_t(lanes);
    const auto *s = reinterpret_cast<const uint8_t *>(states), *w = reinterpret_cast<const uint8_t *>(words);
    out.insert(out.end(), s, s + n_states);
    put_varint(out, n_bytes);
    out.insert(out.end(), w, w + n_bytes);
}

}  // namespace

template <class U>
void encode_contexts(const U *x, const U *base, size_t n, ValueKind kind, const Parts &parts, Bytes &out) {
    static thread_local Scratch<uint8_t> token_scratch, context_scratch, raw_scratch;
    uint8_t *const tokens = token_scratch.get(n + 1), *const raw = raw_scratch.get(n * sizeof(U) + 16);
    uint8_t *const contexts = context_scratch.get(n + 1);
    const Symbols symbols = split(x, base, kind, parts, tokens, contexts, raw);
    if (!symbols.any) return out.push_back(kEqual);
    const size_t begin = out.size();
    const Grouping grouping = join_contexts(symbols.counts, kMaxTables);
    const int scale = choose_scale(grouping.tables, n);
    const int lanes = lanes_for(entropy_bytes(grouping.tables));
    std::vector<Freqs> freqs;
    for (const Counts &counts : grouping.tables) freqs.push_back(open_frequencies(counts, scale));
    write_head(symbols, grouping, freqs, scale, lanes, out);
    encode_words(symbols, grouping, freqs, scale, lanes, tokens, contexts, n, out);
    out.insert(out.end(), raw, raw + symbols.n_raw);
    if (out.size() - begin <= n * sizeof(U)) return;
    out.resize(begin);
    out.push_back(kStored);
    const auto *bytes = reinterpret_cast<const uint8_t *>(x);
    out.insert(out.end(), bytes, bytes + n * sizeof(U));
}

// ---- decoding --------------------------------------------------------------------------------------------------

namespace {

template <class U>
void check_tokens(const Freqs &freqs) {
    for (size_t t = Split<U>::tokens; t < kAlphabet; ++t)
        if (freqs[t]) throw Corrupt("symbol too large for its type");
}

template <class U>
NZ_CLONES uint64_t join_all(const uint8_t *tokens, size_t n, const Joined<U> &joined, const uint8_t *raw, uint64_t at,
                            U *z) {
    // Several numbers' bits from one word: up to 57 are left behind the first one's place in its byte.
    constexpr size_t kTogether = sizeof(U) == 8 ? 1 : sizeof(U) == 4 ? 2 : 4;
    size_t i = 0;
    if constexpr (sizeof(U) < 8)
        for (; i + kTogether <= n; i += kTogether) {
            uint64_t v;
            std::memcpy(&v, raw + (at >> 3), 8);
            v >>= at & 7;
            for (size_t k = 0; k < kTogether; ++k) {
                const auto e = joined.of[tokens[i + k]];
                z[i + k] = U(e.start | (v & ((uint64_t(1) << e.rest) - 1)));
                v >>= e.rest;
                at += e.rest;
            }
        }
    for (; i < n; ++i) {
        const auto e = joined.of[tokens[i]];
        z[i] = U(e.start | bits_at(raw, at, int(e.rest)));
        at += e.rest;
    }
    return at;
}

// How many tokens have no raw bits; the largest token.
template <class U>
NZ_CLONES uint8_t widen(const uint8_t *tokens, size_t n, U *z) {
    uint8_t most = 0;
    for (size_t i = 0; i < n; ++i) {
        z[i] = tokens[i];
        most = tokens[i] > most ? tokens[i] : most;
    }
    return most;
}

template <class U>
void join(const uint8_t *tokens, size_t n, const Joined<U> &joined, RawBits &raw, U *z) {
    for (size_t i = 0; i < n; i += kStride) {
        const size_t size = std::min(kStride, n - i);
        if (widen(tokens + i, size, z + i) < Split<U>::direct) continue;
        raw.provide();
        raw.at = join_all(tokens + i, size, joined, raw.data, raw.at, z + i);
        if (raw.at > raw.end) throw Corrupt("bit stream ends early");
    }
}

template <class U>
struct ContextDecoder {
    int scale, lanes;
    OpenTables tables;
    std::vector<int> scales;

    // Returns the bytes after the header.
    View read_head(View in, size_t n_chunks) {
        const int first = in.take(1).data[0];
        scale = first & ~kManyLanesFlag;
        lanes = first & kManyLanesFlag ? kManyLanes : kFewLanes;
        if (scale < kMinScale || scale > kMaxScale) throw Corrupt("scale out of range");
        in = in.drop(1);
        BitReader bits(in);
        tables = OpenTables::read(bits, scale, kContexts);
        for (const Freqs &f : tables.freqs) check_tokens<U>(f);
        scales = read_scales(bits, n_chunks);
        return in.drop(bits.finish());
    }
};

}  // namespace

template <class U>
void decode_contexts(View in, const U *base, size_t n, ValueKind kind, const Parts &parts, U *out) {
    const uint8_t mode = in.take(1).data[0];
    in = in.drop(1);
    if (mode == kStored || mode == kEqual) {
        if (in.size != (mode == kStored ? n * sizeof(U) : 0)) throw Corrupt("stored values have another length");
        if (n) std::memcpy(out, mode == kStored ? static_cast<const void *>(in.data) : base, n * sizeof(U));
        return;
    }
    if (mode != kCoded && mode != kCodedInChunks) throw Corrupt("unknown way to code differences");
    int chunk_log = kChunkLog;
    if (mode == kCodedInChunks) {
        chunk_log = in.take(1).data[0];
        in = in.drop(1);
        if (chunk_log <= kChunkLog || chunk_log > kMostChunkLog) throw Corrupt("chunk size out of range");
    }
    const std::vector<uint32_t> sizes = chunk_sizes(parts, chunk_log);
    ContextDecoder<U> head;
    in = head.read_head(in, sizes.size());
    const int lanes = head.lanes;
    DecodeTables tables(head.scale);
    for (const Freqs &f : head.tables.freqs) tables.add(f);
    const Numbers numbers(head.tables.last);

    uint32_t states[kManyLanes];
    std::memcpy(states, in.take(4 * size_t(lanes)).data, 4 * size_t(lanes));
    in = in.drop(4 * size_t(lanes));
    for (int lane = 0; lane < lanes; ++lane)
        if (states[lane] < kLow) throw Corrupt("state out of range");
    const uint64_t n_words = get_varint(in);
    if (n_words > in.size) throw Corrupt("stream ends early");
    static thread_local Scratch<uint8_t> word_scratch;
    const size_t n_raw = in.size - size_t(n_words);  // raw bits follow the words
    const uint8_t *at = n_raw < kWordPadding ? padded(in, kWordPadding, word_scratch) : in.data, *const end = at + n_words;
    RawBits raw{end, 0, 8 * uint64_t(n_raw)};

    const Joined<U> joined;
    const size_t chunk = size_t(1) << chunk_log;
    static thread_local Scratch<U> difference_scratch;
    static thread_local Scratch<uint16_t> exponent_scratch;
    static thread_local Scratch<uint8_t> context_scratch, token_scratch;
    U *const z = difference_scratch.get(chunk);
    uint16_t *const exponents_ = exponent_scratch.get(chunk);
    uint8_t *const contexts = context_scratch.get(chunk), *const tokens = token_scratch.get(chunk);
    for (size_t c = 0; c < sizes.size(); ++c) {
        const size_t size = sizes[c];
        if (head.scales[c] == kUnchanged) {
            std::memcpy(out, base, size * sizeof(U));
        } else {
            exponents(base, size, kind, exponents_);
            contexts_of(exponents_, size, head.scales[c], contexts);
            numbers.replace(contexts, size);
            at = tables.decode_run(contexts, 0, size, lanes, states, at, end, tokens);
            if (at > end) throw Corrupt("token stream ends early");
            join(tokens, size, joined, raw, z);
            undo_differences(z, base, size, kind.floats, out);
        }
        base += size;
        out += size;
    }
    if (at != end) throw Corrupt("token stream is too long");
    for (int lane = 0; lane < lanes; ++lane)
        if (states[lane] != kLow) throw Corrupt("token stream does not close");
    raw.finish();
}

#define NZ_CONTEXTS(U)                                                                                   \
    template void encode_contexts<U>(const U *, const U *, size_t, ValueKind, const Parts &, Bytes &);   \
    template void decode_contexts<U>(View, const U *, size_t, ValueKind, const Parts &, U *);
NZ_CONTEXTS(uint8_t)
NZ_CONTEXTS(uint16_t)
NZ_CONTEXTS(uint32_t)
NZ_CONTEXTS(uint64_t)
#undef NZ_CONTEXTS

}  // namespace nearzip
