// A residual network up to its pooled features, as one operator of MXNet's: forward and backward, or
// forward alone, for inference, where normalisation is by the moving statistics.
//
// MXNet 1.9.1 computes on a oneDNN of 2021. This operator computes on the current one, keeps every
// activation channels-last and in one type, float32 or bfloat16, from the images to the features,
// and plans once, for the first batch, what each later batch repeats. What it computes is a
// program, which `program.py` writes; an instruction is a line of words such as `pad=1`:
//
//   conv    out in weight channels kernel stride pad, and where it has them: bias; add, an
//           activation that is added to the rest; relu; and in inference gamma beta mean var eps
//           [fixed] of a normalisation that the weights take in; step, in which `in` is bytes;
//           to, the step of bytes that it computes
//   bytes   out in to                  (from 0 to 255 of these steps)
//           and where it has them gamma beta mean var eps [fixed] of a normalisation before that
//   bn      out in gamma beta mean var eps momentum [fixed] [relu]
//   relu    out in
//   add     out in with
//   scale   out in factor
//   gate    out in gate sign [add]     (in times the sigmoid of sign * gate, and add as above)
//   widen   out in channels stride     (every stride-th pixel, zeros as further channels)
//   dropout out in ratio               (what stays is divided by 1 - ratio)
//   maxpool out in kernel stride pad
//   mean    out in                     (over the pixels; the last one, or the last but this:)
//   dense   out in weight units, and where it has one: bias     (of the means; in inference)
//
// `in` and `out` number the activations, the images being 0; weights and the like are numbers of
// the operator's inputs, the images again being 0.

#include <mxnet/lib_api.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <omp.h>
#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <locale>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>

