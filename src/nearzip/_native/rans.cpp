#include "rans.hpp"

#include <algorithm>
#include <array>

namespace nearzip {
namespace {

// Eight interleaved states hide the latency of the multiplier and of the table look-up; 16 and 32 measured 10 % slower.
constexpr int kLanes = 8;
constexpr uint32_t kLow = 1u << 16;  // states live in [2^16, 2^32), words of 16 bits go in and out
constexpr int kMinScale = 8, kMaxScale = 16;
constexpr int kMinChunkLog = 6, kMaxChunkLog = 24;
// 2 048 values a chunk: on the shared VGG trace 8 192 cost 1 % more bits, with 16 tables either way.
constexpr int kChunkLog = 11;
constexpr size_t kMaxTables = 16;
constexpr size_t kAlphabet = 256;
constexpr int kFraction = 16;  // costs are bits in units of 2^-16

using Counts = std::array<uint32_t, kAlphabet>;
using Freqs = std::array<uint32_t, kAlphabet>;

// ---- integer logarithm: encoders on every machine make the same choices --------------------------------------

struct LogTable {
    uint32_t entry[1025];
    LogTable() {
        for (int i = 0; i <= 1024; ++i) {
            uint64_t x = (uint64_t(1024 + i) << 21);  // mantissa in [1, 2] as 1.31 fixed point
            uint32_t bits = 0;
            if (i == 1024) {
                entry[i] = 1u << kFraction;
                break;
            }
            for (int b = 0; b < kFraction; ++b) {
                x = (x * x) >> 31;
                bits <<= 1;
                if (x >= (uint64_t(1) << 32)) bits |= 1, x >>= 1;
            }
            entry[i] = bits;
        }
    }
};

// log2(v) for v >= 1, in units of 2^-16 bits.
uint64_t log2_fixed(uint64_t v) {
    static const LogTable table;
    int whole = bit_length(v) - 1;
    uint64_t mantissa = (v << (63 - whole)) << 1;  // the bits behind the leading one, at the top
    uint32_t index = uint32_t(mantissa >> 54);
    uint64_t rest = (mantissa >> 38) & 0xffff;
    uint64_t low = table.entry[index], high = table.entry[index + 1];
    return (uint64_t(whole) << kFraction) + low + (((high - low) * rest) >> 16);
}

uint64_t total_of(const Counts &counts) {
    uint64_t n = 0;
    for (uint32_t c : counts) n += c;
    return n;
}

// Integer frequencies that sum to 2^scale, at least 1 for every token that occurs.
Freqs normalise(const Counts &counts, int scale) {
    const uint64_t n = total_of(counts), whole = uint64_t(1) << scale;
    Freqs freqs{};
    if (!n) {
        freqs[0] = uint32_t(whole);
        return freqs;
    }
    int64_t excess = -int64_t(whole);
    for (size_t t = 0; t < kAlphabet; ++t) {
        if (!counts[t]) continue;
        freqs[t] = uint32_t(std::max<uint64_t>(1, (counts[t] * whole + n / 2) / n));
        excess += freqs[t];
    }
    const auto largest = size_t(std::max_element(freqs.begin(), freqs.end()) - freqs.begin());
    if (excess < 0) freqs[largest] += uint32_t(-excess);
    // Take from where a unit costs least: the count over the frequency is smallest.
    while (excess > 0) {
        size_t best = kAlphabet;
        for (size_t t = 0; t < kAlphabet; ++t) {
            if (freqs[t] < 2) continue;
            if (best == kAlphabet ||
                uint64_t(counts[t]) * (freqs[best] - 1) < uint64_t(counts[best]) * (freqs[t] - 1))
                best = t;
        }
        --freqs[best];
        --excess;
    }
    return freqs;
}

uint64_t coding_cost(const Counts &counts, const Freqs &freqs, int scale) {
    uint64_t cost = 0;
    for (size_t t = 0; t < kAlphabet; ++t)
        if (counts[t]) cost += counts[t] * ((uint64_t(scale) << kFraction) - log2_fixed(freqs[t]));
    return cost;
}

// ---- frequency tables as bits ----------------------------------------------------------------------------------

// The frequency of token 0 is what the others leave of 2^scale.
void write_table(BitWriter &bits, const Freqs &freqs) {
    size_t last = kAlphabet - 1;
    while (last > 0 && !freqs[last]) --last;
    bits.put(last, 8);
    for (size_t t = 1; t <= last;) {
        bits.put_golomb(freqs[t]);
        if (freqs[t++]) continue;
        size_t run = 0;
        while (!freqs[t + run]) ++run;  // ends at `last`
        bits.put_golomb(run);
        t += run;
    }
}

Freqs read_table(BitReader &bits, int scale) {
    Freqs freqs{};
    const uint64_t whole = uint64_t(1) << scale;
    const size_t last = size_t(bits.get(8));
    uint64_t sum = 0;
    for (size_t t = 1; t <= last;) {
        const uint64_t f = bits.get_golomb();
        sum += f;
        if (sum > whole) throw Corrupt("frequencies exceed their total");
        freqs[t++] = uint32_t(f);
        if (f) continue;
        const uint64_t run = bits.get_golomb();
        if (t + run > last) throw Corrupt("frequency table overruns");
        t += size_t(run);
    }
    if (last && !freqs[last]) throw Corrupt("frequency table is not canonical");
    freqs[0] = uint32_t(whole - sum);
    return freqs;
}

uint64_t table_bits(const Freqs &freqs) {
    Bytes scratch;
    BitWriter bits(scratch);
    write_table(bits, freqs);
    bits.finish();
    return scratch.size() * 8;
}

// ---- chunks and the choice of tables ---------------------------------------------------------------------------

std::vector<uint32_t> chunk_sizes(const Parts &parts, int chunk_log) {
    const uint64_t size = uint64_t(1) << chunk_log;
    std::vector<uint32_t> sizes;
    for (uint64_t part : parts)
        for (uint64_t left = part; left;) {
            const uint64_t n = std::min(left, size);
            sizes.push_back(uint32_t(n));
            left -= n;
        }
    return sizes;
}

struct ChunkCounts {
    std::vector<std::pair<uint8_t, uint32_t>> items;  // token and how often, all chunks one after the other
    std::vector<size_t> begin;                        // one more than there are chunks
};

NZ_CLONES
void count_chunk(const uint8_t *tokens, size_t n, uint32_t (*lanes)[kAlphabet]) {
    // Four histograms: equal neighbours would otherwise wait for each other's store.
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        ++lanes[0][tokens[i]];
        ++lanes[1][tokens[i + 1]];
        ++lanes[2][tokens[i + 2]];
        ++lanes[3][tokens[i + 3]];
    }
    for (; i < n; ++i) ++lanes[0][tokens[i]];
}

ChunkCounts count_chunks(const uint8_t *tokens, const std::vector<uint32_t> &sizes, size_t alphabet) {
    ChunkCounts counts;
    counts.begin.reserve(sizes.size() + 1);
    counts.begin.push_back(0);
    uint32_t lanes[4][kAlphabet];
    for (uint32_t n : sizes) {
        for (auto &lane : lanes) std::fill(lane, lane + alphabet, 0u);
        count_chunk(tokens, n, lanes);
        tokens += n;
        for (size_t t = 0; t < alphabet; ++t) {
            const uint32_t c = lanes[0][t] + lanes[1][t] + lanes[2][t] + lanes[3][t];
            if (c) counts.items.emplace_back(uint8_t(t), c);
        }
        counts.begin.push_back(counts.items.size());
    }
    return counts;
}

struct Choice {
    std::vector<Counts> tables;
    std::vector<uint8_t> of_chunk;
    uint64_t cost = 0;  // estimate in units of 2^-16 bits: tokens, table numbers, tables
};

std::vector<Counts> gather(const ChunkCounts &chunks, const std::vector<uint8_t> &of_chunk, size_t n_tables) {
    std::vector<Counts> tables(n_tables, Counts{});
    for (size_t c = 0; c < of_chunk.size(); ++c)
        for (size_t i = chunks.begin[c]; i < chunks.begin[c + 1]; ++i)
            tables[of_chunk[c]][chunks.items[i].first] += chunks.items[i].second;
    return tables;
}

// Price of each token under a table, a little more than nothing for those that it has not seen.
std::array<uint32_t, kAlphabet> prices(const Counts &counts) {
    std::array<uint32_t, kAlphabet> price;
    const uint64_t n = 4 * total_of(counts) + 4;
    const uint64_t all = log2_fixed(n);
    for (size_t t = 0; t < kAlphabet; ++t)
        price[t] = uint32_t(all - log2_fixed(counts[t] ? 4 * uint64_t(counts[t]) : 1));
    return price;
}

uint64_t estimate(const std::vector<Counts> &tables, size_t n_chunks) {
    uint64_t cost = 0;
    for (const Counts &counts : tables) {
        const uint64_t all = log2_fixed(std::max<uint64_t>(1, total_of(counts)));
        for (uint32_t c : counts)
            if (c) cost += c * (all - log2_fixed(c)) + (uint64_t(9) << kFraction);
    }
    if (tables.size() > 1) cost += uint64_t(n_chunks) * (uint64_t(bit_length(tables.size() - 1)) << kFraction);
    return cost;
}

Choice with_tables(const ChunkCounts &chunks, const std::vector<uint32_t> &order, size_t n_tables) {
    const size_t n = order.size();
    Choice choice;
    choice.of_chunk.resize(n);
    for (size_t i = 0; i < n; ++i) choice.of_chunk[order[i]] = uint8_t(i * n_tables / n);
    choice.tables = gather(chunks, choice.of_chunk, n_tables);
    for (int round = 0; n_tables > 1 && round < 3; ++round) {
        std::vector<std::array<uint32_t, kAlphabet>> price;
        for (const Counts &counts : choice.tables) price.push_back(prices(counts));
        for (size_t c = 0; c < n; ++c) {
            uint64_t best = ~uint64_t(0);
            for (size_t k = 0; k < n_tables; ++k) {
                uint64_t cost = 0;
                for (size_t i = chunks.begin[c]; i < chunks.begin[c + 1]; ++i)
                    cost += uint64_t(price[k][chunks.items[i].first]) * chunks.items[i].second;
                if (cost < best) best = cost, choice.of_chunk[c] = uint8_t(k);
            }
        }
        choice.tables = gather(chunks, choice.of_chunk, n_tables);
    }
    // Drop tables that no chunk uses.
    std::vector<uint8_t> renumbered(n_tables, 0);
    std::vector<Counts> used;
    for (size_t k = 0; k < n_tables; ++k) {
        renumbered[k] = uint8_t(used.size());
        if (total_of(choice.tables[k])) used.push_back(choice.tables[k]);
    }
    for (uint8_t &k : choice.of_chunk) k = renumbered[k];
    choice.tables = used.empty() ? std::vector<Counts>(1, Counts{}) : used;
    choice.cost = estimate(choice.tables, n);
    return choice;
}

Choice choose_tables(const ChunkCounts &chunks, const std::vector<uint32_t> &sizes) {
    const size_t n = sizes.size();
    std::vector<uint32_t> order(n);
    std::vector<uint64_t> activity(n);  // mean token, a cheap measure of spread
    for (size_t c = 0; c < n; ++c) {
        order[c] = uint32_t(c);
        for (size_t i = chunks.begin[c]; i < chunks.begin[c + 1]; ++i)
            activity[c] += uint64_t(chunks.items[i].first) * chunks.items[i].second;
        activity[c] = (activity[c] << 16) / sizes[c];
    }
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return activity[a] < activity[b]; });
    Choice best = with_tables(chunks, order, 1);
    for (size_t k : {size_t(2), size_t(4), size_t(8), size_t(16)}) {
        if (k > n) break;
        Choice next = with_tables(chunks, order, k);
        if (next.cost >= best.cost) break;
        best = std::move(next);
    }
    return best;
}

