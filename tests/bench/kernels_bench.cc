// The operations of the attention and state-space layers, head and optimizer; see tests/bench/operation.h.
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/reduce.h"
#include "kernels/residual.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/ssd_scan.h"
#include "kernels/swiglu.h"
#include "tests/bench/operation.h"

namespace transxssm {
namespace {

// y = x W^T of the FFN, its input gradient and its weight gradient.
void gemm(benchmark::State& state, bool transpose_a, bool transpose_b) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const int64_t m = transpose_a ? p.ffn : p.tokens(), n = transpose_b ? p.ffn : p.width;
  const int64_t k = transpose_a ? p.tokens() : transpose_b ? p.width : p.ffn;
  const DType type = dtype(state);
  const OwnedTensor a = activation(type, transpose_a ? Shape{k, m} : Shape{m, k});
  const OwnedTensor b = activation(type, transpose_b ? Shape{n, k} : Shape{k, n});
  const OwnedTensor c = activation(transpose_a ? DType::f32 : type, {m, n});
  const Gemm args{a, b, c, transpose_a, transpose_b, transpose_a};
  measure(
      state, [&] { run(stream, args); }, bytes({a, b, c}), 2.0 * static_cast<double>(m * n * k));
}
void GemmForward(benchmark::State& state) {
  gemm(state, false, true);
}
void GemmInputGradient(benchmark::State& state) {
  gemm(state, false, false);
}
void GemmWeightGradient(benchmark::State& state) {
  gemm(state, true, false);
}

struct NormTensors {
  NormTensors(const Preset& p, DType type)
      : x(activation(type, {p.tokens(), p.width})),
        branch(activation(type, {p.tokens(), p.width})),
        sum(activation(type, {p.tokens(), p.width})),
        y(activation(type, {p.tokens(), p.width})),
        d_branch(activation(type, {p.tokens(), p.width})),
        weight(tensor({p.width})),
        d_weight(tensor({p.width})),
        rstd(tensor({p.tokens()})) {}
  OwnedTensor x, branch, sum, y, d_branch, weight, d_weight, rstd;
};

void NormForward(benchmark::State& state) {
  Stream stream(threads(state));
  const NormTensors t(preset(state), dtype(state));
  const RmsNormForward args{t.x, t.branch, t.weight, t.sum, t.weight, t.y, t.rstd};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.branch, t.sum, t.y}));
}

void NormBackward(benchmark::State& state) {
  Stream stream(threads(state));
  const NormTensors t(preset(state), dtype(state));
  const RmsNormBackward args{.dy = t.y,
                             .d_sum = t.branch,
                             .sum = t.sum,
                             .rstd = t.rstd,
                             .weight = t.weight,
                             .x = t.x,
                             .residual_weight = t.weight,
                             .dx = t.y,
                             .d_branch = t.branch,
                             .d_weight = t.d_weight,
                             .d_residual_weight = t.d_weight};
  measure(
      state, [&] { run(stream, args); }, bytes({t.y, t.branch, t.sum, t.x, t.y, t.branch}));
}

void Residual(benchmark::State& state) {
  Stream stream(threads(state));
  const NormTensors t(preset(state), dtype(state));
  const ResidualForward args{t.x, t.branch, t.weight, t.y};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.branch, t.y}));
}

void ResidualGradient(benchmark::State& state) {
  Stream stream(threads(state));
  const NormTensors t(preset(state), dtype(state));
  const ResidualBackward args{t.branch, t.x, t.weight, t.y, t.d_weight};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.branch, t.y}));
}

void Rope(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const OwnedTensor x = activation(dtype(state), {p.tokens(), p.heads, p.head_dim});
  const OwnedTensor table = tensor({p.row, p.head_dim / 2});
  const OwnedTensor position = random_integers<int32_t>({p.tokens()}, 1, 0, p.row);
  const Rotary args{.x = x, .cos = table, .sin = table, .position = position};
  measure(
      state, [&] { run(stream, args); }, bytes({x, x}));
}

void Swiglu(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const Shape shape{p.tokens(), p.ffn};
  const DType type = dtype(state);
  const OwnedTensor gate = activation(type, shape), up = activation(type, shape), y = activation(type, shape);
  const SwigluForward args{gate, up, y};
  measure(
      state, [&] { run(stream, args); }, bytes({gate, up, y}));
}

void SwigluGradient(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const Shape shape{p.tokens(), p.ffn};
  const DType type = dtype(state);
  const OwnedTensor gate = activation(type, shape), up = activation(type, shape),
                    dy = activation(type, shape);
  const SwigluBackward args{gate, up, dy, gate, up, dy};
  measure(
      state, [&] { run(stream, args); }, 2 * bytes({gate, up, dy}));
}

