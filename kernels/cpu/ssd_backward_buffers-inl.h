// Memory of the scan's backward. Compiled once an instruction set: hence the guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_BUFFERS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_BUFFERS_INL_H_
#undef TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_BUFFERS_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_BUFFERS_INL_H_
#endif

#include "kernels/cpu/ssd_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread. E: operands of products, in the layouts of kernels/cpu/block_gemm_bf16.h.
template <class P>
struct ScanBackwardBuffers {
  using T = typename P::Real;
  using E = typename P::Operand;
  ScanBackwardBuffers(Carver& carver, const ScanSizes& z) {
    const auto take = [&]<class Element>(Element*& to, int64_t size) {
      to = carver.take(DTypeOf<Element>::value, {size}).template data<Element>();
    };
    const int64_t q = z.longest, n = z.state_dim, p = z.head_dim, ld = z.padded, heads = z.heads_per_group();
    // Where an operand is the matrix itself its buffer takes nothing.
    const bool pairs = kPair<E> == 2, rounded = !std::is_same_v<typename P::Storage, T>;
    take(first, q);
    take(dg, q);
    take(decay, Decay<T>::kArrays * ld);
    take(b, q * n);
    take(b_rows, pairs ? q * n : 0);
    take(b_pairs, pairs ? ld * n : 0);
    take(b_columns, n * ld);
    take(c, q * n);
    take(c_rows, pairs ? q * n : 0);
    take(c_pairs, pairs ? ld * n : 0);
    take(weighted, ld * n);
    take(db, q * n);
    take(dc, q * n);
    take(product, heads > 1 ? q * n : 0);
    take(scores, ld * ld);
    take(weights, ld * ld);
    take(weight_pairs, pairs ? ld * ld : 0);
    take(d_scores, ld * ld);
    take(d_score_rows, pairs ? ld * ld : 0);
    take(d_score_pairs, pairs ? ld * ld : 0);
    take(factors, kTriangleBlock + ld);
    take(columns, ld);
    take(sigmoid, ld);
    take(x, rounded ? ld * p : 0);
    take(x_columns, p * ld);
    take(dy, rounded ? ld * p : 0);
    take(dx, q * p);
    take(states, heads * (z.most_blocks - 1) * p * n);
    take(d_states, heads * p * n);
    take(state_pairs, pairs || rounded ? p * n : 0);
    take(d_state_columns, n * p);
  }
  int32_t* first;
  double* dg;
  T* decay;
  T* b;  // rotated
  E* b_rows;
  E* b_pairs;
  E* b_columns;
  T* c;  // rotated
  E* c_rows;
  E* c_pairs;
  E* weighted;
  T* db;
  T* dc;
  T* product;
  T* scores;   // G
  E* weights;  // G L
  E* weight_pairs;
  T* d_scores;  // V, then dG
  E* d_score_rows;
  E* d_score_pairs;
  T* factors;
  T* columns;  // column sums of U
  T* sigmoid;  // derivative of softplus
  E* x;        // as the product at hand wants it
  E* x_columns;
  E* dy;
  T* dx;        // gradient of dt X
  T* states;    // that enter the later blocks of a chunk, of the group's heads
  T* d_states;  // gradients of the states that leave the block, of the group's heads
  E* state_pairs;
  E* d_state_columns;
};

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