// 12 bits keep a table in the first-level cache; finer ones only where they save 0.2 % (very skewed tokens).
int choose_scale(const std::vector<Counts> &tables, uint64_t n) {
    int best_scale = 12;
    uint64_t best = ~uint64_t(0);
    for (int scale : {12, 10, 14, 16}) {
        if (scale < 12 && n > (1u << 14)) continue;
        uint64_t cost = 0;
        for (const Counts &counts : tables) {
            size_t distinct = 0;
            for (uint32_t c : counts) distinct += c > 0;
            if (distinct > (size_t(1) << (scale - 2))) {
                cost = ~uint64_t(0) >> 1;
                break;
            }
            const Freqs freqs = normalise(counts, scale);
            cost += coding_cost(counts, freqs, scale) + (table_bits(freqs) << kFraction);
        }
        const uint64_t asked = scale > 12 ? cost + cost / 512 : cost;
        if (asked < best) best = cost, best_scale = scale;
    }
    return best_scale;
}

// ---- coding ----------------------------------------------------------------------------------------------------

NZ_INLINE uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
#else
    const uint64_t a0 = uint32_t(a), a1 = a >> 32, b0 = uint32_t(b), b1 = b >> 32;
    const uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
    return a1 * b1 + (middle >> 32) + ((a0 * b1 + uint32_t(middle)) >> 32);