namespace {

using namespace dnnl;
using mxnet::ext::MXTensor;
using Arguments = std::unordered_map<int, memory>;
using Attributes = std::unordered_map<std::string, std::string>;
using Shapes = std::vector<std::vector<int64_t>>;
using Type = memory::data_type;
using Tag = memory::format_tag;

// -- Numbers --------------------------------------------------------------------------------------

struct bfloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bfloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The output function of SplitMix64 (Steele et al., OOPSLA 2014, Fig. 14).
inline uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// What is no number stays none.
inline void cut(bfloat16& to, float x, uint32_t more) {
  to.bits = x != x ? 0x7fc0 : (bits_of(x) + more) >> 16;
}

// To the nearest, ties to even.
inline void store(float& to, float x) { to = x; }
inline void store(bfloat16& to, float x) { cut(to, x, 0x7fff + (bits_of(x) >> 16 & 1)); }

// Up or down by 16 random bits: the nearer the likelier, so that the mean stays.
inline void store(float& to, float x, uint16_t) { to = x; }
inline void store(bfloat16& to, float x, uint16_t random) { cut(to, x, random); }

// To three units in the last place. A loop over it vectorises, unlike one over std::exp.
inline float sigmoid(float x) {
  // e^-|x| as 2^n * e^r, and e^r as its Taylor series.
  const float least = -std::min(std::abs(x), 87.f), n = std::nearbyint(least * 1.44269504f);
  const float r = least - n * 0.693145752f - n * 1.42860677e-6f;
  float e = 1 + r / 7;
  for (int k = 6; k; --k) e = 1 + r * (1.f / k) * e;
  const uint32_t bits = uint32_t(int(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  e *= power;
  return (x < 0 ? e : 1) / (1 + e);
}

// Calls f(T*, T*...) with the pointers' type, which all arrays of a network share.
template <class F, class... M>
void typed(F f, const memory& first, const M&... others) {
  if (first.get_desc().get_data_type() == Type::f32)
    f(static_cast<float*>(first.get_data_handle()), static_cast<float*>(others.get_data_handle())...);
  else
    f(static_cast<bfloat16*>(first.get_data_handle()),
      static_cast<bfloat16*>(others.get_data_handle())...);
}

size_t elements(const memory& m) {
  size_t n = 1;
  for (auto d : m.get_desc().get_dims()) n *= d;
  return n;
}

// to[i] = f(from[i]...) for every element.
template <class F, class... M>
void map(F f, const memory& to, const M&... from) {
  ptrdiff_t n = elements(to);
  typed(
      [=](auto* y, auto*... x) {
#pragma omp parallel for simd
        for (ptrdiff_t i = 0; i < n; ++i) store(y[i], f(load(x[i])...));
      },
      to, from...);
}

// The same, rounded by random bits, which depend on `place` and on where in its image an element is.
template <class F, class... M>
void map_at_random(uint64_t place, F f, const memory& to, const M&... from) {
  const auto shape = to.get_desc().get_dims();
  const ptrdiff_t height = shape[2], row = shape[3] * shape[1];
  typed(
      [=](auto* y, auto*... x) {
#pragma omp parallel for
        for (ptrdiff_t r = 0; r < shape[0] * height; ++r) {
          const uint64_t start = mixed(place << 32 | r % height);
          const ptrdiff_t begin = r * row;
#pragma omp simd
          for (ptrdiff_t k = 0; k < row; ++k)
            store(y[begin + k], f(load(x[begin + k])...), mixed(start + k) >> 48);
        }
      },
      to, from...);
}

// -- Memory ---------------------------------------------------------------------------------------

using Buffer = std::shared_ptr<memory>;

// Memory in large pages: all activations together do not fit what the processor remembers of small
// ones. It stays for the next plan, since new pages take the system longer than a plan takes us.
class Pages {
 public:
  void* allocate(size_t size) {
    const size_t whole = multiple(size, 4096);  // so that there is more than one to a large page
    while (at_ < all_.size() && used_ + whole > all_[at_].size) ++at_, used_ = 0;
    if (at_ == all_.size()) {
      const size_t piece = multiple(std::max<size_t>(whole, 32 << 20), page_);
      void* space = std::aligned_alloc(page_, piece);
      if (!space) throw std::bad_alloc();
      all_.push_back({{space, std::free}, piece});
      madvise(space, piece, MADV_HUGEPAGE);
    }
    char* space = static_cast<char*>(all_[at_].space.get()) + used_;
    used_ += whole;
    return space;
  }

  // What has been allocated is there to be allocated again.
  void clear() { at_ = used_ = 0; }

 private:
  struct Piece {
    std::unique_ptr<void, decltype(&std::free)> space;
    size_t size;
  };

  static size_t multiple(size_t size, size_t of) { return (size + of - 1) / of * of; }

  static constexpr size_t page_ = 2 << 20;
  std::vector<Piece> all_;
  size_t at_ = 0, used_ = 0;
};

// What a convolution computes with.
struct Weights {
  memory values, bias, steps;  // the latter of weights in bytes, one for each output channel
};

using WeightsOf = std::map<int, std::vector<Weights>>;  // by `out`, each in several layouts

// What plans of one network for several sizes of batch, of which one runs at a time, share.
struct Store {
  Pages lasting, passing;  // the latter's contents each run makes anew
  WeightsOf weights;

  void clear() {
    lasting.clear();
    passing.clear();
    weights.clear();
  }
};

// All memory of a plan.
class Pool {
 public:
  Pool(const engine& e, Store& store) : engine_(e), store_(store) {}

  // For as long as the store lives.
  memory keep(const memory::desc& desc) {
    return memory(desc, engine_, store_.lasting.allocate(desc.get_size()));
  }

  // For as long as the pool lives, while this plan runs.
  memory own(const memory::desc& desc) {
    return memory(desc, engine_, store_.passing.allocate(desc.get_size()));
  }

  // For as long as the buffer lives; the next one of its size takes its place. The plan is made in
  // the order in which it runs, so this happens while planning alone.
  Buffer lend(const memory::desc& desc) {
    auto& free = free_[desc.get_size()];
    if (free.empty()) free.push_back(store_.passing.allocate(desc.get_size()));
    void* space = free.back();
    free.pop_back();
    return Buffer(new memory(desc, engine_, space), [&free, space](memory* m) {
      free.push_back(space);
      delete m;
    });
  }

 private:
  engine engine_;
  Store& store_;
  std::map<size_t, std::vector<void*>> free_;
};

// -- The network ----------------------------------------------------------------------------------

struct Instruction {
  std::string name;
  std::map<std::string, double> words;

  bool has(const char* word) const { return words.count(word); }
  double number(const char* word) const { return words.at(word); }
  int operator[](const char* word) const { return int(number(word)); }

  // The activations that it reads.
  std::vector<int> reads() const {
    std::vector<int> found;
    for (auto word : {"in", "with", "gate", "add"})
      if (has(word)) found.push_back((*this)[word]);
    return found;
  }
};

// Whatever the locale.
double number(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double found;
  stream >> found;
  return found;
}

// A line has an instruction's name, then WORD=NUMBER, or a WORD alone for what is or is not.
std::vector<Instruction> parse(const std::string& text) {
  std::vector<Instruction> program;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line, ';');) {
    std::istringstream words(line);
    Instruction instruction;
    words >> instruction.name;
    for (std::string word; words >> word;) {
      auto at = word.find('=');
      instruction.words[word.substr(0, at)] =
          at == std::string::npos ? 1 : number(word.substr(at + 1));
    }
    program.push_back(instruction);
  }
  return program;
}

class Trunk {
 public:
  // `images`: whether the way back gives the images' gradient, too. `kept`: whether parameters stay
  // what they are in the first pass.
  Trunk(const std::string& program, Type type, bool training, bool images, bool kept,
        const Shapes& shapes, Store& store)
      : engine_(engine::kind::cpu, 0),
        stream_(engine_),
        pool_(engine_, store),
        type_(type),
        training_(training),
        images_(images),
        shapes_(shapes),
        weights_(kept ? &store.weights : nullptr),
        made_(kept ? once_ : forward_) {
    auto instructions = parse(program);
    last_ = instructions.size();
    values_.resize(instructions.size() + 1);
    gradients_.resize(instructions.size() + 1);
    auto given = input(0, Tag::nchw), first = compute(0, shapes_[0]);
    copy(forward_, given, first);
    std::map<int, size_t> last;  // that reads an activation
    for (size_t k = 0; k < instructions.size(); ++k)
      for (int value : instructions[k].reads()) {
        last[value] = k;
        if (instructions[k].name != "conv") stays_.insert(value);
      }
    std::vector<std::function<void()>> plans;  // of the backward pass, in the order of the forward
    for (size_t k = 0; k < instructions.size(); ++k) {
      plans.push_back(plan(instructions[k]));
      for (int value : instructions[k].reads())
        if (last[value] == k && (!training_ || again_.count(value))) values_[value].reset();
    }
    if (training_)
      for (auto p = plans.rbegin(); p != plans.rend(); ++p) (*p)();
    if (training_ && images_) {
      auto found = take(0);
      auto asked = output(0, Tag::nchw);
      copy(backward_, *found, asked);
    }
    gradients_.clear();
    values_.clear();
    again_.clear();
    share_scratchpad();
  }

  // Whether the plan is for inputs of these shapes.
  bool fits(const Shapes& shapes) const { return shapes == shapes_; }

  // Makes of parameters that stay what all passes compute with.
  void prepare(const std::vector<void*>& inputs) {
    for (auto& [m, index] : inputs_) m.set_data_handle(inputs[index]);
    for (auto& step : once_) step();
    once_.clear();
    stream_.wait();
  }

  void forward(const std::vector<void*>& inputs, float* features, uint32_t seed = 0) {
    prepare(inputs);
    for (auto& [pointer, index] : statistics_) *pointer = static_cast<float*>(inputs[index]);
    features_ = features;
    seed_ = seed;
    for (auto& step : forward_) step();
    stream_.wait();
  }

  // `inputs` are the gradient of the features, the operator's inputs and its output.
  void backward(std::vector<MXTensor>& inputs, std::vector<MXTensor>& gradients) {
    for (auto& [m, index] : inputs_) m.set_data_handle(inputs[index + 1].data_ptr);
    for (auto& [m, index] : outputs_) m.set_data_handle(gradients[index].data_ptr);
    gradient_ = inputs[0].data<float>();
    for (auto& step : backward_) step();
    stream_.wait();
  }

