#include "scaled.hpp"

#include <algorithm>

#include "bits.hpp"
#include "grouping.hpp"
#include "kernels.hpp"
#include "lanes.hpp"
#include "lattice.hpp"

namespace nearzip {
namespace {

constexpr int kKernelsFlag = 64;  // in the byte of the scale
constexpr size_t kMostTokens = size_t(1) << 24;
constexpr size_t kMostTables = 16, kMostTablesOfClass = 8;
// One part in so many of what the tokens take; more of masks, where coding is fast and little is left to gain: on the late
// transformer levels save 0.3 % of the bytes and take a quarter of the time.
constexpr uint64_t kLeastGain = 400, kLeastGainOfMasks = 50;
// What a large stream of one part saves against one table is known well enough to spare it the comparison with a table for
// each chunk.
constexpr size_t kLargeStream = 16 << 10;  // tokens

struct Layout {
    std::vector<Lattice> lattices;
    std::vector<Levels> levels;
};

// ---- tables ----------------------------------------------------------------------------------------------------

// For each class of neighbours, or for all values where there are no classes, the tables of its levels.
struct ClassTables {
    std::vector<OpenTables> classes;
    int scale;

    // The table of each context.
    std::vector<uint8_t> numbers() const {
        std::vector<uint8_t> all;
        size_t first = 0;
        for (const OpenTables &tables : classes) {
            const Numbers numbers(tables.last);
            for (int level = 0; level < kLevels; ++level) all.push_back(uint8_t(first + numbers.of[level]));
            first += tables.freqs.size();
        }
        return all;
    }
    template <class Tables>
    Tables coding() const {
        Tables tables(scale);
        for (const OpenTables &of_class : classes)
            for (const Freqs &freqs : of_class.freqs) tables.add(freqs);
        return tables;
    }
};

struct Chosen {
    std::vector<Grouping> classes;
    uint64_t cost = 0;

    Chosen(const std::vector<Counts> &contexts, size_t most_tables) {
        for (size_t at = 0; at < contexts.size(); at += kLevels) {
            std::vector<Counts> levels(contexts.begin() + ptrdiff_t(at), contexts.begin() + ptrdiff_t(at) + kLevels);
            uint64_t n = 0;
            for (const Counts &counts : levels) n += total_of(counts);
            if (!n) levels[0][0] = 1;  // a class that does not occur still has a table
            classes.push_back(join_contexts(levels, most_tables));
            for (const Counts &counts : classes.back().tables) cost += table_cost(counts);
        }
    }