#endif
}

struct EncodeEntry {
    uint64_t reciprocal;  // the state divided by the frequency, as a product
    uint64_t limit;       // states from here on give a word away first
    uint32_t bias, complement;
};

using EncodeTable = std::array<EncodeEntry, kAlphabet>;

EncodeTable encode_table(const Freqs &freqs, int scale) {
    EncodeTable table{};
    const uint32_t whole = 1u << scale;
    uint32_t start = 0;
    for (size_t t = 0; t < kAlphabet; ++t) {
        const uint32_t f = freqs[t];
        if (!f) continue;
        EncodeEntry &e = table[t];
        e.limit = uint64_t(f) << (32 - scale);
        e.complement = whole - f;
        // floor(2^64 / f) + 1 is exact for states below 2^32; for f = 1 the product is one short, and the bias mends it.
        e.reciprocal = f == 1 ? ~uint64_t(0) : ~uint64_t(0) / f + 1;
        e.bias = f == 1 ? start + whole - 1 : start;
        start += f;
    }
    return table;
}

NZ_INLINE void encode_one(uint32_t &state, const EncodeEntry &e, uint16_t *&words) {
    words[-1] = uint16_t(state);
    const uint32_t full = state >= e.limit;
    words -= full;
    const uint32_t x = state >> (16 * full);
    const uint32_t quotient = uint32_t(multiply_high(x, e.reciprocal));
    state = x + e.bias + quotient * e.complement;
}

