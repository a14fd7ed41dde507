// The Python face of the image coders; `bindings.cpp` has the rest.
#include "bindings_images.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include "dct.hpp"
#include "pixels.hpp"
#include "zfp.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace nearzip;

namespace {

template <class T>
using Input = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Output = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void same_size(size_t a, size_t b) {
    if (a != b) throw nb::value_error("arrays differ in size");
}

std::vector<int32_t> weights(Input<int16_t> from, size_t n, int most) {
    same_size(from.size(), n);
    std::vector<int32_t> to(from.data(), from.data() + n);
    for (int32_t w : to)
        if (w < -most || w > most) throw nb::value_error("a weight is out of range");
    return to;
}

// With weights up to these, no sum of products overflows 32 bits.
constexpr int kMostMean = 1 << 14, kMostScale = 1 << 12;

void make_dct(DctModel *self, int channels, bool color, Input<int16_t> mean, Input<int16_t> scale, Input<int16_t> dc_mean,
              Input<int16_t> dc_scale, Input<uint8_t> start, Input<uint8_t> map, Input<uint16_t> freqs,
              Input<uint16_t> steps, Input<uint16_t> shifts) {
    if (channels < 1 || channels > kMaxChannels || (color && channels < 3)) throw nb::value_error("1 to 4 channels");
    const size_t n = size_t(channels);
    auto model = DctModel();
    model.channels = channels, model.color = color;
    model.mean = weights(mean, n * kMeanFeatures * 64, kMostMean);
    model.scale = weights(scale, n * kScaleFeatures * 64, kMostScale);
    model.dc_mean = weights(dc_mean, n * kBorders * kDcFeatures, kMostMean);
    model.dc_scale = weights(dc_scale, n * kBorders * kDcFeatures, kMostScale);
    same_size(start.size(), n * 64), same_size(map.size(), kDctContexts);
    same_size(steps.size(), n * 64), same_size(shifts.size(), n * 192);
    if (freqs.size() % kStaticTokens || freqs.size() > 256 * kStaticTokens) throw nb::value_error("at most 256 tables");
    model.start.assign(start.data(), start.data() + start.size());
    model.tables = StaticTables(freqs.data(), freqs.size() / kStaticTokens, map.data(), map.size());
    model.steps.assign(steps.data(), steps.data() + steps.size());
    model.shifts.assign(shifts.data(), shifts.data() + shifts.size());
    model.arrange();
    new (self) DctModel(std::move(model));
}

void make_pixels(PixelModel *self, int channels, bool color, Input<int16_t> mean, Input<int16_t> scale, Input<int16_t> start,
                 Input<uint8_t> map, Input<uint16_t> freqs) {
    if (channels < 1 || channels > kMaxPixelChannels || (color && channels < 3)) throw nb::value_error("1 to 4 channels");
    const size_t n = size_t(channels);
    PixelModel model;
    model.channels = channels, model.color = color;
    model.mean = weights(mean, n * kTextures * kPixelMean, kMostMean);
    model.scale = weights(scale, n * kTextures * kPixelScale, kMostMean);
    model.start = weights(start, n, 511);
    same_size(map.size(), kPixelContexts);
    if (freqs.size() % kStaticTokens || freqs.size() > 256 * kStaticTokens) throw nb::value_error("at most 256 tables");
    model.tables = StaticTables(freqs.data(), freqs.size() / kStaticTokens, map.data(), map.size());
    model.arrange();
    new (self) PixelModel(std::move(model));
}

size_t level_count(const DctModel &m, BlockShape shape) { return shape.rows * shape.columns * size_t(m.channels) * 64; }

// Levels of n images of one shape, one after the other.
size_t images_in(const DctModel &m, BlockShape shape, size_t n_levels) {
    const size_t each = level_count(m, shape);
    if (!each || n_levels % each) throw nb::value_error("levels are a whole number of images");
    return n_levels / each;
}

template <class Work>
nb::bytes encoded(size_t n, Output<uint32_t> lengths, Work encode_one) {
    same_size(lengths.size(), n);
    Bytes out;
    {
        nb::gil_scoped_release nogil;
        for (size_t i = 0, before = 0; i < n; ++i, before = out.size()) {
            encode_one(i, out);
            lengths.data()[i] = uint32_t(out.size() - before);
        }
    }
    return nb::bytes(out.data(), out.size());
}

// The bytes of each image: from starts[i] to stops[i] of the data.
std::vector<View> streams(Input<uint8_t> data, Input<uint64_t> starts, Input<uint64_t> stops) {
    same_size(starts.size(), stops.size());
    std::vector<View> found;
    found.reserve(starts.size());
    for (size_t i = 0; i < starts.size(); ++i) {
        const uint64_t from = starts.data()[i], to = stops.data()[i];
        if (from > to || to > data.size()) throw Corrupt("a sample lies outside its group");
        found.push_back({data.data() + from, size_t(to - from)});
    }
    return found;
}

// Calls `each` for every image of a stack.
template <class Each>
void each_image(const PixelModel &m, size_t height, size_t width, Input<uint8_t> pixels, Each each) {
    const size_t size = height * width * size_t(m.channels);
    if (!size || pixels.size() % size) throw nb::value_error("pixels are a whole number of images");
    nb::gil_scoped_release nogil;
    for (size_t at = 0; at < pixels.size(); at += size) each(pixels.data() + at);
}

// Fields of one shape, one after the other; each becomes its coefficients.
template <class T>
void py_zfp(Input<T> values, std::vector<size_t> sizes, int precision, Output<T> out) {
    if (sizes.empty() || sizes.size() > 3) throw nb::value_error("a field has 1 to 3 dimensions");
    if (precision < 1 || precision > 32) throw nb::value_error("a precision lies between 1 and 32");
    size_t n = 1, padded = 1;
    for (size_t size : sizes) n *= size, padded *= (size + 3) / 4 * 4;
    if (!n || values.size() % n || out.size() != values.size() / n * padded) throw nb::value_error("arrays differ in size");
    nb::gil_scoped_release nogil;
    for (size_t i = 0; i < values.size() / n; ++i)
        zfp_coefficients(values.data() + i * n, sizes.data(), int(sizes.size()), precision, out.data() + i * padded);
}

}  // namespace

