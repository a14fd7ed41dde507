// What every native file shares: byte buffers, bit streams, variable-length integers, the one error.
#pragma once

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

#if defined(_MSC_VER)
#define NZ_INLINE __forceinline
#else
#define NZ_INLINE inline __attribute__((always_inline))
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

// A copy of bytes with zeros behind them, in memory that the thread keeps.
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

// Least significant bit first. The buffer grows in steps, `finish` pads with zeros to a whole byte.
class BitWriter {
public:
    explicit BitWriter(Bytes &out) : out_(out) {}

    void put(uint64_t v, int bits) {
        if (bits > 32) {
            put32(v & 0xffffffffu, 32);
            put32(v >> 32, bits - 32);
        } else {
            put32(v, bits);
        }
    }
    // Exponential Golomb code of order 0: v in 0 .. 2^32 - 2.
    void put_golomb(uint64_t v) {
        int length = bit_length(v + 1);
        put(0, length - 1);
        put(1, 1);
        put((v + 1) & ((uint64_t(1) << (length - 1)) - 1), length - 1);
    }
    void finish() {
        while (used_ > 0) {
            out_.push_back(uint8_t(acc_));
            acc_ >>= 8;
            used_ -= 8;
        }
        acc_ = 0;
        used_ = 0;
    }

private:
    void put32(uint64_t v, int bits) {
        acc_ |= v << used_;
        used_ += bits;
        if (used_ >= 32) {
            size_t at = out_.size();
            out_.resize(at + 4);
            for (int i = 0; i < 4; ++i) out_[at + i] = uint8_t(acc_ >> (8 * i));
            acc_ >>= 32;
            used_ -= 32;
        }
    }
    Bytes &out_;
    uint64_t acc_ = 0;
    int used_ = 0;
};

class BitReader {
public:
    explicit BitReader(View in) : in_(in), left_(uint64_t(in.size) * 8) {}

    uint64_t get(int bits) {
        if (uint64_t(bits) > left_) throw Corrupt("bit stream ends early");
        left_ -= bits;
        if (bits > 32) {
            uint64_t low = get32(32);
            return low | get32(bits - 32) << 32;
        }
        return get32(bits);
    }
    uint64_t get_golomb() {
        int zeros = 0;
        while (!get(1))
            if (++zeros > 31) throw Corrupt("malformed Golomb code");
        return ((uint64_t(1) << zeros) | get(zeros)) - 1;
    }
    // Bytes begun so far; the padding up to there must be zero.
    size_t finish() {
        int padding = int(left_ % 8);
        if (padding && get(padding)) throw Corrupt("padding is not zero");
        return in_.size - size_t(left_ / 8);
    }

private:
    uint64_t get32(int bits) {
        if (used_ < bits) refill();
        uint64_t v = acc_ & ((uint64_t(1) << bits) - 1);
        acc_ >>= bits;
        used_ -= bits;
        return v;
    }
    void refill() {
        if (in_.size - at_ >= 4) {
            uint32_t word = uint32_t(in_.data[at_]) | uint32_t(in_.data[at_ + 1]) << 8 |
                            uint32_t(in_.data[at_ + 2]) << 16 | uint32_t(in_.data[at_ + 3]) << 24;
            acc_ |= uint64_t(word) << used_;
            used_ += 32;
            at_ += 4;
            return;
        }
        while (at_ < in_.size && used_ <= 56) {
            acc_ |= uint64_t(in_.data[at_++]) << used_;
            used_ += 8;
        }
    }
    View in_;
    uint64_t left_;
    size_t at_ = 0;
    uint64_t acc_ = 0;
    int used_ = 0;
};

}  // namespace nearzip
