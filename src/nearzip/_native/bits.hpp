// Bits in bytes, least significant first: a checked writer and reader, and faster ones whose callers provide the memory.
#pragma once

#include "common.hpp"

namespace nearzip {

// The buffer grows in steps, `finish` pads with zeros to a whole byte.
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

// Writes into memory that is large enough: 8 bytes more than the bits take.
class FastBits {
public:
    explicit FastBits(uint8_t *out) : begin_(out), at_(out) {}
    NZ_INLINE void put(uint64_t v, uint64_t bits) {
        if (bits <= 56) return put_short(v, bits);
        put_short(v & 0xffffffff, 32);
        put_short(v >> 32, bits - 32);
    }
    // Up to 56 bits.
    NZ_INLINE void put_short(uint64_t v, uint64_t bits) {
        acc_ |= v << used_;
        used_ += bits;
        std::memcpy(at_, &acc_, 8);
        at_ += used_ >> 3;
        acc_ >>= used_ & 56;
        used_ &= 7;
    }
    size_t finish() { return size_t(at_ - begin_) + (used_ > 0); }

private:
    uint8_t *begin_, *at_;
    uint64_t acc_ = 0, used_ = 0;
};

// Up to 61 bits from bit `at`; 9 bytes from there on are readable.
NZ_INLINE uint64_t bits_at(const uint8_t *data, uint64_t at, int bits) {
    uint64_t v;
    std::memcpy(&v, data + (at >> 3), 8);
    v >>= at & 7;
    if (bits > 56) v |= uint64_t(data[(at >> 3) + 8]) << (63 - (at & 7)) << 1;
    return v & ((uint64_t(1) << bits) - 1);
}

}  // namespace nearzip
