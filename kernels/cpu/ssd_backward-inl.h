// One group of heads of the scan's backward.
// The derivation, with V = dY X^T, G = C B^T, L the decays, U = dG * G (all on one head and chunk, C and B
// rotated):
//   dG_ij = V_ij L_ij dt_j      dC = dG B + exp(g) (dY S)      dB = dG^T C + exp(g_last - g) dt (X dS)
//   d(dt X) = (G L)^T dY + exp(g_last - g) (B dS^T)            dS_before = exp(g_last) dS + (exp(g) dY)^T C
//   dg = row sums of U - column sums of U + ..., both of the same U: the terms that cancel do so exactly.
// Compiled once an instruction set: hence the guard that toggles.
#if defined(TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_INL_H_
#undef TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_INL_H_
#else
#define TRANSXSSM_KERNELS_CPU_SSD_BACKWARD_INL_H_
#endif

#include "kernels/cpu/ssd_backward_buffers-inl.h"
#include "kernels/cpu/ssd_common-inl.h"
#include "kernels/cpu/thread_buffers.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Sums over the tokens of one head and chunk; the totals are formed from them in order.
struct HeadPartials {
  double dt_bias = 0, a_log = 0, d_skip = 0;
};

// Heads [head, head + heads) of one group in one row; the gradients of their states are in the thread's
// memory.
template <class P>
class ScanBackward {
 public:
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  using Buffers = ScanBackwardBuffers<P>;

  ScanBackward(const SsdBackward& args, const ScanSizes& z, const Buffers& buffer, int64_t row, int64_t head,
               int64_t heads)
      : args_(args),
        in_(args.in),
        z_(z),
        buffer_(buffer),
        row_(row),
        head_(head),
        heads_(heads),
        group_(head / z.heads_per_group()) {}

  T* d_state(int64_t h) const { return buffer_.d_states + h * z_.state_size(); }

  void enter_row() {
    for (int64_t h = 0; h < heads_; ++h) {
      if (args_.d_final_state) {
        std::copy_n(address<T>(args_.d_final_state, row_, head_ + h), z_.state_size(), d_state(h));
      } else {
        std::fill_n(d_state(h), z_.state_size(), T(0));
      }
    }
  }

  void leave_row() {
    for (int64_t h = 0; h < heads_ && args_.d_initial_state; ++h)
      std::copy_n(d_state(h), z_.state_size(), address<T>(args_.d_initial_state, row_, head_ + h));
  }

  // Chunk c: gradients of its tokens and, in partials[h], of its heads' parameters where asked for, and those
  // of the states that enter it unless nobody needs them.
  void chunk(int64_t c, HeadPartials* partials, bool enter) {
    if (partials != nullptr) enter_blocks(c);
    for (int64_t h = 0; h < heads_; ++h) rotate_state(in_, z_, z_.length(c), T(1), d_state(h));
    for (int64_t b = z_.blocks(c) - 1; b >= 0; --b) {
      const ScanBlock block(z_, c, b);
      find_segments(in_.start, row_, block.begin, block.length, buffer_.first);
      rotate_c(block);
      if (partials != nullptr) prepare(block);
      for (int64_t h = 0; h < heads_; ++h) {
        look_ahead(block, c, b, h, partials != nullptr);
        const Decay<T> decay(buffer_.decay, z_.padded);
        compute_decay(in_, block, row_, head_ + h, buffer_.first, decay);
        dy_ = as_pairs<E>(block.length, z_.head_dim, address<S>(args_.dy, row_, block.begin, head_ + h),
                          args_.dy.stride(1), buffer_.dy);
        if (partials != nullptr) gradients(block, b, h, decay, partials[h]);
        if (!enter && b == 0) continue;
        const Operand<E> c_pairs =
            as_weighted_pairs<E>(block.length, z_.state_dim, buffer_.c, decay.into, buffer_.weighted);
        product<E, T>(z_.head_dim, z_.state_dim, block.length, dy_.transposed(), c_pairs, d_state(h),
                      decay.into[block.length - 1], nullptr, ahead_);
      }
      if (partials != nullptr) write_group(block);
    }
  }

 private:
  // The rows of the block that this thread comes to next.
  void look_ahead(const ScanBlock& block, int64_t c, int64_t b, int64_t h, bool gradients) {
    const bool whole_row = z_.by_group || !gradients, last = whole_row ? block.begin == 0 : b == 0;
    const int64_t end = !last ? block.begin : whole_row ? z_.tokens : c * z_.chunk + z_.length(c);
    const int64_t begin = end - kBlockTokens;
    int64_t head = last ? head_ + heads_ : head_, row = row_;
    if (head == z_.heads) head = 0, ++row;
    const int64_t group = head / z_.heads_per_group();
    ahead_.clear();
    ahead_.add(args_.dy, row, begin, head + h);
    if (h == 0) ahead_.add(in_.c, row, begin, group);
    if (!gradients) return;
    if (b == 0) ahead_.add_states(args_.chunk_states, row, (end - 1) / z_.chunk, head + h);
    ahead_.add(in_.x, row, begin, head + h);
    ahead_.add(args_.dx, row, begin, head + h, true);
    if (h > 0) return;
    ahead_.add(in_.b, row, begin, group);
    ahead_.add(args_.db, row, begin, group, true);
    ahead_.add(args_.dc, row, begin, group, true);
  }

