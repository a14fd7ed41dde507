#include "rounding.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nearzip {
namespace {

constexpr double kLargest = 1073741824.0;  // 2^30

NZ_CLONES void add_scaled(float *out, const float *values, float factor, size_t n) {
    for (size_t i = 0; i < n; ++i) out[i] += factor * values[i];
}

// The multiple of the step nearest to `wanted` that is within reach of `target`; without one, nearest to `target`.
int32_t level_of(double wanted, double target, const RoundingTile &t) {
    double level = std::nearbyint(wanted / t.step);
    if (std::isfinite(t.reach)) {
        const double lowest = std::ceil((target - t.reach) / t.step), highest = std::floor((target + t.reach) / t.step);
        level = lowest <= highest ? std::clamp(level, lowest, highest) : std::nearbyint(target / t.step);
    }
    return std::fabs(level) < kLargest ? int32_t(level) : 0;
}

}  // namespace

void round_tile(const RoundingTile &t) {
    std::vector<float> expected(t.columns), row(t.columns);
    for (size_t i = 0; i < t.rows; ++i) {
        const float own = t.row_factor[i * t.rows + i];
        const size_t at = i * t.columns;
        // Everything that is known of this row's error before its first value is rounded.
        for (size_t j = 0; j < t.columns; ++j) expected[j] = t.from_rows[at + j] + own * t.from_columns[at + j];
        for (size_t above = 0; above < i; ++above)
            add_scaled(expected.data(), t.carried + above * t.columns, t.row_factor[above * t.rows + i], t.columns);
        std::fill(row.begin(), row.end(), 0.0f);
        for (size_t j = 0; j < t.columns; ++j) {
            const float *factors = t.column_factor + j * t.columns;
            const double wanted = double(t.target[at + j]) - expected[j] - double(own) * row[j];
            const int32_t level = level_of(wanted, t.target[at + j], t);
            const float remainder = float((wanted - level * t.step) / (double(own) * factors[j]));
            t.levels[at + j] = level;
            t.remainders[at + j] = remainder;
            add_scaled(row.data() + j, factors + j, remainder, t.columns - j);
        }
        for (size_t j = 0; j < t.columns; ++j) t.carried[at + j] = row[j] + t.from_columns[at + j];
    }
}

}  // namespace nearzip
