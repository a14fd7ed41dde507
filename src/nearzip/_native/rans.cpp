#include "rans.hpp"

#include <algorithm>

#include "lanes.hpp"
#include "scaled.hpp"

namespace nearzip {
namespace {

constexpr int kMinChunkLog = 6, kMaxChunkLog = 24;
// 2 048 values a chunk: on the shared VGG trace 8 192 cost 1 % more bits, with 16 tables either way.
constexpr int kChunkLog = 11;
constexpr size_t kMaxTables = 16;
// A stream of this many bytes bears the states of 32 lanes, which decode faster.
constexpr uint64_t kManyLanesFrom = 16 << 10;
constexpr int kManyLanesFlag = 32;  // in the byte of the scale
constexpr uint8_t kZerosApart = 64;  // in its place

// ---- chunks and the choice of tables ---------------------------------------------------------------------------

using TokenCount = std::pair<uint8_t, uint32_t>;  // token and how often

struct ChunkCounts {
    std::vector<TokenCount> items;  // of all chunks, one after the other
    std::vector<size_t> begin;      // one more than there are chunks
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

// Price of each token under every table, a little more than nothing for those that it has not seen. In units of 2^-11
// bits, so that a chunk's cost fits 32 bits.
using Prices = std::array<std::array<uint32_t, kMaxTables>, kAlphabet>;

Prices prices_of(const std::vector<Counts> &tables) {
    Prices prices{};
    for (size_t k = 0; k < tables.size(); ++k) {
        const uint64_t all = log2_fixed(4 * total_of(tables[k]) + 4);
        for (size_t t = 0; t < kAlphabet; ++t)
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
        const Prices price = prices_of(choice.tables);
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

    const int lanes = (choice.cost >> kFraction) / 8 >= kManyLanesFrom ? kManyLanes : kFewLanes;
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

namespace {

// With tables for rows and columns where that is smaller.
void encode_dense(const uint8_t *tokens, size_t n, const Parts &parts, Activity activity, Bytes &out) {
    const size_t begin = out.size();
    const Pays pays = encode_scaled(tokens, n, parts, activity, out);
    if (pays == Pays::surely) return;
    if (pays == Pays::no) {
        out.resize(begin);
        return encode_chunked(tokens, n, parts, out);
    }
    Bytes chunked;
    encode_chunked(tokens, n, parts, chunked);
    if (chunked.size() > out.size() - begin) return;
    out.resize(begin);
    out.insert(out.end(), chunked.begin(), chunked.end());
}

void decode_dense(View in, uint8_t *out, size_t n, const Parts &parts) {
    if (in.take(1).data[0] == kScaled)
        decode_scaled(in.drop(1), out, n, parts);
    else
        decode_chunked(in, out, n, parts);
}

// ---- zeros apart -----------------------------------------------------------------------------------------------

// A mask of every four tokens says which are not zero; those follow in a stream of their own. Costs 0.2 % on the shared
// traces and leaves a quarter of the symbols to code, or little more.
constexpr size_t kGroup = kMaskedTokens;
constexpr size_t kZerosFrom = 1 << 15;   // values; shorter streams would pay more for another set of tables
constexpr size_t kFewNonzero = 8;        // at most one value in so many
constexpr size_t kSmallStream = 4 << 10;  // bytes; so few are coded both ways

NZ_CLONES size_t count_nonzero(const uint8_t *tokens, size_t n) {
    size_t zeros = 0;
    for (size_t at = 0; at < n; at += 128) {  // few enough for sums of bytes
        const size_t size = std::min<size_t>(128, n - at);
        uint8_t some = 0;
        for (size_t i = 0; i < size; ++i) some = uint8_t(some + (tokens[at + i] == 0));
        zeros += some;
    }
    return n - zeros;
}

// Bit k of a mask: the k-th of its four tokens is not zero.
NZ_CLONES void masks_of(const uint8_t *tokens, size_t n_masks, uint8_t *masks) {
    constexpr uint32_t low = 0x7f7f7f7f;
    for (size_t i = 0; i < n_masks; ++i) {
        uint32_t four;
        std::memcpy(&four, tokens + 4 * i, 4);
        const uint32_t flags = (((four & low) + low) | four) >> 7 & 0x01010101;
        masks[i] = uint8_t((flags * 0x01020408) >> 24);
    }
}

// How many bits masks have; `any` collects which.
NZ_CLONES uint64_t count_bits(const uint8_t *masks, size_t n, uint64_t &any) {
    uint64_t count = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, masks + i, 8);
        any |= eight;
        eight = (eight & 0x5555555555555555) + (eight >> 1 & 0x5555555555555555);
        eight = (eight & 0x3333333333333333) + (eight >> 2 & 0x3333333333333333);
        count += (eight * 0x0101010101010101) >> 56;  // at most 32 of bits that masks may have
    }
    for (; i < n; ++i) {
        any |= masks[i];
        count += 0x4332322132212110u >> (4 * (masks[i] & 15)) & 15;
    }
    return count;
}

// The masks of whole rows of masks; no row known where a mask reaches into the next.
Grid mask_grid_of(const Grid &grid) {
    if (grid.row % kGroup || grid.start % kGroup) return {0, 0, 0, 0};
    const uint64_t row = grid.row / kGroup;
    // A column of masks is four columns of values.
    const uint64_t cell = grid.cell && row % grid.cell == 0 ? grid.cell : row;
    return {row, cell, cell, grid.start / kGroup};
}

Parts mask_parts_of(const Parts &parts) {
    Parts masks;
    for (size_t p = 0; p < parts.size(); ++p) {
        const uint64_t n = (parts[p] + kGroup - 1) / kGroup;
        if (parts.grids().empty())
            masks.push_back(n);
        else
            masks.push_back(n, mask_grid_of(parts.grids()[p]));
    }
    return masks;
}

struct Masked {
    uint8_t *mask, *token;  // where the next ones go
    Parts token_parts;
};

// Appends the masks of one part and its tokens that are not zero.
void mask_part(const uint8_t *tokens, size_t n, Masked &masked) {
    uint8_t *mask_at = masked.mask, *const begin = masked.token, *token = begin;
    size_t i = 0;
    const size_t n_masks = n / 32 * 8;
    masks_of(tokens, n_masks, mask_at);
    for (; i < kGroup * n_masks; i += 8 * kGroup, mask_at += 8) {
        uint64_t masks;
        std::memcpy(&masks, mask_at, 8);
        for (; masks; masks &= masks - 1) {
            const size_t bit = size_t(lowest_bit(masks));
            *token++ = tokens[i + kGroup * (bit / 8) + bit % 8];
        }
    }
    for (; i < n; i += kGroup) {
        unsigned mask = 0;
        for (size_t k = 0; k < kGroup && i + k < n; ++k)
            if (tokens[i + k]) mask |= 1u << k, *token++ = tokens[i + k];
        *mask_at++ = uint8_t(mask);
    }
    masked.token_parts.push_back(uint64_t(token - begin));
    masked.mask = mask_at;
    masked.token = token;
}

void encode_zeros_apart(const uint8_t *tokens, size_t n, size_t n_nonzero, const Parts &parts, Bytes &out) {
    static thread_local Scratch<uint8_t> mask_scratch, token_scratch;
    uint8_t *const masks = mask_scratch.get(n / kGroup + parts.size() + 1);
    uint8_t *const nonzero = token_scratch.get(n_nonzero + 1);
    Masked masked{masks, nonzero, {}};
    for (uint64_t part : parts) {
        mask_part(tokens, size_t(part), masked);
        tokens += part;
    }
    out.push_back(kZerosApart);
    Bytes coded;
    encode_dense(masks, size_t(masked.mask - masks), mask_parts_of(parts), Activity::masks, coded);
    put_varint(out, coded.size());
    out.insert(out.end(), coded.begin(), coded.end());
    encode_chunked(nonzero, n_nonzero, masked.token_parts, out);
}

// How many tokens the masks announce for each part. Refuses bits behind a part's last value.
Parts nonzero_of(const uint8_t *masks, const Parts &parts) {
    Parts nonzero;
    for (uint64_t part : parts) {
        const size_t n = size_t(part / kGroup), rest = size_t(part % kGroup);
        uint64_t any = 0, count = count_bits(masks, n, any);
        masks += n;
        if (rest) {
            any |= *masks >> rest ? 0xf0 : 0;
            count += 0x4332322132212110u >> (4 * (*masks++ & 15)) & 15;
        }
        if (any & 0xf0f0f0f0f0f0f0f0) throw Corrupt("mask out of range");
        nonzero.push_back(count);
    }
    return nonzero;
}

// `nonzero` is followed by readable bytes.
const uint8_t *unmask_part(const uint8_t *&masks, size_t n, const uint8_t *nonzero, uint8_t *out) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8, masks += 2) {
        std::memset(out + i, 0, 8);
        for (unsigned mask = masks[0] | unsigned(masks[1]) << 4; mask; mask &= mask - 1)
            out[i + lowest_bit(mask)] = *nonzero++;
    }
    for (; i < n; i += kGroup, ++masks)
        for (size_t k = 0; k < kGroup && i + k < n; ++k) out[i + k] = *masks >> k & 1 ? *nonzero++ : 0;
    return nonzero;
}

ZerosApart read_apart(View in, const Parts &parts) {
    const uint64_t size = get_varint(in);
    const Parts mask_parts = mask_parts_of(parts);
    uint64_t n_masks = 0, n_nonzero = 0;
    for (uint64_t part : mask_parts) n_masks += part;
    static thread_local Scratch<uint8_t> mask_scratch, token_scratch;
    uint8_t *const masks = mask_scratch.get(size_t(n_masks) + 1);
    decode_dense(in.take(size > in.size ? in.size + 1 : size_t(size)), masks, size_t(n_masks), mask_parts);
    in = in.drop(size_t(size));
    const Parts nonzero = nonzero_of(masks, parts);
    for (uint64_t part : nonzero) n_nonzero += part;
    uint8_t *const tokens = token_scratch.get(size_t(n_nonzero) + 1);
    decode_chunked(in, tokens, size_t(n_nonzero), nonzero);
    if (count_nonzero(tokens, size_t(n_nonzero)) != n_nonzero) throw Corrupt("a zero among those that are none");
    return {masks, tokens};
}

void decode_zeros_apart(View in, uint8_t *out, const Parts &parts) {
    const ZerosApart apart = read_apart(in, parts);
    const uint8_t *at_mask = apart.masks, *at = apart.tokens;
    for (uint64_t part : parts) {
        at = unmask_part(at_mask, size_t(part), at, out);
        out += part;
    }
}

}  // namespace

void encode_tokens(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out) {
    const size_t n_nonzero = n < kZerosFrom ? n : count_nonzero(tokens, n);
    if (n_nonzero * kFewNonzero > n) return encode_dense(tokens, n, parts, Activity::tokens, out);
    const size_t begin = out.size();
    encode_zeros_apart(tokens, n, n_nonzero, parts, out);
    if (out.size() - begin > kSmallStream) return;
    Bytes plain;
    encode_dense(tokens, n, parts, Activity::tokens, plain);
    if (plain.size() > out.size() - begin) return;
    out.resize(begin);
    out.insert(out.end(), plain.begin(), plain.end());
}

bool read_zeros_apart(View in, const Parts &parts, ZerosApart &found) {
    if (in.take(1).data[0] != kZerosApart) return false;
    found = read_apart(in.drop(1), parts);
    return true;
}

void decode_tokens(View in, uint8_t *out, size_t n, const Parts &parts) {
    if (in.take(1).data[0] == kZerosApart)
        decode_zeros_apart(in.drop(1), out, parts);
    else
        decode_dense(in, out, n, parts);
}

}  // namespace nearzip