  // Calls fn(state) with that which enters block b of chunk c.
  template <class Fn>
  void with_state(int64_t c, int64_t b, int64_t h, Fn&& fn) {
    if (b > 0) return fn(static_cast<const T*>(state(h, b)));
    if (args_.chunk_states.dtype() == DTypeOf<T>::value)
      return fn(static_cast<const T*>(address<T>(args_.chunk_states, row_, c, head_ + h)));
    if constexpr (std::is_same_v<T, float>)
      fn(static_cast<const BFloat16*>(address<BFloat16>(args_.chunk_states, row_, c, head_ + h)));
  }
  T* state(int64_t h, int64_t b) const {
    return buffer_.states + (h * (z_.most_blocks - 1) + b - 1) * z_.state_size();
  }

  // The states that enter the later blocks of a chunk, from that which enters the chunk.
  void enter_blocks(int64_t c) {
    const int64_t p = z_.head_dim, n = z_.state_dim, size = z_.state_size();
    for (int64_t b = 0; b + 1 < z_.blocks(c); ++b) {
      const ScanBlock block(z_, c, b);
      find_segments(in_.start, row_, block.begin, block.length, buffer_.first);
      rotate_b(block);
      for (int64_t h = 0; h < heads_; ++h) {
        const Decay<T> decay(buffer_.decay, z_.padded);
        compute_decay(in_, block, row_, head_ + h, buffer_.first, decay);
        const Operand<E> x = as_pairs<E>(block.length, p, x_of(block, h), in_.x.stride(1), buffer_.x);
        const Operand<E> b_pairs =
            as_weighted_pairs<E>(block.length, n, buffer_.b, decay.weight, buffer_.weighted);
        with_state(c, b, h, [&](const auto* from) { pack(from, size, 1, size, state(h, b + 1)); });
        product<E, T>(p, n, block.length, x.transposed(), b_pairs, state(h, b + 1),
                      decay.into[block.length - 1], nullptr, ahead_);
      }
    }
  }

  const S* x_of(const ScanBlock& block, int64_t h) const {
    return address<S>(in_.x, row_, block.begin, head_ + h);
  }
  void rotate_b(const ScanBlock& block) {
    rotate_rows<S>(
        in_, z_, block, in_.b, row_, group_, [](int64_t) { return T(1); }, buffer_.b);
  }
  void rotate_c(const ScanBlock& block) {
    const auto scale = [&](int64_t i) { return scale_of_c<T>(in_, row_, block.begin + i); };
    rotate_rows<S>(in_, z_, block, in_.c, row_, group_, scale, buffer_.c);
  }

  // What the heads of a group share.
  void prepare(const ScanBlock& block) {
    const int64_t q = block.length, n = z_.state_dim;
    rotate_b(block);
    b_rows_ = as_rows<E>(q, n, buffer_.b, n, buffer_.b_rows);
    b_pairs_ = as_pairs<E>(q, n, buffer_.b, n, buffer_.b_pairs);
    c_pairs_ = as_pairs<E>(q, n, buffer_.c, n, buffer_.c_pairs);
    write_columns(q, n, b_rows_.data, n, buffer_.b_columns, z_.padded);
    lower_scores(q, n, as_rows<E>(q, n, buffer_.c, n, buffer_.c_rows), buffer_.b_columns, z_.padded,
                 buffer_.scores, ahead_);
  }

  // `rows` of x or dy: the tensor itself, or widened, as `pairs` are where operands are not bf16.
  Operand<E> rows(const Tensor& tensor, const ScanBlock& block, int64_t h, const Operand<E>& widened) const {
    if constexpr (std::is_same_v<E, S>)
      return {address<S>(tensor, row_, block.begin, head_ + h), tensor.stride(1)};
    return widened;
  }

