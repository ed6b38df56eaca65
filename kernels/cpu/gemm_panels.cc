// In intrinsics, as Highway 1.0.3 has no target with products of bf16 pairs.
#include "kernels/cpu/gemm_panels.h"

#include <dnnl.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/cpu/gemm_matrix.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 warns of its own shuffles
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

#include "kernels/cpu/gemm_tiles-inl.h"

namespace transxssm::cpu {

namespace {

// Blocks, chosen by measuring (1 MB of second-level cache a core). A right block of kBlockColumns by
// kWeightUnits takes 384 KiB, and the sums of kBlockRows beside it 128 KiB.
constexpr int64_t kBlockColumns = 256;
constexpr int64_t kWeightUnits = 384;
constexpr int64_t kBlockRows = 128;
constexpr int64_t kTokenUnits = 128;  // of product_of_columns, whose blocks of a and b are packed each time
// Units from panel to panel: a power of two would put all panels in the same few lines of the first cache.
constexpr int64_t kPanelUnits = kTokenUnits + 4;
constexpr int64_t kGradientBlock = 416;  // most rows and columns of its block of c

// The i-th of `count` parts of [0, size), cut at multiples of `grain`.
int64_t cut(int64_t size, int64_t count, int64_t grain, int64_t i) {
  return std::min(size, ceil_div(size, grain) * i / count * grain);
}

template <class T>
struct Matrix {
  Matrix(const Tensor& tensor, const char* name)
      : data(static_cast<T*>(tensor.raw())), stride(row_stride(tensor, name)) {}
  T* data;
  int64_t stride;
};

template <class T>
void pack(Stream& stream, const Gemm& args, T* panels) {
  const Matrix<const T> b(args.b, "Gemm.b");
  const int64_t n = args.c.size(1), k = args.b.size(args.transpose_b ? 1 : 0);
  const int64_t units = ceil_div(k, kDepth<T>);
  parallel_ranges(stream, ceil_div(n, kColumns), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      T* out = panels + p * kColumns * units * kDepth<T>;
      const int64_t columns = std::min(kColumns, n - p * kColumns);
      if (args.transpose_b)
        pack_transposed(k, columns, b.data + p * kColumns * b.stride, b.stride, out);
      else
        pack_rows_of(kColumns, k, columns, b.data + p * kColumns, b.stride, out, units);
    }
  });
}

// Rows [row, end_row) and columns [column, end_column) of a product of panels. `sums` holds a block.
template <class T, class Out>
void multiply_panels(const Gemm& args, const T* panels, int64_t row, int64_t end_row, int64_t column,
                     int64_t end_column, float* sums) {
  constexpr int64_t kUnit = kDepth<T>;
  const Matrix<const T> a(args.a, "Gemm.a");
  const Matrix<Out> c(args.c, "Gemm.c");
  const int64_t k = args.a.size(1), units = ceil_div(k, kUnit);
  const int64_t blocks = ceil_div(units, kWeightUnits), block_units = ceil_div(units, blocks);
  for (int64_t j0 = column; j0 < end_column; j0 += kBlockColumns) {
    const int64_t j1 = std::min(end_column, j0 + kBlockColumns);
    // With one block of k nothing waits in `sums`, so that the right block stays for all rows.
    const int64_t block_rows = blocks == 1 ? end_row - row : kBlockRows;
    for (int64_t i0 = row; i0 < end_row; i0 += block_rows) {
      const int64_t i1 = std::min(end_row, i0 + block_rows);
      for (int64_t u = 0; u < units; u += block_units) {
        const int64_t whole = std::min(u + block_units, k / kUnit) - u;
        const bool first = u == 0, last = u + block_units >= units, half = last && k % kUnit != 0;
        for (int64_t i = i0; i < i1; i += kRows)
          for (int64_t j = j0; j < j1; j += kColumns) {
            const Left<T> left{a.data + i * a.stride + u * kUnit, a.stride};
            const T* right = panels + (j * units + u * kColumns) * kUnit;
            const int64_t rows = std::min(kRows, i1 - i), columns = j1 - j;
            float* sum = sums + (i - i0) * kBlockColumns + (j - j0);
            Out* out = c.data + i * c.stride + j;
            Target<float> partial{sum, kBlockColumns, sum, kBlockColumns};
            if (first) partial.start = nullptr;
            if constexpr (std::is_same_v<Out, float>)
              if (first && args.accumulate) partial.start = out, partial.start_stride = c.stride;
            if (last)
              tiles<T, false>(rows, columns, whole, half, left, right,
                              Target<Out>{partial.start, partial.start_stride, out, c.stride});
            else
              tiles<T, false>(rows, columns, whole, half, left, right, partial);
          }
      }
    }
  }
}

