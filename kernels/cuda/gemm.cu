// Matrix products by cuBLASLt. It takes column-major matrices: a row-major [M,N] is the column-major [N,M],
// so c^T = op(b)^T op(a)^T is what it is asked for, with the operands in turn.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <utility>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/queue.h"
#include "runtime/cuda/device.h"
#include "runtime/error.h"

namespace transxssm::cuda {

namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr int64_t kMaxAlignment = 256;                  // bytes: more is of no use to any algorithm

void check_lt(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError("{}:{}: {} failed: {}", file, line, call, cublasLtGetStatusString(status));
}
#define TRANSXSSM_LT_CHECK(call) check_lt((call), #call, __FILE__, __LINE__)

// A descriptor of cuBLASLt's, destroyed with this.
template <class T, cublasStatus_t (*Destroy)(T)>
class Descriptor {
 public:
  Descriptor() = default;
  ~Descriptor() {
    if (handle_ != nullptr) Destroy(handle_);
  }
  Descriptor(Descriptor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  T* address() { return &handle_; }
  T get() const { return handle_; }

 private:
  T handle_ = nullptr;
};
using Handle = Descriptor<cublasLtHandle_t, cublasLtDestroy>;
using Operation = Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

// A power of two that divides the address.
uint32_t alignment_of(const Tensor& tensor) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.raw());
  return static_cast<uint32_t>(std::min<uintptr_t>(address & (~address + 1), kMaxAlignment));
}

int64_t row_stride(const Tensor& tensor) {
  return tensor.size(0) > 1 ? tensor.stride(0) : std::max<int64_t>(1, tensor.size(1));
}

Layout make_layout(const Tensor& row_major) {
  Layout layout;
  TRANSXSSM_LT_CHECK(cublasLtMatrixLayoutCreate(
      layout.address(), data_type(row_major.dtype()), static_cast<uint64_t>(row_major.size(1)),
      static_cast<uint64_t>(row_major.size(0)), row_stride(row_major)));
  return layout;
}

// What cuBLASLt's choice depends on: sizes, strides, types, alignments, and what is transposed or added.
using Key = std::array<int64_t, 12>;

Key key_of(const Gemm& args) {
  const int64_t flags = args.transpose_a | args.transpose_b << 1 | args.accumulate << 2;
  return {args.c.size(0),
          args.c.size(1),
          args.transpose_a ? args.a.size(0) : args.a.size(1),
          row_stride(args.a),
          row_stride(args.b),
          row_stride(args.c),
          static_cast<int64_t>(args.a.dtype()),
          static_cast<int64_t>(args.c.dtype()),
          alignment_of(args.a),
          alignment_of(args.b),
          alignment_of(args.c),
          flags};
}

// One product ready to be queued.
struct Plan {
  Operation operation;
  Layout first, second, result;  // b, a and c
  cublasLtMatmulAlgo_t algorithm{};
};

void set_operation(Operation& operation, cublasLtMatmulDescAttributes_t attribute, bool transposed) {
  const cublasOperation_t value = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  TRANSXSSM_LT_CHECK(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value));
}

template <class T>
void prefer(Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  TRANSXSSM_LT_CHECK(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value));
}

Plan make_plan(cublasLtHandle_t handle, const Gemm& args) {
  Plan plan;
  // f32 products in f32: CUBLAS_COMPUTE_32F does not round operands to TF32.
  TRANSXSSM_LT_CHECK(cublasLtMatmulDescCreate(plan.operation.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set_operation(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, args.transpose_b);
  set_operation(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, args.transpose_a);
  plan.first = make_layout(args.b);
  plan.second = make_layout(args.a);
  plan.result = make_layout(args.c);

  Preference preference;
  TRANSXSSM_LT_CHECK(cublasLtMatmulPreferenceCreate(preference.address()));
  prefer<uint64_t>(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  // Parts of a sum split over blocks are added by a kernel of their own, in f32 and in order: the same bits
  // every time.
  prefer<uint32_t>(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(args.b));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(args.a));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(args.c));
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(args.c));
  cublasLtMatmulHeuristicResult_t found{};
  int num_found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, plan.operation.get(), plan.first.get(), plan.second.get(), plan.result.get(), plan.result.get(),
      preference.get(), 1, &found, &num_found);
  if (status != CUBLAS_STATUS_SUCCESS || num_found == 0 || found.state != CUBLAS_STATUS_SUCCESS)
    throw DeviceError("cuBLASLt has no algorithm for {} {} x {} {} -> {} {}{}{}{}: {}",
                      dtype_name(args.a.dtype()), args.a.shape().to_string(), dtype_name(args.b.dtype()),
                      args.b.shape().to_string(), dtype_name(args.c.dtype()), args.c.shape().to_string(),
                      args.transpose_a ? ", a transposed" : "", args.transpose_b ? ", b transposed" : "",
                      args.accumulate ? ", added" : "", cublasLtGetStatusString(status));
  plan.algorithm = found.algo;
  return plan;
}