  void gradients(const ScanBlock& block, int64_t b, int64_t h, const Decay<T>& decay,
                 HeadPartials& partials) {
    const int64_t q = block.length, p = z_.head_dim;
    Operand<E> x{};
    if constexpr (!std::is_same_v<E, S>) x = as_pairs<E>(q, p, x_of(block, h), in_.x.stride(1), buffer_.x);
    x = rows(in_.x, block, h, x);
    const Operand<E> dy = rows(args_.dy, block, h, dy_);
    std::fill_n(buffer_.dg, q, 0.0);
    with_state(block.begin / z_.chunk, b, h,
               [&](const auto* state) { through_states(q, h, state, x, dy, decay); });
    write_columns(q, p, x.data, x.ld, buffer_.x_columns, z_.padded);
    lower_scores(q, p, dy, buffer_.x_columns, z_.padded, buffer_.d_scores, ahead_);
    for (int64_t i = 0; i < q && args_.d_d_skip; ++i)  // dY_i X_i
      partials.d_skip += static_cast<double>(buffer_.d_scores[i * z_.padded + i]);
    through_scores(block, decay);
    finish(block, h, decay, partials);
  }

  // Sets sums[q,N] = diag(scale) left right for the first head of a group and adds to it for the others.
  // Returns the head's own product.
  const T* add_product(int64_t q, int64_t h, const Operand<E>& left, const Operand<E>& right, const T* scale,
                       T* sums) {
    const int64_t n = z_.state_dim;
    T* own = h == 0 ? sums : buffer_.product;
    product<E, T>(q, n, z_.head_dim, left.rows(), right, own, T(0), scale, ahead_);
    if (h > 0) {
      for_lanes<T>(q * n, [&](auto d, int64_t j) HWY_ATTR {
        hn::StoreU(hn::Add(hn::LoadU(d, sums + j), hn::LoadU(d, own + j)), d, sums + j);
      });
    }
    return own;
  }

  // Gradients through the states that enter and leave the block: sets dx, adds to dc, db and dg.
  template <class State>
  void through_states(int64_t q, int64_t h, const State* state, const Operand<E>& x, const Operand<E>& dy,
                      const Decay<T>& decay) {
    const int64_t n = z_.state_dim, p = z_.head_dim;
    const auto dot = [](int64_t count, const auto* a, const T* b) {
      return static_cast<double>(sum_lanes<T>(
          count, [&](auto d, int64_t j) HWY_ATTR { return hn::Mul(load(d, a + j), hn::LoadU(d, b + j)); }));
    };
    const Operand<E> entering = as_pairs<E>(p, n, state, n, buffer_.state_pairs);
    const T* dc = add_product(q, h, dy, entering, decay.into, buffer_.dc);
    for (int64_t i = 0; i < q; ++i) buffer_.dg[i] += dot(n, dc + i * n, buffer_.c + i * n);
    const Operand<E> leaving = as_pairs<E>(p, n, d_state(h), n, buffer_.state_pairs);
    const T* db = add_product(q, h, x, leaving, decay.weight, buffer_.db);
    double total = static_cast<double>(decay.into[q - 1]) * dot(p * n, state, d_state(h));
    for (int64_t j = 0; j + 1 < q; ++j) {  // the last token leaves without decay
      const double k = dot(n, db + j * n, buffer_.b + j * n);
      total += k;
      buffer_.dg[j] -= k;
    }
    buffer_.dg[q - 1] += total;
    write_columns(p, n, d_state(h), n, buffer_.d_state_columns, p);
    product<E, T>(q, p, n, b_rows_.rows(), Operand<E>{buffer_.d_state_columns, p}, buffer_.dx, T(0),
                  decay.out, ahead_);
  }

  // Gradients through the scores: adds to dx, dc, db and dg.
  void through_scores(const ScanBlock& block, const Decay<T>& decay) {
    const int64_t q = block.length, n = z_.state_dim, p = z_.head_dim, ld = z_.padded;
    E* rows = buffer_.d_score_rows;
    if constexpr (std::is_same_v<E, T>) rows = buffer_.d_scores;
    std::fill_n(buffer_.columns, ld, T(0));
    for (int64_t i = 0; i < q; ++i) {
      const T* scores = buffer_.scores + i * ld;
      const T* v = buffer_.d_scores + i * ld;
      E* weights = buffer_.weights + i * ld;
      E* d_scores = rows + i * ld;
      const hn::CappedTag<T, kTriangleBlock> tag;
      auto sum = hn::Zero(tag);
      for_decay_row<E>(i, buffer_.first, decay, buffer_.factors, [&](auto d, int64_t j, auto l) HWY_ATTR {
        const auto seen = hn::Gt(l, hn::Zero(d));
        const auto score = hn::IfThenElseZero(seen, hn::LoadU(d, scores + j));
        const auto scaled = hn::Mul(hn::LoadU(d, v + j), hn::LoadU(d, decay.dt + j));
        const auto d_score = hn::IfThenElseZero(seen, hn::Mul(scaled, l));
        store_operand(hn::Mul(score, l), d, weights + j);
        store_operand(d_score, d, d_scores + j);
        // The diagonal does not decay.
        const auto off_diagonal = hn::Ne(hn::Iota(d, static_cast<T>(j)), hn::Set(d, static_cast<T>(i)));
        const auto u = hn::IfThenElseZero(off_diagonal, hn::Mul(d_score, score));
        sum = hn::Add(sum, u);
        hn::StoreU(hn::Add(u, hn::LoadU(d, buffer_.columns + j)), d, buffer_.columns + j);
      });
      buffer_.dg[i] += static_cast<double>(hn::GetLane(hn::SumOfLanes(tag, sum)));
    }
    for (int64_t j = 0; j < q; ++j) buffer_.dg[j] -= static_cast<double>(buffer_.columns[j]);
    lower_product(q, n, rows, ld, b_pairs_, buffer_.dc, n, T(1), ahead_);
    const E* pairs = lower_pairs(q, rows, ld, buffer_.d_score_pairs);
    add_lower_transposed_product(q, n, pairs, ld, c_pairs_, buffer_.db, ahead_);
    const E* weights = lower_pairs(q, buffer_.weights, ld, buffer_.weight_pairs);
    add_lower_transposed_product(q, p, weights, ld, dy_, buffer_.dx, ahead_);
  }

