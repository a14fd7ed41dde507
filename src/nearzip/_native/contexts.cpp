#include "contexts.hpp"

#include <algorithm>
#include <cmath>

#include "lanes.hpp"
#include "ordered.hpp"

namespace nearzip {
namespace {

enum Mode : uint8_t { kStored = 0, kEqual = 1, kCoded = 2 };

// Within a network's layer the sizes of updates differ from place to place: 512 values saved 1 % on the shared VGG
// trace against 4 194 304, and lost 0.1 % on the transformer's, where they do not.
constexpr int kChunkLog = 9;
constexpr size_t kChunk = size_t(1) << kChunkLog;
// Contexts are half octaves of an update's typical size over the spacing of values around the base's.
constexpr int kContexts = 128, kLowest = -16;
constexpr size_t kMaxTables = 64;
constexpr int kMostScale = 1 << 14;
constexpr int kManyLanesFlag = 32;
constexpr uint64_t kManyLanesFrom = 16 << 10;

// ---- differences as tokens -------------------------------------------------------------------------------------

// Tokens of a number: itself below 2^(lead + 1), else its length and the `lead` bits behind its leading one.
template <class U>
struct Split {
    static constexpr int width = 8 * int(sizeof(U));
    static constexpr int lead = width == 8 ? 7 : width == 16 ? 4 : width == 32 ? 3 : 2;
    static constexpr unsigned direct = 1u << (lead + 1);
    static constexpr unsigned tokens = direct + (unsigned(width - lead - 1) << lead);

