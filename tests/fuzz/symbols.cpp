// decode_symbols on untrusted bytes, every type; the stream's first byte chooses the split.
#include "input.hpp"
#include "symbols.hpp"

namespace {

template <class T>
void decode(const fuzz::Input &input) {
    std::vector<T> one(input.n, T(0)), two(input.n, T(~T(0)));
    try {
        nearzip::decode_symbols<T>(input.rest, one.data(), input.n, input.parts);
    } catch (const nearzip::Corrupt &) {
        return;
    }
    nearzip::decode_symbols<T>(input.rest, two.data(), input.n, input.parts);
    fuzz::require(one == two, "some symbols were left unset");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Input input;
    if (!fuzz::read_head(data, size, input)) return 0;
    switch (input.choice % 5) {
        case 0: decode<int32_t>(input); break;
        case 1: decode<uint8_t>(input); break;
        case 2: decode<uint16_t>(input); break;
        case 3: decode<uint32_t>(input); break;
        default: decode<uint64_t>(input);
    }
    return 0;
}
