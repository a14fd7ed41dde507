#include "rans.hpp"

#include <algorithm>

#include "bits.hpp"
#include "lanes.hpp"

namespace nearzip {
namespace {

constexpr int kMinChunkLog = 6, kMaxChunkLog = 24;
// 2 048 values a chunk: on the shared VGG trace 8 192 cost 1 % more bits, with 16 tables either way.
constexpr int kChunkLog = 11;
constexpr size_t kMaxTables = 16;

// ---- chunks and the choice of tables ---------------------------------------------------------------------------

using TokenCount = std::pair<uint8_t, uint32_t>;  // token and how often

struct ChunkCounts {
    std::vector<TokenCount> items;  // of all chunks, one after the other
    std::vector<size_t> begin;      // one more than there are chunks
    size_t alphabet;                // no token is as large
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
    ChunkCounts counts{{}, {}, alphabet};
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

// Price of each token under every table, a little more than nothing for those that it has not seen. In units of 2^-11
// bits, so that a chunk's cost fits 32 bits.
using Prices = std::array<std::array<uint32_t, kMaxTables>, kAlphabet>;

Prices prices_of(const std::vector<Counts> &tables, size_t alphabet) {
    Prices prices;
    std::fill_n(prices.begin(), alphabet, Prices::value_type{});
    for (size_t k = 0; k < tables.size(); ++k) {
        const uint64_t all = log2_fixed(4 * total_of(tables[k]) + 4);
        for (size_t t = 0; t < alphabet; ++t)
            prices[t][k] = uint32_t(all - log2_fixed(tables[k][t] ? 4 * uint64_t(tables[k][t]) : 1)) >> 5;
    }
    return prices;
}

// The table under which a chunk costs least.
NZ_CLONES uint8_t cheapest(const Prices &prices, size_t n_tables, const TokenCount *items, size_t n_items) {
    uint32_t costs[kMaxTables] = {};
    for (size_t i = 0; i < n_items; ++i) {
        const uint32_t count = items[i].second, *price = prices[items[i].first].data();
        for (size_t k = 0; k < kMaxTables; ++k) costs[k] += price[k] * count;
    }
    return uint8_t(std::min_element(costs, costs + n_tables) - costs);
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
        const Prices price = prices_of(choice.tables, chunks.alphabet);
        for (size_t c = 0; c < n; ++c)
            choice.of_chunk[c] = cheapest(price, n_tables, chunks.items.data() + chunks.begin[c],
                                          chunks.begin[c + 1] - chunks.begin[c]);
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

// ---- streams ---------------------------------------------------------------------------------------------------

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

// Whether coding can gain next to nothing: all values alike, and no chunk of them different. Most mantissas are so, and
// finding the best of sixteen equal tables takes longer than all the rest.
bool is_noise(const ChunkCounts &chunks, size_t n) {
    const size_t n_chunks = chunks.begin.size() - 1;
    if (n < (size_t(1) << 14) || chunks.items.size() < n_chunks * (kAlphabet - 8)) return false;
    const Counts all = gather(chunks, std::vector<uint8_t>(n_chunks, 0), 1)[0];
    return coding_cost(all, normalise(all, kMaxScale), kMaxScale) > (uint64_t(n) * (8 * 1024 - 16) << kFraction) / 1024;
}

void store_raw(const uint8_t *tokens, size_t n, Bytes &out) {
    out.push_back(0);
    out.insert(out.end(), tokens, tokens + n);
}

void decode_all(const std::vector<Freqs> &freqs, int scale, int lanes, const std::vector<uint32_t> &sizes,
                const std::vector<uint8_t> &of_chunk, uint32_t *states, View words, uint8_t *out) {
    DecodeTables tables(scale);
    std::vector<int> constant;
    std::vector<size_t> number;
    size_t next = 0;
    for (const Freqs &f : freqs) {
        constant.push_back(is_constant(f, scale) ? only_token(f) : -1);
        number.push_back(next);
        if (constant.back() < 0) tables.add(f), ++next;
    }
    const uint8_t *at = words.data, *const end = words.data + words.size;
    for (size_t c = 0; c < sizes.size(); ++c) {
        const size_t k = of_chunk[c];
        if (constant[k] >= 0)
            std::memset(out, constant[k], sizes[c]);
        else
            at = tables.decode_run(nullptr, number[k], sizes[c], lanes, states, at, end, out);
        if (at > end) throw Corrupt("token stream ends early");
        out += sizes[c];
    }
    if (at != end) throw Corrupt("token stream is too long");
    for (int lane = 0; lane < lanes; ++lane)
        if (states[lane] != kLow) throw Corrupt("token stream does not close");
}

}  // namespace

void encode_chunked(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out) {
    const size_t begin = out.size();
    uint8_t top = 0;
    for (size_t i = 0; i < n; ++i) top = std::max(top, tokens[i]);
    const std::vector<uint32_t> sizes = chunk_sizes(parts, kChunkLog);
    const ChunkCounts chunks = count_chunks(tokens, sizes, size_t(top) + 1);
    if (is_noise(chunks, n)) return store_raw(tokens, n, out);
    const Choice choice = choose_tables(chunks, sizes);
    const int scale = choose_scale(choice.tables, n);

    const int lanes = lanes_for((choice.cost >> kFraction) / 8);
    out.push_back(uint8_t(scale | (lanes == kManyLanes ? kManyLanesFlag : 0)));
    out.push_back(uint8_t(kChunkLog));
    put_varint(out, choice.tables.size());
    EncodeTables tables(scale);
    std::vector<bool> constant;
    {
        BitWriter bits(out);
        for (const Counts &counts : choice.tables) {
            const Freqs freqs = normalise(counts, scale);
            write_table(bits, freqs);
            constant.push_back(is_constant(freqs, scale));
            tables.add(freqs);
        }
        write_table_numbers(bits, choice.of_chunk, choice.tables.size());
        bits.finish();
    }
    if (std::all_of(constant.begin(), constant.end(), [](bool c) { return c; })) return;

    static thread_local Scratch<uint16_t> scratch;
    uint16_t *const end = scratch.get(n + kWordsBefore) + n + kWordsBefore, *words = end;
    uint32_t states[kManyLanes];
    std::fill(states, states + lanes, kLow);
    size_t at = n;
    for (size_t c = sizes.size(); c-- > 0;) {
        at -= sizes[c];
        const size_t k = choice.of_chunk[c];
        if (!constant[k]) words = tables.encode_run(nullptr, k, sizes[c], lanes, states, tokens + at, words);
    }
    const size_t n_bytes = size_t(end - words) * 2, n_states = sizeof(uint32_t) * size_t(lanes);
    if (out.size() - begin + n_states + n_bytes > n + 1) {
        out.resize(begin);
        return store_raw(tokens, n, out);
    }
    const size_t place = out.size();
    out.resize(place + n_states + n_bytes);
    std::memcpy(out.data() + place, states, n_states);
    if (n_bytes) std::memcpy(out.data() + place + n_states, words, n_bytes);
}

void decode_chunked(View in, uint8_t *out, size_t n, const Parts &parts) {
    const int first = in.take(1).data[0], scale = first & ~kManyLanesFlag;
    const int lanes = first & kManyLanesFlag ? kManyLanes : kFewLanes;
    in = in.drop(1);
    if (first == 0) {  // stored
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

    uint32_t states[kManyLanes];
    std::fill(states, states + lanes, kLow);
    if (!all_constant) {
        const size_t n_states = sizeof(uint32_t) * size_t(lanes);
        std::memcpy(states, in.take(n_states).data, n_states);
        in = in.drop(n_states);
        for (int lane = 0; lane < lanes; ++lane)
            if (states[lane] < kLow) throw Corrupt("state out of range");
    }
    static thread_local Scratch<uint8_t> scratch;
    decode_all(freqs, scale, lanes, sizes, of_chunk, states, {padded(in, kWordPadding, scratch), in.size}, out);
}

}  // namespace nearzip