template <class T, class Out>
void multiply_panels(Stream& stream, const Gemm& args, const T* panels) {
  const int64_t m = args.c.size(0), n = args.c.size(1);
  const int64_t sums = kBlockRows * kBlockColumns;
  Scratch scratch(stream, stream.num_threads() * sums * dtype_bytes(DType::f32));
  float* memory = scratch.data<float>();
  const bool by_rows = m >= 16 * kRows * stream.num_threads();
  const int64_t threads = stream.num_threads();
  parallel_ranges(stream, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto [rows, columns] = by_rows ? std::pair{threads, int64_t{1}} : std::pair{int64_t{1}, threads};
      const int64_t i = by_rows ? t : 0, j = by_rows ? 0 : t;
      multiply_panels<T, Out>(args, panels, cut(m, rows, kRows, i), cut(m, rows, kRows, i + 1),
                              cut(n, columns, kColumns, j), cut(n, columns, kColumns, j + 1),
                              memory + t * sums);
    }
  });
}

// Rows [row, end_row) and columns [column, end_column) of a^T b. `memory` holds a block of a and one of b.
template <class T>
void multiply_columns(const Gemm& args, int64_t row, int64_t end_row, int64_t column, int64_t end_column,
                      T* memory) {
  constexpr int64_t kUnit = kDepth<T>, kTokens = kTokenUnits * kUnit, kPanel = kPanelUnits * kUnit;
  const Matrix<const T> a(args.a, "Gemm.a"), b(args.b, "Gemm.b");
  const Matrix<float> c(args.c, "Gemm.c");
  const int64_t k = args.a.size(0);
  T *const left = memory, *const right = memory + kGradientBlock * kPanel;
  const int64_t row_blocks = ceil_div(end_row - row, kGradientBlock),
                column_blocks = ceil_div(end_column - column, kGradientBlock);
  for (int64_t q = 0; q < row_blocks * column_blocks; ++q) {
    const int64_t qi = q / column_blocks, qj = q % column_blocks;
    const int64_t i0 = row + cut(end_row - row, row_blocks, kColumns, qi),
                  i1 = row + cut(end_row - row, row_blocks, kColumns, qi + 1);
    const int64_t j0 = column + cut(end_column - column, column_blocks, kColumns, qj),
                  j1 = column + cut(end_column - column, column_blocks, kColumns, qj + 1);
    for (int64_t t = 0; t < k; t += kTokens) {
      const int64_t depth = std::min(kTokens, k - t), units = ceil_div(depth, kUnit);
      pack_rows_of(kRows, depth, i1 - i0, a.data + t * a.stride + i0, a.stride, left, kPanelUnits);
      pack_rows_of(kColumns, depth, j1 - j0, b.data + t * b.stride + j0, b.stride, right, kPanelUnits);
      const int64_t next = std::min(kTokens, k - t - depth);
      const auto next_block = [&](const auto& matrix, int64_t first, int64_t last) {
        return Ahead::Block{matrix.data + (t + depth) * matrix.stride + first, next,
                            (last - first) * int64_t{sizeof(T)}, matrix.stride * int64_t{sizeof(T)}};
      };
      Ahead ahead(next_block(a, i0, i1), next_block(b, j0, j1));
      const int64_t tiles_of_block = ceil_div(i1 - i0, kRows) * ceil_div(j1 - j0, kColumns);
      const Fetch fetch{&ahead, ceil_div(ahead.lines(), tiles_of_block * ceil_div(units, kFetchUnits))};
      for (int64_t j = j0; j < j1; j += kColumns)
        for (int64_t i = i0; i < i1; i += kRows) {
          float* out = c.data + i * c.stride + j;
          const Target<float> target{t > 0 || args.accumulate ? out : nullptr, c.stride, out, c.stride};
          tiles<T, true>(std::min(kRows, i1 - i), j1 - j, units, false, Left<T>{left + (i - i0) * kPanel, 0},
                         right + (j - j0) * kPanel, target, fetch);
        }
    }
  }
}

