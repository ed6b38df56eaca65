#include <dnnl.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace transxssm::cpu {

namespace {

// A row-major matrix with the row stride BLAS accepts: a single row may have any.
template <class T>
struct Matrix {
  T* data;
  int64_t row_stride;
};

template <class T>
Matrix<T> matrix(const Tensor& tensor, const char* name) {
  const int64_t rows = tensor.size(0), columns = tensor.size(1);
  const int64_t row_stride = rows > 1 ? tensor.stride(0) : std::max<int64_t>(1, columns);
  TRANSXSSM_CHECK(row_stride >= columns, "{} has rows of {} elements only {} apart", name, columns,
                  row_stride);
  TRANSXSSM_CHECK(std::max({rows, columns, row_stride}) <= std::numeric_limits<int32_t>::max(),
                  "{} {} is larger than a matrix product takes", name, tensor.shape().to_string());
  return {tensor.data<T>(), row_stride};
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

}  // namespace

void run(Stream& stream, const Gemm& args) {
  expect_float(args.c, "Gemm.c");
  const DType dtype = args.c.dtype();
  const int64_t m = args.c.size(0), n = args.c.size(1),
                k = args.transpose_a ? args.a.size(0) : args.a.size(1);
  expect(args.a, "Gemm.a", dtype, args.transpose_a ? Shape{k, m} : Shape{m, k});
  expect(args.b, "Gemm.b", dtype, args.transpose_b ? Shape{n, k} : Shape{k, n});
  expect(args.c, "Gemm.c", dtype, {m, n});
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (args.accumulate) return;
    const int64_t bytes = n * dtype_bytes(dtype);
    for (int64_t i = 0; i < m; ++i)
      std::fill_n(static_cast<std::byte*>(args.c.raw()) + i * args.c.stride(0) * dtype_bytes(dtype), bytes,
                  std::byte{0});
    return;
  }
  if (dtype == DType::f32)
    product_f32(args, m, n, k);
  else
    product_f64(stream, args, m, n, k);
}

}  // namespace transxssm::cpu
