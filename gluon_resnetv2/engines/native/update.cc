// SGD with momentum, all tensors of a network in one pass, to the bit as MXNet's operator for several
// computes it. That one takes 60 tensors at most, and MXNet longer to check what it is called with
// than it takes to compute.

#include <omp.h>

#include <algorithm>
#include <vector>

namespace {

struct Tensor {
  float *weight, *gradient, *momentum;
  long size;
  float rate, decay;
};

struct Update {
  std::vector<Tensor> tensors;
  float momentum, scale;  // of the gradients
};

// Of one tensor, the elements from `begin` on.
void update(const Tensor& t, long begin, long end, float momentum, float scale) {
  const float decay = t.rate * t.decay, rate = t.rate * scale;
#pragma omp simd
  for (long k = begin; k < end; ++k) {
    t.momentum[k] = momentum * t.momentum[k] - decay * t.weight[k] - rate * t.gradient[k];
    t.weight[k] += t.momentum[k];
  }
}

}  // namespace

extern "C" {

// `arrays`: of each tensor MXNet's handles of weight, gradient and momentum, which `address` knows
// the memory of, in one layout whatever oneDNN has made of it.
Update* resnetv2_update(int count, void** arrays, const long* sizes, const float* rates,
                        const float* decays, float momentum, float scale,
                        int (*address)(void*, float**)) {
  auto made = new Update{std::vector<Tensor>(count), momentum, scale};
  for (int k = 0; k < count; ++k, arrays += 3) {
    Tensor& t = made->tensors[k] = {nullptr, nullptr, nullptr, sizes[k], rates[k], decays[k]};
    if (address(arrays[0], &t.weight) || address(arrays[1], &t.gradient) ||
        address(arrays[2], &t.momentum)) {
      delete made;
      return nullptr;
    }
  }
  return made;
}

// As MXNet's engine calls it, with its own first argument.
void resnetv2_apply(void*, Update* all) {
  long total = 0;
  for (auto& t : all->tensors) total += t.size;
#pragma omp parallel
  {
    // Each thread has a part of all elements, wherever that begins and ends.
    const long threads = omp_get_num_threads(), own = omp_get_thread_num();
    long begin = total * own / threads, end = total * (own + 1) / threads;
    for (auto& t : all->tensors) {
      if (begin < t.size && end > 0)
        update(t, std::max(begin, 0L), std::min(end, t.size), all->momentum, all->scale);
      begin -= t.size;
      end -= t.size;
    }
  }
}

void resnetv2_drop_update(Update* all) { delete all; }
}