NZ_CLONES
uint16_t *encode_chunk(const uint8_t *tokens, size_t n, const EncodeEntry *table, uint32_t *states, uint16_t *words) {
    size_t i = n;
    while (i % kLanes) --i, encode_one(states[i % kLanes], table[tokens[i]], words);
    uint32_t x[kLanes];
    std::memcpy(x, states, sizeof x);
    while (i) {
        i -= kLanes;
        for (int lane = kLanes - 1; lane >= 0; --lane) encode_one(x[lane], table[tokens[i + lane]], words);
    }
    std::memcpy(states, x, sizeof x);
    return words;
}

// What a slot of a decoding table holds: the token, its frequency, and the slot's distance from its start. A token that
// is alone in its table needs no slots, so a frequency is below 2^scale.
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

template <class Entry>
NZ_INLINE const uint8_t *decode_chunk(const typename Entry::Type *table, int scale, uint32_t *states,
                                      const uint8_t *words, const uint8_t *end, uint8_t *out, size_t n) {
    uint32_t x[kLanes];
    std::memcpy(x, states, sizeof x);
    size_t i = 0;
    for (; i + kLanes <= n && words <= end; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) out[i + lane] = decode_one<Entry>(x[lane], table, scale, words);
    for (; i < n && words <= end; ++i) out[i] = decode_one<Entry>(x[i % kLanes], table, scale, words);
    std::memcpy(states, x, sizeof x);
    return words;
}