    ClassTables tables(size_t n) const {
        std::vector<Counts> all;
        for (const Grouping &grouping : classes) all.insert(all.end(), grouping.tables.begin(), grouping.tables.end());
        ClassTables tables{{}, choose_scale(all, n)};
        for (const Grouping &grouping : classes) {
            tables.classes.push_back({grouping.last, {}});
            for (const Counts &counts : grouping.tables)
                tables.classes.back().freqs.push_back(open_frequencies(counts, tables.scale));
        }
        return tables;
    }
};

std::vector<Counts> without_classes(const std::vector<Counts> &contexts) {
    std::vector<Counts> levels(kLevels, Counts{});
    for (size_t c = 0; c < contexts.size(); ++c)
        for (size_t t = 0; t < kAlphabet; ++t) levels[c % kLevels][t] += contexts[c][t];
    return levels;
}

// ---- tokens in coding order -------------------------------------------------------------------------------------

// Kernels are coded position by position, each position a run; all other values in their order.
struct Ordered {
    std::vector<uint8_t> tokens;
    std::vector<uint16_t> contexts;
    std::vector<size_t> runs;
};

void add_run(const uint8_t *tokens, const uint8_t *levels, size_t n, Ordered &ordered) {
    ordered.tokens.insert(ordered.tokens.end(), tokens, tokens + n);
    ordered.contexts.insert(ordered.contexts.end(), levels, levels + n);
    ordered.runs.push_back(n);
}

void add_part(const uint8_t *tokens, const uint8_t *levels, size_t n, Kernels kernels, Ordered &ordered) {
    if (!kernels.any()) return add_run(tokens, levels, n, ordered);
    const size_t end = kernels.index(kernels.count, 0);
    add_run(tokens, levels, kernels.lead, ordered);
    for (size_t place = 0; place < kernels.places; ++place) {
        const size_t at = ordered.tokens.size();
        ordered.tokens.resize(at + kernels.count);
        ordered.contexts.resize(at + kernels.count);
        for (size_t k = 0; k < kernels.count; ++k) ordered.tokens[at + k] = tokens[kernels.index(k, place)];
        kernels.contexts(place, levels, ordered.contexts.data() + at);
        kernels.keep(place, ordered.tokens.data() + at);
        ordered.runs.push_back(kernels.count);
    }
    add_run(tokens + end, levels + end, n - end, ordered);
}

Ordered in_order(const uint8_t *tokens, const uint8_t *levels, const Layout &layout) {
    Ordered ordered;
    for (size_t p = 0; p < layout.lattices.size(); ++p) {
        const size_t n = size_t(layout.lattices[p].n);
        add_part(tokens, levels, n, Kernels(layout.lattices[p], layout.levels[p].own), ordered);
        tokens += n;
        levels += n;
    }
    return ordered;
}

// Whether in most values' kernels neighbours are alike.
bool kernels_alike(const uint8_t *tokens, size_t n, const Layout &layout) {
    size_t alike = 0;
    for (size_t p = 0; p < layout.lattices.size(); ++p) {
        const Kernels kernels(layout.lattices[p], layout.levels[p].own);
        if (kernels.any() && kernels.alike(tokens)) alike += kernels.count * kernels.places;
        tokens += layout.lattices[p].n;
    }
    return alike * 4 > n;
}

// ---- encoding --------------------------------------------------------------------------------------------------

NZ_CLONES void count(const uint8_t *tokens, const uint8_t *levels, size_t n, std::vector<Counts> &counts) {
    for (size_t i = 0; i < n; ++i) ++counts[levels[i]][tokens[i]];
}

void fill_all(const Layout &layout, const Signs &signs, uint8_t *out) {
    for (size_t p = 0; p < layout.lattices.size(); ++p) {
        fill_levels(layout.lattices[p], layout.levels[p], signs, out);
        out += layout.lattices[p].n;
    }
}

void write_head(const Layout &layout, const ClassTables &tables, int lanes, Bytes &out) {
    out.push_back(kScaled);
    out.push_back(uint8_t(tables.scale | (lanes == kManyLanes ? kManyLanesFlag : 0) |
                          (tables.classes.size() > 1 ? kKernelsFlag : 0)));
    write_levels(layout.levels, layout.lattices, out);
    BitWriter bits(out);
    for (const OpenTables &of_class : tables.classes) of_class.write(bits);
    bits.finish();
}

void write_words(const ClassTables &tables, int lanes, const std::vector<size_t> &runs, const uint8_t *tokens,
                 const uint8_t *numbers, size_t n, Bytes &out) {
    const EncodeTables coding = tables.coding<EncodeTables>();
    static thread_local Scratch<uint16_t> scratch;
    uint16_t *const end = scratch.get(n + kWordsBefore) + n + kWordsBefore, *words = end;
    uint32_t states[kManyLanes];
    std::fill(states, states + lanes, kLow);
    size_t at = n;
    for (size_t r = runs.size(); r-- > 0;) {
        at -= runs[r];
        words = coding.encode_run(numbers + at, 0, runs[r], lanes, states, tokens + at, words);
    }
    const auto *s = reinterpret_cast<const uint8_t *>(states), *w = reinterpret_cast<const uint8_t *>(words);
    out.insert(out.end(), s, s + sizeof(uint32_t) * size_t(lanes));
    out.insert(out.end(), w, w + 2 * size_t(end - words));
}

NZ_CLONES void count_bits(const uint8_t *masks, size_t n, uint8_t *bits) {
    for (size_t i = 0; i < n; ++i) {
        const uint8_t pairs = uint8_t((masks[i] & 5) + (masks[i] >> 1 & 5));
        bits[i] = uint8_t((pairs & 3) + (pairs >> 2));
    }
}

const uint8_t *activities(const uint8_t *tokens, size_t n, Activity activity) {
    if (activity == Activity::tokens) return tokens;
    static thread_local Scratch<uint8_t> scratch;
    uint8_t *const bits = scratch.get(n + 1);
    count_bits(tokens, n, bits);
    return bits;
}

uint64_t bytes_of(uint64_t cost) { return (cost >> kFraction) / 8; }

Layout lay_out(const uint8_t *activity, const Parts &parts, Estimate &estimate) {
    Layout layout{lattices_of(parts), {}};
    for (const Lattice &lattice : layout.lattices) {
        layout.levels.push_back(choose_levels(activity, lattice, estimate));
        activity += lattice.n;
    }
    return layout;
}

// What all tokens take under one table.
uint64_t cost_together(const std::vector<Counts> &contexts) {
    Counts all{};
    for (const Counts &counts : contexts)
        for (size_t t = 0; t < kAlphabet; ++t) all[t] += counts[t];
    return table_cost(all);
}

Pays judge(uint64_t spent, uint64_t together, bool one_large) {
    if (spent > (one_large ? together - together / 100 : together)) return Pays::no;
    return one_large && spent < together - together / 50 ? Pays::surely : Pays::perhaps;
}

Pays encode_levels(const uint8_t *tokens, uint8_t *levels, size_t n, const Layout &layout, bool one_large, Bytes &out) {
    std::vector<Counts> contexts(kLevels, Counts{});
    count(tokens, levels, n, contexts);
    const Chosen chosen(contexts, kMostTables);
    const Pays pays = judge(chosen.cost, cost_together(contexts), one_large);
    if (pays == Pays::no) return pays;
    const ClassTables tables = chosen.tables(n);
    const int lanes = lanes_for(bytes_of(chosen.cost));
    write_head(layout, tables, lanes, out);
    Signs signs;
    const std::vector<uint8_t> numbers = tables.numbers();
    std::copy(numbers.begin(), numbers.end(), signs.begin());
    fill_all(layout, signs, levels);
    write_words(tables, lanes, {n}, tokens, levels, n, out);
    return pays;
}

Pays encode_kernels(const uint8_t *tokens, uint8_t *levels, size_t n, const Layout &layout, bool one_large, Bytes &out) {
    const Ordered ordered = in_order(tokens, levels, layout);
    std::vector<Counts> contexts(kClasses * kLevels, Counts{});
    for (size_t i = 0; i < n; ++i) ++contexts[ordered.contexts[i]][ordered.tokens[i]];
    const Chosen chosen(contexts, kMostTablesOfClass), plain(without_classes(contexts), kMostTables);
    if (plain.cost <= chosen.cost) return encode_levels(tokens, levels, n, layout, one_large, out);
    const Pays pays = judge(chosen.cost, cost_together(contexts), one_large);
    if (pays == Pays::no) return pays;
    const ClassTables tables = chosen.tables(n);
    const int lanes = lanes_for(bytes_of(chosen.cost));
    write_head(layout, tables, lanes, out);
    const std::vector<uint8_t> of = tables.numbers();
    for (size_t i = 0; i < n; ++i) levels[i] = of[ordered.contexts[i]];
    write_words(tables, lanes, ordered.runs, ordered.tokens.data(), levels, n, out);
    return pays;
}

}  // namespace

Pays encode_scaled(const uint8_t *tokens, size_t n, const Parts &parts, Activity activity, Bytes &out) {
    if (parts.grids().empty() || n < 2 || n > kMostTokens) return Pays::no;
    Estimate estimate;
    const Layout layout = lay_out(activities(tokens, n, activity), parts, estimate);
    const bool kernels = activity == Activity::tokens && kernels_alike(tokens, n, layout);
    const uint64_t least = activity == Activity::masks ? kLeastGainOfMasks : kLeastGain;
    if (!kernels && estimate.gain * least < estimate.whole) return Pays::no;
    static thread_local Scratch<uint8_t> scratch;
    uint8_t *const levels = scratch.get(n + 1);
    fill_all(layout, each_level(), levels);
    const bool one_large = parts.size() == 1 && n >= kLargeStream;
    return (kernels ? encode_kernels : encode_levels)(tokens, levels, n, layout, one_large, out);
}

// ---- decoding --------------------------------------------------------------------------------------------------

namespace {

struct Decoder {
    DecodeTables tables;
    int lanes;
    uint32_t states[kManyLanes];
    const uint8_t *at, *end;

