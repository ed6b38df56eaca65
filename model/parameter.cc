#include "model/parameter.h"

#include <cmath>
#include <cstring>

#include "runtime/rng.h"

namespace transxssm {
namespace {

constexpr int64_t kGroupAlignment = kAlignment / 4;  // elements

float initial_value(Init init, const Rng& rng, uint64_t index, double range) {
  switch (init) {
    case Init::normal:
      return static_cast<float>(range * rng.normal(index));
    case Init::uniform:
      return static_cast<float>(range * (2 * rng.uniform(index) - 1));
    case Init::ones:
      return 1.0f;
    case Init::a_log:
      return static_cast<float>(std::log(1.0 + 15.0 * rng.uniform(index)));
    case Init::dt_bias: {
      const double dt = std::max(1e-4, std::exp(std::log(1e-3) + rng.uniform(index) * std::log(1e2)));
      return static_cast<float>(dt + std::log(-std::expm1(-dt)));  // softplus of it is dt
    }
  }
  throw InternalError("unknown initialisation {}", static_cast<int>(init));
}

}  // namespace

int ParameterStore::declare(ParameterSpec spec, bool adjacent) {
  if (!adjacent) elements_ = (elements_ + kGroupAlignment - 1) / kGroupAlignment * kGroupAlignment;
  Parameter parameter;
  parameter.offset = elements_;
  elements_ += spec.box.extent.num_elements();
  parameter.spec = std::move(spec);
  parameters_.push_back(std::move(parameter));
  return static_cast<int>(parameters_.size()) - 1;
}

void ParameterStore::allocate(bool with_optimizer) {
  const int64_t bytes = elements_ * dtype_bytes(DType::f32);
  const Shape flat = {elements_};
  auto view = [&](const Tensor& base, const Parameter& p) {
    return Tensor(base.data<float>() + p.offset, DType::f32, p.spec.box.extent);
  };
  weight_arena_ = Arena(std::max<int64_t>(bytes, 1));
  weight_ = weight_arena_.carver().take(DType::f32, flat);
  for (Parameter& p : parameters_) p.weight = view(weight_, p);
  if (!with_optimizer) return;
  gradient_arena_ = Arena(std::max<int64_t>(bytes, 1));
  gradient_ = gradient_arena_.carver().take(DType::f32, flat);
  optimizer_arena_ = Arena(2 * weight_arena_.bytes());
  Carver moments = optimizer_arena_.carver();
  const Tensor exp_avg = moments.take(DType::f32, flat);
  const Tensor exp_avg_sq = moments.take(DType::f32, flat);
  for (Parameter& p : parameters_) {
    p.gradient = view(gradient_, p);
    p.exp_avg = view(exp_avg, p);
    p.exp_avg_sq = view(exp_avg_sq, p);
  }
}

void ParameterStore::initialise(Stream& stream, uint64_t seed, double initializer_range) {
  for (const Parameter& p : parameters_) {
    const Rng rng(seed, p.spec.name);
    const Box& box = p.spec.box;
    // Parameters have one or two dims; the global index is row-major over the logical shape.
    const int64_t rows = box.extent.rank() == 1 ? 1 : box.extent[0];
    const int64_t columns = box.extent[box.extent.rank() - 1];
    const int64_t first_row = box.extent.rank() == 1 ? 0 : box.offset[0];
    const int64_t first_column = box.offset[box.offset.rank() - 1];
    const int64_t global_columns = p.spec.global_shape[p.spec.global_shape.rank() - 1];
    float* weight = p.weight.data<float>();
    parallel_ranges(stream, rows * columns, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t index = (first_row + i / columns) * global_columns + first_column + i % columns;
        weight[i] = initial_value(p.spec.init, rng, static_cast<uint64_t>(index),
                                  p.spec.init == Init::uniform ? p.spec.init_range : initializer_range);
      }
    });
  }
}

Tensor ParameterStore::fused(const Tensor& flat, int first, int count) const {
  if (flat.empty()) return {};  // gradients, in inference
  const Parameter& head = (*this)[first];
  Shape shape = head.spec.box.extent;
  const int64_t columns = shape.rank() == 1 ? 1 : shape[1];
  shape[0] = 0;
  for (int i = first; i < first + count; ++i) {
    const Parameter& p = (*this)[i];
    TRANSXSSM_CHECK(p.offset == head.offset + shape[0] * columns &&
                        p.spec.box.extent.rank() == shape.rank() &&
                        p.spec.box.extent.num_elements() == p.spec.box.extent[0] * columns,
                    "{} does not follow its neighbour", p.spec.name);
    shape[0] += p.spec.box.extent[0];
  }
  return Tensor(flat.data<float>() + head.offset, DType::f32, shape);
}

Tensor ParameterStore::fused_weight(int first, int count) const {
  return fused(weight_, first, count);
}
Tensor ParameterStore::fused_gradient(int first, int count) const {
  return fused(gradient_, first, count);
}

int64_t ParameterStore::num_elements() const {
  int64_t count = 0;
  for (const Parameter& p : parameters_) count += p.spec.box.extent.num_elements();
  return count;
}

int64_t ParameterStore::num_owned_elements() const {
  int64_t count = 0;
  for (const Parameter& p : parameters_)
    if (p.spec.owner) count += p.spec.box.extent.num_elements();
  return count;
}

void ParameterStore::zero_gradients(Stream& stream) const {
  float* gradient = gradient_.data<float>();
  parallel_ranges(stream, elements_, 4096, [&](int64_t begin, int64_t end) {
    std::memset(gradient + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  });
}

}  // namespace transxssm