NZ_CLONES
const uint8_t *decode_narrow(const uint32_t *table, int scale, uint32_t *states, const uint8_t *words,
                             const uint8_t *end, uint8_t *out, size_t n) {
    // A constant shift lets the compiler drop the mask from the common case.
    if (scale == 12) return decode_chunk<Narrow>(table, 12, states, words, end, out, n);
    return decode_chunk<Narrow>(table, scale, states, words, end, out, n);
}

NZ_CLONES
const uint8_t *decode_wide(const uint64_t *table, int scale, uint32_t *states, const uint8_t *words,
                           const uint8_t *end, uint8_t *out, size_t n) {
    return decode_chunk<Wide>(table, scale, states, words, end, out, n);
}

template <class Entry>
std::vector<typename Entry::Type> decode_table(const Freqs &freqs, int scale) {
    std::vector<typename Entry::Type> table(size_t(1) << scale);
    size_t slot = 0;
    for (size_t t = 0; t < kAlphabet; ++t)
        for (uint32_t i = 0; i < freqs[t]; ++i) table[slot++] = Entry::make(uint32_t(t), freqs[t], i);
    return table;
}

bool is_constant(const Freqs &freqs, int scale) {
    return *std::max_element(freqs.begin(), freqs.end()) == uint32_t(1) << scale;
}

uint8_t only_token(const Freqs &freqs) {
    return uint8_t(std::max_element(freqs.begin(), freqs.end()) - freqs.begin());
}

void write_table_numbers(BitWriter &bits, const std::vector<uint8_t> &of_chunk, size_t n_tables) {
    if (n_tables < 2) return;
    const int width = bit_length(n_tables - 1);
    int last = -1;
    for (uint8_t k : of_chunk) {
        bits.put(k != last, 1);
        if (k != last) bits.put(k, width);
        last = k;
    }
}

std::vector<uint8_t> read_table_numbers(BitReader &bits, size_t n_chunks, size_t n_tables) {
    std::vector<uint8_t> of_chunk(n_chunks, 0);
    if (n_tables < 2) return of_chunk;
    const int width = bit_length(n_tables - 1);
    int last = -1;
    for (uint8_t &k : of_chunk) {
        if (bits.get(1)) last = int(bits.get(width));
        if (last < 0 || size_t(last) >= n_tables) throw Corrupt("no such frequency table");
        k = uint8_t(last);
    }
    return of_chunk;
}

void store_raw(const uint8_t *tokens, size_t n, Bytes &out) {
    out.push_back(0);
    out.insert(out.end(), tokens, tokens + n);
}

template <class Entry, class Chunk>
void decode_all(const std::vector<Freqs> &freqs, int scale, const std::vector<uint32_t> &sizes,
                const std::vector<uint8_t> &of_chunk, uint32_t *states, const Bytes &words, size_t n_bytes,
                uint8_t *out, Chunk decode) {
    std::vector<std::vector<typename Entry::Type>> tables;
    std::vector<int> constant;
    for (const Freqs &f : freqs) {
        constant.push_back(is_constant(f, scale) ? only_token(f) : -1);
        tables.push_back(constant.back() < 0 ? decode_table<Entry>(f, scale) : std::vector<typename Entry::Type>());
    }
    const uint8_t *at = words.data(), *end = words.data() + n_bytes;
    for (size_t c = 0; c < sizes.size(); ++c) {
        const size_t k = of_chunk[c];
        if (constant[k] >= 0)
            std::memset(out, constant[k], sizes[c]);
        else
            at = decode(tables[k].data(), scale, states, at, end, out, sizes[c]);
        if (at > end) throw Corrupt("token stream ends early");
        out += sizes[c];
    }
    if (at != end) throw Corrupt("token stream is too long");
    for (int lane = 0; lane < kLanes; ++lane)
        if (states[lane] != kLow) throw Corrupt("token stream does not close");
}

}  // namespace

