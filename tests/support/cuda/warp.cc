// What the lanes of a warp do together. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with
// floating point type" and "ldmatrix".
#include <bit>
#include <cstring>

#include "tests/support/cuda/block.h"

namespace transxssm::cuda::emulated {

namespace {

template <class Argument>
Argument& of_lane(void* const* arguments, int lane) {
  return *static_cast<Argument*>(arguments[lane]);
}

struct Exchange {
  Shuffle kind;
  uint64_t in, out;
  int operand;
};

int source_lane(const Exchange& exchange, int lane) {
  switch (exchange.kind) {
    case Shuffle::index:
      return exchange.operand % kWarpLanes;
    case Shuffle::exclusive_or:
      return (lane ^ exchange.operand) % kWarpLanes;
    case Shuffle::up:
      return lane - exchange.operand >= 0 ? lane - exchange.operand : lane;
    case Shuffle::down:
      return lane + exchange.operand < kWarpLanes ? lane + exchange.operand : lane;
  }
  return lane;
}

void exchange_values(void* const* arguments) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    auto& exchange = of_lane<Exchange>(arguments, lane);
    exchange.out = of_lane<Exchange>(arguments, source_lane(exchange, lane)).in;
  }
}

struct Vote {
  bool in;
  uint32_t out;
};

void vote(void* const* arguments) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarpLanes; ++lane)
    votes |= static_cast<uint32_t>(of_lane<Vote>(arguments, lane).in) << lane;
  for (int lane = 0; lane < kWarpLanes; ++lane) of_lane<Vote>(arguments, lane).out = votes;
}

// The lower and the upper bf16 of a register.
float low(uint32_t pair) {
  return std::bit_cast<float>(pair << 16);
}
float high(uint32_t pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}

struct Product {
  float* d;
  const uint32_t *a, *b;
};

// Products of bf16 are exact in float; the sum of 16 is rounded once here, and in parts by the hardware.
void multiply(void* const* arguments) {
  float a[16][16], b[8][16];  // b: one row a column of the operand
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& product = of_lane<Product>(arguments, lane);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, column = pair + i / 2 * 8;
      a[row][column] = low(product.a[i]);
      a[row][column + 1] = high(product.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[group][pair + i * 8] = low(product.b[i]);
      b[group][pair + i * 8 + 1] = high(product.b[i]);
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    float* d = of_lane<Product>(arguments, lane).d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = 0;
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k] * b[column][k]);
      d[i] = static_cast<float>(static_cast<double>(d[i]) + sum);
    }
  }
}

struct Matrices {
  uint32_t* registers;
  int count;
  bool transposed;
  uint16_t row[8];  // of matrix lane / 8
};

void distribute(void* const* arguments) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    auto& self = of_lane<Matrices>(arguments, lane);
    for (int m = 0; m < self.count; ++m) {
      const auto element = [&](int row, int column) -> uint32_t {
        return of_lane<Matrices>(arguments, 8 * m + row).row[column];
      };
      const int major = lane / 4, minor = lane % 4 * 2;
      self.registers[m] = self.transposed ? element(minor, major) | element(minor + 1, major) << 16
                                          : element(major, minor) | element(major, minor + 1) << 16;
    }
  }
}

}  // namespace

void sync_warp(const Where& where) {
  current_block().wait_for_warp("sync_warp", where, nullptr, nullptr, true);
}

uint64_t shuffle(Shuffle kind, uint64_t value, int operand, const Where& where) {
  Exchange exchange{kind, value, 0, operand};
  current_block().wait_for_warp("shuffle", where, &exchange, exchange_values, false);
  return exchange.out;
}

uint32_t ballot(bool predicate, const Where& where) {
  Vote own{predicate, 0};
  current_block().wait_for_warp("ballot", where, &own, vote, false);
  return own.out;
}

void mma_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const Where& where) {
  Product product{d, a, b};
  current_block().wait_for_warp("mma_16x8x16", where, &product, multiply, false);
}

void load_matrices(uint32_t* registers, int matrices, uint4 own, bool transposed, const Where& where) {
  Matrices argument{registers, matrices, transposed, {}};
  std::memcpy(argument.row, &own, sizeof(argument.row));
  current_block().wait_for_warp("load_matrix", where, &argument, distribute, false);
}

}  // namespace transxssm::cuda::emulated
