#include <dnnl.h>

#include <algorithm>

#include "kernels/cpu/gemm_bf16.h"
#include "kernels/cpu/gemm_matrix.h"
#include "kernels/cpu/gemm_panels.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace transxssm::cpu {

namespace {

template <class T>
struct Matrix {
  T* data;
  int64_t row_stride;
};

template <class T>
Matrix<T> matrix(const Tensor& tensor, const char* name) {
  return {tensor.data<T>(), row_stride(tensor, name)};
}

void product_f32(const Gemm& args, int64_t m, int64_t n, int64_t k) {
  const auto a = matrix<float>(args.a, "Gemm.a"), b = matrix<float>(args.b, "Gemm.b"),
             c = matrix<float>(args.c, "Gemm.c");
  const dnnl_status_t status =
      dnnl_sgemm(args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N', m, n, k, 1.0f, a.data,
                 a.row_stride, b.data, b.row_stride, args.accumulate ? 1.0f : 0.0f, c.data, c.row_stride);
  TRANSXSSM_CHECK(status == dnnl_success, "dnnl_sgemm returned {} for {} x {} x {}", static_cast<int>(status),
                  m, n, k);
}

// For gradient checks: b is laid out as [K,N] once, then each row of c is a sum of rows of b.
void product_f64(Stream& stream, const Gemm& args, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kColumns = 256;  // a strip of c and of b that stays in cache
  const auto a = matrix<double>(args.a, "Gemm.a"), b = matrix<double>(args.b, "Gemm.b");
  const auto c = matrix<double>(args.c, "Gemm.c");
  Scratch scratch(stream, args.transpose_b ? k * n * static_cast<int64_t>(sizeof(double)) : 0);
  const double* right = b.data;
  int64_t right_stride = b.row_stride;
  if (args.transpose_b) {
    double* copy = scratch.data<double>();
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < k; ++i) copy[i * n + j] = b.data[j * b.row_stride + i];
    right = copy;
    right_stride = n;
  }
  const int64_t a_row = args.transpose_a ? 1 : a.row_stride, a_column = args.transpose_a ? a.row_stride : 1;
  parallel_ranges(stream, m, row_grain(n * k), [&](int64_t begin, int64_t end) {
    for (int64_t j0 = 0; j0 < n; j0 += kColumns) {
      const int64_t count = std::min(kColumns, n - j0);
      for (int64_t i = begin; i < end; ++i) {
        double sums[kColumns] = {};
        for (int64_t l = 0; l < k; ++l) {
          const double factor = a.data[i * a_row + l * a_column];
          const double* row = right + l * right_stride + j0;
          for (int64_t j = 0; j < count; ++j) sums[j] += factor * row[j];
        }
        double* out = c.data + i * c.row_stride + j0;
        for (int64_t j = 0; j < count; ++j) out[j] = args.accumulate ? out[j] + sums[j] : sums[j];
      }
    }
  });
}

// Rows and columns of a block of op(matrix).
Tensor block(const Tensor& matrix, bool transposed, int64_t row, int64_t rows, int64_t column,
             int64_t columns) {
  const int row_dim = transposed ? 1 : 0;
  return matrix.slice(row_dim, row, rows).slice(1 - row_dim, column, columns);
}

