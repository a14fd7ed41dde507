// What is encoded decodes to itself, for any values: tokens, symbols of every type by either split, ordered deltas.
// The input's values are repeated up to n of the head, so that short inputs make long streams.
#include <cstring>

#include "floats.hpp"
#include "input.hpp"
#include "symbols.hpp"

namespace {

template <class T>
std::vector<T> values_of(const fuzz::Input &input) {
    std::vector<T> values(input.n);
    const size_t whole = input.rest.size / sizeof(T);
    for (size_t i = 0; whole && i < input.n; ++i) {
        std::memcpy(&values[i], input.rest.data + (i % whole) * sizeof(T), sizeof(T));
        // Each repetition differs a little from the one before it.
        values[i] = T(values[i] + T(i / whole % 5));
    }
    return values;
}

void tokens(const fuzz::Input &input) {
    const std::vector<uint8_t> values = values_of<uint8_t>(input);
    nearzip::Bytes coded;
    nearzip::encode_tokens(values.data(), input.n, input.parts, coded);
    std::vector<uint8_t> back(input.n, 0xa5);
    nearzip::decode_tokens({coded.data(), coded.size()}, back.data(), input.n, input.parts);
    fuzz::require(back == values, "tokens differ after a round trip");
}

template <class T>
void symbols(const fuzz::Input &input, bool planes) {
    using U = std::make_unsigned_t<T>;
    std::vector<T> values(input.n);
    const std::vector<U> raw = values_of<U>(input);
    for (size_t i = 0; i < input.n; ++i) values[i] = T(raw[i]);
    nearzip::Bytes coded;
    const auto split = planes ? nearzip::Split::planes : nearzip::Split::magnitude;
    nearzip::encode_symbols<T>(values.data(), input.n, input.parts, split, coded);
    std::vector<T> back(input.n, T(0x5a));
    nearzip::decode_symbols<T>({coded.data(), coded.size()}, back.data(), input.n, input.parts);
    fuzz::require(back == values, "symbols differ after a round trip");
}

template <class U>
void deltas(const fuzz::Input &input, bool floats) {
    const std::vector<U> values = values_of<U>(input);
    const std::vector<U> base(values.rbegin(), values.rend());
    std::vector<U> coded(input.n), back(input.n);
    nearzip::ordered_delta<U>(values.data(), base.data(), input.n, floats, coded.data());
    nearzip::undo_ordered_delta<U>(coded.data(), base.data(), input.n, floats, back.data());
    fuzz::require(back == values, "values differ after an ordered delta");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Input input;
    if (!fuzz::read_head(data, size, input)) return 0;
    const unsigned choice = input.choice % 19;
    const bool second = choice % 2 == 0;
    switch (choice) {
        case 0: tokens(input); break;
        case 1: case 2: symbols<int32_t>(input, second); break;
        case 3: case 4: symbols<uint8_t>(input, second); break;
        case 5: case 6: symbols<uint16_t>(input, second); break;
        case 7: case 8: symbols<uint32_t>(input, second); break;
        case 9: case 10: symbols<uint64_t>(input, second); break;
        case 11: case 12: deltas<uint8_t>(input, second); break;
        case 13: case 14: deltas<uint16_t>(input, second); break;
        case 15: case 16: deltas<uint32_t>(input, second); break;
        default: deltas<uint64_t>(input, second);
    }
    return 0;
}
