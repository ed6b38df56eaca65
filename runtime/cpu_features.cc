#include "runtime/cpu_features.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <string_view>

namespace transxssm {
namespace {

enum Level { baseline, avx2, avx512, avx512_bf16 };

Level level_of_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bf16")) return avx512_bf16;
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) return avx512;
  if (__builtin_cpu_supports("avx2")) return avx2;
#endif
  return baseline;
}

// oneDNN's names of instruction sets, each with the most that it leaves.
Level cap() {
  const char* text = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (text == nullptr) return avx512_bf16;
  std::string name;
  for (const char* c = text; *c != 0; ++c)
    name += static_cast<char>(std::toupper(static_cast<unsigned char>(*c)));
  constexpr std::array<std::pair<std::string_view, Level>, 7> known = {{{"SSE41", baseline},
                                                                        {"AVX", baseline},
                                                                        {"AVX2", avx2},
                                                                        {"AVX2_VNNI", avx2},
                                                                        {"AVX512_CORE", avx512},
                                                                        {"AVX512_CORE_VNNI", avx512},
                                                                        {"AVX512_MIC", avx2}}};
  for (const auto& [isa, level] : known)
    if (name == isa) return level;
  return avx512_bf16;
}

Level level() {
  static const Level found = std::min(level_of_processor(), cap());
  return found;
}

}  // namespace

bool cpu_has_bf16() {
  return level() == avx512_bf16;
}

std::string cpu_level() {
  constexpr std::array<const char*, 4> names = {"baseline", "AVX2", "AVX512", "AVX512_BF16"};
  return names[static_cast<size_t>(level())];
}

}  // namespace transxssm
