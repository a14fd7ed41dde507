// What every native file shares: byte buffers, variable-length integers, the one error.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

// Loops marked NZ_CLONES are compiled several times, and the loader picks by processor. Only where the loader can: ELF with
// glibc on x86-64. Sanitizers run before the loader's choice is possible.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && !defined(NZ_NO_CLONES)
#if defined(__clang__) || __GNUC__ < 12
#define NZ_CLONES __attribute__((target_clones("default", "avx2")))
#else
#define NZ_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))  // "arch=haswell" is for Intel's alone
// For loops that AVX-512 makes faster still, as those between integers and floats of different sizes; others it makes slower.
#define NZ_WIDE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
#else
#define NZ_CLONES
#endif
#ifndef NZ_WIDE_CLONES
#define NZ_WIDE_CLONES NZ_CLONES
#endif

#if defined(NZ_NO_CLONES)
#define NZ_INLINE inline  // checks of every access make functions large
#elif defined(_MSC_VER)
#define NZ_INLINE __forceinline
#else
#define NZ_INLINE inline __attribute__((always_inline))
#endif

// Before a loop with a long body that is compiled once, not once for each of its few rounds.
#if defined(__clang__)
#define NZ_NO_UNROLL _Pragma("nounroll")
#elif defined(__GNUC__)
#define NZ_NO_UNROLL _Pragma("GCC unroll 1")
#else
#define NZ_NO_UNROLL
#endif

namespace nearzip {

using Bytes = std::vector<uint8_t>;

// The bytes being decoded are not what any encoder of ours writes.
struct Corrupt : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct View {
    const uint8_t *data;
    size_t size;

    View drop(size_t n) const {
        if (n > size) throw Corrupt("stream ends early");
        return {data + n, size - n};
    }
    View take(size_t n) const {
        if (n > size) throw Corrupt("stream ends early");
        return {data, n};
    }
};

// Memory that a thread keeps for its next block: fresh pages cost as much as filling them. Contents are not initialised.
template <class T>
class Scratch {
public:
    T *get(size_t n) {
        if (n > capacity_) {
            data_.reset(new T[n]);
            capacity_ = n;
        }
        return data_.get();
    }

private:
    std::unique_ptr<T[]> data_;
    size_t capacity_ = 0;
};

// A copy of bytes followed by zeros, in memory that the thread keeps.
inline const uint8_t *padded(View in, size_t n_zeros, Scratch<uint8_t> &scratch) {
    uint8_t *const copy = scratch.get(in.size + n_zeros);
    if (in.size) std::memcpy(copy, in.data, in.size);
    std::memset(copy + in.size, 0, n_zeros);
    return copy;
}

inline int bit_length(uint64_t v) {
    int n = 0;
#if defined(__GNUC__) || defined(__clang__)
    n = v ? 64 - __builtin_clzll(v) : 0;
#else
    while (v) ++n, v >>= 1;
#endif
    return n;
}

// Place of the lowest bit that is set; v is not 0.
inline int lowest_bit(uint64_t v) {
#if defined(__GNUC__) || defined(__clang__)
    return __builtin_ctzll(v);
#else
    int n = 0;
    while (!(v >> n & 1)) ++n;
    return n;
#endif
}

inline void put_varint(Bytes &out, uint64_t v) {
    for (; v >= 128; v >>= 7) out.push_back(uint8_t(v) | 128);
    out.push_back(uint8_t(v));
}

// What `write` appends to `out`, after its size. `likely` is about that size: where its varint has another length, all of it
// is moved. Returns the size.
template <class Write>
size_t put_sized(Bytes &out, size_t likely, Write write) {
    const size_t begin = out.size();
    put_varint(out, likely);
    const size_t from = out.size();
    write();
    const size_t size = out.size() - from;
    Bytes head;
    put_varint(head, size);
    const auto at = out.begin() + ptrdiff_t(begin);
    if (head.size() < from - begin) out.erase(at, at + ptrdiff_t(from - begin - head.size()));
    if (head.size() > from - begin) out.insert(at, head.size() - (from - begin), 0);
    std::copy(head.begin(), head.end(), out.begin() + ptrdiff_t(begin));
    return size;
}

// Canonical LEB128: at most 10 bytes, no superfluous zero bytes, so that every value has one spelling.
inline uint64_t get_varint(View &in) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (!in.size) throw Corrupt("stream ends early");
        uint8_t byte = *in.data;
        in = in.drop(1);
        if (shift == 63 && byte > 1) break;
        v |= uint64_t(byte & 127) << shift;
        if (byte < 128) {
            if (shift && !byte) break;
            return v;
        }
    }
    throw Corrupt("malformed integer");
}

}  // namespace nearzip
