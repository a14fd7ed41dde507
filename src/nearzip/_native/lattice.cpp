#include "lattice.hpp"

#include <algorithm>

#include "rans.hpp"

namespace nearzip {
namespace {

// Fewer values are not enough to estimate a row's scale, fewer rows not a column's.
constexpr uint64_t kShortestRow = 8, kFewestRows = 4;
constexpr int kMostResidual = 63, kMiddle = 40;
constexpr uint64_t kLargestKernel = 64;

uint8_t fold(int v) { return uint8_t(v < 0 ? -2 * v - 1 : 2 * v); }
int unfold(uint8_t z) { return z & 1 ? -int(z >> 1) - 1 : int(z >> 1); }

uint64_t times_log(uint64_t v) { return v ? v * log2_fixed(v) : 0; }

// Bits of `count` numbers with this sum if they are distributed geometrically, times 2^16.
uint64_t geometric_cost(uint64_t sum, uint64_t count) {
    return times_log(sum + count) - times_log(sum) - times_log(count);
}

// Twice the binary logarithm of a quotient, rounded.
int half_octaves(uint64_t over, uint64_t under) {
    const int64_t log = int64_t(log2_fixed(over)) - int64_t(log2_fixed(under));
    return int((2 * log + (int64_t(1) << (kFraction - 1))) >> kFraction);
}

// Distance of a line's mean from the overall mean, shrunk as if one more value were at the overall mean.
int level_of(uint64_t sum, uint64_t count, uint64_t all, uint64_t n) {
    constexpr uint64_t unit = 16;
    const int level = half_octaves(unit * sum * n / std::max<uint64_t>(1, all) + unit, unit * (count + 1));
    return std::clamp(level, -kMostResidual, kMostResidual);
}

NZ_CLONES uint64_t sum_of(const uint8_t *tokens, size_t n) {
    uint64_t sum = 0;
    for (size_t at = 0; at < n; at += 256) {
        const size_t size = std::min<size_t>(256, n - at);
        uint32_t some = 0;
        for (size_t i = 0; i < size; ++i) some += tokens[at + i];
        sum += some;
    }
    return sum;
}

NZ_CLONES void add_each(const uint8_t *tokens, size_t n, uint32_t *sums) {
    for (size_t i = 0; i < n; ++i) sums[i] += tokens[i];
}

void add_cells(const uint8_t *tokens, size_t from, size_t to, size_t cell, uint32_t *sums) {
    if (cell == 1) return add_each(tokens, to - from, sums + from);
    while (from < to) {
        const size_t column = from / cell, end = std::min(to, (column + 1) * cell);
        uint32_t sum = 0;
        for (; from < end; ++from) sum += *tokens++;
        sums[column] += sum;
    }
}

struct Sums {
    uint64_t all = 0;
    std::vector<uint64_t> rows;
    std::vector<uint32_t> columns;
};

Sums sums_of(const uint8_t *tokens, const Lattice &lattice) {
    Sums sums;
    if (lattice.columns > 1) sums.columns.resize(lattice.columns);
    lattice.each_row([&](size_t, size_t from, size_t to, size_t at) {
        sums.rows.push_back(sum_of(tokens + at, to - from));
        sums.all += sums.rows.back();
        if (lattice.columns > 1) add_cells(tokens + at, from, to, size_t(lattice.cell), sums.columns.data());
    });
    return sums;
}

// What `levels` take, and the tokens of the lines under them, if tokens are distributed geometrically. Times 2^16.
template <class T>
uint64_t cost_under(const std::vector<int> &levels, const std::vector<T> &sums, const std::vector<uint64_t> &counts,
                    uint64_t all, uint64_t n) {
    struct {
        uint64_t lines = 0, sum = 0, count = 0;
    } of[256];
    for (size_t i = 0; i < levels.size(); ++i) {
        auto &level = of[fold(levels[i])];
        ++level.lines, level.sum += sums[i], level.count += counts[i];
    }
    uint64_t cost = times_log(levels.size());
    for (const auto &level : of) cost += geometric_cost(level.sum, level.count) - times_log(level.lines);
    return cost;
}

// The levels of lines that cost least: half octaves, octaves, or none.
template <class T>
std::vector<int> cheapest_levels(const std::vector<T> &sums, const std::vector<uint64_t> &counts, uint64_t all, uint64_t n,
                                 Estimate &estimate) {
    std::vector<int> fine, coarse, best(sums.size(), 0);
    for (size_t i = 0; i < sums.size(); ++i) {
        fine.push_back(level_of(sums[i], counts[i], all, n));
        coarse.push_back(2 * ((fine.back() + 1) >> 1));
    }
    const uint64_t whole = geometric_cost(all, n);
    uint64_t least = whole;
    for (std::vector<int> *levels : {&coarse, &fine}) {
        const uint64_t cost = cost_under(*levels, sums, counts, all, n);
        if (cost < least) least = cost, best = std::move(*levels);
    }
    estimate.gain += whole - least;
    return best;
}

int level_at(int level) { return std::clamp(level + kMiddle, 0, kLevels - 1); }

// The signs of a whole row that is of this level but for its columns.
void fill_row(const Lattice &lattice, const Levels &levels, int level, const Signs &signs, Bytes &row) {
    row.resize(size_t(lattice.row));
    uint8_t *at = row.data();
    for (int column : levels.columns) {
        std::memset(at, signs[size_t(level_at(level - kMiddle + column))], size_t(lattice.cell));
        at += lattice.cell;
    }
}

}  // namespace

Lattice::Lattice(uint64_t n, const Grid &grid)
    : n(n), row(n), cell(n), start(0), rows(n > 0), columns(n > 0), kernel(1), width(1) {
    if (!grid.row || !n) return;
    if (!grid.cell || grid.row % grid.cell || !grid.width || grid.cell % grid.width || grid.start > ~uint64_t(0) / 2)
        throw Corrupt("rows that no tensor has");
    if (grid.row < kShortestRow) return;
    row = cell = grid.row;
    start = grid.start % row;
    rows = size_t((start + n + row - 1) / row);
    if (grid.cell <= kLargestKernel) kernel = size_t(grid.cell), width = size_t(grid.width);
    if (rows < kFewestRows) return;
    cell = grid.cell;
    columns = size_t(row / cell);
}

std::vector<Lattice> lattices_of(const Parts &parts) {
    if (parts.grids().empty()) throw Corrupt("scales of rows that are not known");
    std::vector<Lattice> lattices;
    for (size_t p = 0; p < parts.size(); ++p) lattices.emplace_back(parts[p], parts.grids()[p]);
    return lattices;
}

Levels choose_levels(const uint8_t *tokens, const Lattice &lattice, Estimate &estimate) {
    Levels levels;
    if (!lattice.n) return levels;
    const Sums sums = sums_of(tokens, lattice);
    estimate.whole += geometric_cost(sums.all, lattice.n);
    levels.own = std::max(half_octaves(sums.all | 1, lattice.n), -kMostResidual);
    if (lattice.rows > 1) {
        std::vector<uint64_t> counts;
        lattice.each_row([&](size_t, size_t from, size_t to, size_t) { counts.push_back(to - from); });
        levels.rows = cheapest_levels(sums.rows, counts, sums.all, lattice.n, estimate);
    }
    if (lattice.columns > 1)
        levels.columns =
            cheapest_levels(sums.columns, std::vector<uint64_t>(lattice.columns, lattice.n / lattice.columns), sums.all,
                            lattice.n, estimate);
    return levels;
}

void write_levels(const std::vector<Levels> &levels, const std::vector<Lattice> &lattices, Bytes &out) {
    Bytes tokens, coded;
    Parts parts;
    for (size_t p = 0; p < levels.size(); ++p) {
        parts.push_back(lattices[p].n_levels());
        if (!lattices[p].n) continue;
        tokens.push_back(fold(levels[p].own));
        for (int level : levels[p].rows) tokens.push_back(fold(level));
        for (int level : levels[p].columns) tokens.push_back(fold(level));
    }
    encode_chunked(tokens.data(), tokens.size(), parts, coded);
    put_varint(out, coded.size());
    out.insert(out.end(), coded.begin(), coded.end());
}

std::vector<Levels> read_levels(View &in, const std::vector<Lattice> &lattices) {
    Parts parts;
    size_t n = 0;
    for (const Lattice &lattice : lattices) {
        parts.push_back(lattice.n_levels());
        n += lattice.n_levels();
    }
    const uint64_t size = get_varint(in);
    Bytes tokens(n + 1);
    decode_chunked(in.take(size > in.size ? in.size + 1 : size_t(size)), tokens.data(), n, parts);
    in = in.drop(size_t(size));
    std::vector<Levels> all;
    const uint8_t *at = tokens.data();
    for (const Lattice &lattice : lattices) {
        Levels levels;
        if (lattice.n) levels.own = unfold(*at++);
        for (size_t r = 0; lattice.rows > 1 && r < lattice.rows; ++r) levels.rows.push_back(unfold(*at++));
        for (size_t c = 0; lattice.columns > 1 && c < lattice.columns; ++c) levels.columns.push_back(unfold(*at++));
        all.push_back(std::move(levels));
    }
    return all;
}

void fill_levels(const Lattice &lattice, const Levels &levels, const Signs &signs, uint8_t *out) {
    std::array<Bytes, kLevels> rows;  // few differ
    lattice.each_row([&](size_t r, size_t from, size_t to, size_t at) {
        const int level = level_at(levels.own + (lattice.rows > 1 ? levels.rows[r] : 0));
        if (lattice.columns < 2) {
            std::memset(out + at, signs[size_t(level)], to - from);
            return;
        }
        Bytes &row = rows[size_t(level)];
        if (row.empty()) fill_row(lattice, levels, level, signs, row);
        std::memcpy(out + at, row.data() + from, to - from);
    });
}

}  // namespace nearzip
