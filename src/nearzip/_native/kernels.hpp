// The kernels of a convolution, coded position by position: the left and upper neighbours predict a value's sign and size.
// Layout: docs/format.md, "Scaled streams".
#pragma once

#include "lattice.hpp"

namespace nearzip {

// By the values left and above, against the part's mean: 0 if there are none, else 1 .. 7 from low to high.
constexpr int kClasses = 8;

class Kernels {
public:
    // `own` is the part's level.
    Kernels(const Lattice &lattice, int own);

    // `lead` of the part's values precede the first whole kernel. Too few kernels count as none.
    size_t lead, count, places;
    bool any() const { return places > 1; }

    // The index, in the part, of a kernel's value.
    size_t index(size_t kernel, size_t place) const { return lead + kernel * places + place; }

    // The contexts of all kernels' values at a place: class times kLevels plus level. Needs the tokens of earlier places.
    // `levels` are those of all the part's values.
    void contexts(size_t place, const uint8_t *levels, uint16_t *out) const;
    void keep(size_t place, const uint8_t *tokens);

    // Whether a sample of the values correlates with their left neighbours.
    bool alike(const uint8_t *tokens) const;

private:
    size_t width_;
    std::vector<int8_t> values_;  // place by place
    uint8_t classes_[257];        // of the sum of two values, from -128 on
};

}  // namespace nearzip