// Of one thread on one device.
struct Library {
  Library() { TRANSXSSM_LT_CHECK(cublasLtCreate(handle.address())); }
  Handle handle;
  std::map<Key, Plan> plans;
};

Library& library(int device) {
  static thread_local std::map<int, Library> libraries;
  return libraries[device];
}

void check_operand(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) {
  TRANSXSSM_CHECK(tensor.dtype() == dtype && tensor.shape() == shape, "{} is {} {}, not {} {}", name,
                  dtype_name(tensor.dtype()), tensor.shape().to_string(), dtype_name(dtype),
                  shape.to_string());
  TRANSXSSM_CHECK(shape[1] <= 1 || tensor.stride(1) == 1, "{} has stride {} in its last dim", name,
                  tensor.stride(1));
  TRANSXSSM_CHECK(row_stride(tensor) >= shape[1], "{} has rows of {} elements only {} apart", name, shape[1],
                  row_stride(tensor));
}

}  // namespace

void run(Stream& stream, const Gemm& args) {
  const int64_t m = args.c.size(0), n = args.c.size(1),
                k = args.transpose_a ? args.a.size(0) : args.a.size(1);
  const DType in = args.a.dtype(), out = args.c.dtype();
  TRANSXSSM_CHECK(in == DType::bf16 || in == DType::f32, "Gemm.a is {}: the GPU multiplies bf16 and f32",
                  dtype_name(in));
  TRANSXSSM_CHECK(out == DType::f32 || (out == DType::bf16 && in == DType::bf16 && !args.accumulate),
                  "Gemm of {} into {}{}", dtype_name(in), dtype_name(out), args.accumulate ? ", added" : "");
  check_operand(args.a, "Gemm.a", in, args.transpose_a ? Shape{k, m} : Shape{m, k});
  check_operand(args.b, "Gemm.b", in, args.transpose_b ? Shape{n, k} : Shape{k, n});
  check_operand(args.c, "Gemm.c", out, {m, n});
  if (m == 0 || n == 0) return;
  cudaStream_t queue = queue_of(stream);
  if (k == 0) {
    if (args.accumulate) return;
    const auto bytes = static_cast<size_t>(dtype_bytes(out));
    TRANSXSSM_CUDA_CHECK(cudaMemset2DAsync(args.c.raw(), static_cast<size_t>(row_stride(args.c)) * bytes, 0,
                                           static_cast<size_t>(n) * bytes, static_cast<size_t>(m), queue));
    return;
  }
  Library& lt = library(stream.device().index);
  const Key key = key_of(args);
  auto plan = lt.plans.find(key);
  if (plan == lt.plans.end()) plan = lt.plans.emplace(key, make_plan(lt.handle.get(), args)).first;
  Scratch workspace(stream, kWorkspaceBytes);
  const float one = 1, beta = args.accumulate ? 1 : 0;
  TRANSXSSM_LT_CHECK(cublasLtMatmul(
      lt.handle.get(), plan->second.operation.get(), &one, args.b.raw(), plan->second.first.get(),
      args.a.raw(), plan->second.second.get(), &beta, args.c.raw(), plan->second.result.get(), args.c.raw(),
      plan->second.result.get(), &plan->second.algorithm, workspace.data<float>(), kWorkspaceBytes, queue));
}

}  // namespace transxssm::cuda