  // From the gradient of dt X and of g to those of x, u and the parameters of the head.
  void finish(const ScanBlock& block, int64_t h, const Decay<T>& decay, HeadPartials& partials) {
    const int64_t q = block.length, p = z_.head_dim, head = head_ + h;
    const T skip = in_.d_skip ? *address<T>(in_.d_skip, head) : T(0), bias = *address<T>(in_.dt_bias, head);
    for (int64_t i = 0; i < q; ++i)
      buffer_.sigmoid[i] = *address<T>(in_.u, row_, block.begin + i, head) + bias;
    for_lanes<T>(q, [&](auto d, int64_t i) HWY_ATTR {
      const auto v = hn::LoadU(d, buffer_.sigmoid + i), threshold = hn::Set(d, T(kSoftplusThreshold));
      const auto e = hn::Exp(d, hn::Min(v, threshold)), one = hn::Set(d, T(1));
      hn::StoreU(hn::IfThenElse(hn::Gt(v, threshold), one, hn::Div(e, hn::Add(e, one))), d,
                 buffer_.sigmoid + i);
    });
    S* to = address<S>(args_.dx, row_, block.begin, head);
    const double a = -std::exp(static_cast<double>(*address<T>(in_.a_log, head)));
    double d_decay = 0;  // gradient of a dt: the sum of dg over this and the later tokens of the document
    for (int64_t t = q - 1; t >= 0; --t) {
      const S* x = x_of(block, h) + t * in_.x.stride(1);
      const S* dy = address<S>(args_.dy, row_, block.begin + t, head);
      const T* d_scaled = buffer_.dx + t * p;
      S* dx = to + t * args_.dx.stride(1);
      const T dt = decay.dt[t];
      const double d_dt = static_cast<double>(sum_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
        return hn::Mul(load(d, x + j), hn::LoadU(d, d_scaled + j));
      }));
      for_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
        const auto scaled = hn::Mul(hn::Set(d, dt), hn::LoadU(d, d_scaled + j));
        store(hn::Add(scaled, hn::Mul(hn::Set(d, skip), load(d, dy + j))), d, dx + j);
      });
      d_decay += buffer_.dg[t];
      if (buffer_.first[t] == t) d_decay = 0;  // nothing before the start of a document decays into it
      const double du = (d_dt + a * d_decay) * static_cast<double>(buffer_.sigmoid[t]);
      *address<T>(args_.du, row_, block.begin + t, head) = static_cast<T>(du);
      partials.dt_bias += du;
      partials.a_log += a * static_cast<double>(dt) * d_decay;
    }
  }

  // The sums over the group's heads, back from the chunk's frame.
  void write_group(const ScanBlock& block) {
    const int64_t n = z_.state_dim;
    for (int64_t i = 0; i < block.length; ++i) {
      const T *db = buffer_.db + i * n, *dc = buffer_.dc + i * n;
      const int64_t position = block.position + i, token = block.begin + i;
      rotate(in_, position, T(-1), T(1), n, db, address<S>(args_.db, row_, token, group_));
      rotate(in_, position, T(-1), scale_of_c<T>(in_, row_, token), n, dc,
             address<S>(args_.dc, row_, token, group_));
    }
  }

  const SsdBackward& args_;
  const SsdInput& in_;
  const ScanSizes& z_;
  const Buffers& buffer_;
  const int64_t row_, head_, heads_, group_;
  RowsAhead ahead_;
  Operand<E> b_rows_{}, b_pairs_{}, c_pairs_{}, dy_{};  // of the block; dy in `pairs`
};

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