void bind_images(nb::module_ &m) {
    nb::class_<DctModel>(m, "DctModel")
        .def("__init__", &make_dct, "channels"_a, "color"_a, "mean"_a.noconvert(), "scale"_a.noconvert(),
             "dc_mean"_a.noconvert(), "dc_scale"_a.noconvert(), "start"_a.noconvert(), "map"_a.noconvert(),
             "freqs"_a.noconvert(), "steps"_a.noconvert(), "shifts"_a.noconvert())
        .def("count",
             [](const DctModel &self, size_t rows, size_t columns, Input<int16_t> levels, Output<uint32_t> counts) {
                 same_size(counts.size(), size_t(kDctContexts) * kStaticTokens);
                 const size_t n = images_in(self, {rows, columns}, levels.size()), each = level_count(self, {rows, columns});
                 nb::gil_scoped_release nogil;
                 for (size_t i = 0; i < n; ++i) count_levels(self, {rows, columns}, levels.data() + i * each, counts.data());
             },
             "rows"_a, "columns"_a, "levels"_a.noconvert(), "counts"_a.noconvert())
        .def("fit",
             [](const DctModel &self, size_t rows, size_t columns, Input<int16_t> levels, Output<double> mean,
                Output<double> scale, Output<double> dc_mean, Output<double> dc_scale) {
                 const size_t n = images_in(self, {rows, columns}, levels.size()), each = level_count(self, {rows, columns});
                 const size_t c = size_t(self.channels), dc = c * kBorders * kDcFeatures * (kDcFeatures + 1);
                 same_size(mean.size(), c * 64 * kMeanFeatures * (kMeanFeatures + 1));
                 same_size(scale.size(), c * 64 * kScaleFeatures * (kScaleFeatures + 1));
                 same_size(dc_mean.size(), dc), same_size(dc_scale.size(), dc);
                 nb::gil_scoped_release nogil;
                 for (size_t i = 0; i < n; ++i)
                     fit_levels(self, {rows, columns}, levels.data() + i * each,
                                {mean.data(), dc_mean.data(), scale.data(), dc_scale.data()});
             },
             "rows"_a, "columns"_a, "levels"_a.noconvert(), "mean"_a.noconvert(), "scale"_a.noconvert(),
             "dc_mean"_a.noconvert(), "dc_scale"_a.noconvert())
        .def("encode",
             [](const DctModel &self, size_t rows, size_t columns, Input<int16_t> levels, Output<uint32_t> lengths) {
                 const size_t n = images_in(self, {rows, columns}, levels.size()), each = level_count(self, {rows, columns});
                 return encoded(n, lengths, [&](size_t i, Bytes &out) {
                     encode_levels(self, {rows, columns}, levels.data() + i * each, out);
                 });
             },
             "rows"_a, "columns"_a, "levels"_a.noconvert(), "lengths"_a.noconvert())
        .def("decode",
             [](const DctModel &self, size_t height, size_t width, Input<uint8_t> data, Input<uint64_t> starts,
                Input<uint64_t> stops, Output<uint8_t> out) {
                 const size_t each = height * width * size_t(self.channels);
                 same_size(out.size(), each * starts.size());
                 const std::vector<View> in = streams(data, starts, stops);
                 nb::gil_scoped_release nogil;
                 decode_images(self, height, width, in, out.data());
             },
             "height"_a, "width"_a, "data"_a.noconvert(), "starts"_a.noconvert(), "stops"_a.noconvert(), "out"_a.noconvert())
        .def("decode_levels",
             [](const DctModel &self, size_t rows, size_t columns, Input<uint8_t> data, Input<uint64_t> starts,
                Input<uint64_t> stops, Output<int16_t> out) {
                 const size_t each = level_count(self, {rows, columns});
                 same_size(out.size(), each * starts.size());
                 const std::vector<View> in = streams(data, starts, stops);
                 nb::gil_scoped_release nogil;
                 decode_levels(self, {rows, columns}, in, out.data());
             },
             "rows"_a, "columns"_a, "data"_a.noconvert(), "starts"_a.noconvert(), "stops"_a.noconvert(), "out"_a.noconvert());
    nb::class_<PixelModel>(m, "PixelModel")
        .def("__init__", &make_pixels, "channels"_a, "color"_a, "mean"_a.noconvert(), "scale"_a.noconvert(),
             "start"_a.noconvert(), "map"_a.noconvert(), "freqs"_a.noconvert())
        .def("fit",
             [](const PixelModel &self, size_t height, size_t width, Input<uint8_t> pixels, Output<double> mean,
                Output<double> scale) {
                 const size_t sets = size_t(self.channels) * kTextures;
                 same_size(mean.size(), sets * kPixelMean * (kPixelMean + 1));
                 same_size(scale.size(), sets * kPixelScale * (kPixelScale + 1));
                 each_image(self, height, width, pixels, [&](const uint8_t *image) {
                     fit_pixels(self, height, width, image, mean.data(), scale.data());
                 });
             },
             "height"_a, "width"_a, "pixels"_a.noconvert(), "mean"_a.noconvert(), "scale"_a.noconvert())
        .def("count",
             [](const PixelModel &self, size_t height, size_t width, Input<uint8_t> pixels, Output<uint32_t> counts) {
                 same_size(counts.size(), size_t(kPixelContexts) * kStaticTokens);
                 each_image(self, height, width, pixels,
                            [&](const uint8_t *image) { count_pixels(self, height, width, image, counts.data()); });
             },
             "height"_a, "width"_a, "pixels"_a.noconvert(), "counts"_a.noconvert())
        .def("encode",
             [](const PixelModel &self, size_t height, size_t width, Input<uint8_t> pixels, Output<uint32_t> lengths) {
                 const size_t each = height * width * size_t(self.channels);
                 if (!each || pixels.size() % each) throw nb::value_error("pixels are a whole number of images");
                 return encoded(pixels.size() / each, lengths, [&](size_t i, Bytes &out) {
                     encode_pixels(self, height, width, pixels.data() + i * each, out);
                 });
             },
             "height"_a, "width"_a, "pixels"_a.noconvert(), "lengths"_a.noconvert())
        .def("decode",
             [](const PixelModel &self, size_t height, size_t width, Input<uint8_t> data, Input<uint64_t> starts,
                Input<uint64_t> stops, Output<uint8_t> out) {
                 const size_t each = height * width * size_t(self.channels);
                 same_size(out.size(), each * starts.size());
                 const std::vector<View> in = streams(data, starts, stops);
                 nb::gil_scoped_release nogil;
                 decode_pixels(self, height, width, in, out.data());
             },
             "height"_a, "width"_a, "data"_a.noconvert(), "starts"_a.noconvert(), "stops"_a.noconvert(), "out"_a.noconvert());
    m.def("zfp_coefficients", &py_zfp<float>, "values"_a.noconvert(), "sizes"_a, "precision"_a, "out"_a.noconvert());
    m.def("zfp_coefficients", &py_zfp<int32_t>, "values"_a.noconvert(), "sizes"_a, "precision"_a, "out"_a.noconvert());
    m.attr("PIXEL_CONTEXTS") = kPixelContexts;
    m.attr("PIXEL_TEXTURES") = kTextures;
    m.attr("DCT_CONTEXTS") = kDctContexts;
    m.attr("STATIC_TOKENS") = kStaticTokens;
}