void encode_tokens(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out) {
    const size_t begin = out.size();
    uint8_t top = 0;
    for (size_t i = 0; i < n; ++i) top = std::max(top, tokens[i]);
    const std::vector<uint32_t> sizes = chunk_sizes(parts, kChunkLog);
    const ChunkCounts chunks = count_chunks(tokens, sizes, size_t(top) + 1);
    const Choice choice = choose_tables(chunks, sizes);
    const int scale = choose_scale(choice.tables, n);

    out.push_back(uint8_t(scale));
    out.push_back(uint8_t(kChunkLog));
    put_varint(out, choice.tables.size());
    std::vector<EncodeTable> tables;
    std::vector<bool> constant;
    {
        BitWriter bits(out);
        for (const Counts &counts : choice.tables) {
            const Freqs freqs = normalise(counts, scale);
            write_table(bits, freqs);
            constant.push_back(is_constant(freqs, scale));
            tables.push_back(encode_table(freqs, scale));
        }
        write_table_numbers(bits, choice.of_chunk, tables.size());
        bits.finish();
    }
    if (std::all_of(constant.begin(), constant.end(), [](bool c) { return c; })) return;

    static thread_local Scratch<uint16_t> scratch;
    uint16_t *const end = scratch.get(n + 1) + n + 1, *words = end;
    uint32_t states[kLanes];
    std::fill(states, states + kLanes, kLow);
    size_t at = n;
    for (size_t c = sizes.size(); c-- > 0;) {
        at -= sizes[c];
        const size_t k = choice.of_chunk[c];
        if (!constant[k]) words = encode_chunk(tokens + at, sizes[c], tables[k].data(), states, words);
    }
    const size_t n_bytes = size_t(end - words) * 2, n_states = sizeof states;
    if (out.size() - begin + n_states + n_bytes > n + 1) {
        out.resize(begin);
        return store_raw(tokens, n, out);
    }
    const size_t place = out.size();
    out.resize(place + n_states + n_bytes);
    std::memcpy(out.data() + place, states, n_states);
    if (n_bytes) std::memcpy(out.data() + place + n_states, words, n_bytes);
}

void decode_tokens(View in, uint8_t *out, size_t n, const Parts &parts) {
    const int scale = in.take(1).data[0];
    in = in.drop(1);
    if (scale == 0) {  // stored
        if (in.size != n) throw Corrupt("stored tokens have another length");
        if (n) std::memcpy(out, in.data, n);
        return;
    }
    const int chunk_log = in.take(1).data[0];
    in = in.drop(1);
    if (scale < kMinScale || scale > kMaxScale) throw Corrupt("scale out of range");
    if (chunk_log < kMinChunkLog || chunk_log > kMaxChunkLog) throw Corrupt("chunk size out of range");
    const uint64_t n_tables = get_varint(in);
    if (n_tables < 1 || n_tables > kMaxTables) throw Corrupt("number of tables out of range");

    const std::vector<uint32_t> sizes = chunk_sizes(parts, chunk_log);
    std::vector<Freqs> freqs;
    BitReader bits(in);
    bool all_constant = true;
    for (uint64_t k = 0; k < n_tables; ++k) {
        freqs.push_back(read_table(bits, scale));
        all_constant = all_constant && is_constant(freqs.back(), scale);
    }
    const std::vector<uint8_t> of_chunk = read_table_numbers(bits, sizes.size(), n_tables);
    in = in.drop(bits.finish());

    uint32_t states[kLanes];
    std::fill(states, states + kLanes, kLow);
    if (!all_constant) {
        std::memcpy(states, in.take(sizeof states).data, sizeof states);
        in = in.drop(sizeof states);
        for (uint32_t s : states)
            if (s < kLow) throw Corrupt("state out of range");
    }
    Bytes words(in.size + 2 * kLanes, 0);  // a group of lanes may read past the end before it is noticed
    if (in.size) std::memcpy(words.data(), in.data, in.size);
    if (scale <= 12)
        decode_all<Narrow>(freqs, scale, sizes, of_chunk, states, words, in.size, out, decode_narrow);
    else
        decode_all<Wide>(freqs, scale, sizes, of_chunk, states, words, in.size, out, decode_wide);
}

}  // namespace nearzip