    static NZ_INLINE unsigned token(U z, int &rest) {
        if (z < direct) {
            rest = 0;
            return unsigned(z);
        }
        rest = bit_length(z) - 1 - lead;
        return direct + (unsigned(rest - 1) << lead) + (unsigned(z >> rest) & ((1u << lead) - 1));
    }
};

template <class U>
struct Joined {
    U start[kAlphabet];
    uint8_t rest[kAlphabet];
    Joined() : start(), rest() {
        using S = Split<U>;
        for (unsigned t = 0; t < S::tokens; ++t) {
            const unsigned above = t - S::direct;
            rest[t] = t < S::direct ? 0 : uint8_t((above >> S::lead) + 1);
            start[t] = t < S::direct ? U(t) : U(U((1u << S::lead) + (above & ((1u << S::lead) - 1))) << rest[t]);
        }
    }
};

// Bits of any number, least significant first, into memory that is large enough.
class FastBits {
public:
    explicit FastBits(uint8_t *out) : begin_(out), at_(out) {}
    NZ_INLINE void put(uint64_t v, int bits) {
        if (bits <= 56) return put_short(v, bits);
        put_short(v & 0xffffffff, 32);
        put_short(v >> 32, bits - 32);
    }
    size_t finish() { return size_t(at_ - begin_) + (used_ > 0); }

private:
    NZ_INLINE void put_short(uint64_t v, int bits) {
        acc_ |= v << used_;
        used_ += bits;
        std::memcpy(at_, &acc_, 8);
        at_ += used_ >> 3;
        acc_ >>= used_ & ~7;
        used_ &= 7;
    }
    uint8_t *begin_, *at_;
    uint64_t acc_ = 0;
    int used_ = 0;
};

class FastReader {
public:
    // `data` must be followed by 16 readable bytes.
    FastReader(const uint8_t *data, size_t size) : data_(data), left_(uint64_t(size) * 8) {}
    void need(uint64_t bits) {
        if (bits > left_) throw Corrupt("bit stream ends early");
        left_ -= bits;
    }
    NZ_INLINE uint64_t get(int bits) {
        if (bits <= 56) return get_short(bits);
        const uint64_t low = get_short(32);
        return low | get_short(bits - 32) << 32;
    }
    void finish() {
        if (left_ > 7) throw Corrupt("raw bits are too long");
        if (left_ && get(int(left_))) throw Corrupt("padding is not zero");
    }

private:
    NZ_INLINE uint64_t get_short(int bits) {
        uint64_t v;
        std::memcpy(&v, data_ + (at_ >> 3), 8);
        v = (v >> (at_ & 7)) & ((uint64_t(1) << bits) - 1);
        at_ += unsigned(bits);
        return v;
    }
    const uint8_t *data_;
    uint64_t left_, at_ = 0;
};

// ---- contexts --------------------------------------------------------------------------------------------------

template <class U>
NZ_INLINE unsigned exponent(U base, ValueKind kind) {
    constexpr U sign = U(U(1) << (8 * sizeof(U) - 1));
    return unsigned(U(kind.floats ? U(base & U(~sign)) : base) >> kind.mantissa_bits);
}

template <class U>
NZ_CLONES void exponents(const U *base, size_t n, ValueKind kind, uint16_t *out) {
    if (kind.mantissa_bits >= 8 * int(sizeof(U)))
        std::fill(out, out + n, uint16_t(0));
    else
        for (size_t i = 0; i < n; ++i) out[i] = uint16_t(exponent(base[i], kind));
}

NZ_INLINE int context(int scale, int exponent) {
    return std::min(std::max(scale - 2 * exponent - kLowest, 0), kContexts - 1);
}

// offsets[i] = of[context of value i].
NZ_CLONES void place(const uint16_t *exponents, size_t n, int scale, const uint32_t *of, uint32_t *offsets) {
    for (size_t i = 0; i < n; ++i) offsets[i] = of[context(scale, int(exponents[i]))];
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

// 2^e, so that a difference times it is in the same unit whatever the base's exponent.
struct Units {
    double of[2048];
    explicit Units(ValueKind kind, int width) {
        const int half = 1 << std::max(0, width - kind.mantissa_bits - 2);
        for (int e = 0; e < 2048; ++e) of[e] = std::ldexp(1.0, std::clamp(e - half, -500, 500));
        bias = half;
    }
    int bias;
};

// Twice the binary logarithm of the mean difference, rounded down, in the units of exponents.
template <class U>
int scale_of(const U *z, const uint16_t *exponents, size_t n, const Units &units) {
    double sums[4] = {};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; ++k)
            sums[k] += double((uint64_t(z[i + k]) + 1) >> 1) * units.of[exponents[i + k]];
    for (; i < n; ++i) sums[0] += double((uint64_t(z[i]) + 1) >> 1) * units.of[exponents[i]];
    const double mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / double(n);
    int whole;
    const double fraction = std::frexp(mean, &whole);
    return 2 * (whole - 1 + units.bias) + (fraction >= 0.70710678118654752);
}

// ---- which contexts share a table ------------------------------------------------------------------------------

uint64_t table_cost(const Counts &counts) {
    const uint64_t all = log2_fixed(std::max<uint64_t>(1, total_of(counts)));
    uint64_t cost = uint64_t(12) << kFraction;
    for (uint32_t c : counts)
        if (c) cost += c * (all - log2_fixed(c)) + (uint64_t(8) << kFraction);
    return cost;
}

Counts sum(const Counts &a, const Counts &b) {
    Counts both;
    for (size_t t = 0; t < kAlphabet; ++t) both[t] = a[t] + b[t];
    return both;
}

struct Group {
    Counts counts;
    uint64_t cost;
    int last;       // its last context
    int64_t gain;   // of joining it with the next
};

struct Grouping {
    std::vector<Counts> tables;
    std::vector<int> last;  // context of each table; the last one's is kContexts - 1
};

// Neighbours are joined as long as that saves bits, the best pair first.
Grouping join_contexts(const std::vector<Counts> &contexts) {
    std::vector<Group> groups;
    for (int c = 0; c < kContexts; ++c)
        if (total_of(contexts[size_t(c)]))
            groups.push_back({contexts[size_t(c)], table_cost(contexts[size_t(c)]), c, 0});
    const auto weigh = [&](size_t i) {
        if (i + 1 < groups.size())
            groups[i].gain = int64_t(groups[i].cost + groups[i + 1].cost) -
                             int64_t(table_cost(sum(groups[i].counts, groups[i + 1].counts)));
    };
    for (size_t i = 0; i < groups.size(); ++i) weigh(i);
    while (groups.size() > 1) {
        const auto best = std::max_element(groups.begin(), groups.end() - 1,
                                           [](const Group &a, const Group &b) { return a.gain < b.gain; });
        if (best->gain <= 0 && groups.size() <= kMaxTables) break;
        const size_t i = size_t(best - groups.begin());
        groups[i].counts = sum(groups[i].counts, groups[i + 1].counts);
        groups[i].cost = table_cost(groups[i].counts);
        groups[i].last = groups[i + 1].last;
        groups.erase(groups.begin() + ptrdiff_t(i) + 1);
        weigh(i);
        if (i) weigh(i - 1);
    }
    Grouping grouping;
    for (const Group &group : groups) {
        grouping.tables.push_back(group.counts);
        grouping.last.push_back(group.last);
    }
    grouping.last.back() = kContexts - 1;
    return grouping;
}

// A table that is certain of its token leaves one slot to another: decoding slots cannot say 2^scale.
Freqs open_frequencies(const Counts &counts, int scale) {
    Freqs freqs = normalise(counts, scale);
    if (is_constant(freqs, scale)) {
        const size_t only = only_token(freqs);
        --freqs[only];
        ++freqs[only == 0];
    }
    return freqs;
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
    std::vector<uint32_t> sizes;   // of the chunks
    std::vector<int> scales;
    std::vector<Counts> contexts;  // how often each token comes in each context
    size_t n_raw = 0;              // bytes
    bool any = false;
};

// Fills `tokens` and `exponents` for every value and `raw` with the bits behind the tokens.
template <class U>
Symbols split(const U *x, const U *base, ValueKind kind, const Parts &parts, uint8_t *tokens, uint16_t *exponents_,
              uint8_t *raw) {
    Symbols symbols;
    symbols.sizes = chunk_sizes(parts, kChunkLog);
    symbols.contexts.assign(kContexts, Counts{});
    const Units units(kind, 8 * int(sizeof(U)));
    FastBits bits(raw);
    U z[kChunk];
    int last = 0;
    bool first = true;
    for (const uint32_t n : symbols.sizes) {
        if (!differences(x, base, n, kind.floats, z)) {
            symbols.scales.push_back(kUnchanged);
        } else {
            exponents(base, n, kind, exponents_);
            const int scale = scale_of(z, exponents_, n, units);
            // A neighbouring scale is as good, and to stay costs less.
            if (first || std::abs(scale - last) > 1) last = scale;
            first = false;
            symbols.scales.push_back(last);
            for (size_t i = 0; i < n; ++i) {
                int rest;
                const unsigned token = Split<U>::token(z[i], rest);
                tokens[i] = uint8_t(token);
                if (rest) bits.put(uint64_t(z[i]) & ((uint64_t(1) << rest) - 1), rest);
                ++symbols.contexts[size_t(context(last, exponents_[i]))][token];
            }
            symbols.any = true;
        }
        x += n;
        base += n;
        tokens += n;
        exponents_ += n;
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
    out.push_back(uint8_t(scale | (lanes == kManyLanes ? kManyLanesFlag : 0)));
    BitWriter bits(out);
    bits.put(freqs.size() - 1, 6);
    int from = 0;
    for (size_t k = 0; k + 1 < freqs.size(); ++k) {
        bits.put_golomb(uint64_t(grouping.last[k] - from));
        from = grouping.last[k] + 1;
    }
    for (const Freqs &f : freqs) write_table(bits, f);
    write_scales(bits, symbols.scales);
    bits.finish();
}

struct Tables {
    uint32_t of[kContexts];  // where the table of each context begins
};

Tables places(const std::vector<int> &last, size_t stride) {
    Tables tables;
    int c = 0;
    for (size_t k = 0; k < last.size(); ++k)
        for (; c <= last[k]; ++c) tables.of[c] = uint32_t(k * stride);
    return tables;
}

void encode_words(const Symbols &symbols, const Grouping &grouping, const std::vector<Freqs> &freqs, int scale,
                  int lanes, const uint8_t *tokens, const uint16_t *exponents_, size_t n, Bytes &out) {
    std::vector<EncodeEntry> tables;
    for (const Freqs &f : freqs) add_encode_table(tables, f, scale);
    const Tables where = places(grouping.last, kAlphabet);
    static thread_local Scratch<uint16_t> scratch;
    uint16_t *const end = scratch.get(n + 1) + n + 1, *words = end;
    uint32_t states[kManyLanes], offsets[kChunk];
    std::fill(states, states + lanes, kLow);
    size_t at = n;
    for (size_t c = symbols.sizes.size(); c-- > 0;) {
        at -= symbols.sizes[c];
        if (symbols.scales[c] == kUnchanged) continue;
        place(exponents_ + at, symbols.sizes[c], symbols.scales[c], where.of, offsets);
        words = encode_run(tokens + at, offsets, symbols.sizes[c], tables.data(), scale, lanes, states, words);
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
    static thread_local Scratch<uint8_t> token_scratch, raw_scratch;
    static thread_local Scratch<uint16_t> exponent_scratch;
    uint8_t *const tokens = token_scratch.get(n + 1), *const raw = raw_scratch.get(n * sizeof(U) + 16);
    uint16_t *const exponents_ = exponent_scratch.get(n + 1);
    const Symbols symbols = split(x, base, kind, parts, tokens, exponents_, raw);
    if (!symbols.any) return out.push_back(kEqual);
    const size_t begin = out.size();
    const Grouping grouping = join_contexts(symbols.contexts);
    const int scale = choose_scale(grouping.tables, n);
    const int lanes = entropy_bytes(grouping.tables) >= kManyLanesFrom ? kManyLanes : kFewLanes;
    std::vector<Freqs> freqs;
    for (const Counts &counts : grouping.tables) freqs.push_back(open_frequencies(counts, scale));
    out.push_back(kCoded);
    write_head(symbols, grouping, freqs, scale, lanes, out);
    encode_words(symbols, grouping, freqs, scale, lanes, tokens, exponents_, n, out);
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
void check_tokens(const Freqs &freqs, int scale) {
    for (size_t t = Split<U>::tokens; t < kAlphabet; ++t)
        if (freqs[t]) throw Corrupt("symbol too large for its type");
    if (is_constant(freqs, scale)) throw Corrupt("a frequency table is not open");
}

template <class U>
void join(const uint8_t *tokens, size_t n, const Joined<U> &joined, FastReader &raw, U *z) {
    uint64_t bits = 0;
    for (size_t i = 0; i < n; ++i) bits += joined.rest[tokens[i]];
    raw.need(bits);
    if (bits)
        for (size_t i = 0; i < n; ++i) z[i] = U(joined.start[tokens[i]] | raw.get(joined.rest[tokens[i]]));
    else
        for (size_t i = 0; i < n; ++i) z[i] = U(tokens[i]);
}

template <class U>
struct ContextDecoder {
    int scale, lanes;
    std::vector<int> last, scales;
    std::vector<Freqs> freqs;

    // Returns what stands behind the head.
    View read_head(View in, size_t n_chunks) {
        const int first = in.take(1).data[0];
        scale = first & ~kManyLanesFlag;
        lanes = first & kManyLanesFlag ? kManyLanes : kFewLanes;
        if (scale < kMinScale || scale > kMaxScale) throw Corrupt("scale out of range");
        in = in.drop(1);
        BitReader bits(in);
        const size_t n_tables = size_t(bits.get(6)) + 1;
        uint64_t from = 0;
        for (size_t k = 0; k + 1 < n_tables; ++k) {
            from += bits.get_golomb() + 1;
            if (from >= uint64_t(kContexts)) throw Corrupt("contexts out of range");
            last.push_back(int(from) - 1);
        }
        last.push_back(kContexts - 1);
        for (size_t k = 0; k < n_tables; ++k) {
            freqs.push_back(read_table(bits, scale));
            check_tokens<U>(freqs.back(), scale);
        }
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
    if (mode != kCoded) throw Corrupt("unknown way to code differences");
    const std::vector<uint32_t> sizes = chunk_sizes(parts, kChunkLog);
    ContextDecoder<U> head;
    in = head.read_head(in, sizes.size());
    const int lanes = head.lanes;
    DecodeTables tables(head.scale);
    for (const Freqs &f : head.freqs) tables.add(f);
    const Tables where = places(head.last, size_t(1) << head.scale);

    uint32_t states[kManyLanes];
    std::memcpy(states, in.take(4 * size_t(lanes)).data, 4 * size_t(lanes));
    in = in.drop(4 * size_t(lanes));
    for (int lane = 0; lane < lanes; ++lane)
        if (states[lane] < kLow) throw Corrupt("state out of range");
    const uint64_t n_words = get_varint(in);
    if (n_words > in.size) throw Corrupt("stream ends early");
    Bytes words(in.size + kWordPadding, 0);  // with the raw bits behind them
    if (in.size) std::memcpy(words.data(), in.data, in.size);
    const uint8_t *at = words.data(), *const end = words.data() + n_words;
    FastReader raw(end, in.size - size_t(n_words));

    const Joined<U> joined;
    uint16_t exponents_[kChunk];
    uint32_t offsets[kChunk];
    uint8_t tokens[kChunk];
    U z[kChunk];
    for (size_t c = 0; c < sizes.size(); ++c) {
        const size_t size = sizes[c];
        if (head.scales[c] == kUnchanged) {
            std::memcpy(out, base, size * sizeof(U));
        } else {
            exponents(base, size, kind, exponents_);
            place(exponents_, size, head.scales[c], where.of, offsets);
            at = tables.decode_run(offsets, 0, size, lanes, states, at, end, tokens);
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