void Embedding(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const OwnedTensor ids = random_integers<int32_t>({p.tokens()}, 1, 0, p.vocabulary);
  const OwnedTensor weight = tensor({p.vocabulary, p.width}),
                    y = activation(dtype(state), {p.tokens(), p.width});
  const EmbeddingForward args{.ids = ids, .weight = weight, .y = y};
  measure(
      state, [&] { run(stream, args); }, bytes({y}) + 4.0 * static_cast<double>(y.view().num_elements()));
}

void EmbeddingGradient(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const OwnedTensor ids = random_integers<int32_t>({p.tokens()}, 1, 0, p.vocabulary);
  const OwnedTensor d_weight = tensor({p.vocabulary, p.width}),
                    dy = activation(dtype(state), {p.tokens(), p.width});
  const EmbeddingBackward args{.ids = ids, .dy = dy, .d_weight = d_weight};
  measure(
      state, [&] { run(stream, args); }, bytes({dy}) + 8.0 * static_cast<double>(dy.view().num_elements()));
}

struct LossTensors {
  LossTensors(const Preset& p, DType type)
      : logits(activation(type, {p.loss_tokens, p.vocabulary})),
        max(tensor({p.loss_tokens})),
        sum(tensor({p.loss_tokens}, 1)),
        target_logit(tensor({p.loss_tokens})),
        targets(random_integers<int32_t>({p.loss_tokens}, 1, 0, p.vocabulary)),
        valid(filled<uint8_t>({p.loss_tokens}, 1)) {}
  OwnedTensor logits, max, sum, target_logit, targets, valid;
};

void Loss(benchmark::State& state) {
  Stream stream(threads(state));
  const LossTensors t(preset(state), dtype(state));
  const CrossEntropyStatistics args{t.logits, t.targets, t.max, t.sum, t.target_logit};
  measure(
      state, [&] { run(stream, args); }, bytes({t.logits}));
}

void LossGradient(benchmark::State& state) {
  Stream stream(threads(state));
  const LossTensors t(preset(state), dtype(state));
  const CrossEntropyBackward args{t.logits, t.targets, t.valid, t.max, t.sum};
  measure(
      state, [&] { run(stream, args); }, bytes({t.logits, t.logits}));
}

void OptimizerStep(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const Shape shape{p.vocabulary * p.width};
  const OwnedTensor weight = tensor(shape), gradient = tensor(shape), m = tensor(shape), v = tensor(shape);
  const OwnedTensor rounded = activation(DType::bf16, shape);
  AdamW args{.weight = weight, .gradient = gradient, .exp_avg = m, .exp_avg_sq = v, .learning_rate = 1e-3};
  const bool rounds = dtype(state) == DType::bf16;
  if (rounds) args.rounded = rounded;
  measure(
      state, [&] { run(stream, args); },
      bytes({gradient, weight, weight, m, m, v, v}) + (rounds ? bytes({rounded}) : 0));
}

void SumOfSquares(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const OwnedTensor x = tensor({p.vocabulary, p.width});
  measure(
      state, [&] { benchmark::DoNotOptimize(sum_of_squares(stream, x)); }, bytes({x}));
}

void CountNotFinite(benchmark::State& state) {
  const Preset& p = preset(state);
  Stream stream(threads(state));
  const OwnedTensor x = tensor({p.vocabulary, p.width});
  measure(
      state, [&] { benchmark::DoNotOptimize(count_not_finite(stream, x)); }, bytes({x}));
}

// One head's share of the model's operation count (forward): 4 N P a token for the scan, 2 T P for attention.
struct ScanTensors {
  explicit ScanTensors(const Preset& p)
      : x(tensor({p.batch, p.row, p.heads, p.head_dim})),
        y(tensor({p.batch, p.row, p.heads, p.head_dim})),
        dx(tensor({p.batch, p.row, p.heads, p.head_dim})),
        b(tensor({p.batch, p.row, p.heads, p.state})),
        c(tensor({p.batch, p.row, p.heads, p.state})),
        db(tensor({p.batch, p.row, p.heads, p.state})),
        dc(tensor({p.batch, p.row, p.heads, p.state})),
        u(tensor({p.batch, p.row, p.heads})),
        du(tensor({p.batch, p.row, p.heads})),
        per_head(tensor({p.heads})),
        d_bias(tensor({p.heads})),
        d_log(tensor({p.heads})),
        d_skip(tensor({p.heads})),
        table(tensor({p.chunk + 1, p.state / 2})),
        states(tensor({p.batch, ssd_num_chunks(p.row, p.chunk), p.heads, p.head_dim, p.state})) {
    in = {.x = x,
          .b = b,
          .c = c,
          .u = u,
          .dt_bias = per_head,
          .a_log = per_head,
          .d_skip = per_head,
          .cos = table,
          .sin = table,
          .chunk = p.chunk};
  }
  OwnedTensor x, y, dx, b, c, db, dc, u, du, per_head, d_bias, d_log, d_skip, table, states;
  SsdInput in;
};
double scan_flops(const Preset& p) {
  return 4.0 * static_cast<double>(p.tokens() * p.heads * p.head_dim * p.state);
}
double attention_flops(const Preset& p) {
  return 2.0 * static_cast<double>(p.tokens() * p.row * p.heads * p.head_dim);
}

