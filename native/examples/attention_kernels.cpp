// `llama::custom_sdpa` and `llama::update_cache` in plain C++, in float32.
//
// An app that builds ExecuTorch has them from `extension/llm/custom_ops` and does not need this file. The ExecuTorch
// wheel has them only in a library that needs libtorch and Python, so a program that is built against the wheel brings
// its own: slower, with the same contract (extension/llm/custom_ops/op_sdpa.cpp, op_update_cache.cpp of 1.5.1).
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

namespace {

bool is_float_of_four(const Tensor& tensor) {
  return tensor.dim() == 4 && tensor.scalar_type() == executorch::aten::ScalarType::Float && tensor.size(0) == 1;
}

// value (1, length, heads, width) goes into cache (1, positions, heads, width) from start on.
Tensor& update_cache(KernelRuntimeContext& context, const Tensor& value, Tensor& cache, int64_t start, Tensor& out) {
  const int64_t row = cache.size(2) * cache.size(3);
  ET_KERNEL_CHECK(context,
                  is_float_of_four(value) && is_float_of_four(cache) && value.size(2) * value.size(3) == row &&
                      start >= 0 && start + value.size(1) <= cache.size(1),
                  InvalidArgument, out);
  std::memcpy(cache.mutable_data_ptr<float>() + start * row, value.const_data_ptr<float>(),
              static_cast<size_t>(value.size(1) * row) * sizeof(float));
  return out;
}

struct Heads {
  const float* data;
  int64_t count, width;
  const float* at(int64_t position, int64_t head) const { return data + (position * count + head) * width; }
};

// One query against the first `length` positions of its key and value head.
void attend(const float* query, const Heads& keys, const Heads& values, int64_t head, int64_t length, float scale,
            std::vector<float>& weights, float* out) {
  float largest = -INFINITY, sum = 0;
  for (int64_t position = 0; position < length; ++position) {
    const float* key = keys.at(position, head);
    float score = 0;
    for (int64_t index = 0; index < keys.width; ++index) score += query[index] * key[index];
    weights[position] = score * scale;
    largest = std::max(largest, weights[position]);
  }
  std::fill(out, out + values.width, 0.0f);
  for (int64_t position = 0; position < length; ++position) {
    const float weight = std::exp(weights[position] - largest);
    const float* value = values.at(position, head);
    sum += weight;
    for (int64_t index = 0; index < values.width; ++index) out[index] += weight * value[index];
  }
  for (int64_t index = 0; index < values.width; ++index) out[index] /= sum;
}

// query (1, length, heads, width); key and value are the caches, (1, positions, heads of keys, width). Query i stands at
// position start + i and sees what stands at it and before it.
Tensor& custom_sdpa(KernelRuntimeContext& context, const Tensor& query, const Tensor& key, const Tensor& value,
                    int64_t start, const std::optional<Tensor>& mask, double, bool causal,
                    const std::optional<double> scale, Tensor& out) {
  ET_KERNEL_CHECK(context,
                  is_float_of_four(query) && is_float_of_four(key) && is_float_of_four(value) && !mask.has_value() &&
                      causal && start >= 0 && start + query.size(1) <= key.size(1) && query.size(2) % key.size(2) == 0,
                  InvalidArgument, out);
  ET_KERNEL_CHECK(context, executorch::runtime::resize_tensor(out, query.sizes()) == Error::Ok, InvalidArgument, out);
  const Heads queries = {query.const_data_ptr<float>(), query.size(2), query.size(3)};
  const Heads keys = {key.const_data_ptr<float>(), key.size(2), key.size(3)};
  const Heads values = {value.const_data_ptr<float>(), value.size(2), value.size(3)};
  const int64_t group = queries.count / keys.count;
  const auto factor = static_cast<float>(scale.has_value() ? *scale : 1.0 / std::sqrt(static_cast<double>(keys.width)));
  std::vector<float> weights(static_cast<size_t>(start + query.size(1)));
  float* written = out.mutable_data_ptr<float>();
  for (int64_t position = 0; position < query.size(1); ++position) {
    for (int64_t head = 0; head < queries.count; ++head, written += queries.width) {
      attend(queries.at(position, head), keys, values, head / group, start + position + 1, factor, weights, written);
    }
  }
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(llama, "update_cache.out", update_cache);
EXECUTORCH_LIBRARY(llama, "custom_sdpa.out", custom_sdpa);