 private:
  using Steps = std::vector<std::function<void()>>;

  // Planning one instruction appends to the forward pass, and returns what will append to the
  // backward pass, which is planned from the last instruction to the first.
  std::function<void()> plan(const Instruction& i) {
    if (i.name == "conv") return conv(i);
    if (i.name == "bytes") return bytes(i);
    if (i.name == "bn") return bn(i);
    if (i.name == "relu") return relu(i);
    if (i.name == "add") return add(i);
    if (i.name == "gate") return gate(i);
    if (i.name == "scale") return scale(i);
    if (i.name == "widen") return widen(i);
    if (i.name == "dropout") return dropout(i);
    if (i.name == "maxpool") return maxpool(i);
    if (i.name == "mean") return mean(i);
    if (i.name == "dense") return dense(i);
    throw std::runtime_error("no instruction is called " + i.name);
  }

  std::function<void()> conv(const Instruction& i) {
    auto x = *values_[i["in"]];
    auto shape = x.get_desc().get_dims();
    memory::dims kernel = {i["channels"], shape[1], i["kernel"], i["kernel"]};
    memory::dims strides = {i["stride"], i["stride"]}, pad = {i["pad"], i["pad"]};
    memory::dims out = {shape[0], i["channels"], size(shape[2], i), size(shape[3], i)};
    const bool in_bytes = i.has("step"), to_bytes = i.has("to"), folds = i.has("gamma");
    memory::desc weights(kernel, in_bytes ? Type::s8 : type_, Tag::any);
    memory::desc diff_weights(kernel, Type::f32, Tag::any);
    memory::desc result = activation(out, to_bytes ? Type::u8 : type_);
    memory::desc bias = memory::desc();
    if (i.has("bias") || folds) bias = memory::desc({i["channels"]}, Type::f32, Tag::a);
    const auto direct = algorithm::convolution_direct;
    auto attributes = own_scratchpad();
    post_ops after;
    if (i.has("relu")) after.append_eltwise(algorithm::eltwise_relu, 0, 0);
    if (i.has("add")) after.append_binary(algorithm::binary_add, activation(out));
    attributes.set_post_ops(after);
    if (in_bytes) attributes.set_scales_mask(DNNL_ARG_SRC, 0);
    if (in_bytes) attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1);
    if (to_bytes) attributes.set_scales_mask(DNNL_ARG_DST, 0);
    convolution_forward::primitive_desc pd(engine_, kind(), direct, x.get_desc(), weights, bias,
                                           result, strides, pad, pad, attributes);
    auto y = compute(i["out"], result);
    const auto own = weights_of(i, pd.weights_desc());
    Arguments arguments = {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, y}, {DNNL_ARG_WEIGHTS, own.values}};
    if (own.bias) arguments[DNNL_ARG_BIAS] = own.bias;
    if (in_bytes) {
      arguments[DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC] = one(i.number("step"));
      arguments[DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS] = own.steps;
    }
    if (to_bytes) arguments[DNNL_ARG_ATTR_SCALES | DNNL_ARG_DST] = one(i.number("to"));
    if (i.has("add"))
      arguments[DNNL_ARG_ATTR_MULTIPLE_POST_OP(after.len() - 1) | DNNL_ARG_SRC_1] =
          *values_[i["add"]];
    run(forward_, convolution_forward(pd), arguments);

