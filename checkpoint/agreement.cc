#include "checkpoint/agreement.h"

#include <algorithm>
#include <cstring>

namespace transxssm {
namespace {

Tensor bytes_view(std::string& bytes) {
  return Tensor(bytes.data(), DType::u8, {static_cast<int64_t>(bytes.size())});
}

}  // namespace

std::vector<std::string> all_gather_bytes(Communicator& comm, const std::string& bytes) {
  const int64_t ranks = comm.size();
  auto size = static_cast<int64_t>(bytes.size());
  std::vector<int64_t> sizes(static_cast<size_t>(ranks));
  comm.all_gather(Tensor(&size, DType::i64, {1}), Tensor(sizes.data(), DType::i64, {ranks}));
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  std::vector<std::string> parts(static_cast<size_t>(ranks));
  if (longest == 0) return parts;
  std::string padded = bytes;
  padded.resize(static_cast<size_t>(longest));
  std::string all(static_cast<size_t>(longest * ranks), '\0');
  comm.all_gather(bytes_view(padded), bytes_view(all));
  for (size_t r = 0; r < parts.size(); ++r) {
    parts[r] = all.substr(r * static_cast<size_t>(longest), static_cast<size_t>(sizes[r]));
  }
  return parts;
}

void broadcast_bytes(Communicator& comm, std::string& bytes, int root) {
  auto size = static_cast<int64_t>(bytes.size());
  comm.broadcast(Tensor(&size, DType::i64, {1}), root);
  bytes.resize(static_cast<size_t>(size));
  if (size > 0) comm.broadcast(bytes_view(bytes), root);
}

std::string problem_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const std::exception& error) {
    return *error.what() == '\0' ? "unknown error" : error.what();
  }
  return "";
}

std::vector<std::string> gather_problems(Communicator& comm, const std::string& problem) {
  float failed = problem.empty() ? 0.0f : 1.0f;
  comm.all_reduce(Tensor(&failed, DType::f32, {1}), ReduceOp::max);
  if (failed == 0.0f) return {};
  std::vector<std::string> problems;
  const std::vector<std::string> all = all_gather_bytes(comm, problem);
  for (size_t r = 0; r < all.size(); ++r) {
    if (!all[r].empty()) problems.push_back(fmt::format("rank {}: {}", r, all[r]));
  }
  return problems;
}

FromRankZero run_on_rank_zero(Communicator& comm, const std::function<std::string()>& fn) {
  FromRankZero result;
  comm.work("checkpoint", comm.rank() == 0 ? std::function<void()>([&] {
              result.problem = problem_of([&] { result.value = fn(); });
            })
                                           : nullptr);
  broadcast_bytes(comm, result.problem, 0);
  broadcast_bytes(comm, result.value, 0);
  return result;
}

std::string pack(const std::vector<std::string>& parts) {
  std::string bytes;
  for (const std::string& part : parts) {
    const uint64_t size = part.size();
    bytes.append(reinterpret_cast<const char*>(&size), sizeof(size));
    bytes += part;
  }
  return bytes;
}

std::vector<std::string> unpack(const std::string& bytes) {
  std::vector<std::string> parts;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t size = 0;
    TRANSXSSM_CHECK(bytes.size() - at >= sizeof(size), "a packed message ends early");
    std::memcpy(&size, bytes.data() + at, sizeof(size));
    at += sizeof(size);
    TRANSXSSM_CHECK(bytes.size() - at >= size, "a packed message ends early");
    parts.push_back(bytes.substr(at, size));
    at += size;
  }
  return parts;
}

std::string join(const std::vector<std::string>& lines, const std::string& separator) {
  return fmt::format("{}", fmt::join(lines, separator));
}

}  // namespace transxssm