void Scan(benchmark::State& state) {
  Stream stream(threads(state));
  const ScanTensors t(preset(state));
  const SsdForward args{.in = t.in, .y = t.y, .chunk_states = t.states};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.b, t.c, t.u, t.y}), scan_flops(preset(state)));
}

void ScanGradient(benchmark::State& state) {
  Stream stream(threads(state));
  const ScanTensors t(preset(state));
  const SsdForward forward{.in = t.in, .y = t.y, .chunk_states = t.states};
  run(stream, forward);
  const SsdBackward args{.in = t.in,
                         .chunk_states = t.states,
                         .dy = t.y,
                         .dx = t.dx,
                         .db = t.db,
                         .dc = t.dc,
                         .du = t.du,
                         .d_dt_bias = t.d_bias,
                         .d_a_log = t.d_log,
                         .d_d_skip = t.d_skip};
  measure(
      state, [&] { run(stream, args); }, bytes({t.x, t.b, t.c, t.u, t.y, t.dx, t.db, t.dc, t.du}),
      2 * scan_flops(preset(state)));
}

struct AttentionTensors {
  explicit AttentionTensors(const Preset& p)
      : q(tensor({p.batch, p.row, p.heads, p.head_dim})),
        out(tensor({p.batch, p.row, p.heads, p.head_dim})),
        d(tensor({p.batch, p.row, p.heads, p.head_dim})),
        dk(tensor({p.batch, p.row, p.heads, p.head_dim})),
        dv(tensor({p.batch, p.row, p.heads, p.head_dim})),
        log_sum_exp(tensor({p.batch, p.heads, p.row})) {}
  OwnedTensor q, out, d, dk, dv, log_sum_exp;
};

void Attention(benchmark::State& state) {
  Stream stream(threads(state));
  const AttentionTensors t(preset(state));
  const AttentionForward args{.q = t.q, .k = t.q, .v = t.q, .out = t.out, .log_sum_exp = t.log_sum_exp};
  measure(
      state, [&] { run(stream, args); }, bytes({t.q, t.q, t.q, t.out}), attention_flops(preset(state)));
}

void AttentionGradient(benchmark::State& state) {
  Stream stream(threads(state));
  const AttentionTensors t(preset(state));
  run(stream, AttentionForward{.q = t.q, .k = t.q, .v = t.q, .out = t.out, .log_sum_exp = t.log_sum_exp});
  const AttentionBackward args{.q = t.q,
                               .k = t.q,
                               .v = t.q,
                               .first_key = {},
                               .out = t.out,
                               .log_sum_exp = t.log_sum_exp,
                               .d_out = t.out,
                               .dq = t.d,
                               .dk = t.dk,
                               .dv = t.dv};
  measure(
      state, [&] { run(stream, args); }, bytes({t.q, t.q, t.q, t.out, t.out, t.d, t.dk, t.dv}),
      2 * attention_flops(preset(state)));
}

BENCHMARK_ACTIVATIONS(GemmForward);
BENCHMARK_ACTIVATIONS(GemmInputGradient);
BENCHMARK_ACTIVATIONS(GemmWeightGradient);
BENCHMARK_ACTIVATIONS(NormForward);
BENCHMARK_ACTIVATIONS(NormBackward);
BENCHMARK_ACTIVATIONS(Residual);
BENCHMARK_ACTIVATIONS(ResidualGradient);
BENCHMARK_ACTIVATIONS(Rope);
BENCHMARK_ACTIVATIONS(Swiglu);
BENCHMARK_ACTIVATIONS(SwigluGradient);
BENCHMARK_ACTIVATIONS(Embedding);
BENCHMARK_ACTIVATIONS(EmbeddingGradient);
BENCHMARK_ACTIVATIONS(Loss);
BENCHMARK_ACTIVATIONS(LossGradient);
BENCHMARK_ACTIVATIONS(OptimizerStep);
BENCHMARK_OPERATION(SumOfSquares);
BENCHMARK_OPERATION(CountNotFinite);
BENCHMARK_OPERATION(Scan);
BENCHMARK_OPERATION(ScanGradient);
BENCHMARK_OPERATION(Attention);
BENCHMARK_OPERATION(AttentionGradient);

}  // namespace
}  // namespace transxssm