    return [=] {
      auto dy = take(i["out"]);
      auto x = again(i["in"]);
      if (i.has("add")) pass_on(i["add"], dy);
      convolution_backward_weights::primitive_desc weights_pd(
          engine_, direct, x.get_desc(), diff_weights, bias, activation(out), strides, pad, pad, pd,
          own_scratchpad());
      auto target = output(i["weight"], Tag::oihw);
      auto dw = weights_pd.diff_weights_desc() == target.get_desc()
                    ? target
                    : pool_.keep(weights_pd.diff_weights_desc());
      Arguments arguments = {
          {DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_DST, *dy}, {DNNL_ARG_DIFF_WEIGHTS, dw}};
      if (i.has("bias")) arguments[DNNL_ARG_DIFF_BIAS] = output(i["bias"], Tag::a);
      if (shape[3] == 1) {
        // Of images one pixel wide oneDNN's kernel for bfloat16 adds up what it has not written.
        backward_.push_back([this] {
          std::memset(scratchpad_.get_data_handle(), 0, scratchpad_.get_desc().get_size());
        });
      }
      run(backward_, convolution_backward_weights(weights_pd), arguments);
      if (dw.get() != target.get()) copy(backward_, dw, target);
      if (i["in"] == 0 && !images_) return;
      convolution_backward_data::primitive_desc data_pd(engine_, direct, x.get_desc(), weights,
                                                        activation(out), strides, pad, pad, pd,
                                                        own_scratchpad());
      auto w = data_pd.weights_desc() == own.values.get_desc()
                   ? own.values
                   : converted(backward_, input(i["weight"], Tag::oihw), data_pd.weights_desc());
      give(i["in"], [&](const memory& dx) {
        run(backward_, convolution_backward_data(data_pd),
            {{DNNL_ARG_DIFF_DST, *dy}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DIFF_SRC, dx}});
      });
    };
  }

  // What a convolution computes with, its weights as `desc` says.
  Weights weights_of(const Instruction& i, const memory::desc& desc) {
    if (weights_)
      for (auto& there : (*weights_)[i["out"]])
        if (there.values.get_desc() == desc) return there;
    Weights made;
    Buffer floats, bytes;  // on the way to what is kept
    auto given = input(i["weight"], Tag::oihw);
    if (i.has("bias")) made.bias = input(i["bias"], Tag::a);
    if (i.has("gamma")) {
      floats = pool_.lend(given.get_desc());
      made.bias = folded(i, given, *floats);
      given = *floats;
    }
    if (i.has("step")) {
      bytes = pool_.lend({given.get_desc().get_dims(), Type::s8, Tag::oihw});
      made.steps = quantized(given, *bytes);
      given = *bytes;
    }
    if (floats || bytes)
      copy(made_, given, made.values = pool_.keep(desc));
    else
      made.values = converted(made_, given, desc);
    if (weights_) (*weights_)[i["out"]].push_back(made);
    return made;
  }

  // Fills the weights that do a convolution and the normalisation of what it computes in one;
  // returns the bias that goes with them.
  memory folded(const Instruction& i, const memory& own, const memory& weights) {
    auto before = !i.has("bias") ? memory() : input(i["bias"], Tag::a);
    auto norm = normalisation(i);
    auto bias = pool_.keep(norm.mean.get_desc());
    const bool has_bias = i.has("bias");
    const size_t channels = i["channels"], size = elements(weights) / channels;
    made_.push_back([=] {
      for (size_t c = 0; c < channels; ++c) {
        const float scale = norm.scale(c);
        for (size_t k = c * size; k < (c + 1) * size; ++k) data(weights)[k] = data(own)[k] * scale;
        data(bias)[c] = norm.of(has_bias ? data(before)[c] : 0, c);
      }
    });
    return bias;
  }

  // Fills the weights in 8 bits; returns the step of each output channel, in which its largest is
  // 127.
  memory quantized(const memory& weights, const memory& bytes) {
    const auto shape = weights.get_desc().get_dims();
    auto steps = pool_.keep({{shape[0]}, Type::f32, Tag::a});
    const size_t size = elements(weights) / shape[0];
    made_.push_back([=] {
      auto* to = static_cast<int8_t*>(bytes.get_data_handle());
      for (int c = 0; c < shape[0]; ++c) {
        const float* own = data(weights) + c * size;
        float most = 1e-30f;
        for (size_t k = 0; k < size; ++k) most = std::max(most, std::abs(own[k]));
        data(steps)[c] = most / 127;
        for (size_t k = 0; k < size; ++k) to[c * size + k] = std::lround(own[k] / most * 127);
      }
    });
    return steps;
  }

  // By the moving statistics: what it multiplies a channel by, and what it makes of a value there.
  struct Normalisation {
    memory gamma, beta, mean, variance;
    float eps;
    bool fixed;

    float scale(size_t c) const {
      return (fixed ? 1 : data(gamma)[c]) / std::sqrt(data(variance)[c] + eps);
    }
    float of(float x, size_t c) const { return data(beta)[c] + (x - data(mean)[c]) * scale(c); }
  };

  Normalisation normalisation(const Instruction& i) {
    return {input(i["gamma"], Tag::a), input(i["beta"], Tag::a),    input(i["mean"], Tag::a),
            input(i["var"], Tag::a),   float(i.number("eps")), i.has("fixed")};
  }

  // An activation in bytes, what is below 0 as 0.
  std::function<void()> bytes(const Instruction& i) {
    auto x = *values_[i["in"]];
    const auto shape = x.get_desc().get_dims();
    auto y = compute(i["out"], activation(shape, Type::u8));
    // As many factors and summands as fill registers, and are of whole pixels.
    const ptrdiff_t channels = shape[1], n = elements(x);
    const ptrdiff_t period = (std::max<ptrdiff_t>(channels, 64) + channels - 1) / channels * channels;
    auto factors = pool_.keep({{period}, Type::f32, Tag::a}), summands = pool_.keep(factors.get_desc());
    const float to = i.number("to");
    if (i.has("gamma")) {
      made_.push_back([=, norm = normalisation(i)] {
        for (ptrdiff_t k = 0; k < period; ++k) {
          data(factors)[k] = norm.scale(k % channels) / to;
          data(summands)[k] = norm.of(0, k % channels) / to;
        }
      });
    } else {
      std::fill_n(data(factors), period, 1 / to);
      std::fill_n(data(summands), period, 0.f);
    }
    forward_.push_back([=] {
      auto* b = static_cast<uint8_t*>(y.get_data_handle());
      typed(
          [=, f = data(factors), s = data(summands)](auto* a) {
#pragma omp parallel for
            for (ptrdiff_t begin = 0; begin < n; begin += period)
              to_bytes(b + begin, a + begin, f, s, std::min(period, n - begin));
          },
          x);
    });
    return {};
  }

  // By itself, since bytes may be part of anything, of what a closure holds, too.
  template <class T>
  static void to_bytes(uint8_t* bytes, const T* from, const float* factors, const float* summands,
                       ptrdiff_t n) {
#pragma omp simd
    for (ptrdiff_t k = 0; k < n; ++k) {
      const float steps = load(from[k]) * factors[k] + summands[k];
      bytes[k] = uint8_t(int(std::min(std::max(steps, 0.f), 255.f) + .5f));
    }
  }

  // A scale that all elements share.
  memory one(float scale) {
    auto m = pool_.keep({{1}, Type::f32, Tag::a});
    *data(m) = scale;
    return m;
  }

  std::function<void()> bn(const Instruction& i) {
    auto x = *values_[i["in"]], y = compute(i["out"], x.get_desc().get_dims());
    const bool fixed = i.has("fixed");
    const float eps = i.number("eps"), momentum = i.number("momentum");
    auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    if (i.has("relu")) flags |= normalization_flags::fuse_norm_relu;
    if (!training_) flags |= normalization_flags::use_global_stats;
    batch_normalization_forward::primitive_desc pd(engine_, kind(), x.get_desc(), y.get_desc(), eps,
                                                   flags, own_scratchpad());
    auto mean = training_ ? pool_.keep(pd.mean_desc()) : input(i["mean"], Tag::a);
    auto variance = training_ ? pool_.keep(pd.variance_desc()) : input(i["var"], Tag::a);
    memory gamma = fixed ? pool_.keep(pd.mean_desc()) : input(i["gamma"], Tag::a);
    const int channels = x.get_desc().get_dims()[1];
    if (fixed) std::fill_n(data(gamma), channels, 1.f);
    memory marks;  // where the ReLU was open
    Arguments arguments = {{DNNL_ARG_SRC, x},           {DNNL_ARG_DST, y},
                           {DNNL_ARG_MEAN, mean},       {DNNL_ARG_VARIANCE, variance},
                           {DNNL_ARG_SCALE, gamma},     {DNNL_ARG_SHIFT, input(i["beta"], Tag::a)}};
    if (i.has("relu") && training_)
      marks = arguments[DNNL_ARG_WORKSPACE] = pool_.keep(pd.workspace_desc());
    run(forward_, batch_normalization_forward(pd), arguments);
    if (!training_) return {};
    for (auto& [index, batch] : {std::pair{i["mean"], mean}, std::pair{i["var"], variance}}) {
      auto moving = std::make_shared<float*>();
      statistics_.emplace_back(moving, index);
      auto* now = static_cast<float*>(batch.get_data_handle());
      forward_.push_back([=] {
        for (int c = 0; c < channels; ++c)
          (*moving)[c] = momentum * (*moving)[c] + (1 - momentum) * now[c];
      });
    }
    if (type_ == Type::bf16 && !stays_.count(i["out"])) {
      // The way back computes it anew rather than read it: to write it once more, where the last one
      // of its size was, takes no longer than to fetch it from memory, and there is one for all. In
      // float32 it takes longer.
      again_[i["out"]] = [=](const memory& y) mutable {
        batch_normalization_forward::primitive_desc pd(
            engine_, prop_kind::forward_inference, x.get_desc(), y.get_desc(), eps,
            flags | normalization_flags::use_global_stats, own_scratchpad());
        arguments[DNNL_ARG_DST] = y;
        arguments.erase(DNNL_ARG_WORKSPACE);
        run(backward_, batch_normalization_forward(pd), arguments);
      };
    }

    return [=] {
      values_[i["out"]].reset();
      auto dy = take(i["out"]);
      batch_normalization_backward::primitive_desc back_pd(
          engine_, prop_kind::backward, x.get_desc(), x.get_desc(), x.get_desc(), eps, flags, pd,
          own_scratchpad());
      auto dgamma = fixed ? pool_.keep(pd.mean_desc()) : output(i["gamma"], Tag::a);
      if (fixed) {  // of what is fixed, the gradient is zero
        auto asked = output(i["gamma"], Tag::a);
        backward_.push_back([=] { std::fill_n(data(asked), channels, 0.f); });
      }
      Arguments arguments = {{DNNL_ARG_SRC, x},           {DNNL_ARG_DIFF_DST, *dy},
                             {DNNL_ARG_MEAN, mean},       {DNNL_ARG_VARIANCE, variance},
                             {DNNL_ARG_SCALE, gamma},     {DNNL_ARG_DIFF_SCALE, dgamma},
                             {DNNL_ARG_DIFF_SHIFT, output(i["beta"], Tag::a)}};
      if (i.has("relu")) arguments[DNNL_ARG_WORKSPACE] = marks;
      auto write = [&](const memory& dx) {
        arguments[DNNL_ARG_DIFF_SRC] = dx;
        run(backward_, batch_normalization_backward(back_pd), arguments);
      };
      if (i["in"] == 0 && !images_)  // nobody asks for it, but the primitive writes it
        write(*pool_.lend(x.get_desc()));
      else
        give(i["in"], write);
    };
  }

  std::function<void()> relu(const Instruction& i) {
    auto x = *values_[i["in"]], y = compute(i["out"], x.get_desc().get_dims());
    forward_.push_back([=] { map([](float a) { return a > 0 ? a : 0; }, y, x); });
    return [=] {
      auto dy = take(i["out"]);
      give(i["in"], [&](const memory& dx) {
        backward_.push_back(
            [=, dy = *dy] { map([](float g, float a) { return a > 0 ? g : 0; }, dx, dy, y); });
      });
    };
  }

  std::function<void()> add(const Instruction& i) {
    auto a = *values_[i["in"]], b = *values_[i["with"]];
    auto y = compute(i["out"], a.get_desc().get_dims());
    forward_.push_back([=] { map([](float s, float t) { return s + t; }, y, a, b); });
    return [=] {
      auto dy = take(i["out"]);
      for (int operand : {i["in"], i["with"]}) pass_on(operand, dy);
    };
  }

  // The sigmoid is computed anew wherever it is needed, so that it is never rounded to the type.
  // What it leaves of an activation may differ from it by less than half a step of bfloat16, in
  // unit after unit: rounded to the nearest, it would never become less. Nor would its gradient.
  std::function<void()> gate(const Instruction& i) {
    auto x = *values_[i["in"]], z = *values_[i["gate"]];
    auto y = compute(i["out"], x.get_desc().get_dims());
    const float sign = i["sign"];
    const uint64_t place = 2 * i["out"];
    auto gated = [=](float a, float b) { return a * sigmoid(sign * b); };
    if (!i.has("add")) {
      forward_.push_back([=] { map_at_random(place, gated, y, x, z); });
    } else {
      forward_.push_back([=, more = *values_[i["add"]]] {
        map_at_random(
            place, [=](float a, float b, float c) { return gated(a, b) + c; }, y, x, z, more);
      });
    }
    return [=] {
      auto dy = take(i["out"]);
      if (i.has("add")) pass_on(i["add"], dy);
      give(i["in"], [&](const memory& dx) {
        backward_.push_back([=, dy = *dy] { map_at_random(place + 1, gated, dx, dy, z); });
      });
      give(i["gate"], [&](const memory& dz) {
        backward_.push_back([=, dy = *dy] {
          map([=](float g, float a, float b) { return sign * g * a * sigmoid(b) * sigmoid(-b); },
              dz, dy, x, z);
        });
      });
    };
  }

  std::function<void()> scale(const Instruction& i) {
    auto x = *values_[i["in"]], y = compute(i["out"], x.get_desc().get_dims());
    const float factor = i.number("factor");
    forward_.push_back([=] { map([=](float a) { return factor * a; }, y, x); });
    return [=] {
      auto dy = take(i["out"]);
      give(i["in"], [&](const memory& dx) {
        backward_.push_back([=, dy = *dy] { map([=](float g) { return factor * g; }, dx, dy); });
      });
    };
  }

  std::function<void()> widen(const Instruction& i) {
    auto x = *values_[i["in"]];
    auto from = x.get_desc().get_dims();
    const int channels = i["channels"], stride = i["stride"];
    memory::dims to = {from[0], channels, (from[2] + stride - 1) / stride,
                       (from[3] + stride - 1) / stride};
    auto y = compute(i["out"], to);
    forward_.push_back([=] {
      typed(
          [=](auto* narrow, auto* wide) {
            std::memset(wide, 0, y.get_desc().get_size());
            pixels(from, to, stride, [=](ptrdiff_t p, ptrdiff_t q) {
              std::copy_n(narrow + p, std::min<int>(from[1], channels), wide + q);
            });
          },
          x, y);
    });
    return [=] {
      auto dy = take(i["out"]);
      give(i["in"], [&](const memory& dx) {
        backward_.push_back([=, dy = *dy] {
          typed(
              [=](auto* narrow, auto* wide) {
                std::memset(narrow, 0, dx.get_desc().get_size());
                pixels(from, to, stride, [=](ptrdiff_t p, ptrdiff_t q) {
                  std::copy_n(wide + q, std::min<int>(from[1], channels), narrow + p);
                });
              },
              dx, dy);
        });
      });
    };
  }

  std::function<void()> dropout(const Instruction& i) {
    auto x = *values_[i["in"]], y = compute(i["out"], x.get_desc().get_dims());
    const float ratio = i.number("ratio"), rescale = ratio < 1 ? 1 / (1 - ratio) : 0;
    const auto threshold = uint64_t(ratio * 4294967296.0);
    const uint64_t place = i["out"];
    auto stays = std::make_shared<std::vector<uint8_t>>(elements(x));
    auto apply = [=](const memory& from, const memory& to) {
      typed(
          [=, stays = stays->data(), n = ptrdiff_t(stays->size())](auto* a, auto* b) {
#pragma omp parallel for simd
            for (ptrdiff_t k = 0; k < n; ++k) store(b[k], stays[k] ? load(a[k]) * rescale : 0);
          },
          from, to);
    };
    forward_.push_back([=] {
      // Each element by a number of its own, so that threads do not matter.
      const uint64_t start = mixed(uint64_t(seed_) << 32 | place);
      auto* stay = stays->data();
      const ptrdiff_t n = stays->size();
#pragma omp parallel for
      for (ptrdiff_t k = 0; k < n; ++k) stay[k] = mixed(start + k) >> 32 >= threshold;
      apply(x, y);
    });
    return [=] {
      auto dy = take(i["out"]);
      give(i["in"], [&](const memory& dx) {
        backward_.push_back([=, dy = *dy] { apply(dy, dx); });
      });
    };
  }

  std::function<void()> maxpool(const Instruction& i) {
    auto x = *values_[i["in"]];
    auto shape = x.get_desc().get_dims();
    memory::dims out = {shape[0], shape[1], size(shape[2], i), size(shape[3], i)};
    memory::dims strides = {i["stride"], i["stride"]}, kernel = {i["kernel"], i["kernel"]};
    memory::dims pad = {i["pad"], i["pad"]}, dense = {0, 0};
    const auto max = algorithm::pooling_max;
    pooling_forward::primitive_desc pd(engine_, kind(), max, x.get_desc(), activation(out), strides,
                                       kernel, dense, pad, pad, own_scratchpad());
    auto y = compute(i["out"], out);
    Arguments arguments = {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, y}};
    memory winners;
    if (training_) winners = arguments[DNNL_ARG_WORKSPACE] = pool_.keep(pd.workspace_desc());
    run(forward_, pooling_forward(pd), arguments);
    return [=] {
      auto dy = take(i["out"]);
      pooling_backward::primitive_desc back_pd(engine_, max, x.get_desc(), activation(out), strides,
                                               kernel, dense, pad, pad, pd, own_scratchpad());
      give(i["in"], [&](const memory& dx) {
        run(backward_, pooling_backward(back_pd),
            {{DNNL_ARG_DIFF_DST, *dy}, {DNNL_ARG_DIFF_SRC, dx}, {DNNL_ARG_WORKSPACE, winners}});
      });
    };
  }

  std::function<void()> mean(const Instruction& i) {
    auto x = *values_[i["in"]];
    auto shape = x.get_desc().get_dims();
    const ptrdiff_t n = shape[0], channels = shape[1], area = shape[2] * shape[3];
    float** sums = &features_;
    if (i["out"] != last_) {
      means_ = data(pool_.own({{n, channels}, Type::f32, Tag::ab}));
      sums = &means_;
    }
    forward_.push_back([=] {
      typed(
          [=](auto* a) {
#pragma omp parallel for
            for (ptrdiff_t k = 0; k < n; ++k) {
              float* sum = *sums + k * channels;
              std::fill_n(sum, channels, 0.f);
              for (ptrdiff_t p = 0; p < area; ++p)
                for (ptrdiff_t c = 0; c < channels; ++c)
                  sum[c] += load(a[(k * area + p) * channels + c]);
              for (ptrdiff_t c = 0; c < channels; ++c) sum[c] /= area;
            }
          },
          x);
    });
    return [=] {
      give(i["in"], [&](const memory& dx) {
        backward_.push_back([=] {
          typed(
              [=](auto* a) {
#pragma omp parallel for
                for (ptrdiff_t k = 0; k < n; ++k)
                  for (ptrdiff_t p = 0; p < area; ++p)
                    for (ptrdiff_t c = 0; c < channels; ++c)
                      store(a[(k * area + p) * channels + c], gradient_[k * channels + c] / area);
              },
              dx);
        });
      });
    };
  }

  std::function<void()> dense(const Instruction& i) {
    const auto shape = shapes_[i["weight"]];  // (units, channels)
    const ptrdiff_t n = shapes_[0][0], units = shape[0], channels = shape[1];
    auto weight = input(i["weight"], Tag::ab);
    auto bias = i.has("bias") ? input(i["bias"], Tag::a) : pool_.keep({{units}, Type::f32, Tag::a});
    if (!i.has("bias")) std::fill_n(data(bias), units, 0.f);
    forward_.push_back([=] {
#pragma omp parallel for
      for (ptrdiff_t k = 0; k < n * units; ++k) {
        const float *x = means_ + k / units * channels, *w = data(weight) + k % units * channels;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (ptrdiff_t c = 0; c < channels; ++c) sum += x[c] * w[c];
        features_[k] = sum + data(bias)[k % units];
      }
    });
    return {};
  }

  // Calls f(offset in the large image, offset in the small one) for every pixel of the small one.
  template <class F>
  static void pixels(const memory::dims& large, const memory::dims& small, int stride, F f) {
#pragma omp parallel for
    for (ptrdiff_t row = 0; row < small[0] * small[2]; ++row) {
      ptrdiff_t n = row / small[2], h = row % small[2];
      for (ptrdiff_t w = 0; w < small[3]; ++w)
        f(((n * large[2] + h * stride) * large[3] + w * stride) * large[1],
          (row * small[3] + w) * small[1]);
    }
  }

  prop_kind kind() const {
    return training_ ? prop_kind::forward_training : prop_kind::forward_inference;
  }

  // Height or width of what a window gives.
  static int64_t size(int64_t before, const Instruction& i) {
    return (before + 2 * i["pad"] - i["kernel"]) / i["stride"] + 1;
  }

  memory::desc activation(const memory::dims& shape) const { return activation(shape, type_); }
  static memory::desc activation(const memory::dims& shape, Type type) {
    return {shape, type, Tag::nhwc};
  }

  // The activation with this number, which a convolution reads on the way back.
  memory again(int number) {
    if (!values_[number]) {
      values_[number] = pool_.lend(descs_[number]);
      again_.at(number)(*values_[number]);
    }
    return *values_[number];
  }

  // The memory of the activation with this number.
  memory compute(int number, const memory::dims& shape) { return compute(number, activation(shape)); }
  memory compute(int number, const memory::desc& desc) {
    descs_[number] = desc;
    return *(values_[number] = pool_.lend(desc));
  }

  static float* data(const memory& m) { return static_cast<float*>(m.get_data_handle()); }

  // The operator's input or gradient with this number, which is somewhere else in every call.
  memory input(int index, Tag tag) { return outside(inputs_, index, tag); }
  memory output(int index, Tag tag) { return outside(outputs_, index, tag); }

  memory outside(std::vector<std::pair<memory, int>>& list, int index, Tag tag) {
    memory m({shapes_[index], Type::f32, tag}, engine_, nullptr);
    list.emplace_back(m, index);
    return m;
  }

  memory converted(Steps& steps, const memory& given, const memory::desc& desc) {
    if (given.get_desc() == desc) return given;
    auto m = pool_.keep(desc);
    copy(steps, given, m);
    return m;
  }

  // In another layout or type.
  void copy(Steps& steps, const memory& from, const memory& to) {
    reorder::primitive_desc pd(engine_, from.get_desc(), engine_, to.get_desc(), own_scratchpad());
    run(steps, reorder(pd), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
  }

  void run(Steps& steps, const primitive& what, Arguments with) {
    memory::desc desc;
    dnnl_memory_desc_t found;
    auto* pd = what.get_primitive_desc();
    dnnl_memory_desc_clone(&found, dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
    desc.reset(found);
    scratchpads_.push_back(with[DNNL_ARG_SCRATCHPAD] = memory(desc, engine_, nullptr));
    steps.push_back([this, what, with] { what.execute(stream_, with); });
  }

  // oneDNN's own would belong to the thread that plans.
  static primitive_attr own_scratchpad() {
    primitive_attr attributes;
    attributes.set_scratchpad_mode(scratchpad_mode::user);
    return attributes;
  }

  // Has all primitives, of which one runs at a time, use the same.
  void share_scratchpad() {
    size_t size = 0;
    for (auto& m : scratchpads_) size = std::max(size, m.get_desc().get_size());
    scratchpad_ = pool_.own({{memory::dim(size)}, Type::u8, Tag::a});
    for (auto& m : scratchpads_) m.set_data_handle(scratchpad_.get_data_handle());
    scratchpads_.clear();
  }

  // The gradient of an activation, which is complete: all that read it have been planned.
  Buffer take(int value) {
    if (!gradients_[value]) throw std::runtime_error("an activation that nothing reads");
    return std::move(gradients_[value]);
  }

  // Adds to the gradient of an activation what `write` plans to be written.
  template <class F>
  void give(int value, F write) {
    auto fresh = pool_.lend(descs_[value]);
    write(*fresh);
    if (auto before = gradients_[value])
      backward_.push_back([a = *fresh, b = *before] {
        map([](float s, float t) { return s + t; }, a, a, b);
      });
    gradients_[value] = fresh;
  }

  // The same where it is there already.
  void pass_on(int value, const Buffer& gradient) {
    if (value == 0 && !images_) return;
    if (!gradients_[value]) {
      gradients_[value] = gradient;
      return;
    }
    auto fresh = pool_.lend(descs_[value]);
    backward_.push_back([a = *gradients_[value], b = *gradient, sum = *fresh] {
      map([](float s, float t) { return s + t; }, sum, a, b);
    });
    gradients_[value] = fresh;
  }

  engine engine_;
  stream stream_;
  Pool pool_;
  Type type_;
  const bool training_, images_;
  const Shapes shapes_;
  WeightsOf* const weights_;  // those that are for good, or none
  // While the plan is being made, by the number of an activation:
  std::vector<Buffer> values_, gradients_;
  std::map<int, memory::desc> descs_;
  std::set<int> stays_;  // what others than convolutions read
  std::map<int, std::function<void(const memory&)>> again_;  // plans that it is computed anew
  std::vector<std::pair<memory, int>> inputs_, outputs_;
  std::vector<memory> scratchpads_;  // of each primitive, until all share
  memory scratchpad_;
  std::vector<std::pair<std::shared_ptr<float*>, int>> statistics_;
  int last_;  // instruction's number
  float *means_, *features_, *gradient_;
  uint32_t seed_;
  Steps once_, forward_, backward_;
  Steps& made_;  // the one of them in which parameters are made into what is computed with
};

// -- The operator ---------------------------------------------------------------------------------

bool has(cpu_isa instructions) {
  const unsigned all = unsigned(instructions);
  return (unsigned(get_effective_cpu_isa()) & all) == all;
}

// The type of activations, but of those in bytes.
Type type_of(const std::string& dtype) {
  if (dtype == "bfloat16" || (dtype == "int8" && has(cpu_isa::avx512_core_bf16))) return Type::bf16;
  return Type::f32;
}

bool says(const Attributes& attributes, const char* name) {
  auto found = attributes.find(name);
  return found != attributes.end() && found->second == "1";
}

class Operator : public mxnet::ext::CustomStatefulOp {
 public:
  explicit Operator(const Attributes& attributes)
      : program_(attributes.at("program")),
        dtype_(attributes.at("dtype")),
        training_(says(attributes, "training")),
        images_(says(attributes, "images")),
        kept_(says(attributes, "kept")) {}

  mxnet::ext::MXReturnValue Forward(std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                                    const mxnet::ext::OpResource& resource) override {
    return guarded([&] {
      Shapes shapes;
      std::vector<void*> arrays;
      for (auto& input : *inputs) shapes.push_back(input.shape), arrays.push_back(input.data_ptr);
      if (!trunk_ || !trunk_->fits(shapes)) {
        trunk_.reset();
        store_.clear();
        trunk_ = std::make_unique<Trunk>(program_, type_of(dtype_), training_, images_, kept_, shapes,
                                         store_);
      }
      // MXNet's own generator, which `mx.random.seed` sets.
      uint32_t seed = (*resource.get_cpu_rand_states())();
      trunk_->forward(arrays, (*outputs)[0].data<float>(), seed);
    });
  }

  mxnet::ext::MXReturnValue Backward(std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                                     const mxnet::ext::OpResource&) override {
    return guarded([&] { trunk_->backward(*inputs, *outputs); });
  }

 private:
  template <class F>
  static mxnet::ext::MXReturnValue guarded(F f) {
    try {
      f();
      return mxnet::ext::MX_SUCCESS;
    } catch (const std::exception& error) {
      MX_ERROR_MSG << error.what();
      return mxnet::ext::MX_FAIL;
    }
  }

  std::string program_, dtype_;
  bool training_, images_, kept_;
  Store store_;
  std::unique_ptr<Trunk> trunk_;
};

mxnet::ext::MXReturnValue parse_attributes(const Attributes& attributes, int* inputs,
                                           int* outputs) {
  *inputs = std::stoi(attributes.at("inputs"));
  *outputs = 1;
  return mxnet::ext::MX_SUCCESS;
}

mxnet::ext::MXReturnValue infer_type(const Attributes&, std::vector<int>* inputs,
                                     std::vector<int>* outputs) {
  std::fill(inputs->begin(), inputs->end(), mxnet::ext::kFloat32);
  (*outputs)[0] = mxnet::ext::kFloat32;
  return mxnet::ext::MX_SUCCESS;
}

mxnet::ext::MXReturnValue infer_shape(const Attributes& attributes,
                                      std::vector<std::vector<unsigned>>* inputs,
                                      std::vector<std::vector<unsigned>>* outputs) {
  (*outputs)[0] = {(*inputs)[0][0], unsigned(std::stoi(attributes.at("features")))};
  return mxnet::ext::MX_SUCCESS;
}

mxnet::ext::MXReturnValue mutate_inputs(const Attributes& attributes, std::vector<int>* indices) {
  for (auto& i : parse(attributes.at("program")))
    if (i.name == "bn" && says(attributes, "training"))
      indices->insert(indices->end(), {i["mean"], i["var"]});
  return mxnet::ext::MX_SUCCESS;
}

mxnet::ext::MXReturnValue create(const Attributes& attributes, const mxnet::ext::MXContext&,
                                 const std::vector<std::vector<unsigned>>&, const std::vector<int>,
                                 mxnet::ext::CustomStatefulOp** made) {
  *made = mxnet::ext::CustomStatefulOp::create<Operator>(attributes);
  return mxnet::ext::MX_SUCCESS;
}

// -- Without the operator -------------------------------------------------------------------------

// Inference on arrays that stay where they are, by the thread that asks for it. MXNet takes longer to
// hand an operator and its hundred inputs to another thread than small networks take to compute.
struct Plan {
  const char* error = nullptr;  // which `inference.py` reads

  std::string message;
  std::unique_ptr<Trunk> trunk;
  std::vector<void*> inputs;
  float* features;
  int threads;

  // oneDNN plans for as many threads as compute.
  template <class F>
  void guarded(F f) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    try {
      f();
    } catch (const std::exception& e) {
      message = e.what();
      error = message.c_str();
    }
    omp_set_num_threads(before);
  }
};

}  // namespace