template <class T>
void multiply_columns(Stream& stream, const Gemm& args) {
  const int64_t m = args.c.size(0), n = args.c.size(1), threads = stream.num_threads();
  const int64_t elements = 2 * kGradientBlock * kPanelUnits * kDepth<T>;
  Scratch scratch(stream, threads * elements * int64_t{sizeof(T)});
  T* memory = scratch.data<T>();
  const bool by_rows = m >= n;
  parallel_ranges(stream, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t rows = by_rows ? threads : 1, columns = by_rows ? 1 : threads;
      const int64_t i = by_rows ? t : 0, j = by_rows ? 0 : t;
      multiply_columns(args, cut(m, rows, kColumns, i), cut(m, rows, kColumns, i + 1),
                       cut(n, columns, kColumns, j), cut(n, columns, kColumns, j + 1), memory + t * elements);
    }
  });
}

}  // namespace

bool has_panel_products(DType dtype) {
  const auto isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
  const auto has = [&](dnnl_cpu_isa_t set) {
    return (isa & static_cast<unsigned>(set)) == static_cast<unsigned>(set);
  };
  if (dtype == DType::bf16) return has(dnnl_cpu_isa_avx512_core_bf16) && !has(dnnl_cpu_isa_avx512_core_amx);
  return dtype == DType::f32 && has(dnnl_cpu_isa_avx512_core);
}

int64_t panel_bytes(DType dtype, int64_t k, int64_t n) {
  const int64_t units = dtype == DType::bf16 ? ceil_div(k, 2) : k;
  return ceil_div(n, kColumns) * kColumns * units * 4;
}

void pack_panels(Stream& stream, const Gemm& args, void* panels) {
  if (args.b.dtype() == DType::bf16) return pack(stream, args, static_cast<BFloat16*>(panels));
  pack(stream, args, static_cast<float*>(panels));
}

void product_of_panels(Stream& stream, const Gemm& args, const void* panels) {
  if (args.a.dtype() == DType::f32)
    multiply_panels<float, float>(stream, args, static_cast<const float*>(panels));
  else if (args.c.dtype() == DType::f32)
    multiply_panels<BFloat16, float>(stream, args, static_cast<const BFloat16*>(panels));
  else
    multiply_panels<BFloat16, BFloat16>(stream, args, static_cast<const BFloat16*>(panels));
}

void product_of_columns(Stream& stream, const Gemm& args) {
  if (args.a.dtype() == DType::bf16) return multiply_columns<BFloat16>(stream, args);
  multiply_columns<float>(stream, args);
}

#pragma GCC pop_options

}  // namespace transxssm::cpu
#else
namespace transxssm::cpu {

bool has_panel_products(DType) {
  return false;
}
int64_t panel_bytes(DType, int64_t, int64_t) {
  return 0;
}
void pack_panels(Stream&, const Gemm&, void*) {
  throw InternalError("panels are of x86-64");
}
void product_of_panels(Stream&, const Gemm&, const void*) {
  throw InternalError("panels are of x86-64");
}
void product_of_columns(Stream&, const Gemm&) {
  throw InternalError("panels are of x86-64");
}

}  // namespace transxssm::cpu
#endif
