// The likeliest five classes of an image file, from an export of gluon_resnetv2, by MXNet's C
// predict API. Computes what `python -m gluon_resnetv2 predict` computes: see README.md.

#include <png.h>
#include <turbojpeg.h>

#include <cstdint>  // c_predict_api.h needs it, and does not say so

#include <mxnet/c_predict_api.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace fs = std::filesystem;

constexpr int kShown = 5;                   // classes
constexpr double kLargestImage = 89478485;  // pixels: where Pillow, too, suspects an attack

[[noreturn]] void fail(const fs::path& file, const std::string& what) {
  throw std::runtime_error(file.string() + ": " + what);
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || fs::is_directory(path)) fail(path, "can't be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// ---- The manifest: what the graph takes and gives -----------------------------------------------

struct Manifest {
  std::string input;              // the name of the graph's input
  std::array<int, 3> shape;       // channels, height, width
  std::vector<double> mean, std;  // of each channel, 0 to 255
  double crop;                    // the part of an image's shorter side that is used
  bool smooth;                    // all pixels that one of the result covers are weighed, not four
  bool normalised;                // the graph takes (pixels - mean) / std rather than pixels
  bool logits;                    // it gives logits rather than probabilities
  bool fuse;                      // MXNet's fusing of it was verified
  std::vector<std::string> classes;
};

// Whether `verify` ran the pair in `runtime` and recorded `verdict`.
bool recorded(const nlohmann::json& manifest, const std::string& runtime, bool verdict) {
  const auto checks = manifest.value("verification", nlohmann::json::array());
  return std::any_of(checks.begin(), checks.end(), [&](const auto& check) {
    return check.at("runtime") == runtime && check.at("passed") == verdict;
  });
}

Manifest read_manifest(const fs::path& path) {
  if (!fs::exists(path)) fail(path, "is missing, and says how images are prepared");
  try {
    const auto all = nlohmann::json::parse(read_file(path));
    if (all.at("format") != 2) fail(path, "has a format that this program does not know");
    if (recorded(all, "C predict API, no fusion", false))
      fail(path, "says that MXNet's C predict API computes this export wrongly");
    const auto& input = all.at("input");
    const std::string interpolation = input.value("interpolation", "bilinear");
    if ((interpolation != "bilinear" && interpolation != "opencv bilinear") ||
        input.value("stretch", false))
      fail(path, "asks for images to be scaled in a way that this program does not know");
    Manifest manifest{input.at("name"),
                      input.at("shape"),
                      input.at("mean"),
                      input.at("std"),
                      input.at("crop"),
                      interpolation == "bilinear",
                      input.at("values") == "normalised",
                      all.at("output") == "logits",
                      recorded(all, "C predict API", true),
                      all.at("classes")};
    const auto [channels, height, width] = manifest.shape;
    const size_t values = channels;
    if ((channels != 1 && channels != 3) || std::min(height, width) < 1 ||
        std::max(height, width) > 8192 || manifest.mean.size() != values ||
        manifest.std.size() != values || !(manifest.crop >= 0.1 && manifest.crop <= 1))
      fail(path, "describes no image that there could be");
    return manifest;
  } catch (const nlohmann::json::exception& error) {
    fail(path, std::string("is damaged: ") + error.what());
  }
}

// ---- The image ----------------------------------------------------------------------------------

struct Image {
  int width, height, channels;
  std::vector<uint8_t> pixels;  // row after row, pixel after pixel
};

void refuse_if_huge(const fs::path& path, double width, double height) {
  if (width * height > kLargestImage) fail(path, "has more pixels than an image should");
}

Image read_png(const fs::path& path, const std::string& bytes) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, decltype(&png_image_free)> owner(&png, png_image_free);
  if (!png_image_begin_read_from_memory(&png, bytes.data(), bytes.size())) fail(path, png.message);
  refuse_if_huge(path, png.width, png.height);
  png.format = PNG_FORMAT_RGBA;
  png.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;  // 16 bits are scaled, as 8 bits are read
  std::vector<uint8_t> rgba(PNG_IMAGE_SIZE(png));
  if (!png_image_finish_read(&png, nullptr, rgba.data(), 0, nullptr)) fail(path, png.message);
  Image image{int(png.width), int(png.height), 3, {}};
  image.pixels.reserve(rgba.size() / 4 * 3);
  for (size_t i = 0; i < rgba.size(); i += 4)
    for (size_t channel = 0; channel < 3; ++channel) {  // where it is transparent, white shows
      const int alpha = rgba[i + 3];
      image.pixels.push_back((rgba[i + channel] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  return image;
}

// Cyan, magenta, yellow and black as red, green and blue. All are held as light, as Adobe does it:
// what a colour leaves of it times what black leaves.
Image without_black(const Image& image) {
  Image result{image.width, image.height, 3, {}};
  for (size_t i = 0; i < image.pixels.size(); i += 4)
    for (size_t channel = 0; channel < 3; ++channel)
      result.pixels.push_back((image.pixels[i + channel] * image.pixels[i + 3] + 127) / 255);
  return result;
}

// How a JPEG's EXIF data say it is turned: 1, which is not at all, to 8.
int orientation(const std::string& bytes) {
  const auto number = [&](size_t at, int size, bool little) {
    size_t value = 0;
    for (int i = 0; i < size; ++i)
      value = value << 8 | uint8_t(bytes.at(at + (little ? size - 1 - i : i)));
    return value;
  };
  try {
    size_t at = 2;  // of a segment: its mark, its length, what it holds
    while (number(at, 2, false) != 0xffe1 || bytes.compare(at + 4, 6, "Exif\0\0", 6) != 0) {
      if (number(at, 2, false) == 0xffda) return 1;  // the pixels follow
      at += 2 + number(at + 2, 2, false);
    }
    const size_t start = at + 10;
    const bool little = bytes.at(start) == 'I';
    const size_t table = start + number(start + 4, 4, little);
    for (size_t i = 0; i < number(table, 2, little); ++i)
      if (number(table + 2 + 12 * i, 2, little) == 0x0112)
        return number(table + 10 + 12 * i, 2, little);
  } catch (const std::out_of_range&) {  // they are cut short
  }
  return 1;
}

Image upright(const Image& image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const std::array<bool, 9> left{0, 0, 1, 1, 0, 0, 0, 1, 1}, down{0, 0, 0, 1, 1, 0, 1, 1, 0};
  const bool swapped = orientation >= 5;
  Image result{image.width, image.height, image.channels, {}};
  if (swapped) std::swap(result.width, result.height);
  for (int y = 0; y < result.height; ++y)
    for (int x = 0; x < result.width; ++x) {
      size_t column = swapped ? y : x, row = swapped ? x : y;
      if (left[orientation]) column = image.width - 1 - column;
      if (down[orientation]) row = image.height - 1 - row;
      const auto pixel = image.pixels.begin() + (row * image.width + column) * image.channels;
      result.pixels.insert(result.pixels.end(), pixel, pixel + image.channels);
    }
  return result;
}

Image read_jpeg(const fs::path& path, const std::string& bytes) {
  const std::unique_ptr<void, decltype(&tjDestroy)> jpeg(tjInitDecompress(), tjDestroy);
  const auto data = reinterpret_cast<const unsigned char*>(bytes.data());
  int width, height, subsampling, colours;
  if (!jpeg || tjDecompressHeader3(jpeg.get(), data, bytes.size(), &width, &height, &subsampling,
                                   &colours))
    fail(path, tjGetErrorStr2(jpeg.get()));
  refuse_if_huge(path, width, height);
  const bool inks = colours == TJCS_CMYK || colours == TJCS_YCCK;
  const int channels = inks ? 4 : 3, format = inks ? TJPF_CMYK : TJPF_RGB;
  Image image{width, height, channels, std::vector<uint8_t>(size_t(width) * height * channels)};
  if (tjDecompress2(jpeg.get(), data, bytes.size(), image.pixels.data(), width, 0, height, format,
                    0))
    fail(path, tjGetErrorStr2(jpeg.get()));
  return upright(inks ? without_black(image) : image, orientation(bytes));
}

Image read_image(const fs::path& path) {
  const std::string bytes = read_file(path);
  if (bytes.rfind("\x89PNG", 0) == 0) return read_png(path, bytes);
  if (bytes.rfind("\xff\xd8", 0) == 0) return read_jpeg(path, bytes);
  fail(path, "is neither PNG nor JPEG");
}

// The light of each pixel (ITU-R 601), as a network of one channel takes it.
Image grey(const Image& image) {
  Image result{image.width, image.height, 1, {}};
  for (size_t i = 0; i < image.pixels.size(); i += 3) {
    const uint8_t* rgb = &image.pixels[i];
    result.pixels.push_back((19595 * rgb[0] + 38470 * rgb[1] + 7471 * rgb[2] + 0x8000) >> 16);
  }
  return result;
}

// The middle `width` pixels of every row, of `scaled` that a triangle filter makes of it, which if
// `smooth` is as wide as the pixels it makes. Between two pixels the middle is where torchvision has
// it if `smooth`, otherwise where MXNet has it. Weights are whole numbers, as Pillow's are. The
// result is transposed: twice scales both sides.
Image scale_middle(const Image& image, int64_t scaled, int width, bool smooth) {
  const double step = double(image.width) / scaled, reach = smooth ? std::max(step, 1.0) : 1.0;
  const double half = (scaled - width) / 2.0;
  const int64_t before = int64_t(smooth ? std::nearbyint(half) : std::floor(half));
  constexpr int kOne = 1 << 22;
  Image result{image.height, width, image.channels, {}};
  result.pixels.reserve(size_t(width) * image.height * image.channels);
  for (int64_t x = before; x < before + width; ++x) {
    const double centre = (x + 0.5) * step;
    const int first = std::max(0, int(centre - reach + 0.5));
    const int last = std::min(image.width, int(centre + reach + 0.5));
    std::vector<double> shares;
    for (int i = first; i < last; ++i)
      shares.push_back(std::max(0.0, 1 - std::abs(i + 0.5 - centre) / reach));
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    std::vector<int> weights;
    for (const double share : shares) weights.push_back(int(share / sum * kOne + 0.5));
    for (int y = 0; y < image.height; ++y)
      for (int channel = 0; channel < image.channels; ++channel) {
        const size_t start = (size_t(y) * image.width + first) * image.channels + channel;
        int value = kOne / 2;
        for (size_t i = 0; i < weights.size(); ++i)
          value += weights[i] * image.pixels[start + i * image.channels];
        result.pixels.push_back(uint8_t(std::clamp(value / kOne, 0, 255)));
      }
  }
  return result;
}

// The centre of the image, scaled and cut to what the graph takes: channel after channel.
std::vector<float> prepare(const Image& image, const Manifest& manifest) {
  const auto [channels, height, width] = manifest.shape;
  int64_t tall = std::lrint(height / manifest.crop), wide = std::lrint(width / manifest.crop);
  if (wide * image.height > tall * image.width)
    tall = wide * image.height / image.width;
  else
    wide = tall * image.width / image.height;
  const Image turned = scale_middle(image, wide, width, manifest.smooth);
  const Image scaled = scale_middle(turned, tall, height, manifest.smooth);
  std::vector<float> values;
  for (int channel = 0; channel < channels; ++channel)
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        double value = scaled.pixels[(size_t(y) * width + x) * channels + channel];
        if (manifest.normalised) value = (value - manifest.mean[channel]) / manifest.std[channel];
        values.push_back(float(value));
      }
  return values;
}

// ---- The network --------------------------------------------------------------------------------

void check(int status) {
  if (status == 0) return;
  const std::string message = MXGetLastError();
  throw std::runtime_error("MXNet: " + message.substr(0, message.find('\n')));
}

class Network {
 public:
  Network(const fs::path& symbol, const fs::path& params, const Manifest& manifest)
      : input_(manifest.input) {
    const std::string graph = read_file(symbol), arrays = read_file(params);
    if (arrays.size() > INT_MAX) fail(params, "is larger than MXNet's C predict API takes");
    const char* name = input_.c_str();
    const std::array<uint32_t, 2> ends{0, 4};
    const std::array<uint32_t, 4> shape{1, uint32_t(manifest.shape[0]), uint32_t(manifest.shape[1]),
                                        uint32_t(manifest.shape[2])};
    PredictorHandle handle;
    constexpr int kCpu = 1;
    check(MXPredCreate(graph.c_str(), arrays.data(), int(arrays.size()), kCpu, 0, 1, &name,
                       ends.data(), shape.data(), &handle));
    handle_.reset(handle);
  }

  // What the graph gives for one image.
  std::vector<float> operator()(const std::vector<float>& image) const {
    check(MXPredSetInput(handle_.get(), input_.c_str(), image.data(), uint32_t(image.size())));
    check(MXPredForward(handle_.get()));
    uint32_t *shape, dimensions;
    check(MXPredGetOutputShape(handle_.get(), 0, &shape, &dimensions));
    std::vector<float> output(
        std::accumulate(shape, shape + dimensions, size_t{1}, std::multiplies<>()));
    check(MXPredGetOutput(handle_.get(), 0, output.data(), uint32_t(output.size())));
    return output;
  }

 private:
  std::string input_;
  std::unique_ptr<void, decltype(&MXPredFree)> handle_{nullptr, MXPredFree};
};

std::vector<double> softmax(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> result;
  for (const float logit : logits) result.push_back(std::exp(logit - largest));
  const double sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& value : result) value /= sum;
  return result;
}

void predict(const fs::path& symbol, const fs::path& params, const fs::path& file) {
  const Manifest manifest = read_manifest(fs::path(symbol).replace_filename("manifest.json"));
  Image image = read_image(file);
  if (manifest.shape[0] == 1) image = grey(image);
  // MXNet fuses here unless told not to, and computes some graphs wrongly then, without a word.
  if (!manifest.fuse) setenv("MXNET_SUBGRAPH_BACKEND", "NONE", 1);
  const auto output = Network(symbol, params, manifest)(prepare(image, manifest));
  if (output.size() != manifest.classes.size())
    fail(symbol, "does not give a number for each class of manifest.json");
  if (!std::all_of(output.begin(), output.end(), [](float value) { return std::isfinite(value); }))
    fail(symbol, "gives numbers that are not finite");
  const auto probabilities =
      manifest.logits ? softmax(output) : std::vector<double>(output.begin(), output.end());
  std::vector<size_t> order(output.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return probabilities[a] > probabilities[b]; });
  order.resize(std::min<size_t>(order.size(), kShown));
  for (const size_t i : order)
    std::printf("%.7f  %s\n", probabilities[i], manifest.classes[i].c_str());
}

int main(int count, char** words) {
  if (count != 4) {
    std::fprintf(stderr, "usage: %s SYMBOL.json PARAMS IMAGE\n", words[0]);
    return 2;
  }
  try {
    predict(words[1], words[2], words[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  // Without unloading MXNet's library, which may end the program if its threads still run.
  std::_Exit(std::fflush(stdout) ? 1 : 0);
}