extern "C" {

// Outlives the plans of one program, and one set of inputs but for the images.
Store* resnetv2_store() { return new Store; }

void resnetv2_drop_store(Store* store) { delete store; }

// `sizes` has of each of `count` inputs, the images first, the number of dimensions and then these.
Plan* resnetv2_plan(Store* store, const char* program, const char* dtype, int count, void** inputs,
                    const int64_t* sizes, float* features, int threads) {
  auto plan = new Plan;
  plan->threads = threads;
  plan->guarded([&] {
    Shapes shapes;
    for (int k = 0; k < count; ++k, sizes += 1 + *sizes)
      shapes.emplace_back(sizes + 1, sizes + 1 + *sizes);
    plan->inputs.assign(inputs, inputs + count);
    plan->features = features;
    store->passing.clear();
    plan->trunk = std::make_unique<Trunk>(program, type_of(dtype), false, false, true, shapes, *store);
    plan->trunk->prepare(plan->inputs);
  });
  if (plan->error) store->weights.clear();  // which may not have been made
  return plan;
}

void resnetv2_compute(Plan* plan) {
  plan->guarded([&] { plan->trunk->forward(plan->inputs, plan->features); });
}

void resnetv2_drop_plan(Plan* plan) { delete plan; }
}

REGISTER_OP(resnetv2_trunk)
    .setParseAttrs(parse_attributes)
    .setInferType(infer_type)
    .setInferShape(infer_shape)
    .setMutateInputs(mutate_inputs)
    .setCreateOpState(create, "cpu");

mxnet::ext::MXReturnValue initialize(int) { return mxnet::ext::MX_SUCCESS; }
