#include "model/parameter.h"

#include <algorithm>
#include <cmath>

#include "kernels/copy.h"
#include "runtime/rng.h"

namespace transxssm {
namespace {

constexpr int64_t kInitialPiece = int64_t{1} << 22;  // elements
constexpr int64_t kGroupAlignment = kAlignment / 4;  // elements

float initial_value(Init init, const Rng& rng, uint64_t index, double range) {
  switch (init) {
    case Init::normal:
      return static_cast<float>(range * rng.normal(index));
    case Init::uniform:
      return static_cast<float>(range * (2 * rng.uniform(index) - 1));
    case Init::ones:
      return 1.0f;
    case Init::zeros:
      return 0.0f;
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
  Parameter parameter;
  parameter.spec = std::move(spec);
  parameters_.push_back(std::move(parameter));
  adjacent_.push_back(adjacent);
  return static_cast<int>(parameters_.size()) - 1;
}

int ParameterStore::declare_linear(const LinearSpec& spec) {
  const auto copy = [](bool used) { return used ? std::make_unique<PackedMatrix>() : nullptr; };
  linears_.push_back({spec, copy(spec.forward), copy(spec.backward)});
  return static_cast<int>(linears_.size()) - 1;
}

Shape ParameterStore::shape(const LinearSpec& spec) const {
  int64_t rows = -spec.first_row;
  for (int i = spec.first; i < spec.first + spec.count; ++i) rows += (*this)[i].spec.box.extent[0];
  return {spec.num_rows > 0 ? spec.num_rows : rows, (*this)[spec.first].spec.box.extent[1]};
}

void ParameterStore::carve_packed(Carver& carver, const Device& device) const {
  for (const PackedLinear& linear : linears_) {
    const Shape out_in = shape(linear.spec);
    const auto take = [&](PackedMatrix* packed, int64_t k, int64_t n) {
      if (packed == nullptr) return;
      const int64_t bytes = transxssm::packed_bytes(device, operand_dtype_, k, n);
      if (bytes > 0) *packed = {.memory = carver.take(DType::u8, {bytes})};
    };
    take(linear.forward.get(), out_in[1], out_in[0]);
    take(linear.backward.get(), out_in[0], out_in[1]);
  }
}

int64_t ParameterStore::packed_bytes(const Device& device) const {
  Carver count;
  carve_packed(count, device);
  return count.used();
}

void ParameterStore::operands_changed() const {
  for (const PackedLinear& linear : linears_)
    for (PackedMatrix* packed : {linear.forward.get(), linear.backward.get()})
      if (packed != nullptr) packed->stale = true;
}

Linear ParameterStore::linear(int index) const {
  const PackedLinear& linear = linears_[static_cast<size_t>(index)];
  const LinearSpec& spec = linear.spec;
  const auto rows = [&](const Tensor& flat) {
    const Tensor whole = fused(flat, spec.first, spec.count);
    return whole.empty() ? whole : whole.slice(0, spec.first_row, shape(spec)[0]);
  };
  Linear product{.weight = rows(operand_),
                 .gradient = rows(gradient_),
                 .packed_forward = linear.forward.get(),
                 .packed_backward = linear.backward.get()};
  if (spec.bias < 0) return product;
  if (spec.add_bias) product.bias = fused_weight(spec.bias, spec.count);
  product.bias_gradient = fused_gradient(spec.bias, spec.count);
  return product;
}

void ParameterStore::place() {
  elements_ = 0;
  for (const bool matrices : {false, true}) {
    const auto align = [&] {
      elements_ = (elements_ + kGroupAlignment - 1) / kGroupAlignment * kGroupAlignment;
    };
    align();
    if (matrices) matrices_begin_ = elements_;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& p = parameters_[i];
      if (p.spec.decays() != matrices) continue;
      if (!adjacent_[i]) align();
      p.offset = elements_;
      elements_ += p.spec.box.extent.num_elements();
    }
  }
}

void ParameterStore::allocate(bool with_optimizer, Device device) {
  place();
  const Shape flat = {elements_};
  const auto make = [&](Arena& arena, DType dtype, int count) {
    arena = Arena(count * carved_bytes(dtype, {elements_ + kGroupAlignment}), device);
    return arena.carver();
  };
  Carver weights = make(weight_arena_, DType::f32, 1);
  weight_ = weights.take(DType::f32, flat);
  operand_ = weight_;
  if (operand_dtype_ != DType::f32)
    operand_ = make(operand_arena_, operand_dtype_, 1).take(operand_dtype_, flat);
  if (with_optimizer) {
    gradient_ = make(gradient_arena_, DType::f32, 1).take(DType::f32, flat);
    Carver moments = make(optimizer_arena_, DType::f32, 2);
    exp_avg_ = moments.take(DType::f32, flat);
    exp_avg_sq_ = moments.take(DType::f32, flat);
    packed_arena_ = Arena(packed_bytes(device), device);
    Carver packed = packed_arena_.carver();
    carve_packed(packed, device);
  }
  for (Parameter& p : parameters_) {
    const Shape& extent = p.spec.box.extent;
    const auto view = [&](const Tensor& whole) {
      return whole.empty() ? Tensor{} : whole.slice(0, p.offset, extent.num_elements()).reshape(extent);
    };
    p.weight = view(weight_);
    p.operand = view(operand_);
    p.gradient = view(gradient_);
    p.exp_avg = view(exp_avg_);
    p.exp_avg_sq = view(exp_avg_sq_);
  }
}

Parameter ParameterStore::range(int64_t begin, int64_t count) const {
  const auto view = [&](const Tensor& whole) {
    return whole.empty() ? Tensor{} : whole.slice(0, begin, count);
  };
  Parameter p;
  p.weight = view(weight_);
  p.operand = view(operand_);
  p.gradient = view(gradient_);
  p.exp_avg = view(exp_avg_);
  p.exp_avg_sq = view(exp_avg_sq_);
  p.offset = begin;
  return p;
}

void ParameterStore::refresh_operands(Stream& stream) const {
  if (operand_dtype_ != DType::f32) run(stream, Copy{weight_, operand_});
  operands_changed();
}

void ParameterStore::initialise(Stream& stream, uint64_t seed, double initializer_range) {
  // A device's weights are formed in pieces on the host.
  const bool on_device = stream.queue() != nullptr;
  const Arena staging(on_device ? kInitialPiece * dtype_bytes(DType::f32) : 0, stream.device(),
                      MemoryKind::pinned);
  for (const Parameter& p : parameters_) {
    const Rng rng(seed, p.spec.name);
    const Box& box = p.spec.box;
    // Parameters have one or two dims; the global index is row-major over the logical shape.
    const int64_t rows = box.extent.rank() == 1 ? 1 : box.extent[0];
    const int64_t columns = box.extent[box.extent.rank() - 1];
    const int64_t first_row = box.extent.rank() == 1 ? 0 : box.offset[0];
    const int64_t first_column = box.offset[box.offset.rank() - 1];
    const int64_t global_columns = p.spec.global_shape[p.spec.global_shape.rank() - 1];
    const Tensor weight = p.weight.reshape({p.num_elements()});
    for (int64_t first = 0; first < rows * columns; first += kInitialPiece) {
      const int64_t count = std::min(kInitialPiece, rows * columns - first);
      const Tensor piece = weight.slice(0, first, count);
      const Tensor host = on_device ? staging.carver().take(DType::f32, {count}) : piece;
      float* values = host.data<float>();
      parallel_ranges(stream, count, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t i = first + k;
          const int64_t index = (first_row + i / columns) * global_columns + first_column + i % columns;
          values[k] = initial_value(p.spec.init, rng, static_cast<uint64_t>(index),
                                    p.spec.init == Init::uniform ? p.spec.init_range : initializer_range);
        }
      });
      if (!on_device) continue;
      transfer(stream, host, piece);
      stream.synchronize();
    }
  }
  refresh_operands(stream);
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
  return flat.slice(0, head.offset, shape.num_elements()).reshape(shape);
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
  zero(stream, gradient_);
}

}  // namespace transxssm