    void run(const uint8_t *numbers, size_t n, uint8_t *out) {
        at = tables.decode_run(numbers, 0, n, lanes, states, at, end, out);
        if (at > end) throw Corrupt("token stream ends early");
    }
    void finish() const {
        if (at != end) throw Corrupt("token stream is too long");
        for (int lane = 0; lane < lanes; ++lane)
            if (states[lane] != kLow) throw Corrupt("token stream does not close");
    }
};

void translate(const uint8_t *levels, size_t n, const std::vector<uint8_t> &of, uint8_t *numbers) {
    if (n) std::memcpy(numbers, levels, n);
    look_up(of.data(), numbers, n);
}

// One part; `levels` of its tokens, `numbers` is room for as many.
void decode_part(Kernels kernels, size_t n, const std::vector<uint8_t> &of, const uint8_t *levels, uint8_t *numbers,
                 Decoder &decoder, uint8_t *out) {
    const size_t lead = kernels.any() ? kernels.lead : n, end = kernels.any() ? kernels.index(kernels.count, 0) : n;
    translate(levels, lead, of, numbers);
    decoder.run(numbers, lead, out);
    std::vector<uint16_t> contexts(kernels.count);
    Bytes tokens(kernels.count + 1);
    for (size_t place = 0; kernels.any() && place < kernels.places; ++place) {
        kernels.contexts(place, levels, contexts.data());
        for (size_t k = 0; k < kernels.count; ++k) numbers[k] = of[contexts[k]];
        decoder.run(numbers, kernels.count, tokens.data());
        kernels.keep(place, tokens.data());
        for (size_t k = 0; k < kernels.count; ++k) out[kernels.index(k, place)] = tokens[k];
    }
    if (!kernels.any()) return;
    translate(levels + end, n - end, of, numbers);
    decoder.run(numbers, n - end, out + end);
}

ClassTables read_tables(View &in, int scale, size_t n_classes) {
    ClassTables tables{{}, scale};
    size_t n = 0;
    BitReader bits(in);
    for (size_t c = 0; c < n_classes; ++c) {
        tables.classes.push_back(OpenTables::read(bits, scale, kLevels));
        n += tables.classes.back().freqs.size();
    }
    if (n > size_t(kClasses) * kMostTablesOfClass) throw Corrupt("number of tables out of range");
    in = in.drop(bits.finish());
    return tables;
}

}  // namespace

void decode_scaled(View in, uint8_t *out, size_t n, const Parts &parts) {
    const int first = in.take(1).data[0], scale = first & 31;
    const bool kernels = first & kKernelsFlag;
    if (first > 127 || scale < kMinScale || scale > kMaxScale) throw Corrupt("scale out of range");
    in = in.drop(1);
    Layout layout{lattices_of(parts), {}};
    layout.levels = read_levels(in, layout.lattices);
    const ClassTables tables = read_tables(in, scale, kernels ? kClasses : 1);
    const std::vector<uint8_t> of = tables.numbers();

    Decoder decoder{tables.coding<DecodeTables>(), first & kManyLanesFlag ? kManyLanes : kFewLanes, {}, nullptr, nullptr};
    const size_t n_states = sizeof(uint32_t) * size_t(decoder.lanes);
    std::memcpy(decoder.states, in.take(n_states).data, n_states);
    in = in.drop(n_states);
    for (int lane = 0; lane < decoder.lanes; ++lane)
        if (decoder.states[lane] < kLow) throw Corrupt("state out of range");
    static thread_local Scratch<uint8_t> word_scratch;
    decoder.at = padded(in, kWordPadding, word_scratch);
    decoder.end = decoder.at + in.size;

    static thread_local Scratch<uint8_t> level_scratch, number_scratch;
    uint8_t *const numbers = number_scratch.get(n + 1);
    if (!kernels) {
        Signs signs;
        std::copy(of.begin(), of.end(), signs.begin());
        fill_all(layout, signs, numbers);
        decoder.run(numbers, n, out);
        return decoder.finish();
    }
    uint8_t *levels = level_scratch.get(n + 1);
    fill_all(layout, each_level(), levels);
    for (size_t p = 0; p < layout.lattices.size(); ++p) {
        const size_t size = size_t(layout.lattices[p].n);
        decode_part(Kernels(layout.lattices[p], layout.levels[p].own), size, of, levels, numbers, decoder, out);
        levels += size;
        out += size;
    }
    decoder.finish();
}

}  // namespace nearzip
