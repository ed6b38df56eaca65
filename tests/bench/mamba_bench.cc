// The operations that a Mamba-2 mixer has besides the scan; see tests/bench/operation.h.
#include "kernels/conv1d.h"
#include "kernels/gated_norm.h"
#include "tests/bench/operation.h"

namespace transxssm {
namespace {

// Over the d_inner = 2 D channels of a Mamba-2 mixer.
struct ConvTensors {
  ConvTensors(const Preset& p, DType type)
      : x(activation(type, {p.batch, p.row, 2 * p.width})),
        y(activation(type, {p.batch, p.row, 2 * p.width})),
        dx(activation(type, {p.batch, p.row, 2 * p.width})),
        weight(tensor({2 * p.width, 4})),
        d_weight(tensor({2 * p.width, 4})),
        bias(tensor({2 * p.width})),
        d_bias(tensor({2 * p.width})) {}
  OwnedTensor x, y, dx, weight, d_weight, bias, d_bias;
};

void Conv(benchmark::State& state) {
  Stream stream(threads(state));
  const ConvTensors t(preset(state), dtype(state));
  const Conv1dForward args{.x = t.x, .weight = t.weight, .bias = t.bias, .y = t.y};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.y}));
}

void ConvGradient(benchmark::State& state) {
  Stream stream(threads(state));
  const ConvTensors t(preset(state), dtype(state));
  const Conv1dBackward args{.x = t.x,
                            .weight = t.weight,
                            .bias = t.bias,
                            .dy = t.y,
                            .dx = t.dx,
                            .d_weight = t.d_weight,
                            .d_bias = t.d_bias};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.y, t.dx}));
}

struct GatedNormTensors {
  GatedNormTensors(const Preset& p, DType type)
      : x(activation(type, {p.tokens(), 2 * p.width})),
        z(activation(type, {p.tokens(), 2 * p.width})),
        y(activation(type, {p.tokens(), 2 * p.width})),
        dx(activation(type, {p.tokens(), 2 * p.width})),
        dz(activation(type, {p.tokens(), 2 * p.width})),
        weight(tensor({2 * p.width})),
        d_weight(tensor({2 * p.width})),
        squares(tensor({p.tokens(), 1})),
        dots(tensor({p.tokens(), 1})) {}
  OwnedTensor x, z, y, dx, dz, weight, d_weight, squares, dots;
};

void GatedNorm(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const GatedNormTensors t(p, dtype(state));
  const GatedNormForward args{
      .x = t.x, .z = t.z, .weight = t.weight, .squares = t.squares, .group_width = 2 * p.width, .y = t.y};
  const auto both = [&] {
    run(stream, GatedNormSquares{.x = t.x, .z = t.z, .squares = t.squares});
    run(stream, args);
  };
  measure(state, both, bytes({t.x, t.z, t.y}));
}

void GatedNormGradient(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const GatedNormTensors t(p, dtype(state));
  const GatedNormBackward args{.x = t.x,
                               .z = t.z,
                               .weight = t.weight,
                               .squares = t.squares,
                               .dots = t.dots,
                               .group_width = 2 * p.width,
                               .dy = t.y,
                               .dx = t.dx,
                               .dz = t.dz,
                               .d_weight = t.d_weight};
  const auto both = [&] {
    run(stream, GatedNormDots{.x = t.x, .z = t.z, .weight = t.weight, .dy = t.y, .dots = t.dots});
    run(stream, args);
  };
  measure(state, both, bytes({t.x, t.z, t.y, t.dx, t.dz}));
}

BENCHMARK_ACTIVATIONS(Conv);
BENCHMARK_ACTIVATIONS(ConvGradient);
BENCHMARK_ACTIVATIONS(GatedNorm);
BENCHMARK_ACTIVATIONS(GatedNormGradient);

}  // namespace
}  // namespace transxssm
