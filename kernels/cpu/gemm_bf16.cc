#include "kernels/cpu/gemm_bf16.h"

#include <dnnl.hpp>

#include <array>
#include <map>

#include "kernels/cpu/gemm_matrix.h"

namespace transxssm::cpu {

namespace {

using Type = dnnl::memory::data_type;
using Desc = dnnl::memory::desc;

// From this many rows on it is faster to have b in oneDNN's layout before the product than to have every
// thread rearrange the parts it meets: 2 to 5 % faster at 4096 rows, of which the rearrangement costs 0.5 %.
constexpr int64_t kRowsToPack = 640;

// What of a product does not change while its operands keep their shapes and strides.
using Key = std::array<int64_t, 8>;
Key key_of(const Stream& stream, const Gemm& args) {
  const int64_t flags =
      args.transpose_a | args.transpose_b << 1 | args.accumulate << 2 | (args.c.dtype() == DType::f32) << 3;
  return {args.c.size(0),
          args.c.size(1),
          args.transpose_a ? args.a.size(0) : args.a.size(1),
          row_stride(args.a, "Gemm.a"),
          row_stride(args.b, "Gemm.b"),
          row_stride(args.c, "Gemm.c"),
          flags,
          stream.num_threads()};
}

// A matrix of `rows` x `columns` in memory of that row stride, or transposed there.
Desc stored(int64_t rows, int64_t columns, Type type, int64_t stride, bool transposed = false) {
  return Desc({rows, columns}, type,
              transposed ? dnnl::memory::dims{1, stride} : dnnl::memory::dims{stride, 1});
}

struct Product {
  Product(const dnnl::engine& engine, const Gemm& args, const Key& key) {
    const auto [m, n, k, a_stride, b_stride, c_stride, flags, threads] = key;
    const Desc a_desc = stored(m, k, Type::bf16, a_stride, args.transpose_a);
    const Desc b_desc = stored(k, n, Type::bf16, b_stride, args.transpose_b);
    const Desc c_desc = stored(m, n, args.c.dtype() == DType::f32 ? Type::f32 : Type::bf16, c_stride);
    const bool packs = m >= kRowsToPack;
    const Desc b_used = packs ? Desc({k, n}, Type::bf16, dnnl::memory::format_tag::any) : b_desc;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (args.accumulate) {
      dnnl::post_ops add;
      add.append_sum();
      attributes.set_post_ops(add);
    }
    const dnnl::matmul::primitive_desc desc({a_desc, b_used, c_desc}, attributes, engine, true);
    if (!desc) return;
    product = dnnl::matmul(desc);
    a = dnnl::memory(a_desc, engine, nullptr);
    b = dnnl::memory(b_desc, engine, nullptr);
    c = dnnl::memory(c_desc, engine, nullptr);
    scratchpad = dnnl::memory(desc.scratchpad_desc(), engine, nullptr);
    if (desc.weights_desc() == b_desc) return;
    packed = dnnl::memory(desc.weights_desc(), engine, nullptr);
    pack = dnnl::reorder(b, packed);
  }
  dnnl::primitive product, pack;  // no product: oneDNN lacks it; no pack: b is used as it is
  dnnl::memory a, b, c, scratchpad, packed;
};

// Of one thread: oneDNN divides the work for the number of threads of the one that asks.
struct Products {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Product> of;
};

void execute(const dnnl::primitive& primitive, const dnnl::stream& stream,
             std::initializer_list<dnnl_exec_arg_t> args) {
  const dnnl_status_t status =
      dnnl_primitive_execute(primitive.get(), stream.get(), static_cast<int>(args.size()), std::data(args));
  TRANSXSSM_CHECK(status == dnnl_success, "dnnl_primitive_execute returned {}", static_cast<int>(status));
}

int64_t bytes(const dnnl::memory& memory) {
  return static_cast<int64_t>(memory.get_desc().get_size());
}

}  // namespace

bool has_bf16_products() {
  constexpr auto kNeeded = static_cast<unsigned>(dnnl_cpu_isa_avx512_core_bf16);
  static const bool has = (static_cast<unsigned>(dnnl_get_effective_cpu_isa()) & kNeeded) == kNeeded;
  return has;
}

bool product_bf16(Stream& stream, const Gemm& args) {
  if (!has_bf16_products()) return false;
  thread_local Products products;
  const Key key = key_of(stream, args);
  auto found = products.of.find(key);
  if (found == products.of.end()) found = products.of.try_emplace(key, products.engine, args, key).first;
  Product& p = found->second;
  if (!p.product) return false;
  const bool packs{p.pack};
  const int64_t packed_bytes = packs ? bytes(p.packed) : 0;
  const int64_t scratch_bytes = bytes(p.scratchpad);
  Scratch scratch(stream, carved_bytes(DType::u8, {scratch_bytes}) + carved_bytes(DType::u8, {packed_bytes}));
  Carver carver = scratch.carver();
  p.scratchpad.set_data_handle(carver.take(DType::u8, {scratch_bytes}).raw());
  p.a.set_data_handle(args.a.raw());
  p.b.set_data_handle(args.b.raw());
  p.c.set_data_handle(args.c.raw());
  if (packs) {
    p.packed.set_data_handle(carver.take(DType::u8, {packed_bytes}).raw());
    execute(p.pack, products.stream, {{DNNL_ARG_FROM, p.b.get()}, {DNNL_ARG_TO, p.packed.get()}});
  }
  execute(p.product, products.stream,
          {{DNNL_ARG_SRC, p.a.get()},
           {DNNL_ARG_WEIGHTS, packs ? p.packed.get() : p.b.get()},
           {DNNL_ARG_DST, p.c.get()},
           {DNNL_ARG_SCRATCHPAD, p.scratchpad.get()}});
  return true;
}

}  // namespace transxssm::cpu
