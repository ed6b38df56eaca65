// Bytes and arithmetic of each operation against numbers counted by hand.
#include "kernels/cost.h"

#include <gtest/gtest.h>

namespace transxssm {
namespace {

// Of a shape alone: nothing is read or written.
Tensor shaped(DType dtype, const Shape& shape) {
  static double memory[1];
  return Tensor(memory, dtype, shape);
}
Tensor f32(const Shape& shape) {
  return shaped(DType::f32, shape);
}
Tensor bf16(const Shape& shape) {
  return shaped(DType::bf16, shape);
}
Tensor i32(const Shape& shape) {
  return shaped(DType::i32, shape);
}
Tensor u8(const Shape& shape) {
  return shaped(DType::u8, shape);
}

void expect_cost(const OperationCost& got, double bytes, double flops = 0) {
  EXPECT_EQ(got.bytes, bytes);
  EXPECT_EQ(got.flops, flops);
}

TEST(Cost, GemmReadsItsOperandsOnceAndWhatItAddsTo) {
  // 3 x 5 of depth 7: 2 * 105 operations; elements 21 + 35 in, 15 out.
  expect_cost(cost(Gemm{.a = f32({3, 7}), .b = f32({7, 5}), .c = f32({3, 5})}), 4 * (21 + 35 + 15), 210);
  expect_cost(cost(Gemm{.a = bf16({7, 3}),
                        .b = bf16({5, 7}),
                        .c = f32({3, 5}),
                        .transpose_a = true,
                        .transpose_b = true,
                        .accumulate = true}),
              2 * (21 + 35) + 4 * 2 * 15, 210);
}

TEST(Cost, Copies) {
  expect_cost(cost(Copy{f32({4, 6}), bf16({4, 6})}), 24 * (4 + 2));
}

TEST(Cost, NormsAndResiduals) {
  const Shape x = {4, 6};
  expect_cost(cost(RmsNormForward{.x = bf16(x), .weight = f32({6}), .y = bf16(x), .rstd = f32({4})}),
              2 * 2 * 24 + 4 * 4);
  expect_cost(
      cost(RmsNormForward{
          .x = f32(x), .branch = bf16(x), .sum = f32(x), .weight = f32({6}), .y = bf16(x), .rstd = f32({4})}),
      24 * (4 + 2 + 4 + 2) + 4 * 4);
  expect_cost(cost(RmsNormBackward{.dy = bf16(x),
                                   .d_sum = f32(x),
                                   .sum = f32(x),
                                   .rstd = f32({4}),
                                   .weight = f32({6}),
                                   .x = f32(x),
                                   .dx = f32(x),
                                   .d_branch = bf16(x),
                                   .d_weight = f32({6})}),
              24 * (2 + 4 + 4 + 4 + 4 + 2) + 4 * 4);
  expect_cost(cost(ResidualForward{.x = f32(x), .branch = f32(x), .weight = f32({6}), .y = f32(x)}), 4 * 72);
  expect_cost(cost(ResidualBackward{.dy = f32(x),
                                    .x = f32(x),
                                    .weight = f32({6}),
                                    .dx = f32(x),
                                    .d_weight = f32({6}),
                                    .d_branch = f32(x)}),
              4 * 96);
}

TEST(Cost, BiasIsInPlace) {
  expect_cost(cost(BiasForward{bf16({10, 24}), f32({24})}), 2 * 2 * 240);
  expect_cost(cost(BiasBackward{bf16({10, 24}), f32({24})}), 2 * 240);
}

TEST(Cost, RotationIsInPlace) {
  expect_cost(
      cost(Rotary{.x = bf16({10, 3, 8}), .cos = f32({10, 4}), .sin = f32({10, 4}), .position = i32({10})}),
      2 * 2 * 240 + 4 * 10);
}

constexpr int64_t kB = 2, kT = 10, kH = 3, kG = 1, kP = 4, kN = 8;

SsdInput scan_input() {
  return {.x = bf16({kB, kT, kH, kP}),
          .b = bf16({kB, kT, kG, kN}),
          .c = bf16({kB, kT, kG, kN}),
          .u = f32({kB, kT, kH}),
          .dt_bias = f32({kH}),
          .a_log = f32({kH}),
          .chunk = 4};
}

// Each element of the state takes a product and a sum on its way in, and on its way out.
TEST(Cost, ScanIsCreditedWithWhatEntersAndLeavesTheState) {
  const double x = kB * kT * kH * kP, bc = kB * kT * kG * kN, u = kB * kT * kH;
  const double states = kB * 3 * kH * kP * kN, flops = 4.0 * kB * kT * kH * kN * kP;
  const Tensor chunk_states = bf16({kB, 3, kH, kP, kN});
  expect_cost(cost(SsdForward{.in = scan_input(), .y = bf16({kB, kT, kH, kP}), .chunk_states = chunk_states}),
              2 * (2 * x + 2 * bc + states) + 4 * u, flops);
  const Tensor grads = bf16({kB, kT, kG, kN});
  const OperationCost backward = cost(SsdBackward{.in = scan_input(),
                                                  .chunk_states = chunk_states,
                                                  .dy = bf16({kB, kT, kH, kP}),
                                                  .dx = bf16({kB, kT, kH, kP}),
                                                  .db = grads,
                                                  .dc = grads,
                                                  .du = f32({kB, kT, kH}),
                                                  .d_dt_bias = f32({kH}),
                                                  .d_a_log = f32({kH})});
  expect_cost(backward, 2 * (3 * x + 4 * bc + states) + 4 * 2 * u, 2 * flops);
  EXPECT_EQ(flops + backward.flops, 12.0 * kH * kN * kP * kB * kT) << "12 H N P a token";
}

TEST(Cost, ScanWithEverything) {
  SsdInput in = scan_input();
  in.c_scale = f32({kB, kT});
  in.start = u8({kB, kT});
  in.initial_state = f32({kB, kH, kP, kN});
  const OperationCost plain = cost(SsdForward{.in = scan_input(), .y = bf16({kB, kT, kH, kP})});
  const OperationCost all =
      cost(SsdForward{.in = in, .y = bf16({kB, kT, kH, kP}), .final_state = in.initial_state});
  EXPECT_EQ(all.bytes - plain.bytes, kB * kT * (4 + 1) + 2 * 4 * kB * kH * kP * kN);
  EXPECT_EQ(all.flops, plain.flops);
}

// A query sees itself and the keys before it: (T + 1) / 2 on average.
TEST(Cost, AttentionIsCausal) {
  const Tensor q = bf16({kB, kT, kH, kP}), k = bf16({kB, kT, kG, kP}), lse = f32({kB, kH, kT});
  const double qs = kB * kT * kH * kP, ks = kB * kT * kG * kP;
  const OperationCost forward = cost(AttentionForward{.q = q, .k = k, .v = k, .out = q, .log_sum_exp = lse});
  const double scores = kB * kH * (kT * (kT + 1) / 2.0);
  expect_cost(forward, 2 * (2 * qs + 2 * ks) + 4 * kB * kH * kT, 2 * 2 * kP * scores);
  const OperationCost backward = cost(AttentionBackward{.q = q,
                                                        .k = k,
                                                        .v = k,
                                                        .first_key = {},
                                                        .out = q,
                                                        .log_sum_exp = lse,
                                                        .d_out = q,
                                                        .dq = q,
                                                        .dk = k,
                                                        .dv = k});
  expect_cost(backward, 2 * (4 * qs + 4 * ks) + 4 * kB * kH * kT, 2 * forward.flops);
  EXPECT_EQ(forward.flops + backward.flops, 6.0 * (kT + 1) * kH * kP * kB * kT) << "6 T H P a token";
}

TEST(Cost, AttentionOfANewTokenSeesAllBefore) {
  const Tensor q = bf16({1, 1, kH, kP}), k = bf16({1, 64, kH, kP});
  EXPECT_EQ(cost(AttentionForward{.q = q, .k = k, .v = k, .out = q, .query_offset = 63}).flops,
            4.0 * kH * kP * 64);
  EXPECT_EQ(cost(AttentionForward{.q = q, .k = k, .v = k, .out = q, .query_offset = 9}).flops,
            4.0 * kH * kP * 10);
}

TEST(Cost, Swiglu) {
  const Tensor x = bf16({4, 6});
  expect_cost(cost(SwigluForward{x, x, x}), 3 * 48);
  expect_cost(cost(SwigluBackward{.gate = x, .up = x, .dy = x, .d_gate = x, .d_up = x, .y = x}), 6 * 48);
}

TEST(Cost, ConvolutionAndGatedNorm) {
  const Tensor row = f32({2, 5, 6}), weight = f32({6, 4}), bias = f32({6});
  expect_cost(cost(Conv1dForward{.x = row,
                                 .weight = weight,
                                 .bias = bias,
                                 .start = u8({2, 5}),
                                 .initial_window = f32({2, 3, 6}),
                                 .y = row,
                                 .final_window = f32({2, 3, 6})}),
              4 * (2 * 60 + 2 * 36) + 10);
  expect_cost(cost(Conv1dBackward{.x = row,
                                  .weight = weight,
                                  .bias = bias,
                                  .dy = row,
                                  .dx = row,
                                  .d_weight = weight,
                                  .d_bias = bias}),
              4 * 180);
  const Tensor x = bf16({5, 6}), sums = f32({5, 2}), w = f32({6});
  expect_cost(cost(GatedNormSquares{x, x, sums}), 2 * 60 + 40);
  expect_cost(cost(GatedNormForward{.x = x, .z = x, .weight = w, .squares = sums, .group_width = 3, .y = x}),
              2 * 90 + 40);
  expect_cost(cost(GatedNormDots{.x = x, .z = x, .weight = w, .dy = x, .dots = sums}), 2 * 90 + 40);
  expect_cost(cost(GatedNormBackward{.x = x,
                                     .z = x,
                                     .weight = w,
                                     .squares = sums,
                                     .dots = sums,
                                     .group_width = 3,
                                     .dy = x,
                                     .dx = x,
                                     .dz = x,
                                     .d_weight = w}),
              2 * 150 + 80);
}

// The rows of the table that the ids name, not the table.
TEST(Cost, EmbeddingTouchesTheRowsOfItsIds) {
  expect_cost(cost(EmbeddingForward{i32({7}), f32({1000, 6}), bf16({7, 6})}), 28 + 42 * (4 + 2));
  expect_cost(cost(EmbeddingBackward{i32({7}), bf16({7, 6}), f32({1000, 6})}), 28 + 42 * (2 + 4 + 4));
}

TEST(Cost, CrossEntropy) {
  const Tensor logits = bf16({4, 100}), ids = i32({4}), row = f32({4});
  expect_cost(cost(CrossEntropyStatistics{logits, ids, row, row, row}), 800 + 16 + 3 * 16);
  expect_cost(cost(CrossEntropyCombine{f32({2, 3, 4}), f32({3, 4})}), 4 * (24 + 12));
  expect_cost(cost(CrossEntropyLoss{u8({4}), row, row, row, shaped(DType::f64, {1})}), 4 + 3 * 16);
  expect_cost(
      cost(CrossEntropyBackward{.logits = logits, .targets = ids, .valid = u8({4}), .max = row, .sum = row}),
      2 * 800 + 16 + 4 + 2 * 16);
}

TEST(Cost, AdamWReadsFourAndWritesThree) {
  AdamW args{.weight = f32({100}), .gradient = f32({100}), .exp_avg = f32({100}), .exp_avg_sq = f32({100})};
  expect_cost(cost(args), 100 * 4 * 7);
  args.rounded = bf16({100});
  expect_cost(cost(args), 100 * (4 * 7 + 2));
}

}  // namespace
}  // namespace transxssm