// Where the CPU does not multiply bf16: blocks of a and b are widened, and c is rounded, once.
void product_widened(Stream& stream, const Gemm& args, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kBlock = 512;  // three in f32 take 3 MB; widening costs a twentieth of the products
  const int64_t size = kBlock * kBlock;
  Scratch scratch(stream, 3 * carved_bytes(DType::f32, {size}));
  Carver carver = scratch.carver();
  const Tensor memory[3] = {carver.take(DType::f32, {size}), carver.take(DType::f32, {size}),
                            carver.take(DType::f32, {size})};
  const auto part = [&](int which, const Shape& of) {
    return memory[which].slice(0, 0, of.num_elements()).reshape(of);
  };
  for (int64_t i = 0; i < m; i += kBlock)
    for (int64_t j = 0; j < n; j += kBlock) {
      const int64_t rows = std::min(kBlock, m - i), columns = std::min(kBlock, n - j);
      const Tensor out = block(args.c, false, i, rows, j, columns);
      const Tensor sums = out.dtype() == DType::f32 ? out : part(2, {rows, columns});
      for (int64_t l = 0; l < k; l += kBlock) {
        const int64_t depth = std::min(kBlock, k - l);
        const Tensor from_a = block(args.a, args.transpose_a, i, rows, l, depth),
                     from_b = block(args.b, args.transpose_b, l, depth, j, columns);
        const Tensor a = part(0, from_a.shape()), b = part(1, from_b.shape());
        cpu::run(stream, Copy{from_a, a});
        cpu::run(stream, Copy{from_b, b});
        product_f32({a, b, sums, args.transpose_a, args.transpose_b, args.accumulate || l > 0}, rows, columns,
                    depth);
      }
      if (out.dtype() == DType::bf16) cpu::run(stream, Copy{sums, out});
    }
}

// With the operands' own panels where the processor has such products: a weight's copy, or the gradient of a
// weight. False: done by the plain ones.
bool product_in_panels(Stream& stream, const Gemm& args) {
  if (!has_panel_products(args.a.dtype())) return false;
  if (args.transpose_a && !args.transpose_b && args.c.dtype() == DType::f32) {
    product_of_columns(stream, args);
    return true;
  }
  if (args.packed_b == nullptr || args.packed_b->memory.empty()) return false;
  PackedMatrix& packed = *args.packed_b;
  if (packed.stale) pack_panels(stream, args, packed.memory.raw());
  packed.stale = false;
  product_of_panels(stream, args, packed.memory.raw());
  return true;
}

}  // namespace

int64_t packed_bytes(DType dtype, int64_t k, int64_t n) {
  return has_panel_products(dtype) ? panel_bytes(dtype, k, n) : 0;
}

void run(Stream& stream, const Gemm& args) {
  const DType dtype = args.a.dtype(), sums = args.c.dtype();
  expect_activation(args.c, "Gemm.c");
  TRANSXSSM_CHECK(dtype == sums || (dtype == DType::bf16 && sums == DType::f32), "product of {} into {}",
                  dtype_name(dtype), dtype_name(sums));
  TRANSXSSM_CHECK(!(args.accumulate && sums == DType::bf16), "sums of products added up in bf16");
  const int64_t m = args.c.size(0), n = args.c.size(1),
                k = args.transpose_a ? args.a.size(0) : args.a.size(1);
  expect(args.a, "Gemm.a", dtype, args.transpose_a ? Shape{k, m} : Shape{m, k});
  expect(args.b, "Gemm.b", dtype, args.transpose_b ? Shape{n, k} : Shape{k, n});
  expect(args.c, "Gemm.c", sums, {m, n});
  if (args.packed_b != nullptr) {
    TRANSXSSM_CHECK(!args.transpose_a, "a transposed operand beside a packed one");
    expect_or_empty(args.packed_b->memory, "Gemm.packed_b", DType::u8, {packed_bytes(dtype, k, n)});
  }
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (args.accumulate) return;
    const int64_t size = dtype_bytes(sums);
    for (int64_t i = 0; i < m; ++i)
      std::fill_n(static_cast<std::byte*>(args.c.raw()) + i * args.c.stride(0) * size, n * size,
                  std::byte{0});
    return;
  }
  omp_set_num_threads(
      stream.num_threads());  // oneDNN takes the calling thread's, whichever stream set it last
  if (product_in_panels(stream, args)) return;
  if (dtype == DType::f64)
    product_f64(stream, args, m, n, k);
  else if (dtype == DType::f32)
    product_f32(args, m, n, k);
  else if (!product_bf16(stream, args))
    product_widened(stream, args, m, n, k);
}

}  // namespace transxssm::cpu
